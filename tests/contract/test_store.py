"""The contract of a store: the same tests in memory and on PostgreSQL."""

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from eventcore.errors import Conflict, KeyReused
from eventcore.model.event import START, Mark, NewEvent
from eventcore.store.port import (
    Answer,
    Append,
    Changes,
    Deadline,
    Due,
    Idempotency,
    Progress,
    Snapshot,
    Store,
    Stream,
    Waiting,
)
from eventcore.store.postgres import Postgres
from tests.fakes.store import FakeStore

ANSWER = Answer(202, {"userId": "u", "price": Decimal("0.10")}, {"ETag": '"1"'})


@pytest.fixture(params=["fake", pytest.param("postgres", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "fake":
        yield FakeStore()
        return
    service = request.getfixturevalue("spare_databases")("spare", "service")
    postgres = Postgres(service, connections=4)
    yield postgres
    postgres.close()


@pytest.fixture
def stream() -> Stream:
    return Stream("user", uuid4())


def new_event(**data: object) -> NewEvent:
    return NewEvent(uuid4(), "USER_CREATED", 1, data)  # type: ignore[arg-type]


def test_events_come_back_as_they_were_appended(store: Store, stream: Stream) -> None:
    new = new_event(name="Ada é", price=Decimal("0.10"), tags=["a", None, True], at={"x": 1})
    assert store.append(stream, 0, [new], {"correlationId": "c"}).version == 1
    [event] = store.read_stream(stream)
    assert event.data == new.data
    assert str(event.data["price"]) == "0.10"
    assert (event.event_id, event.version, event.event_type) == (new.event_id, 1, new.event_type)
    assert event.metadata == {"correlationId": "c"}
    assert event.recorded_at.tzinfo


def test_events_are_found_by_their_correlation_id_between_two_positions(store: Store) -> None:
    wanted, before = str(uuid4()), store.settled()
    for correlation_id in (wanted, "another", wanted, wanted):
        stream, metadata = Stream("user", uuid4()), {"correlationId": correlation_id}
        store.append(stream, 0, [new_event()], metadata)
    first, _, third, last = store.read_feed(before, store.settled())
    assert store.read_correlated(wanted, before, last.position) == [first, third, last]
    assert store.read_correlated(wanted, first.position, third.position) == [third]
    assert store.read_correlated("' or true --", before, last.position) == []


def test_an_event_is_found_by_its_id(store: Store, stream: Stream) -> None:
    new = new_event(name="Ada")
    store.append(stream, 0, [new_event(), new], {})
    found = store.read_event(new.event_id)
    assert found
    assert (found.event_id, found.version, found.data) == (new.event_id, 2, new.data)
    assert store.read_event(uuid4()) is None


def test_several_events_get_consecutive_versions_and_positions(
    store: Store, stream: Stream
) -> None:
    appended = store.append(stream, 0, [new_event(n=n) for n in range(5)], {})
    events = store.read_stream(stream)
    assert appended.position == events[-1].position
    assert [event.version for event in events] == [1, 2, 3, 4, 5]
    assert [event.data["n"] for event in events] == [0, 1, 2, 3, 4]
    assert [event.position for event in events] == sorted(event.position for event in events)


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_an_append_to_another_version_is_a_conflict_and_writes_nothing(
    store: Store, stream: Stream, wrong: int
) -> None:
    store.append(stream, 0, [new_event(), new_event()], {})
    with pytest.raises(Conflict):
        store.append(stream, wrong, [new_event()], {})
    assert len(store.read_stream(stream)) == 2


def test_a_stream_is_read_in_pages(store: Store, stream: Stream) -> None:
    store.append(stream, 0, [new_event() for _ in range(5)], {})
    assert [e.version for e in store.read_stream(stream, after=1, limit=2)] == [2, 3]
    assert store.read_stream(stream, after=5) == []


def test_streams_of_two_types_with_one_id_are_two_streams(store: Store, stream: Stream) -> None:
    store.append(stream, 0, [new_event()], {})
    other = Stream("parcel", stream.aggregate_id)
    assert store.read_stream(other) == []
    assert store.append(other, 0, [new_event()], {}).version == 1


def test_a_known_key_appends_nothing_and_brings_its_answer(store: Store, stream: Stream) -> None:
    key = Idempotency(f"key {uuid4()}", "hash")
    assert store.recorded_answer(key) is None
    assert store.append(stream, 0, [new_event()], {}, key, ANSWER).replayed is None
    assert store.append(stream, 0, [new_event()], {}, key, ANSWER).replayed == ANSWER
    assert store.recorded_answer(key) == ANSWER
    assert len(store.read_stream(stream)) == 1


def test_a_key_is_recorded_for_a_command_without_events_too(store: Store, stream: Stream) -> None:
    key = Idempotency(f"key {uuid4()}", "hash")
    assert store.append(stream, 0, [], {}, key, ANSWER).position == 0
    assert store.recorded_answer(key) == ANSWER


def test_a_key_of_a_command_that_lost_a_race_is_not_recorded(store: Store, stream: Stream) -> None:
    key = Idempotency(f"key {uuid4()}", "hash")
    store.append(stream, 0, [new_event()], {})
    with pytest.raises(Conflict):
        store.append(stream, 0, [new_event()], {}, key, ANSWER)
    assert store.recorded_answer(key) is None


def test_a_key_stands_for_one_request(store: Store, stream: Stream) -> None:
    name = f"key {uuid4()}"
    store.append(stream, 0, [new_event()], {}, Idempotency(name, "hash"), ANSWER)
    other = Idempotency(name, "another hash")
    for act in (
        lambda: store.recorded_answer(other),
        lambda: store.append(stream, 1, [new_event()], {}, other, ANSWER),
    ):
        refuses(act)
    assert len(store.read_stream(stream)) == 1


def refuses(act: Callable[[], object]) -> None:
    with pytest.raises(KeyReused):
        act()


def test_several_streams_are_appended_to_in_one_transaction(store: Store, stream: Stream) -> None:
    store.append(stream, 0, [new_event(n=0)], {})
    parcel, before = Stream("parcel", uuid4()), store.settled()
    appends = [
        Append(parcel, 0, [new_event(n=1), new_event(n=2)]),
        Append(stream, 1, [new_event(n=3)]),
    ]
    assert store.append_many(appends, {"correlationId": "c"}) is None
    events = store.read_feed(before, store.settled())
    assert [(e.aggregate_type, e.version, e.data["n"]) for e in events] == [
        ("parcel", 1, 1), ("parcel", 2, 2), ("user", 2, 3),
    ]  # fmt: skip
    assert events == store.read_stream(parcel) + store.read_stream(stream, after=1)
    assert events[0].recorded_at.tzinfo
    assert [e.event_id for e in events] == [e.event_id for each in appends for e in each.events]
    assert store.append(parcel, 2, [new_event()], {}).version == 3


def test_all_conflicts_of_several_streams_are_named_and_nothing_is_written(
    store: Store, stream: Stream
) -> None:
    fine, there, absent = stream, Stream("parcel", uuid4()), Stream("user", uuid4())
    store.append(fine, 0, [new_event()], {})
    store.append(there, 0, [new_event(), new_event()], {})
    before, key = store.settled(), Idempotency(f"key {uuid4()}", "hash")
    appends = [
        Append(there, 0, [new_event()]),
        Append(Stream("user", uuid4()), 0, [new_event()]),
        Append(fine, 1, [new_event()]),
        Append(absent, 3, [new_event()]),
    ]
    with pytest.raises(Conflict) as refused:
        store.append_many(appends, {}, key, ANSWER)
    assert refused.value.versions == {0: 2, 3: 0}
    with pytest.raises(Conflict) as refused:
        store.append_many([Append(there, 1, []), appends[1]], {}, key, ANSWER)
    assert refused.value.versions == {0: 2}
    assert store.read_feed(before, store.settled()) == []
    assert store.read_stream(appends[1].stream) == []
    assert store.recorded_answer(key) is None


def test_a_stream_without_events_is_compared_and_left_alone(store: Store, stream: Stream) -> None:
    store.append(stream, 0, [new_event()], {})
    [before] = store.read_stream(stream)
    store.append_many(
        [Append(stream, 1, []), Append(Stream("user", uuid4()), 0, [new_event()])], {}
    )
    assert store.read_stream(stream) == [before]
    assert store.append(stream, 1, [new_event()], {}).version == 2


def test_one_key_stands_for_all_streams_of_a_transaction(store: Store, stream: Stream) -> None:
    key = Idempotency(f"key {uuid4()}", "hash")
    appends = [
        Append(stream, 0, [new_event()]),
        Append(Stream("parcel", uuid4()), 0, [new_event()]),
    ]
    assert store.append_many(appends, {}, key, ANSWER) is None
    assert store.append_many(appends, {}, key, ANSWER) == ANSWER
    assert [len(store.read_stream(each.stream)) for each in appends] == [1, 1]
    refuses(lambda: store.append_many(appends, {}, Idempotency(key.key, "another hash"), ANSWER))


@pytest.fixture
def kind() -> str:
    """An aggregate type of its own, since `take_due` takes all streams of a type."""
    return f"saga_{uuid4().hex}"


def due(store: Store, kind: str, hold: float = 0.0) -> list[Due]:
    return store.take_due(kind, 100, hold)


def test_a_deadline_is_replaced_removed_or_left_with_the_events_of_a_stream(
    store: Store, kind: str
) -> None:
    saga, other = Stream(kind, uuid4()), Stream(f"{kind}_x", uuid4())
    now, later, never = Deadline(0.0), Deadline(3600.0), Deadline(None)
    store.append_many(
        [Append(saga, 0, [new_event(), new_event()], now), Append(other, 0, [new_event()], now)], {}
    )
    assert due(store, kind) == [Due(saga, 2)]
    store.append_many([Append(saga, 2, [new_event()])], {})
    store.append(saga, 3, [new_event()], {})
    assert due(store, kind) == [Due(saga, 2)], "it was set at version 2, and left as it is since"
    store.append_many([Append(saga, 4, [new_event()], later)], {})
    assert due(store, kind) == []
    store.append_many([Append(saga, 5, [], now)], {})
    assert due(store, kind) == [Due(saga, 5)]
    store.append_many([Append(saga, 5, [new_event()], never)], {})
    assert due(store, kind) == []
    store.append_many([Append(saga, 6, [new_event()], never)], {})
    assert due(store, other.aggregate_type) == [Due(other, 1)]


def test_a_deadline_is_taken_once_within_its_hold_and_longest_due_first(
    store: Store, kind: str
) -> None:
    sagas = [Stream(kind, uuid4()) for _ in range(5)]
    for stream, seconds in zip(sagas, (-2.0, -3.0, -1.0, 3600.0, -4.0), strict=True):
        store.append_many([Append(stream, 0, [new_event()], Deadline(seconds))], {})
    taken = store.take_due(kind, 3, 3600.0)
    assert taken == [Due(sagas[n], 1) for n in (4, 1, 0)]
    for found, least in zip(taken, (4, 3, 2), strict=True):
        assert least <= found.late < least + 60
    assert store.take_due(kind, 3, 0.0) == [Due(sagas[2], 1)]
    assert store.take_due(kind, 3, 3600.0) == [Due(sagas[2], 1)], "its hold of 0 seconds is over"
    assert store.take_due(kind, 3, 3600.0) == []


def test_how_long_the_oldest_deadline_is_overdue_is_known_by_type(store: Store, kind: str) -> None:
    late, early = f"{kind}_late", f"{kind}_early"
    for each, seconds in ((late, -100.0), (late, -50.0), (late, 60.0), (early, 60.0)):
        store.append_many([Append(Stream(each, uuid4()), 0, [new_event()], Deadline(seconds))], {})
    found = store.overdue([late, early, kind])
    assert 100 <= found.pop(late) < 160
    assert found == {early: 0.0, kind: 0.0}
    store.take_due(late, 1, 60.0)
    assert 50 <= store.overdue([late])[late] < 100, "one that is taken is not overdue"


def test_streams_with_a_deadline_are_listed_and_stuck_ones_counted(store: Store, kind: str) -> None:
    sagas = [Stream(kind, uuid4()) for _ in range(4)]
    for stream, seconds in zip(sagas, (3600.0, math.inf, 7200.0, -1.0), strict=True):
        store.append_many([Append(stream, 0, [new_event()], Deadline(seconds))], {})
    stuck, latest, later, late = found = store.read_waiting(kind)
    assert [each.stream for each in found] == [sagas[n] for n in (1, 2, 0, 3)]
    assert stuck == Waiting(sagas[1], 1, None)
    times = [each.due_at for each in (late, later, latest) if each.due_at]
    assert len(times) == 3
    assert times == sorted(times)
    assert store.read_waiting(kind, 2) == [stuck, latest]
    assert store.read_waiting(kind, stuck=True) == [stuck]
    assert store.read_waiting(f"{kind}_x") == []
    assert store.count_stuck([kind, f"{kind}_x"]) == {kind: 1, f"{kind}_x": 0}
    assert due(store, kind) == [Due(sagas[3], 1)], "a stuck one is never due"
    store.append_many([Append(sagas[1], 1, [new_event()], Deadline(None))], {})
    assert store.count_stuck([kind]) == {kind: 0}
    assert len(store.read_waiting(kind)) == 3


def test_a_stuck_stream_alone_is_not_overdue(store: Store, kind: str) -> None:
    append = Append(Stream(kind, uuid4()), 0, [new_event()], Deadline(math.inf))
    store.append_many([append], {})
    assert store.overdue([kind]) == {kind: 0.0}


def test_events_are_found_by_an_id_that_they_name(store: Store) -> None:
    wanted, before = str(uuid4()), store.settled()
    named: list[dict[str, object]] = [
        {"orderId": wanted}, {"orderId": str(uuid4())}, {"note": wanted}, {"a": [wanted]},
        {"n": 1, "userId": wanted},
    ]  # fmt: skip
    for data in named:
        store.append(Stream("user", uuid4()), 0, [new_event(**data)], {})
    events = store.read_feed(before, store.settled())
    assert store.read_correlated(wanted, before, store.settled()) == [events[0], events[4]]


def test_a_refused_transaction_leaves_deadlines_alone(store: Store, kind: str) -> None:
    saga, absent, key = Stream(kind, uuid4()), Stream(kind, uuid4()), Idempotency(kind, "hash")
    begin = Append(saga, 0, [new_event()], Deadline(3600.0))
    assert store.append_many([begin], {}, key, ANSWER) is None
    now = Deadline(0.0)
    with pytest.raises(Conflict):
        store.append_many([Append(saga, 1, [], now), Append(absent, 3, [new_event()], now)], {})
    assert store.append_many([Append(saga, 1, [], now)], {}, key, ANSWER) == ANSWER
    assert due(store, kind) == []


def test_a_snapshot_of_a_stream_is_replaced_and_read(store: Store, kind: str) -> None:
    saga, other = Stream(kind, uuid4()), Stream(kind, uuid4())
    assert store.read_snapshot(saga) is None
    first, second = (
        Snapshot(version, str(uuid4()), "digest", "checksum", '{"é": "\\u0000", "n": 0.10}')
        for version in (7, 5)
    )
    store.write_snapshot(saga, first)
    store.write_snapshot(other, first)
    store.write_snapshot(saga, second)
    assert store.read_snapshot(saga) == second
    assert store.read_snapshot(other) == first


def test_snapshots_of_a_type_are_read_in_pages(store: Store, kind: str) -> None:
    snapshot = Snapshot(1, str(uuid4()), "digest", "checksum", "null")
    sagas = sorted((Stream(kind, uuid4()) for _ in range(5)), key=lambda s: s.aggregate_id)
    for stream in (*sagas, Stream(f"{kind}_x", uuid4())):
        store.write_snapshot(stream, snapshot)
    assert [stream for stream, _ in store.read_snapshots(kind)] == sagas
    above = store.read_snapshots(kind, sagas[1].aggregate_id, 2)
    assert above == [(stream, snapshot) for stream in sagas[2:4]]


def test_the_feed_has_every_stream_in_the_order_of_positions(store: Store) -> None:
    begin = store.settled()
    first, second = Stream("user", uuid4()), Stream("user", uuid4())
    store.append(first, 0, [new_event(n=1)], {})
    store.append(second, 0, [new_event(n=2)], {})
    store.append(first, 1, [new_event(n=3)], {})
    end = store.settled()
    feed = store.read_feed(begin, end)
    assert [event.data["n"] for event in feed] == [1, 2, 3]
    assert store.read_feed(begin, end, limit=1) == feed[:1]
    assert store.read_feed(feed[0].position, feed[1].position) == feed[1:2]


def test_heads_name_each_stream_that_changed_with_its_last_version_there(store: Store) -> None:
    begin = store.settled()
    first, second = Stream("user", uuid4()), Stream("user", uuid4())
    store.append(first, 0, [new_event(), new_event()], {})
    middle = store.settled()
    store.append(second, 0, [new_event()], {})
    store.append(first, 2, [new_event()], {})
    store.append(Stream("parcel", uuid4()), 0, [new_event()], {})
    end = store.settled()
    assert changed(store, begin, middle) == {(first.aggregate_id, 2)}
    assert changed(store, begin, end) == {(first.aggregate_id, 3), (second.aggregate_id, 1)}


def changed(store: Store, after: int, until: int) -> set[tuple[UUID, int]]:
    found = store.read_changes("user", after, until, START, ())
    assert found
    assert found.end.position == until
    return {(UUID(stream), version) for stream, version in found.heads.items()}


def test_a_page_of_changes_is_read_of_a_log_that_has_the_events_asked_for(
    store: Store, stream: Stream
) -> None:
    begin = store.settled()
    store.append(stream, 0, [new_event(), new_event()], {})
    log = store.settled() and store.progress("user")
    assert isinstance(log, Progress)
    first, second = store.read_feed(begin, log.settled)
    assert log.mark == second.mark
    there = store.read_changes("user", begin, log.settled, log.mark, [first.mark, second.mark])
    assert there == Changes({str(stream.aggregate_id): 2}, second.mark)
    for absent in (
        Mark(first.position, str(second.event_id)),
        Mark(second.position + 1, str(uuid4())),
    ):
        read = store.read_changes("user", begin, log.settled, log.mark, [first.mark, absent])
        assert read is None
    at_the_end = store.read_changes("user", log.settled, log.settled, log.mark, ())
    assert at_the_end == Changes({}, second.mark)


def test_each_event_of_the_feed_names_the_one_before_it_in_its_stream(
    store: Store, stream: Stream
) -> None:
    begin = store.settled()
    store.append(stream, 0, [new_event(), new_event()], {})
    store.append(Stream("user", uuid4()), 0, [new_event()], {})
    store.append(stream, 2, [new_event()], {})
    one, two, other, three = store.read_feed(begin, store.settled())
    assert [e.previous for e in (one, two, other, three)] == [
        None, one.event_id, None, two.event_id,
    ]  # fmt: skip


def test_progress_says_how_far_the_log_goes_and_how_far_of_it_is_relayed(
    store: Store, stream: Stream
) -> None:
    store.append(stream, 0, [new_event(), new_event()], {})
    first = store.settled()
    progress = store.progress("user")
    assert progress == Progress(first, first, 0, progress.epoch, progress.event_id)
    assert progress.epoch
    store.append(stream, 2, [new_event()], {})
    store.settled()
    assert store.progress("user").settled == first + 1
