"""Whatever the broker loses, repeats or reorders: the read model is the fold of the log."""

import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import make_dataclass, replace
from datetime import UTC, datetime
from random import Random
from threading import Event as Stop
from threading import Thread
from time import monotonic, sleep
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.broker.port import Consumer
from eventcore.errors import BrokerUnavailable, FeedUnavailable
from eventcore.model.catalogue import Catalogue
from eventcore.model.event import Event, Mark, NewEvent
from eventcore.model.message import Message
from eventcore.model.projection import Document, Projection
from eventcore.observe.health import Health
from eventcore.project.applier import EventApplier
from eventcore.project.projector import STALLED_SWEEPS
from eventcore.relay import to_broker
from eventcore.settings import Secret
from eventcore.store.http_feed import HttpFeed
from eventcore.store.port import PAGE, Stream
from order.projections import orders
from tests.fakes.shop import FakeShop, projector
from user.projections import users
from user.user import DECIDER, User

USERS, ORDERS, KNOWN = "user_projection_queue", "order_read_model_queue", "order_service_user_sync"


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


def expected(shop: FakeShop, projection: Projection) -> dict[str, object]:
    """The expected read model: each stream of the log, folded."""
    store = {"user": shop.user_store, "order": shop.order_store}[projection.aggregate_type]
    streams = {e.aggregate_id for e in store.log}
    return {
        str(each): projection.fold(store.read_stream(Stream(projection.aggregate_type, each)))
        for each in streams
    }


def assert_converged(shop: FakeShop) -> None:
    for projection in (users.PROJECTION, orders.PROJECTION):
        assert shop.readmodel.collections[projection.collection] == expected(shop, projection)


def busy(shop: FakeShop) -> str:
    """Some users and orders, published but not consumed; one user's id."""
    user_id = shop.create_user()
    for number in range(3):
        shop.users.put(f"/users/{user_id}", json={"name": f"Ada {number}"})
        order_id = shop.place_order(user_id)
        shop.orders.post(f"/orders/{order_id}/cancel", json={})
    shop.relay()
    return user_id


def twice(shop: FakeShop) -> None:
    for queue in (USERS, ORDERS, KNOWN):
        shop.broker.queues[queue].extend(list(shop.broker.queues[queue]))


def in_reverse(shop: FakeShop) -> None:
    for queue in (USERS, ORDERS, KNOWN):
        shop.broker.queues[queue].reverse()


def not_at_all(shop: FakeShop) -> None:
    for queue in (USERS, ORDERS, KNOWN):
        shop.broker.purge(queue)


def without_the_last(shop: FakeShop) -> None:
    for queue in (USERS, ORDERS, KNOWN):
        shop.broker.queues[queue].pop()


def with_queues_deleted(shop: FakeShop) -> None:
    for queue in (USERS, ORDERS, KNOWN):
        shop.broker.delete(queue)


@pytest.mark.parametrize(
    "trouble", [twice, in_reverse, not_at_all, without_the_last, with_queues_deleted]
)
def test_messages_that_come_in_any_way_lead_to_the_same_documents(
    shop: FakeShop, trouble: Callable[[FakeShop], None]
) -> None:
    busy(shop)
    trouble(shop)
    shop.consume()
    shop.sweep()
    assert_converged(shop)


@given(st.data())
def test_any_shuffle_with_losses_and_repeats_converges(data: st.DataObject) -> None:
    shop = FakeShop()
    busy(shop)
    for queue in (USERS, ORDERS):
        messages = list(shop.broker.queues[queue])
        chosen = data.draw(st.lists(st.sampled_from(messages), max_size=len(messages) * 2))
        shop.broker.queues[queue].clear()
        shop.broker.queues[queue].extend(chosen)
    shop.consume()
    shop.sweep()
    assert_converged(shop)


def test_messages_in_order_need_neither_feed_nor_sweep(shop: FakeShop) -> None:
    busy(shop)
    shop.user_store.away = shop.order_store.away = True
    shop.consume()
    shop.user_store.away = shop.order_store.away = False
    assert_converged(shop)


def test_a_relay_killed_before_its_checkpoint_publishes_again_without_harm(
    shop: FakeShop,
) -> None:
    busy(shop)
    shop.user_store.checkpoints.clear()
    shop.order_store.checkpoints.clear()
    shop.relay()
    assert len(shop.broker.queues[USERS]) > len(shop.user_store.log)
    shop.consume()
    assert_converged(shop)


def test_a_gap_is_left_to_the_sweep_while_the_feed_is_unavailable(
    shop: FakeShop,
) -> None:
    user_id = busy(shop)
    other = shop.users.post("/users", json={"name": "Bob", "email": "b@b"}).get_json()["userId"]
    shop.relay()
    del shop.broker.queues[USERS][0]

    def away(after: object) -> dict[str, list[object]]:
        raise FeedUnavailable("a test said so")

    feed = shop.projectors["users"].applier.feed
    feed.streams = away  # type: ignore[method-assign, assignment]
    shop.consume()
    assert other in shop.readmodel.collections["users"]
    assert shop.readmodel.collections["users"][user_id]["version"] == 1
    del feed.streams
    shop.sweep()
    assert_converged(shop)


def test_an_event_that_cannot_be_applied_parks_its_stream_alone(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    poison(shop, user_id, "USER_NAME_CHANGED", {"name": "Eve"})
    other = shop.create_user("Bob")
    shop.sweep()
    parked = shop.readmodel.parked("users")
    assert list(parked) == [user_id]
    assert (parked[user_id].version, parked[user_id].highest) == (2, 3)
    assert "unknown" in parked[user_id].error
    assert shop.readmodel.collections["users"][user_id]["version"] == 1
    assert shop.readmodel.collections["users"][other]["version"] == 1
    assert shop.readmodel.checkpoint("users").position == len(shop.user_store.log)


def test_after_the_fix_a_parked_stream_goes_on_where_it_stopped(shop: FakeShop) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    poison(shop, user_id, "USER_NAME_CHANGED", {"name": "Eve"})
    shop.settle()
    applier = shop.projectors["users"].applier
    entries = shop.readmodel.parked("users")
    assert applier.retry(entries) == set()
    fixed = replace(users.PROJECTION, ignores=frozenset({"USER_MARRIED"}))
    assert EventApplier(fixed, shop.readmodel, applier.feed).retry(entries) == {user_id}
    assert shop.readmodel.parked("users") == {}
    assert shop.readmodel.collections["users"][user_id]["name"] == "Eve"
    assert shop.readmodel.collections["users"][user_id]["version"] == 3


def test_new_code_tries_parked_streams_when_it_starts(shop: FakeShop) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    shop.settle()
    fixed = replace(users.PROJECTION, ignores=frozenset({"USER_MARRIED"}))
    projector(fixed, shop.readmodel, shop.user_store, shop.broker).sweep()
    assert shop.readmodel.parked("users") == {}
    assert shop.readmodel.collections["users"][user_id]["version"] == 2


def test_a_stream_that_is_parked_too_late_is_released_again(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    shop.settle()
    noted_before = shop.readmodel.parked("users")[user_id]
    fixed = replace(users.PROJECTION, ignores=frozenset({"USER_MARRIED"}))
    new = projector(fixed, shop.readmodel, shop.user_store, shop.broker)
    new.sweep()
    assert shop.readmodel.parked("users") == {}
    shop.readmodel.park([noted_before])
    new.sweep()
    assert shop.readmodel.parked("users") == {}


def test_a_stream_parked_by_old_code_after_the_new_one_started_is_released(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    fixed = replace(users.PROJECTION, ignores=frozenset({"USER_MARRIED"}))
    new = projector(fixed, shop.readmodel, shop.user_store, shop.broker)
    new.sweep()
    poison(shop, user_id)
    shop.settle()
    assert list(shop.readmodel.parked("users")) == [user_id]
    new.sweep()
    assert shop.readmodel.parked("users") == {}


def test_a_parked_stream_is_tried_once_and_not_at_every_sweep(shop: FakeShop) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    shop.settle()
    tries: list[Event] = []

    def fails(_document: Document, event: Event) -> Document:
        tries.append(event)
        raise ValueError

    knows = Catalogue("user", make_dataclass("UserMarried", []))
    broken = replace(users.PROJECTION, catalogue=knows, steps={"USER_MARRIED": fails})
    again = projector(broken, shop.readmodel, shop.user_store, shop.broker)
    for _ in range(3):
        again.sweep()
    assert len(tries) == 1


def test_a_document_that_mongodb_cannot_store_parks_its_stream_alone(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    poison(shop, ada, "USER_NAME_CHANGED", {"name": 2**70})
    shop.users.put(f"/users/{bob}", json={"name": "Bo"})
    shop.settle()
    assert list(shop.readmodel.parked("users")) == [ada]
    assert shop.readmodel.collections["users"][ada]["version"] == 1
    assert shop.readmodel.collections["users"][bob]["version"] == 2


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"specVersion":1}', b"\xff\x00", b"null"])
def test_what_is_no_event_goes_to_the_dead_letters_whole_and_nothing_stops(
    shop: FakeShop, body: bytes
) -> None:
    user_id = shop.create_user()
    shop.broker.route(Message("x", "user.created", body, {}))
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.settle()
    [(dead, _)] = shop.broker.queues[f"{USERS}.dead-letters"]
    assert dead.body == body
    assert dead.headers["x-reason"]
    assert_converged(shop)


def test_a_sweep_notes_how_many_messages_and_dead_letters_there_are(shop: FakeShop) -> None:
    shop.create_user()
    shop.broker.route(Message("x", "user.created", b"{", {}))
    shop.settle()
    for body in (b"1", b"2"):
        shop.broker.route(Message("x", "user.created", body, {}))
    users = shop.projectors["users"]
    assert shop.readmodel.depth("users") is None
    users.sweep()
    noted = shop.readmodel.depth("users")
    assert noted
    assert (noted.waiting, noted.dead_letters) == (2, 1)


def test_an_event_that_the_log_does_not_have_is_a_dead_letter(
    shop: FakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    user_id = shop.create_user()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.relay()
    ghost = shop.broker.queues[USERS].pop()[0]
    ghost = replace(ghost, body=ghost.body.replace(b'"version":2', b'"version":7'))
    shop.broker.route(ghost)
    shop.consume()
    shop.sweep()
    assert len(shop.broker.queues[f"{USERS}.dead-letters"]) == 1
    messages = {each.getMessage() for each in caplog.records if each.levelname == "ERROR"}
    assert messages == {"Event dead-lettered"}
    assert_converged(shop)


def ghost_of(shop: FakeShop, version: int) -> Message:
    """A message of the last user's last event, with a version that the log does not have."""
    message = to_broker(shop.user_store.log[-1])
    known = b'"version":%d' % shop.user_store.log[-1].version
    return replace(message, id="ghost", body=message.body.replace(known, b'"version":%d' % version))


@pytest.mark.parametrize("parked_before", [True, False])
def test_a_message_ahead_of_the_log_does_not_hold_a_parked_stream(
    shop: FakeShop, parked_before: bool
) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    shop.relay()
    if parked_before:
        shop.consume()
    shop.broker.route(ghost_of(shop, 77))
    shop.consume()
    assert shop.readmodel.parked("users")[user_id].highest == 2
    [(dead, _)] = shop.broker.queues[f"{USERS}.dead-letters"]
    assert dead.id == "ghost"
    fixed = replace(users.PROJECTION, ignores=frozenset({"USER_MARRIED"}))
    projector(fixed, shop.readmodel, shop.user_store, shop.broker).sweep()
    assert shop.readmodel.parked("users") == {}


def test_later_events_of_a_parked_stream_are_noted_and_are_no_dead_letters(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    poison(shop, user_id)
    shop.settle()
    for name in ("Eve", "Eva"):
        poison(shop, user_id, "USER_NAME_CHANGED", {"name": name})
    shop.settle()
    assert shop.readmodel.parked("users")[user_id].highest == 4
    assert not shop.broker.queues[f"{USERS}.dead-letters"]


def test_two_replicas_that_fold_the_same_events_write_each_once(shop: FakeShop) -> None:
    user_id = busy(shop)
    twin = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)
    original = shop.readmodel.write
    raced = False

    def second_comes_first(collection: str, writes: object) -> bool:
        nonlocal raced
        if not raced:
            raced = True
            twin.applier.apply({user_id: shop.user_store.log[:2]})
        return original(collection, writes)  # type: ignore[arg-type]

    shop.readmodel.write = second_comes_first  # type: ignore[method-assign]
    shop.consume()
    assert raced
    assert_converged(shop)


def test_the_checkpoint_covers_what_had_settled_a_sweep_ago(shop: FakeShop) -> None:
    before = datetime.now(UTC)
    shop.create_user()
    shop.projectors["users"].sweep()
    assert shop.readmodel.checkpoint("users").position == 0
    shop.projectors["users"].sweep()
    checkpoint = shop.readmodel.checkpoint("users")
    assert checkpoint.position == 1
    assert checkpoint.covered_at
    assert checkpoint.covered_at >= before


def test_sweeps_go_on_while_the_broker_neither_accepts_nor_refuses(
    shop: FakeShop,
) -> None:
    user_id, refused = shop.create_user(), Stop()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})

    def open_consumer() -> Consumer:
        refused.wait(30)
        raise BrokerUnavailable("RabbitMQ did not answer")

    lonely = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)
    lonely.open_consumer = open_consumer
    stop = Stop()
    running = Thread(target=lonely.run, args=(stop,))
    running.start()
    try:
        deadline = monotonic() + 10
        while shop.readmodel.collections["users"][user_id]["version"] != 2:
            assert monotonic() < deadline
            sleep(0.01)
    finally:
        stop.set()
        running.join(5)
        refused.set()
    assert not running.is_alive()


def test_a_consumer_that_the_broker_has_forgotten_is_reconnected(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    shop.broker.forget(USERS)
    for number in range(STALLED_SWEEPS):
        shop.users.put(f"/users/{user_id}", json={"name": f"Ada {number}"})
        shop.settle()
        assert shop.broker.queues[USERS]
        shop.sweep(["users"])
    shop.settle()
    assert not shop.broker.queues[USERS]
    assert_converged(shop)


def test_who_lost_the_lease_cannot_move_the_checkpoint(shop: FakeShop) -> None:
    old = shop.readmodel.take_lease("users", "old", -1)
    new = shop.readmodel.take_lease("users", "new", 5)
    assert old
    assert new
    assert shop.readmodel.move_checkpoint(old, Mark(9, "x"), None) is False
    assert shop.readmodel.move_checkpoint(new, Mark(4, "y"), None) is True
    assert shop.readmodel.checkpoint("users").position == 4


def poison(
    shop: FakeShop, user_id: str, event_type: str = "USER_MARRIED", data: object = None
) -> None:
    """Append an event behind the service's back; by default one that nobody knows."""
    new = NewEvent(uuid4(), event_type, 1, data or {})  # type: ignore[arg-type]
    stream = Stream("user", UUID(user_id))
    shop.user_store.append(stream, len(shop.user_store.read_stream(stream)), [new], {})


def test_a_sweep_asks_for_no_document_that_its_projector_brought_itself(shop: FakeShop) -> None:
    shop.sweep(["users"])
    busy(shop)
    shop.consume()
    asked: list[str] = []
    original = shop.readmodel.versions

    def noted(collection: str, ids: Iterable[str]) -> dict[str, int]:
        asked.extend(wanted := list(ids))
        return original(collection, wanted)

    shop.readmodel.versions = noted  # type: ignore[method-assign]
    shop.sweep(["users"])
    assert asked == []
    twin = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)
    shop.readmodel.checkpoints.clear()
    twin.sweep()
    twin.sweep()
    assert asked


def lose(shop: FakeShop) -> None:
    """MongoDB's data is lost whole, while all processes run."""
    readmodel = shop.readmodel
    for each in (readmodel.collections, readmodel.checkpoints, readmodel.generation_numbers):
        each.clear()


def test_a_lost_read_model_is_folded_again_by_projectors_that_run(shop: FakeShop) -> None:
    busy(shop)
    shop.settle()
    shop.sweep()
    lose(shop)
    shop.sweep()
    shop.sweep()
    assert_converged(shop)


def test_a_replica_that_takes_over_after_a_loss_trusts_no_memory(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.sweep()
    holder = shop.projectors["users"]
    other = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)
    other.sweeping.holder = "other"
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.relay()
    other.consume(Stop(), wait=0)  # remembers the stream
    assert not other.sweep()
    lose(shop)
    holder.sweeping.run()
    other.sweep()
    holder.sweeping.release()
    for _ in range(3):
        other.sweep()
    assert_converged(shop)


def test_a_gap_is_filled_from_the_feed_at_once(shop: FakeShop) -> None:
    user_id = busy(shop)
    del shop.broker.queues[USERS][0]
    shop.consume(["users"])
    assert shop.readmodel.collections["users"][user_id]["version"] == 4


names = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=3)
acts = st.one_of(
    st.tuples(st.just("create"), st.integers(0, 3), names),
    st.tuples(st.just("rename"), st.integers(0, 3), names),
    st.tuples(st.just("order"), st.integers(0, 3), names),
    st.tuples(st.just("cancel"), st.integers(0, 3), names),
    st.tuples(st.just("consume"), st.integers(0, 3), names),
)


@given(st.lists(acts, max_size=25))
def test_after_any_commands_the_read_models_are_the_folds_of_the_log(
    sequence: list[tuple[str, int, str]],
) -> None:
    shop = FakeShop()
    people: list[str] = []
    placed: list[str] = []
    for act, which, name in sequence:
        if act == "create":
            people.append(shop.create_user(name))
        elif act == "rename" and people:
            shop.users.put(f"/users/{people[which % len(people)]}", json={"name": name})
        elif act == "order" and people:
            placed.append(shop.place_order(people[which % len(people)]))
        elif act == "cancel" and placed:
            shop.orders.post(f"/orders/{placed[which % len(placed)]}/cancel", json={})
        elif act == "consume":
            shop.settle()
    shop.settle()
    assert_converged(shop)
    for user_id in people:
        events = shop.user_store.read_stream(Stream("user", UUID(user_id)))
        user = DECIDER.fold(None, events)
        document = shop.readmodel.collections["users"][user_id]
        assert user == User(str(document["name"]), str(document["email"]))


def test_the_checkpoint_stays_below_a_stream_neither_applied_nor_parked(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    shop.sweep(["users"])
    del shop.readmodel.collections["users"][user_id]  # below the checkpoint: a gap for the sweep
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    fresh = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)

    def away(after: object) -> dict[str, list[object]]:
        raise FeedUnavailable("a test said so")

    fresh.applier.feed.streams = away  # type: ignore[method-assign, assignment]
    shop.readmodel.release_lease("users", "holder")
    fresh.sweep()
    fresh.sweep()
    assert shop.readmodel.checkpoint("users").position == 1
    del fresh.applier.feed.streams
    fresh.sweep()
    assert shop.readmodel.collections["users"][user_id]["version"] == 2
    assert shop.readmodel.checkpoint("users").position == 2


def long_list(shop: FakeShop, length: int) -> set[str]:
    """So many parked streams, each with a document and an event that no code can apply."""
    chance = Random(1)  # their slots decide how many a sweep meets
    streams = [str(UUID(int=chance.getrandbits(128), version=4)) for _ in range(length)]
    for stream in streams:
        created = NewEvent(uuid4(), "USER_CREATED", 1, {"name": "Ada", "email": "a@b"})
        unknown = NewEvent(uuid4(), "USER_MARRIED", 1, {})
        shop.user_store.append(Stream("user", UUID(stream)), 0, [created, unknown], {})
    shop.relay()
    while shop.broker.queues[USERS]:
        shop.consume(["users"])
    return set(streams)


class Counted:
    """Counts the calls of some methods, and what they were asked for."""

    def __init__(self, target: object, *names: str) -> None:
        self.calls: list[tuple[str, object]] = []
        for name in names:
            setattr(target, name, self._counting(name, getattr(target, name)))

    def _counting(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            self.calls.append((name, arguments[-1]))
            return method(*arguments)

        return counted


def test_streams_of_one_batch_are_parked_at_once_and_logged_once(
    shop: FakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted(shop.readmodel, "park")
    streams = long_list(shop, 300)
    assert shop.readmodel.parked("users").keys() == streams
    assert len(counted.calls) == 2  # 600 messages are two batches, and halves of some streams meet
    lines = [each for each in caplog.records if each.levelname == "ERROR"]
    assert [each.getMessage() for each in lines] == ["Streams parked"] * 2
    assert sum(vars(each)["streams"] for each in lines) == 300
    caplog.clear()
    shop.broker.route(to_broker(shop.user_store.log[-1]))
    shop.consume(["users"])
    again = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)
    while again.sweep():
        pass
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


def test_sweeps_read_a_long_parked_list_in_parts_and_retry_each_entry_once(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.project.sweep.SCANNED_PER_SWEEP", 20)
    streams = long_list(shop, 300)
    shop.sweep(["users"])
    again = projector(users.PROJECTION, shop.readmodel, shop.user_store, shop.broker)
    again.health = Health("feed")
    shop.readmodel.release_lease("users", "holder")
    asked = Counted(again.applier.feed, "streams")
    writes = Counted(shop.readmodel, "park", "release", "write")
    tried: list[str] = []
    sweeps = 0
    while True:
        before = len(asked.calls)
        more = again.sweep()
        sweeps += 1
        new = [each for _, given in asked.calls[before:] for each in given]  # type: ignore[attr-defined]
        assert len(new) <= 40
        assert again.health.missing() == {}
        tried += new
        if not more:
            break
    assert sweeps >= 300 / 40
    assert sorted(tried) == sorted(streams)
    assert len(asked.calls) <= sweeps + 2
    before = len(asked.calls)
    for _ in range(2 * sweeps):
        again.sweep()
    assert len(asked.calls) == before
    assert writes.calls == []


def test_after_a_fix_a_long_parked_list_is_released_while_others_go_on(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.project.sweep.SCANNED_PER_SWEEP", 20)
    streams = long_list(shop, 100)
    shop.sweep(["users"])
    fixed = replace(users.PROJECTION, ignores=frozenset({"USER_MARRIED"}))
    new = projector(fixed, shop.readmodel, shop.user_store, shop.broker)
    shop.readmodel.release_lease("users", "holder")
    shop.broker.cut()
    assert new.sweep()
    left = len(shop.readmodel.parked("users"))
    assert 0 < left < 100
    other = shop.post(shop.users, "/users", {"name": "Bob", "email": "b@b"})["userId"]
    shop.relay()
    new.consume(Stop(), wait=1)
    assert other in shop.readmodel.collections["users"]
    assert len(shop.readmodel.parked("users")) == left
    while new.sweep():
        pass
    assert shop.readmodel.parked("users") == {}
    assert {shop.readmodel.collections["users"][each]["version"] for each in streams} == {2}


def test_the_gaps_of_a_batch_cost_one_question_for_many(shop: FakeShop) -> None:
    people = [shop.create_user() for _ in range(150)]
    for user_id in people:
        shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.relay()
    shop.broker.purge(USERS)
    for user_id in people:
        shop.users.put(f"/users/{user_id}", json={"name": "Eva"})
    shop.relay()
    asked = Counted(shop.projectors["users"].applier.feed, "streams")
    shop.consume(["users"])
    assert len(asked.calls) == 3
    documents = shop.readmodel.collections["users"]
    assert {documents[each]["version"] for each in people} == {3}


def test_a_gap_longer_than_a_page_is_filled(shop: FakeShop) -> None:
    user_id = shop.create_user()
    renamed = [NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": "Eve"}) for _ in range(PAGE)]
    for begin in range(3):
        shop.user_store.append(Stream("user", UUID(user_id)), begin * PAGE + 1, renamed, {})
    shop.relay()
    message = shop.broker.queues[USERS].pop()
    shop.broker.purge(USERS)
    shop.broker.queues[USERS].append(message)
    shop.consume(["users"])
    assert shop.readmodel.collections["users"][user_id]["version"] == 3 * PAGE + 1
    assert not shop.broker.queues[f"{USERS}.dead-letters"]


@pytest.fixture
def silent_owner() -> Iterator[str]:
    """The address of a feed that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_owner_that_never_answers_delays_one_batch_once(
    shop: FakeShop, silent_owner: str
) -> None:
    people = [shop.create_user() for _ in range(120)]
    for user_id in people:
        shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.relay()
    shop.broker.purge(USERS)
    for user_id in people:
        shop.users.put(f"/users/{user_id}", json={"name": "Eva"})
    other = shop.post(shop.users, "/users", {"name": "Bob", "email": "b@b"})["userId"]
    shop.relay()
    applier = shop.projectors["users"].applier
    owner, applier.feed = applier.feed, HttpFeed(silent_owner, Secret(""), timeout=0.2)
    began = monotonic()
    shop.consume(["users"])
    assert monotonic() - began < 1.5
    assert other in shop.readmodel.collections["users"]
    assert not shop.broker.queues[f"{USERS}.dead-letters"]
    applier.feed = owner
    shop.sweep(["users"])
    assert_converged(shop)


def test_after_some_calls_without_an_answer_the_next_ones_fail_at_once(silent_owner: str) -> None:
    feed = HttpFeed(silent_owner, Secret(""), timeout=0.2)
    began = monotonic()
    for _ in range(50):
        with pytest.raises(FeedUnavailable):
            feed.stream("x", 0)
    assert monotonic() - began < 3


def test_an_unreadable_message_is_one_dead_letter_while_mongodb_is_away(
    shop: FakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    shop.users.post("/users", json={"name": "Ada", "email": "a@b"})
    shop.relay()
    shop.broker.route(Message("x", "user.created", b"{", {}))
    shop.readmodel.away = True

    class Long(Stop):
        """Counts the waits, after the last of which MongoDB is there again."""

        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.waits += 1
            shop.readmodel.away = self.waits < 300
            return False

    stop = Long()
    shop.projectors["users"].consume(stop, wait=1)
    assert stop.waits == 300
    assert len(shop.broker.queues[f"{USERS}.dead-letters"]) == 1
    assert [each.getMessage() for each in caplog.records].count("Failed to parse message") == 1
    assert_converged(shop)
