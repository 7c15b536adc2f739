"""A service exports the lag of its relay and projections, even if they are stopped."""

import math
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event as Stop
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from eventcore.clock import Clock
from eventcore.errors import Misconfigured, ReadModelUnavailable
from eventcore.model.event import Data, NewEvent
from eventcore.model.service import Service
from eventcore.observe.background import repeat
from eventcore.observe.health import Health
from eventcore.operate.watch import (
    SWEEP_OVERDUE,
    CheckpointWatch,
    DeadlineWatch,
    LagWatch,
    LogWatch,
    watch,
    watch_service,
)
from eventcore.project.view_applier import ViewApplier
from eventcore.project.view_projector import PartSweep
from eventcore.readmodel.records import Lease
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Append, Deadline, Progress, Stream
from order import service as order_service
from order.projections import customers
from tests.fakes.shop import FakeShop
from tests.fakes.store import FakeStore
from user import service as user_service
from user.projections import users

NOON = datetime(2026, 1, 16, 12, tzinfo=UTC)


class ManualTime:
    """Moves only when a test says so."""

    def __init__(self) -> None:
        self.now = NOON
        self.clock = Clock(monotonic=self.seconds, now=lambda: self.now)

    def seconds(self) -> float:
        return (self.now - NOON).total_seconds()

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def time() -> ManualTime:
    return ManualTime()


@pytest.fixture
def shop(time: ManualTime) -> FakeShop:
    shop = FakeShop()
    shop.user_store.now = time.now
    return shop


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def lag() -> tuple[float | None, float | None]:
    """In events and in seconds."""
    return (
        value("projection_lag_events", projection="users"),
        value("projection_lag_seconds", projection="users"),
    )


def lag_watch(shop: FakeShop, time: ManualTime) -> LagWatch:
    feed = StoreFeed(shop.user_store, "user")
    return LagWatch(users.PROJECTION, shop.readmodel, feed, time.clock)


def unswept(watch: LagWatch, time: ManualTime) -> None:
    """No sweep for so long that the watch looks itself."""
    watch.update()
    time.wait(SWEEP_OVERDUE)
    watch.update()


def new_user(shop: FakeShop) -> str:
    user_id: str = shop.post(shop.users, "/users", {"name": "Ada", "email": "a@example.com"})[
        "userId"
    ]
    return user_id


def test_lag_grows_while_nothing_is_applied_and_nothing_more_comes(
    shop: FakeShop, time: ManualTime
) -> None:
    watch = lag_watch(shop, time)
    unswept(watch, time)
    assert lag() == (0, 0)
    shop.user_store.now = time.now
    new_user(shop)
    time.wait(7)
    shop.user_store.now = time.now
    new_user(shop)
    watch.update()
    assert lag() == (2, 7)
    time.wait(60)
    watch.update()
    assert lag() == (2, 67)
    shop.settle()
    watch.update()
    assert lag() == (0, 0)


def test_the_lag_of_a_view_whose_process_is_stopped_is_told_by_store(
    shop: FakeShop, time: ManualTime
) -> None:
    feed = StoreFeed(shop.order_store, "order")
    part = ViewApplier(customers.VIEW, shop.readmodel, feed, time.clock, None, "order")
    sweep = PartSweep(part, "holder", 60)
    watch = LagWatch(customers.VIEW, shop.readmodel, feed, time.clock, "order")
    name = "customers/order"

    def told() -> tuple[float | None, float | None]:
        return (
            value("projection_lag_events", projection=name),
            value("projection_lag_seconds", projection=name),
        )

    def append() -> None:
        shop.order_store.now = time.now
        data: Data = {"userId": str(uuid4()), "item": "x", "price": 1}
        new = NewEvent(uuid4(), "ORDER_PLACED", 1, data)
        shop.order_store.append(Stream("order", uuid4()), 0, [new], {})

    append()
    sweep.run()
    unswept(watch, time)
    assert told() == (0, 0)
    append()  # and nothing folds it
    time.wait(7)
    append()
    watch.update()
    assert told() == (2, 7)
    while sweep.run():
        pass
    watch.update()
    assert told() == (0, 0)


def test_while_sweeps_go_on_the_watch_asks_for_no_more_than_the_checkpoint(
    shop: FakeShop, time: ManualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = lag_watch(shop, time)
    new_user(shop)
    monkeypatch.setattr(shop.user_store, "read_changes", None)  # it would fail
    for _ in range(4):
        shop.readmodel.checkpoints["users"] = (
            Lease(generation="users", holder="holder", epoch=1), time.now, time.now
        )  # fmt: skip
        watch.update()
        time.wait(SWEEP_OVERDUE - 1)
    assert lag() == (0, 0)


def test_a_sweep_tells_the_lag_that_it_found(shop: FakeShop) -> None:
    new_user(shop)
    shop.projectors["users"].sweep()  # has seen it
    assert lag() == (0, 0)
    new_user(shop)
    shop.projectors["users"].sweep()  # finds the first one, which should have come
    events, seconds = lag()
    assert events == 2
    assert seconds
    shop.settle()
    shop.sweep()
    assert lag() == (0, 0)


def test_lag_is_from_the_oldest_missing_event_even_if_later_ones_are_done(
    shop: FakeShop, time: ManualTime
) -> None:
    watch = lag_watch(shop, time)
    first = new_user(shop)
    time.wait(5)
    shop.user_store.now = time.now
    new_user(shop)
    shop.settle()
    del shop.readmodel.collections["users"][first]
    unswept(watch, time)
    assert lag() == (2, 5 + SWEEP_OVERDUE)


def test_a_parked_stream_does_not_count_as_lag(shop: FakeShop, time: ManualTime) -> None:
    watch = lag_watch(shop, time)
    user_id = new_user(shop)
    shop.settle()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    broken = shop.user_store.log[-1]
    shop.user_store.log[-1] = replace(broken, event_type="USER_MARRIED")
    shop.settle()
    assert shop.readmodel.parked("users")
    unswept(watch, time)
    assert lag() == (0, 0)
    CheckpointWatch(users.PROJECTION, shop.readmodel, time.clock).update()
    assert value("projection_parked_streams", projection="users") == 1


def test_what_was_seen_applied_is_not_compared_again(
    shop: FakeShop, time: ManualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = lag_watch(shop, time)
    for _ in range(3):
        new_user(shop)
    shop.settle()
    unswept(watch, time)
    asked: list[list[str]] = []
    versions = shop.readmodel.versions

    def noted(collection: str, ids: Iterable[str]) -> dict[str, int]:
        asked.append(list(ids))
        return versions(collection, asked[-1])

    monkeypatch.setattr(shop.readmodel, "versions", noted)
    new = new_user(shop)
    watch.update()
    assert asked == [[new]]


def test_a_projection_that_is_folded_again_is_compared_from_the_beginning(
    shop: FakeShop, time: ManualTime
) -> None:
    watch = lag_watch(shop, time)
    new_user(shop)
    shop.settle()
    shop.sweep()
    unswept(watch, time)
    shop.readmodel.collections.clear()
    shop.readmodel.checkpoints.clear()
    unswept(watch, time)
    assert lag() == (1, 2 * SWEEP_OVERDUE)


def test_staleness_is_the_age_of_what_the_sweep_has_covered(
    shop: FakeShop, time: ManualTime
) -> None:
    new_user(shop)
    shop.settle()
    shop.sweep()
    covered = shop.readmodel.checkpoint("users").covered_at
    assert covered
    time.now = covered + timedelta(seconds=90)
    CheckpointWatch(users.PROJECTION, shop.readmodel, time.clock).update()
    assert value("projection_staleness_seconds", projection="users") == 90
    assert value("projection_checkpoint_position", projection="users") == 1


def test_the_relays_lag_is_seen_while_it_is_stopped(shop: FakeShop, time: ManualTime) -> None:
    watch = LogWatch("user", shop.user_store, time.clock)
    new_user(shop)
    time.wait(30)
    watch.update()
    assert value("relay_lag_events", store="user") == 1
    assert value("relay_lag_seconds", store="user") == 30
    assert value("eventstore_unsettled_seconds", store="user") == 0
    shop.relay()
    watch.update()
    assert value("relay_lag_events", store="user") == 0
    assert value("relay_lag_seconds", store="user") == 0
    assert value("relay_checkpoint_position", store="user") == 1


def test_the_watch_notes_the_epoch_of_the_log_each_time(shop: FakeShop) -> None:
    noted: list[str] = []
    watch = LogWatch("user", shop.user_store, note_epoch=noted.append)
    watch.update()
    shop.user_store.epoch = "the second"
    watch.update()
    assert noted == ["the first", "the second"]


def test_a_writer_that_does_not_commit_is_measured_as_unsettled(
    time: ManualTime,
) -> None:
    class Held(FakeStore):
        """Its head is drawn and does not settle."""

        stuck = True

        def progress(self, relay: str) -> Progress:
            return Progress(5, 3 if self.stuck else 5, 3, "the first")

    store = Held()
    watch = LogWatch("user", store, time.clock)
    watch.update()
    time.wait(12)
    watch.update()
    assert value("eventstore_unsettled_seconds", store="user") == 12
    store.stuck = False
    watch.update()
    assert value("eventstore_unsettled_seconds", store="user") == 0


def test_health_is_a_metric() -> None:
    health = Health("store", "readmodel")
    assert value("dependency_up", server="PostgreSQL") == 0
    health.mark_up("store")
    assert value("dependency_up", server="PostgreSQL") == 1
    health.mark_down("store", str(ReadModelUnavailable("gone")))
    assert value("dependency_up", server="PostgreSQL") == 0


def test_an_unexpected_error_of_one_update_stops_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop, errors = Stop(), value("background_errors_total", thread="watch") or 0.0
    looks: list[str] = []

    def broken() -> None:
        looks.append("broken")
        raise Misconfigured("42P01")

    def other() -> None:
        looks.append("other")
        if len(looks) >= 4:
            stop.set()

    watch([broken, other], stop, every=0.001).join(5)
    assert looks == ["broken", "other"] * 2
    assert value("background_errors_total", thread="watch") == errors + 2
    assert "42P01" in caplog.text


def test_a_background_thread_goes_on_after_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventcore.observe.background.PAUSE", 0.001)
    stop, turns = Stop(), list[int]()

    def turn() -> None:
        turns.append(1)
        if len(turns) == 3:
            stop.set()
        raise OSError("Too many open files")

    repeat(turn, "a test", stop=stop).join(5)
    assert len(turns) == 3
    assert value("background_errors_total", thread="a test") == 3


def test_counting_a_long_parked_list_takes_a_small_part_of_the_time(
    shop: FakeShop, time: ManualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[float] = []

    def count(_generation: str) -> int:
        counts.append(time.seconds())
        time.wait(1)
        return 20_000

    monkeypatch.setattr(shop.readmodel, "count_parked", count)
    watch = CheckpointWatch(users.PROJECTION, shop.readmodel, time.clock)
    while time.seconds() < 100:
        watch.update()
        time.wait(2)
    assert len(counts) <= 6
    assert value("projection_parked_streams", projection="users") == 20_000


def test_a_deadline_that_nobody_takes_shows_how_late_it_is() -> None:
    store, name = FakeStore(), "eventstore_deadlines_overdue_seconds"
    event = NewEvent(uuid4(), "STEP_REQUESTED", 1, {})
    append = Append(Stream("parcel_saga", uuid4()), 0, [event], Deadline(60.0))
    store.append_many([append], {})
    watch = DeadlineWatch(store, ["parcel_saga"])
    for passed, late in ((0, 0.0), (60, 0.0), (30, 30.0)):
        store.now += timedelta(seconds=passed)
        watch.update()
        assert REGISTRY.get_sample_value(name, {"aggregate_type": "parcel_saga"}) == late
    store.take_due("parcel_saga", 10, 60.0)
    watch.update()
    assert REGISTRY.get_sample_value(name, {"aggregate_type": "parcel_saga"}) == 0.0


def test_sagas_that_are_stuck_are_counted_until_they_move_on() -> None:
    store, stream = FakeStore(), Stream("parcel_saga", uuid4())
    watch = DeadlineWatch(store, ["parcel_saga"])
    for version, seconds, stuck in ((0, 5.0, 0), (1, math.inf, 1), (2, 5.0, 0)):
        event = NewEvent(uuid4(), "STEP_REQUESTED", 1, {})
        store.append_many([Append(stream, version, [event], Deadline(seconds))], {})
        watch.update()
        assert value("saga_stuck", aggregate_type="parcel_saga") == stuck


def test_a_service_whose_reactor_fires_deadlines_has_them_watched(shop: FakeShop) -> None:
    def watched(service: Service, store: FakeStore) -> list[object]:
        feeds = {"order": StoreFeed(store, "order")}
        updates = watch_service(service, store, shop.readmodel, feeds, lambda _: None)
        watches = [each.__self__ for each in updates]  # type: ignore[attr-defined]
        return [each for each in watches if isinstance(each, DeadlineWatch)]

    assert watched(order_service.SERVICE, shop.order_store) == [
        DeadlineWatch(shop.order_store, ["order_saga"])
    ]
    assert watched(user_service.SERVICE, shop.user_store) == []
