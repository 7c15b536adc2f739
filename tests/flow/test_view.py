"""A view over many streams: whatever dies, repeats or races, it is the fold of both logs."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count, pairwise
from random import Random
from threading import Event as Stop
from threading import Thread
from time import monotonic, sleep
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore.broker.port import Consumer, Delivery
from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import ReadModelUnavailable, StoreRestored
from eventcore.model.event import Event, NewEvent
from eventcore.model.message import Message
from eventcore.model.projection import Document
from eventcore.model.view import View, fold
from eventcore.observe.health import Health
from eventcore.operate.rebuilding import Rebuild, begin, rollback
from eventcore.operate.verifying import Verified
from eventcore.operate.verifying_view import ViewVerifier
from eventcore.project.parts import open_parts
from eventcore.project.sweep import ParkedScan
from eventcore.project.view_applier import ViewApplier
from eventcore.project.view_projector import (
    HINT_DELAY,
    REST,
    PartSweep,
    ViewProjector,
    ViewSweep,
)
from eventcore.readmodel.records import Write
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Stream
from order.projections import customers
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.shop import FakeShop
from tests.fakes.store import FakeStore
from tests.kit import interleaved

VIEW = customers.VIEW

EPOCH = datetime(2026, 1, 16, 10, tzinfo=UTC)


class Logs:
    """The logs of both stores, and the read model."""

    def __init__(self) -> None:
        self.stores = {"user": FakeStore(), "order": FakeStore()}
        self.readmodel = FakeReadModel()

    def sweep(self, holder: str, view: View = VIEW) -> ViewSweep:
        """A replica of the view's process."""
        return ViewSweep(
            [PartSweep(self.applier(store, view), holder, lease_seconds=5) for store in view.stores]
        )

    def applier(self, store: str, view: View = VIEW) -> ViewApplier:
        feed = StoreFeed(self.stores[store], store)
        return ViewApplier(view, self.readmodel, feed, SYSTEM_CLOCK, None, store)

    def append(self, store: str, stream: UUID, kind: str, **data: object) -> None:
        log, name = self.stores[store], Stream(store, stream)
        new = NewEvent(uuid4(), kind, 1, data)  # type: ignore[arg-type]
        log.append(name, len(log.read_stream(name)), [new], {})

    def events(self) -> list[Event]:
        return [event for store in self.stores.values() for event in store.log]

    def documents(self) -> dict[str, Document]:
        return self.readmodel.collections[VIEW.collection]

    def parked(self, store: str) -> dict[str, object]:
        return dict(self.readmodel.parked(f"{VIEW.name}/{store}"))


@pytest.fixture
def logs() -> Logs:
    return Logs()


def drain(sweep: ViewSweep) -> None:
    while sweep.run():
        pass


def busy(logs: Logs, seed: int = 1, count: int = 60) -> None:
    """Some users, and orders of them and of some who are not known yet."""
    chance = Random(seed)
    people = [UUID(int=n) for n in range(1, 6)]
    placed: list[UUID] = []
    for number in range(count):
        user = chance.choice(people)
        draw = chance.random()
        if draw < 0.2:
            kind = (
                "USER_NAME_CHANGED"
                if logs.stores["user"].read_stream(Stream("user", user))
                else "USER_CREATED"
            )
            logs.append("user", user, kind, name=f"name {number}", email="a@b")
        elif draw < 0.8 or not placed:
            placed.append(uuid4())
            price = Decimal(chance.randrange(1, 10_000)) / 100
            logs.append(
                "order", placed[-1], "ORDER_PLACED", userId=str(user), price=price, item="x"
            )
        else:
            order = placed.pop(chance.randrange(len(placed)))
            logs.append("order", order, "ORDER_CANCELLED")


def test_a_view_is_the_fold_of_both_logs(logs: Logs) -> None:
    busy(logs)
    drain(logs.sweep("a"))
    assert logs.documents() == fold(VIEW, logs.events())
    assert logs.documents()


def test_a_page_that_is_folded_again_changes_nothing(logs: Logs) -> None:
    busy(logs)
    drain(logs.sweep("a"))
    before = dict(logs.documents())
    logs.readmodel.checkpoints.clear()
    drain(logs.sweep("b"))
    assert logs.documents() == before


def test_a_replica_that_takes_over_goes_on_where_the_other_was(logs: Logs) -> None:
    first, second = logs.sweep("a"), logs.sweep("b")
    busy(logs)
    drain(first)
    assert not second.run()
    assert not second.is_holder
    first.release()
    busy(logs, seed=2)
    drain(second)
    assert second.is_holder
    assert logs.documents() == fold(VIEW, logs.events())


def test_who_lost_the_lease_in_the_middle_of_a_page_does_no_harm(logs: Logs) -> None:
    """Both have read the same page; the late one writes after the checkpoint has moved."""
    busy(logs)
    slow, quick = logs.sweep("slow"), logs.sweep("quick")
    part = slow.parts[1]
    apply = part.applier.apply

    def late(events: Sequence[Event]) -> None:
        for each in slow.parts:
            each.release()
        drain(quick)
        busy(logs, seed=3)
        drain(quick)
        apply(events)

    part.applier.apply = late  # type: ignore[method-assign]
    slow.run()
    drain(quick)
    assert logs.documents() == fold(VIEW, logs.events())


def test_each_document_is_written_once_a_page(logs: Logs) -> None:
    user = uuid4()
    for number in range(100):
        logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=number, item="x")
    writes: list[int] = []
    write = logs.readmodel.write

    def counted(collection: str, documents: Sequence[Write]) -> bool:
        writes.append(len(documents))
        return write(collection, documents)

    logs.readmodel.write = counted  # type: ignore[method-assign, assignment]
    drain(logs.sweep("a"))
    assert writes == [1]


def test_totals_are_exact(logs: Logs) -> None:
    user = uuid4()
    for _ in range(1100):
        logs.append(
            "order", uuid4(), "ORDER_PLACED", userId=str(user), price=Decimal("0.10"), item="x"
        )
    drain(logs.sweep("a"))
    assert str(logs.documents()[str(user)]["total"]) == "110.00"


def test_totals_are_exact_after_100_000_orders() -> None:
    """The same sum in whole cents, which cannot round."""
    chance, cents, log, open_orders = Random(1), Counter[str](), list[Event](), list[Event]()
    people = [UUID(int=n) for n in range(1, 4)]
    for number in range(1, 100_001):
        user, price = str(chance.choice(people)), chance.randrange(1, 10_000)
        cents[user] += price
        data = {"userId": user, "item": "x", "price": Decimal(price) / 100}
        placed = Event(
            len(log) + 1, UUID(int=number), "order", UUID(int=number), 1, "ORDER_PLACED", 1, data,
            {}, EPOCH,
        )  # fmt: skip
        log.append(placed)
        open_orders.append(placed)
        if chance.random() < 0.2:
            gone = open_orders.pop(chance.randrange(len(open_orders)))
            cents[gone.data["userId"]] -= int(gone.data["price"] * 100)
            log.append(
                replace(
                    gone, position=len(log) + 1, version=2, event_type="ORDER_CANCELLED", data={}
                )
            )
    documents = fold(VIEW, log)
    assert {key: each["total"] for key, each in documents.items()} == {
        user: Decimal(its) / 100 for user, its in cents.items()
    }
    assert sum(each["orders"] for each in documents.values()) == 100_000
    assert sum(each["cancelled"] for each in documents.values()) == len(log) - 100_000 > 10_000


def broken(view: View, price: object) -> View:
    """The view, whose step for ORDER_PLACED cannot stand one price."""
    good = view.on["order"]["ORDER_PLACED"]

    def step(document: Document, event: Event) -> Document:
        assert event.data["price"] != price, "this price"
        return good.step(document, event)

    on = {**view.on["order"], "ORDER_PLACED": replace(good, step=step)}
    return replace(view, on={**view.on, "order": on})


def test_an_event_that_cannot_be_applied_parks_its_document_alone(logs: Logs) -> None:
    user, other = uuid4(), uuid4()
    for price in (1, 13, 2):
        for each in (user, other):
            data = {"userId": str(each), "price": price + (each == other) * 100, "item": "x"}
            logs.append("order", uuid4(), "ORDER_PLACED", **data)
    logs.append("user", user, "USER_CREATED", name="Ada", email="a@b")
    drain(logs.sweep("a", broken(VIEW, 13)))
    documents = logs.documents()
    assert documents[str(other)]["orders"] == 3
    assert documents[str(user)]["orders"] == 1
    assert documents[str(user)]["name"] == "Ada"  # the other store goes on
    logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=5, item="x")
    again = logs.sweep("a", broken(VIEW, 13))
    drain(again)
    [entry] = logs.parked("order").values()
    assert (entry.stream, entry.version, entry.highest) == (str(user), 3, 7)  # type: ignore[attr-defined]
    applier = logs.applier("order", broken(VIEW, 13))
    assert applier.retry(logs.parked("order")) == set()  # type: ignore[arg-type]
    assert logs.parked("order")
    assert logs.applier("order").retry(logs.parked("order")) == {str(user)}  # type: ignore[arg-type]
    assert logs.parked("order") == {}
    assert logs.documents() == fold(VIEW, logs.events())
    logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=6, item="x")
    drain(again)
    assert logs.documents() == fold(VIEW, logs.events())


def test_events_that_come_while_a_document_is_retried_are_not_lost(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParkedScan, "retry", lambda _: False)  # the sweep comes past it just before
    user = uuid4()
    for price in (1, 13, 2):
        logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=price, item="x")
    sweep = logs.sweep("a", broken(VIEW, 13))
    drain(sweep)
    applier = logs.applier("order")
    checkpoint, calls = logs.readmodel.checkpoint, list[str]()

    def meanwhile(generation: str) -> object:
        found = checkpoint(generation)
        calls.append(generation)
        if len(calls) == 2:  # the document is folded, and not released yet
            logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=5, item="x")
            drain(sweep)
        return found

    logs.readmodel.checkpoint = meanwhile  # type: ignore[method-assign, assignment]
    assert applier.retry(logs.parked("order")) == set()  # type: ignore[arg-type]
    del logs.readmodel.checkpoint
    assert applier.retry(logs.parked("order")) == {str(user)}  # type: ignore[arg-type]
    drain(sweep)
    assert logs.documents() == fold(VIEW, logs.events())


def parked_and_followed(logs: Logs, more: int) -> UUID:
    """A user whose document is parked at its second order, with `more` events of the log since."""
    user = uuid4()
    for price in (1, 13, *[2] * more):
        logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=price, item="x")
    drain(logs.sweep("a", broken(VIEW, 13)))
    assert logs.parked("order").keys() == {str(user)}
    return user


def test_the_first_sweeps_of_new_code_release_a_parked_document(logs: Logs) -> None:
    parked_and_followed(logs, 2)
    drain(logs.sweep("a"))
    assert logs.parked("order") == {}
    assert logs.documents() == fold(VIEW, logs.events())


def test_a_sweep_retries_by_some_pages_and_folds_new_events(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.project.view_applier.SWEEP_RANGE", 10)
    monkeypatch.setattr("eventcore.project.sweep.RETRIED_PAGES", 1)
    user = parked_and_followed(logs, 50)
    part, pages = logs.sweep("a").parts[1], list[tuple[int, int]]()
    between = part.applier.feed.between

    def count_pages(after: int, until: int) -> list[Event]:
        pages.append((after, until))
        return between(after, until)

    part.applier.feed.between = count_pages  # type: ignore[method-assign]
    orders = list[int]()
    while part.run():
        orders.append(logs.documents()[str(user)]["orders"])
        if len(orders) == 2:  # in the middle
            logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=3, item="x")
            logs.append("order", uuid4(), "ORDER_PLACED", userId="other", price=3, item="x")
    assert logs.documents()["other"]["orders"] == 1
    assert orders[:5] == [11, 21, 31, 41, 51]  # a page a sweep
    assert max(until - after for after, until in pages) == 10
    assert logs.parked("order") == {}
    assert logs.documents() == fold(VIEW, logs.events())


def test_a_retry_that_a_server_interrupts_is_made_again(logs: Logs) -> None:
    parked_and_followed(logs, 2)
    sweep = logs.sweep("a")
    write, failures = logs.readmodel.write, [1, 1, 1]

    def fail(collection: str, writes: Sequence[Write]) -> bool:
        if failures:
            failures.pop()
            raise ReadModelUnavailable("away")
        return write(collection, writes)

    logs.readmodel.write = fail  # type: ignore[method-assign]
    while failures:
        with suppress(ReadModelUnavailable):
            sweep.run()
    drain(sweep)
    assert logs.parked("order") == {}
    assert logs.documents() == fold(VIEW, logs.events())


def test_a_document_that_stays_broken_is_retried_once_for_each_process(logs: Logs) -> None:
    user, steps = parked_and_followed(logs, 2), list[Event]()
    view = broken(VIEW, 13)
    placed = view.on["order"]["ORDER_PLACED"]

    def step(document: Document, event: Event) -> Document:
        steps.append(event)
        return placed.step(document, event)

    on = {**view.on["order"], "ORDER_PLACED": replace(placed, step=step)}
    sweep = logs.sweep("a", replace(view, on={**view.on, "order": on}))
    for _ in range(20):
        drain(sweep)
    assert len(steps) == 1
    assert logs.parked("order").keys() == {str(user)}


def test_an_event_costs_the_same_however_many_its_document_has_had(
    logs: Logs,
) -> None:
    user, sizes, calls = str(uuid4()), list[int](), list[int]()
    sweep = logs.sweep("a")
    for orders in (10, 1_000):
        while logs.stores["order"].settled() < orders:
            logs.append("order", uuid4(), "ORDER_PLACED", userId=user, price=Decimal(1), item="x")
        drain(sweep)
        logs.append("order", uuid4(), "ORDER_PLACED", userId=user, price=Decimal(1), item="x")
        counted = list[int]()
        with _calls(logs, counted.append):
            drain(sweep)
        calls.append(len(counted))
        sizes.append(len(str(logs.documents()[user])))
    assert calls[0] == calls[1]
    assert sizes[1] - sizes[0] < 12  # the digits of the numbers


def test_a_stream_of_unnamed_documents_is_parked_until_a_rebuild(
    logs: Logs,
) -> None:
    user, order = uuid4(), uuid4()
    logs.append("order", order, "ORDER_PLACED", price=1, item="x")  # of nobody
    logs.append("order", order, "ORDER_CANCELLED")
    logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=2, item="x")
    drain(logs.sweep("a"))
    assert logs.documents()[str(user)]["orders"] == 1
    [entry] = logs.parked("order").values()
    assert (entry.stream, entry.version, entry.highest) == (f"order {order}", 1, 2)  # type: ignore[attr-defined]
    assert "rebuild customers" in entry.error  # type: ignore[attr-defined]
    logs.append("order", order, "ORDER_CANCELLED")
    drain(logs.sweep("a"))
    [entry] = logs.parked("order").values()
    assert (entry.version, entry.highest) == (1, 4)  # type: ignore[attr-defined]
    assert logs.applier("order").retry(logs.parked("order")) == set()  # type: ignore[arg-type]


def test_streams_of_another_type_in_a_store_mean_nothing_to_the_view(logs: Logs) -> None:
    ada = uuid4()
    logs.append("user", ada, "USER_CREATED", name="Ada", email="ada@example.com")
    claim = NewEvent(uuid4(), "USER_CREATED", 1, {"name": "nobody"})
    logs.stores["user"].append(Stream("claim", uuid4()), 0, [claim], {})
    drain(logs.sweep("a"))
    assert [each["name"] for each in logs.documents().values()] == ["Ada"]
    covered = logs.readmodel.checkpoint(f"{VIEW.name}/user").position
    assert covered == logs.stores["user"].head


def test_another_log_halts_the_view_before_anything_is_written(logs: Logs) -> None:
    busy(logs)
    drain(logs.sweep("a"))
    before = dict(logs.documents())
    logs.stores["order"] = FakeStore()
    for _ in range(100):
        logs.append("order", uuid4(), "ORDER_PLACED", userId=str(uuid4()), price=5, item="x")
    with pytest.raises(StoreRestored, match="rebuild customers"):
        drain(logs.sweep("a"))
    assert logs.documents() == before


class Crash(Exception):
    """The process ends here."""


CALLS = ("find", "write", "park", "parked", "move_checkpoint", "take_lease", "release")

acts = st.lists(
    st.tuples(
        st.sampled_from(("append", "sweep", "crash before", "crash after", "steal", "together")),
        st.integers(0, 1),
        st.integers(1, 12),
    ),
    max_size=25,
)


@settings(max_examples=15, deadline=None)
@given(acts, st.integers(1, 7))
def test_after_crashes_and_thefts_the_view_is_the_fold_of_both_logs(
    sequence: list[tuple[str, int, int]], span: int
) -> None:
    logs = Logs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.fakes.store.SPAN", span)
        replicas = [logs.sweep("a"), logs.sweep("b")]
        for step, (act, which, number) in enumerate(sequence):
            if act == "append":
                busy(logs, seed=step, count=number)
            elif act == "steal":
                for part in replicas[which].parts:
                    part.release()
            elif act == "sweep":
                replicas[which].run()
            elif act == "together":
                _interleave(logs, replicas, which, number)
            else:
                _crash(logs, replicas[which], number, after=act == "crash after")
                replicas[which] = logs.sweep("ab"[which])
        for part in replicas[1].parts:
            part.release()
        drain(replicas[0])
        assert logs.documents() == fold(VIEW, logs.events())


@contextmanager
def _calls(
    logs: Logs, before: Callable[[int], object], after: Callable[[int], object] = lambda _: None
) -> Iterator[None]:
    """Does something before and after each call of the read model, which gets its number."""
    numbers = count(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            method = getattr(logs.readmodel, name)

            def called(*given: object, method: object = method, **named: object) -> object:
                number = next(numbers)
                before(number)
                result = method(*given, **named)  # type: ignore[operator]
                after(number)
                return result

            patch.setattr(logs.readmodel, name, called)
        yield


def _crash(logs: Logs, sweep: ViewSweep, at: int, after: bool) -> None:
    """The process ends before or after its call number `at` of the read model."""

    def end(number: int) -> None:
        if number == at:
            raise Crash

    def go_on(_: int) -> None:
        return None

    with suppress(Crash), _calls(logs, *((go_on, end) if after else (end, go_on))):
        sweep.run()


def _interleave(logs: Logs, replicas: list[ViewSweep], which: int, at: int) -> None:
    """At its call number `at`, a replica is overtaken by the other one, which takes its lease."""

    def overtake(number: int) -> None:
        if number == at:
            for part in replicas[which].parts:
                part.release()
            replicas[1 - which].run()

    with _calls(logs, overtake):
        replicas[which].run()


class Hints:
    """The broker and the sweeps of a view's process, by a clock that moves 5 ms at each take.

    A delivery comes at every take in the first second, and one alone at LONE. A fold takes FOLD.
    """

    LONE, FOLD = 1.9, 0.02

    def __init__(self) -> None:
        self.now, self.folded, self.stop = 0.0, list[float](), Stop()
        self.caught_up, self.is_holder, self.hinted = 0, True, set[str]()

    def take(self, _limit: int, _wait: float) -> list[Delivery]:
        before, self.now = self.now, self.now + 0.005
        if self.now > 2:
            self.stop.set()
        comes = self.now < 1 or before < self.LONE <= self.now
        return [Delivery(1, Message("id", "order.placed", b"", {}), False)] if comes else []

    def run(self) -> bool:
        self.folded.append(self.now)
        self.now += self.FOLD
        return False

    def does_nothing(self, *_: object) -> None:
        return None

    acknowledge = resume = pause = close = release = depths = does_nothing


def test_a_hint_is_folded_soon_and_a_stream_of_hints_costs_few_folds() -> None:
    hints: Any = Hints()
    applier = replace(Logs().applier("user"), clock=Clock(monotonic=lambda: hints.now))
    opened: Future[Consumer] = Future()
    opened.set_result(hints)
    ViewProjector(
        applier,
        hints,
        lambda: hints,
        Health(),
        batch=9,
        sweep_interval=60,
        open_beside=lambda _act, _name: opened,
    ).run(hints.stop)
    *streamed, lone = hints.folded
    gaps = [after - before for before, after in pairwise(streamed)]
    interval = (1 + REST) * hints.FOLD
    assert len(gaps) == pytest.approx(1 / interval, abs=1)
    assert min(gaps) >= interval - 1e-9
    assert max(gaps) < interval + 0.02
    assert lone - hints.LONE == pytest.approx(HINT_DELAY, abs=0.01)


def test_customers_are_queried_by_rank_and_by_id() -> None:
    shop = FakeShop()
    people = [shop.create_user(name) for name in ("Ada", "Bob", "Cid", "Dee")]
    for user, price in zip(people, (5, 20, 5, 1), strict=True):
        shop.place_order(user, price)
    order = shop.place_order(people[1], 7)
    shop.post(shop.orders, f"/orders/{order}/cancel", {})
    shop.settle()
    found: list[str] = []
    path = "/queries/customers?limit=1"
    while True:
        page = shop.orders.get(path).get_json()
        found += [each["name"] for each in page["customers"]]
        if page["next"] is None:
            break
        path = f"/queries/customers?limit=1&after={page['next']}"
    assert found == ["Bob", "Ada", "Cid", "Dee"]
    bob = shop.orders.get(f"/queries/customers/{people[1]}").get_json()
    assert (bob["orders"], bob["cancelled"], bob["total"]) == (2, 1, 20)
    latest = shop.orders.get("/queries/customers?sort=lastOrderAt").get_json()["customers"]
    assert len(latest) == 4
    assert shop.orders.get(f"/queries/customers/{uuid4()}").status_code == 404
    assert shop.orders.get("/queries/customers?after=nonsense").status_code == 422
    names = {each["userName"] for each in shop.orders.get("/queries/orders").get_json()["orders"]}
    assert names == {"Ada", "Bob", "Cid", "Dee"}


def test_a_delivery_wakes_the_view_before_its_next_sweep(logs: Logs) -> None:
    shop = FakeShop()
    user = shop.create_user()
    shop.place_order(user)
    shop.relay()
    stop, view = Stop(), shop.view
    view.sweep_interval = 3600
    running = Thread(target=view.run, args=(stop,))
    running.start()
    try:
        _soon(lambda: shop.readmodel.collections["customers"][user]["orders"] == 1)
        shop.place_order(user)
        shop.relay()
        _soon(lambda: shop.readmodel.collections["customers"][user]["orders"] == 2)
    finally:
        stop.set()
        running.join(5)
    assert not running.is_alive()


def _soon(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 10
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)


def rebuilding(logs: Logs, view: View = VIEW) -> Rebuild:
    feeds = {store: StoreFeed(log, store) for store, log in logs.stores.items()}
    return begin(view, logs.readmodel, feeds, "rebuilder", lambda _: None)


def verified(logs: Logs, view: View = VIEW, sample: int | None = None) -> Verified:
    serving = logs.readmodel.generations(VIEW.name).serving
    feeds = {store: StoreFeed(log, store) for store, log in logs.stores.items()}
    parts = open_parts(view, logs.readmodel, feeds, serving)
    return ViewVerifier(parts).run(sample, Random(1))


def test_a_view_is_rebuilt_beside_the_one_that_serves_and_rolled_back(logs: Logs) -> None:
    busy(logs)
    sweep = logs.sweep("a")
    drain(sweep)
    build = rebuilding(logs)
    told: list[tuple[int, int]] = []
    build.fold(lambda position, until: told.append((position, until)))
    busy(logs, seed=2)  # orders go on
    drain(sweep)
    build.catch_up()
    parity = build.compare()
    assert parity.agrees
    assert parity.alike == len(logs.documents()) > 0
    assert parity.new_digest == parity.serving_digest
    assert told
    build.switch()
    busy(logs, seed=3)
    drain(sweep)
    assert logs.readmodel.collections["customers.2"] == fold(VIEW, logs.events())
    assert logs.documents() != fold(VIEW, logs.events())
    feeds = {store: StoreFeed(log, store) for store, log in logs.stores.items()}
    back = rollback(VIEW, logs.readmodel, feeds, "rebuilder", lambda _: None)
    back.catch_up()
    assert back.compare().agrees
    back.switch()
    assert logs.documents() == fold(VIEW, logs.events())


def test_a_rebuild_that_is_given_up_leaves_nothing(logs: Logs) -> None:
    busy(logs)
    drain(logs.sweep("a"))
    build = rebuilding(logs)
    build.fold(lambda *_: None)
    build.discard()
    assert "customers.2" not in logs.readmodel.collections
    assert set(logs.readmodel.checkpoints) == {"customers/user", "customers/order"}


def test_parity_names_what_a_new_fold_does_otherwise(logs: Logs) -> None:
    busy(logs)
    drain(logs.sweep("a"))
    key = next(iter(logs.documents()))
    logs.documents()[key]["total"] = Decimal("0.01")
    build = rebuilding(logs)
    build.fold(lambda *_: None)
    parity = build.compare()
    assert (parity.different, parity.ids["different"]) == (1, [key])


def test_verify_finds_what_differs_from_the_logs(logs: Logs) -> None:
    busy(logs)
    drain(logs.sweep("a"))
    busy(logs, seed=2)  # on its way
    found = verified(logs)
    assert (found.checked, found.wrong) == (len(logs.documents()), ())
    assert verified(logs, sample=2).wrong == ()
    changed, lost = list(logs.documents())[:2]
    logs.documents()[changed]["total"] = Decimal("0.01")
    del logs.documents()[lost]
    wrong = {finding.stream: finding.what for finding in verified(logs).wrong}
    assert wrong.keys() == {changed, lost}
    assert "differs from the log in total" in wrong[changed]
    assert "lacks" in wrong[lost]


def test_verify_does_not_blame_a_parked_document(logs: Logs) -> None:
    user = uuid4()
    for price in (1, 13, 2):
        logs.append("order", uuid4(), "ORDER_PLACED", userId=str(user), price=price, item="x")
    drain(logs.sweep("a", broken(VIEW, 13)))
    assert verified(logs, broken(VIEW, 13)).wrong == ()


@given(st.lists(st.booleans(), min_size=40, max_size=40), st.integers(0, 3))
def test_the_order_of_the_stores_events_does_not_change_a_document(
    choices: list[bool], seed: int
) -> None:
    logs = Logs()
    busy(logs, seed, 40)
    assert interleaved(VIEW, logs.events(), choices) == fold(VIEW, logs.events())
