"""A view over many streams: whatever dies, repeats or races, it is the fold of both logs."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from random import Random
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore.clock import SYSTEM_CLOCK
from eventcore.errors import StoreRestored
from eventcore.model.event import Event, NewEvent
from eventcore.model.projection import Document
from eventcore.model.view import View, fold
from eventcore.project.view_applier import ViewApplier
from eventcore.project.view_projector import PartSweep, ViewSweep
from eventcore.readmodel.records import Write
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Stream
from order.projections import customers
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.store import FakeStore

VIEW = customers.VIEW


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


def test_events_that_come_while_a_document_is_retried_are_not_lost(logs: Logs) -> None:
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


def test_a_stream_whose_documents_cannot_be_named_is_parked_and_cured_by_a_rebuild(
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
def test_after_any_crashes_thefts_and_interleavings_the_view_is_the_fold_of_both_logs(
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


def _crash(logs: Logs, sweep: ViewSweep, at: int, after: bool) -> None:
    """The process ends before or after its call number `at` of the read model."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            method = getattr(logs.readmodel, name)

            def called(*given: object, method: object = method, **named: object) -> object:
                nonlocal count
                count += 1
                if count == at and not after:
                    raise Crash
                result = method(*given, **named)  # type: ignore[operator]
                if count == at:
                    raise Crash
                return result

            patch.setattr(logs.readmodel, name, called)
        with suppress(Crash):
            sweep.run()


def _interleave(logs: Logs, replicas: list[ViewSweep], which: int, at: int) -> None:
    """At its call number `at`, a replica is overtaken by the other one, which takes its lease."""
    count = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            method = getattr(logs.readmodel, name)

            def called(*given: object, method: object = method, **named: object) -> object:
                nonlocal count
                count += 1
                if count == at:
                    for part in replicas[which].parts:
                        part.release()
                    replicas[1 - which].run()
                return method(*given, **named)  # type: ignore[operator]

            patch.setattr(logs.readmodel, name, called)
        replicas[which].run()
