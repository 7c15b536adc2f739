"""A restored log: nothing is folded wrongly, and every reader that is ahead of it halts."""

from copy import deepcopy
from dataclasses import replace
from random import Random
from threading import Event as Stop
from typing import Any
from uuid import UUID

import pytest

from eventcore.broker.port import Queue
from eventcore.errors import StoreRestored
from eventcore.model.event import START, Event, Mark
from eventcore.observe.health import Health
from eventcore.operate.verifying import Verifier
from eventcore.project.applier import EventApplier
from eventcore.project.sweep import Sweep
from eventcore.readmodel.records import generation_of
from eventcore.relay import Forwarder, Relay, to_broker
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Stream
from tests.fakes.broker import FakeBroker
from tests.fakes.shop import FakeShop, projector
from tests.fakes.store import FakeStore
from user.projections import users

USERS = users.PROJECTION


@pytest.fixture
def shop() -> FakeShop:
    shop = FakeShop()
    for number in range(5):
        rename(shop, shop.create_user(f"Ada {number}"), f"Eve {number}")
    shop.settle()
    shop.sweep()
    return shop


def rename(shop: FakeShop, user_id: str, name: str) -> None:
    assert shop.users.put(f"/users/{user_id}", json={"name": name}).status_code == 200


def restore_to(shop: FakeShop, keep: int, drawn: int = 0) -> list[Event]:
    """Keeps the first `keep` events, as a recovery to a point in time; returns the lost ones.

    Positions up to `drawn` are not used again, as after the promotion of a standby.
    """
    store = shop.user_store
    lost, store.log = store.log[keep:], store.log[:keep]
    store.drawn = drawn
    if store.checkpoint().position > store.head:
        store.checkpoints["relay"] = store.log[-1].mark if store.log else START
    return lost


def documents(shop: FakeShop) -> dict[str, Any]:
    found: dict[str, Any] = shop.readmodel.collections["users"]
    return found


def halted(shop: FakeShop) -> str:
    return shop.readmodel.checkpoint("users").halted


def sweep_of(shop: FakeShop, holder: str) -> Sweep:
    feed = StoreFeed(shop.user_store, "user")
    applier = EventApplier(USERS, shop.readmodel, feed)
    return Sweep(applier, holder, 5)


# ── projections ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("drawn", [0, 10, 42])
def test_a_projection_halts_however_far_the_log_has_grown_since(shop: FakeShop, drawn: int) -> None:
    """The services come up before the projectors, and the log passes the checkpoint."""
    before = deepcopy(documents(shop))
    lost = restore_to(shop, keep=9, drawn=drawn)
    rename(shop, str(lost[0].aggregate_id), "of the new life")
    for number in range(30):
        shop.post(shop.users, "/users", {"name": f"New {number}", "email": "new@example.com"})
    shop.sweep(["users"])
    assert "python -m eventcore rebuild users --yes" in halted(shop)
    shop.settle()
    assert documents(shop) == before


def test_growth_does_not_lift_a_halt_and_the_right_log_does(shop: FakeShop) -> None:
    lost = restore_to(shop, keep=4)
    shop.sweep(["users"])
    assert halted(shop)
    for number in range(30):
        shop.post(shop.users, "/users", {"name": f"New {number}", "email": "new@example.com"})
        shop.sweep(["users"])
        assert halted(shop)
    shop.user_store.log = [*shop.user_store.log[:4], *lost]
    shop.sweep(["users"])
    assert not halted(shop)
    new = shop.create_user("Ben")
    assert documents(shop)[new]["name"] == "Ben"


def test_another_epoch_halts_although_the_log_has_every_event(shop: FakeShop) -> None:
    shop.user_store.epoch = "begun by hand"
    shop.sweep(["users"])
    assert halted(shop)
    shop.user_store.epoch = "the first"
    shop.sweep(["users"])
    assert not halted(shop)


def test_every_replica_halts(shop: FakeShop) -> None:
    other = projector(USERS, shop.readmodel, shop.user_store, shop.broker)
    restore_to(shop, keep=8)
    assert shop.projectors["users"].sweep() is False
    with pytest.raises(StoreRestored, match="rebuild users"):
        sweep_of(shop, "another").run()
    other.sweep()
    before = deepcopy(documents(shop))
    shop.post(shop.users, "/users", {"name": "New", "email": "new@example.com"})
    shop.relay()
    other.consume(Stop(), wait=0)
    assert documents(shop) == before


def test_a_failover_that_loses_what_only_deliveries_have_brought_halts(shop: FakeShop) -> None:
    """The checkpoint is older than the lost commit, and its event is there."""
    shop.create_user("Lost")
    checkpoint = shop.readmodel.checkpoint("users")
    restore_to(shop, keep=10, drawn=42)
    assert checkpoint.position <= 10
    shop.post(shop.users, "/users", {"name": "New", "email": "new@example.com"})
    shop.sweep(["users"])
    assert halted(shop)


def test_an_event_that_comes_while_halted_is_applied_by_a_later_sweep(
    shop: FakeShop,
) -> None:
    shop.user_store.epoch = "of a wrong database"
    shop.sweep(["users"])
    new = shop.create_user("New")
    assert new not in documents(shop)
    assert not shop.broker.queues[USERS.queue]
    shop.user_store.epoch = "the first"
    shop.sweep(["users"])
    assert documents(shop)[new]["name"] == "New"


# ── documents: an event is applied only onto the event before it in the log ───────────────


def deliver(shop: FakeShop, *events: Event) -> None:
    channel = shop.broker.publisher([Queue(USERS.queue, USERS.binding)], 500)
    channel.publish([to_broker(event) for event in events])
    shop.consume(["users"])


def two_lives(shop: FakeShop) -> tuple[str, list[Event], list[Event]]:
    """A stream whose second event is another one since the log was restored; both of them.

    Nothing of the new life has been delivered or swept yet.
    """
    last = shop.user_store.log[-1]
    lost = restore_to(shop, keep=9, drawn=42)
    rename(shop, str(last.aggregate_id), "of the new life")
    rename(shop, str(last.aggregate_id), "and on")
    return str(last.aggregate_id), lost, shop.user_store.log[9:]


@pytest.mark.parametrize("which", [(0,), (0, 1), (1,), (1, 0)])
def test_an_event_of_another_life_is_never_folded_onto_a_document(
    shop: FakeShop, which: tuple[int, ...]
) -> None:
    """Its version follows, or was seen: the ids tell. It may come before any sweep."""
    stream, _, new = two_lives(shop)
    before = deepcopy(documents(shop)[stream])
    for place in which:
        deliver(shop, new[place])
    assert documents(shop)[stream] == before
    [parked] = shop.readmodel.parked("users").values()
    assert parked.stream == stream
    assert f"rebuild users --stream {stream}" in parked.error


def test_a_message_that_the_log_has_lost_changes_no_document_of_the_log(shop: FakeShop) -> None:
    """An event waited in the queue; the document is of the current log."""
    stream, lost, _ = two_lives(shop)
    events = shop.user_store.read_stream(Stream("user", UUID(stream)))
    documents(shop)[stream] = right = USERS.fold(events[:2]) or {}
    deliver(shop, lost[-1])
    assert documents(shop)[stream]["name"] in ("of the new life", "and on")
    assert documents(shop)[stream] in (right, USERS.fold(events))
    assert not shop.readmodel.parked("users")


def test_a_document_of_an_older_version_takes_the_next_event(shop: FakeShop) -> None:
    stream = str(shop.user_store.log[-1].aggregate_id)
    del documents(shop)[stream]["eventId"]
    rename(shop, stream, "New")
    shop.settle()
    assert documents(shop)[stream]["name"] == "New"
    assert documents(shop)[stream]["eventId"] == str(shop.user_store.log[-1].event_id)


def test_a_checkpoint_of_an_older_version_takes_the_event_that_is_there(shop: FakeShop) -> None:
    lease, until, covered_at = shop.readmodel.checkpoints["users"]
    older = replace(lease, event_id="", furthest=START)
    shop.readmodel.checkpoints["users"] = (older, until, covered_at)
    shop.sweep(["users"])
    assert shop.readmodel.checkpoint("users").marks[0] == shop.user_store.log[-1].mark


# ── the relay ─────────────────────────────────────────────────────────────────────────────


def published(broker: FakeBroker) -> int:
    return len(broker.queues.get(USERS.queue, ()))


def test_a_relay_whose_event_is_gone_publishes_nothing_and_does_not_move(shop: FakeShop) -> None:
    store, broker = shop.user_store, FakeBroker()
    queues = [Queue(USERS.queue, USERS.binding)]
    forwarder = Forwarder("user", store, broker.publisher(queues, 500))
    rename(shop, str(store.log[0].aggregate_id), "New")
    assert forwarder.turn() == 1
    lost = store.log[8:]
    store.log = store.log[:8]
    for growth in range(8):
        with pytest.raises(StoreRestored, match="begin_epoch"):
            forwarder.turn()
        shop.post(shop.users, "/users", {"name": f"New {growth}", "email": "new@example.com"})
    assert published(broker) == 1
    store.log = [*store.log[:8], *lost]
    forwarder.save()
    assert store.checkpoint() == store.log[-1].mark


def test_a_halted_relay_says_so_once_and_goes_on_with_the_right_log(
    shop: FakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    store, broker, health = shop.user_store, FakeBroker(), Health("store", "broker")
    right, at = store.checkpoint(), store.head
    store.checkpoints["relay"] = Mark(at, "another event")
    rename(shop, str(store.log[0].aggregate_id), "New")
    queues = [Queue(USERS.queue, USERS.binding)]
    relay = Relay("user", lambda: store, lambda: broker.publisher(queues, 500), health)
    looks = Looks(5)
    relay.run(looks)
    assert published(broker) == 0
    assert "begin_epoch" in health.missing()["store"]
    assert store.progress("user").relay_halted
    assert [r.message for r in caplog.records].count("Relay halted") == 1
    store.checkpoints["relay"] = right
    relay.run(Looks(1))
    assert published(broker) == 1
    assert "store" not in health.missing()


class Looks(Stop):
    """Set after some waits."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self._left = waits

    def wait(self, timeout: float | None = None) -> bool:
        self._left -= 1
        if self._left <= 0:
            self.set()
        return self.is_set()


def test_a_fresh_log_is_relayed_from_the_beginning() -> None:
    store, broker = FakeStore(), FakeBroker()
    forwarder = Forwarder("user", store, broker.publisher([Queue("q", "user.#")], 500))
    assert forwarder.turn() == 0
    forwarder.save()
    assert store.checkpoint() == START


# ── verification ──────────────────────────────────────────────────────────────────────────


def test_verification_tells_a_checkpoint_that_stands_on_another_event(shop: FakeShop) -> None:
    restore_to(shop, keep=9, drawn=42)
    for number in range(5):
        shop.post(shop.users, "/users", {"name": f"New {number}", "email": "new@example.com"})
    feed = StoreFeed(shop.user_store, "user")
    verifier = Verifier(USERS, shop.readmodel, feed, generation_of(USERS), lambda _: None)
    wrong = verifier.run(0, Random(1)).wrong
    assert "rebuild users" in wrong[0].what
