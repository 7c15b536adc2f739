"""Streams that begin at once, in one transaction on the real PostgreSQL: as if each were alone."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from eventcore.errors import Conflict, KeyReused, StoreAway
from eventcore.event import NewEvent
from eventcore.store import Answer, Appended, Idempotency, Postgres, Stream, Together

LIMIT = 20
"""Seconds for what takes milliseconds."""


class Begin:
    """One append that begins a stream: with so many events, and a key if it is given."""

    def __init__(self, events: int = 1, key: Idempotency | None = None) -> None:
        self.stream = Stream("user", uuid4())
        self.events = [NewEvent(uuid4(), "USER_CREATED", 1, {"n": n}) for n in range(events)]
        self.key = key
        self.answer = Answer(200, {"id": str(self.stream.aggregate_id)}, {})

    def on(self, store: Postgres) -> Appended:
        """Do it."""
        given = (self.key, self.answer) if self.key else (None, None)
        return store.append(self.stream, 0, self.events, {"by": str(self.stream)}, *given)

    def is_whole_in(self, store: Postgres) -> bool:
        """Whether its events are there, each once, in order and with its own metadata."""
        found = store.read_stream(self.stream)
        return [(e.event_id, e.version, e.metadata) for e in found] == [
            (event.event_id, version, {"by": str(self.stream)})
            for version, event in enumerate(self.events, 1)
        ]


def together(store: Postgres, begins: Sequence[Begin]) -> list[Future[Appended]]:
    """Have them gather behind as many as may be under way, then all go on; waits for all."""
    with ThreadPoolExecutor(len(begins) + Together.UNDER_WAY) as pool, held(store) as let_go:
        for _ in range(Together.UNDER_WAY):
            pool.submit(Begin().on, store)
        soon(lambda: store._together._under_way == Together.UNDER_WAY)
        doing = []
        for count, begin in enumerate(begins, 1):
            doing.append(pool.submit(begin.on, store))
            soon(lambda: len(store._together._gathered) == count)  # noqa: B023
        let_go()
    return doing


@contextmanager
def held(store: Postgres) -> Iterator[Callable[[], None]]:
    """What is appended alone waits, until it is let go."""
    may_go = threading.Event()
    alone = store._append

    def waits(*args: Any) -> Appended:
        assert may_go.wait(LIMIT)
        return alone(*args)

    store._append = waits  # type: ignore[method-assign, assignment]
    try:
        yield may_go.set
    finally:
        store._append = alone  # type: ignore[method-assign]


def soon(condition: Callable[[], bool]) -> None:
    until = monotonic() + LIMIT
    while not condition():
        assert monotonic() < until
        sleep(0.001)


@pytest.fixture(autouse=True)
def one_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that all that gather go in one transaction."""
    monkeypatch.setattr(Together, "UNDER_WAY", 1)


@pytest.fixture
def calls(store: Postgres, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that are sent from now on."""
    rows, sent = store._rows, list[str]()

    def noted(statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        sent.append(statement)
        return rows(statement, values)

    monkeypatch.setattr(store, "_rows", noted)
    return sent


def count(calls: list[str], function: str) -> int:
    return sum(function in call for call in calls)


def test_they_share_a_transaction_and_each_is_whole(
    store: Postgres, owner: Engine, calls: list[str]
) -> None:
    begins = [Begin(events=1 + n % 3) for n in range(12)]
    found = [each.result() for each in together(store, begins)]
    assert found == [Appended(len(begin.events)) for begin in begins]
    assert all(begin.is_whole_in(store) for begin in begins)
    assert (count(calls, "begin_streams"), count(calls, "append_events")) == (1, 1)
    with owner.connect() as connection:
        ids = [begin.stream.aggregate_id for begin in begins]
        rows = connection.exec_driver_sql(
            "select count(distinct e.xmin::text), count(distinct e.recorded_at),"
            " max(position) - min(position) + 1, bool_and(e.recorded_at = s.recorded_at)"
            " from events e join streams s using (aggregate_type, aggregate_id)"
            " where aggregate_id = any(%s::uuid[])",
            ([str(each) for each in ids],),
        )
        assert rows.one() == (1, 1, sum(len(begin.events) for begin in begins), True)


def test_such_a_stream_goes_on_from_where_it_begun(store: Postgres) -> None:
    begins = [Begin(events=2) for _ in range(3)]
    together(store, begins)
    more = [NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {})]
    assert store.append(begins[1].stream, 2, more, {}).version == 3
    with pytest.raises(Conflict):
        store.append(begins[2].stream, 1, more, {})


def test_a_key_that_is_known_brings_its_answer_and_the_others_are_appended(
    store: Postgres, calls: list[str]
) -> None:
    key = Idempotency(f"known {uuid4()}", "request")
    first = Begin(key=key)
    first.on(store)
    again, other, reused = Begin(key=key), Begin(), Begin(key=Idempotency(key.key, "another"))
    replayed, done, refused = together(store, [again, other, reused])
    assert replayed.result().replayed == first.answer
    assert done.result() == Appended(1)
    assert isinstance(refused.exception(), KeyReused)
    assert other.is_whole_in(store)
    assert store.read_stream(again.stream) == store.read_stream(reused.stream) == []
    assert count(calls, "begin_streams") == 1


def test_of_two_with_one_key_one_is_appended_and_the_other_gets_its_answer(
    store: Postgres,
) -> None:
    key, stolen = Idempotency(f"b {uuid4()}", "request"), Idempotency(f"a {uuid4()}", "request")
    thief = Idempotency(stolen.key, "another")
    begins = [Begin(key=each) for each in (key, stolen, None, key, thief)]
    *done, refused = together(store, begins)
    assert [each.result().replayed for each in done] == [None, None, None, begins[0].answer]
    assert isinstance(refused.exception(), KeyReused)
    assert [begin.is_whole_in(store) for begin in begins] == [True] * 3 + [False] * 2
    assert store.read_stream(begins[3].stream) == store.read_stream(begins[4].stream) == []


def test_a_key_is_recorded_with_its_answer(store: Postgres) -> None:
    begins = [Begin(key=Idempotency(f"new {uuid4()}", f"request {n}")) for n in range(3)]
    together(store, begins)
    assert [store.recorded_answer(b.key) for b in begins if b.key] == [b.answer for b in begins]


def test_an_expired_key_is_a_new_one(store: Postgres, owner: Engine) -> None:
    key = Idempotency(f"expired {uuid4()}", "request")
    Begin(key=key).on(store)
    with owner.connect() as connection:
        connection.exec_driver_sql(
            "update idempotency_keys set recorded_at = now() - interval '25 hours' where key = %s",
            (key.key,),
        )
    begins = [Begin(key=key), Begin()]
    assert [each.result().replayed for each in together(store, begins)] == [None, None]
    assert all(begin.is_whole_in(store) for begin in begins)


def test_a_stream_that_is_there_conflicts_alone(store: Postgres, calls: list[str]) -> None:
    there = Begin(key=Idempotency(f"conflict {uuid4()}", "request"))
    Begin.on(there, store)
    there.key, there.events = Idempotency(f"other {uuid4()}", ""), Begin().events
    others = [Begin(key=Idempotency(f"beside {uuid4()}", "")), Begin()]
    conflict, *done = together(store, [there, *others])
    assert isinstance(conflict.exception(), Conflict)
    assert [each.result() for each in done] == [Appended(1), Appended(1)]
    assert all(other.is_whole_in(store) for other in others)
    assert store.recorded_answer(there.key) is None
    assert count(calls, "begin_streams") == 1


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_connection_lost_before_or_after_the_commit_appends_each_once(
    store: Postgres, monkeypatch: pytest.MonkeyPatch, keys: bool, after: bool
) -> None:
    rows, lost = store._rows, list[str]()

    def loses_the_first(statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        if "begin_streams" not in statement or lost:
            return rows(statement, values)
        lost.append(statement)
        if after:
            rows(statement, values)
        raise StoreAway("the connection broke")

    monkeypatch.setattr(store, "_rows", loses_the_first)
    begins = [Begin(n, Idempotency(f"{uuid4()}", "") if keys else None) for n in (1, 2, 3)]
    found = [each.result() for each in together(store, begins)]
    assert lost
    if keys and after:
        assert [each.replayed for each in found] == [begin.answer for begin in begins]
    else:
        assert found == [Appended(1), Appended(2), Appended(3)]
    assert all(begin.is_whole_in(store) for begin in begins)


def test_the_relay_and_the_feed_miss_nothing_of_many_that_begin_at_once(store: Postgres) -> None:
    begun = store.settled()
    with ThreadPoolExecutor(16) as pool:
        begins = [Begin() for _ in range(400)]
        list(pool.map(lambda begin: begin.on(store), begins))
    end = store.settled()
    feed = store.read_feed(begun, end, 1000)
    assert {event.event_id for event in feed} == {b.events[0].event_id for b in begins}
    assert len(feed) == 400
