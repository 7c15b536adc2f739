"""The reactor of credit: each request of a saga has one answer, within the limit at that moment."""

from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventcore.command import Call, append_of
from eventcore.errors import Conflict, NotFound
from eventcore.model.event import Event
from eventcore.project.reacting import StoreCommands
from eventcore.store.port import Append, Stream
from order.events import ORDER_SAGA
from tests.fakes.store import FakeStore
from user.credit import DECIDER, Credit
from user.credit_reactor import LIMIT, REACTOR, STEP
from user.user import DECIDER as USERS
from user.user import ChangeCreditLimit, ChangeUser, CreateUser, UserCommand


def requested(kind: str, user_id: UUID, order_id: str, amount: object, step: str = STEP) -> Event:
    """An event of a saga that asks for a step or its compensation."""
    data = {
        "step": step,
        "attempt": 1,
        "arguments": {"userId": str(user_id), "orderId": order_id, "amount": amount},
    }
    return Event(
        1, uuid4(), "order_saga", uuid4(), 2, kind, 1, data, {}, FakeStore.now
    )  # fmt: skip


class Service:
    """A user service's store with one user, and its reactor's commands."""

    def __init__(self, limit: Decimal | None = None, default: str = "") -> None:
        self.store, self.user_id = FakeStore(), uuid4()
        self.amounts = {LIMIT: Decimal(default) if default else None}
        self.change(CreateUser("Ada", "ada@example.com"))
        if limit is not None:
            self.change(ChangeCreditLimit(limit))

    def change(self, command: UserCommand) -> None:
        self.store.append_many(append_of(self.store, USERS, self.user_id, command), {})

    def asked(self, kind: str, order_id: str, amount: object, **more: str) -> list[str]:
        """The events that the reactor appends for a request."""
        before = len(self.store.log)
        event = requested(kind, self.user_id, order_id, amount, **more)
        REACTOR.on[kind](StoreCommands(self.store, Call({}), self.amounts), event)
        return [event.event_type for event in self.store.log[before:]]

    def reserve(self, order_id: str, amount: object, **more: str) -> list[str]:
        return self.asked("STEP_REQUESTED", order_id, amount, **more)

    def release(self, order_id: str, amount: object = 1, **more: str) -> list[str]:
        return self.asked("COMPENSATION_REQUESTED", order_id, amount, **more)

    @property
    def credit(self) -> Credit:
        return DECIDER.fold(Credit(), self.store.read_stream(Stream("credit", self.user_id)))


def test_it_reads_the_sagas_of_orders_and_answers_two_of_their_events() -> None:
    assert REACTOR.catalogue is ORDER_SAGA
    assert set(REACTOR.on) == {"STEP_REQUESTED", "COMPENSATION_REQUESTED"}


def test_two_orders_for_the_last_credit_one_is_refused() -> None:
    service = Service(limit=Decimal("19.99"))
    assert service.reserve("a", Decimal("19.99")) == ["CREDIT_RESERVED"]
    assert service.reserve("b", Decimal("0.01")) == ["CREDIT_REFUSED"]
    assert service.release("a") == ["CREDIT_RELEASED"]
    assert service.reserve("c", 1) == ["CREDIT_RESERVED"]
    assert service.credit.live == {"c": 1}


def test_a_repeated_request_appends_nothing() -> None:
    service = Service(limit=Decimal(10))
    for _ in range(2):
        service.reserve("a", 10)
        service.reserve("b", 1)
        service.release("void")
    assert [e.event_type for e in service.store.log[2:]] == [
        "CREDIT_RESERVED", "CREDIT_REFUSED", "CREDIT_RELEASED",
    ]  # fmt: skip
    assert service.reserve("void", 0) == []


@pytest.mark.parametrize(
    ("limit", "default", "answer"),
    [
        (None, "", "CREDIT_RESERVED"), (None, "9.99", "CREDIT_REFUSED"),
        (None, "10", "CREDIT_RESERVED"), (Decimal(9), "10", "CREDIT_REFUSED"),
        (Decimal(10), "9", "CREDIT_RESERVED"),
    ],
)  # fmt: skip
def test_the_setting_is_the_limit_of_those_who_have_none_set(
    limit: Decimal | None, default: str, answer: str
) -> None:
    assert Service(limit, default).reserve("a", 10) == [answer]


def test_an_explicit_null_is_unlimited_whatever_the_setting() -> None:
    service = Service(Decimal(1), default="1")
    service.change(ChangeCreditLimit(None))
    assert service.reserve("a", 10) == ["CREDIT_RESERVED"]


def test_steps_of_others_are_passed_over() -> None:
    service = Service()
    assert service.reserve("a", 1, step="send-parcel") == []
    assert service.release("a", step="send-parcel") == []


def test_the_credit_of_nobody_is_refused_with_its_name() -> None:
    service = Service()
    service.store.log.clear()
    with pytest.raises(NotFound, match=str(service.user_id)):
        service.reserve("a", 1)
    assert not service.store.log


def racing(service: Service, rival: Any) -> None:
    """Lets a rival act once, just before the next append to several streams."""
    append_many = service.store.append_many

    def late(appends: Sequence[Append], *given: Any) -> Any:
        service.store.append_many = append_many  # type: ignore[method-assign]
        rival()
        return append_many(appends, *given)

    service.store.append_many = late  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("begun", [False, True])
def test_a_reservation_that_lost_a_race_is_decided_again(begun: bool) -> None:
    service = Service(limit=Decimal(10))
    if begun:
        service.release("void")
    racing(service, lambda: service.reserve("a", 10))
    assert service.reserve("b", 10) == ["CREDIT_RESERVED", "CREDIT_REFUSED"]
    assert service.credit.live == {"a": 10}
    assert service.credit.refused == " b "


def test_a_stream_that_begins_between_two_reads_is_gone_on_with() -> None:
    service = Service(limit=Decimal(10))
    read, stream = service.store.read_stream, Stream("credit", service.user_id)

    def late(asked: Stream, *given: int) -> list[Event]:
        found = read(asked, *given)
        if asked == stream:
            service.store.read_stream = read  # type: ignore[method-assign]
            service.reserve("a", 10)
        return found

    service.store.read_stream = late  # type: ignore[assignment,method-assign]
    assert service.reserve("b", 10) == ["CREDIT_RESERVED", "CREDIT_REFUSED"]


def test_a_limit_that_is_lowered_at_that_moment_counts() -> None:
    service = Service(limit=Decimal(10))
    racing(service, lambda: service.change(ChangeCreditLimit(Decimal(5))))
    with pytest.raises(Conflict):
        service.reserve("a", 10)
    assert not service.credit.live
    assert service.reserve("a", 10) == ["CREDIT_REFUSED"]


def test_a_lowered_limit_takes_nothing_away() -> None:
    service = Service(limit=Decimal(10))
    service.reserve("a", 10)
    service.change(ChangeCreditLimit(Decimal(5)))
    assert service.credit.live == {"a": 10}
    assert service.reserve("b", Decimal("0.01")) == ["CREDIT_REFUSED"]


orders = st.sampled_from("abcde")
money = st.decimals(0, 20, places=2)
acts = st.one_of(
    st.tuples(st.just("reserve"), orders, money),
    st.tuples(st.just("release"), orders, st.just(Decimal(0))),
    st.tuples(st.just("limit"), st.just(""), st.none() | money),
    st.tuples(st.just("rename"), st.text("xyz", min_size=1, max_size=3), st.none()),
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=80, deadline=None)
@given(st.lists(acts, max_size=25))
def test_reserved_is_the_sum_of_live_orders_and_within_the_limit_at_each_reservation(
    sequence: list[tuple[str, str, Decimal | None]],
) -> None:
    service, now = Service(default="10"), SimpleNamespace(limit=Decimal(10))
    live, answered = dict[str, Decimal](), set[str]()
    for act, what, value in sequence:
        if act == "limit":
            service.change(ChangeCreditLimit(value))
            now.limit = value
        elif act == "rename":
            service.change(ChangeUser(what))
        elif act == "release":
            service.release(what)
            live.pop(what, None)
            answered.add(what)
        else:
            assert value is not None
            is_within = now.limit is None or sum(live.values()) + value <= now.limit
            appended = service.reserve(what, value)
            answer = "CREDIT_RESERVED" if is_within else "CREDIT_REFUSED"
            assert appended == ([] if what in answered else [answer])
            if what not in answered and is_within:
                live[what] = value
            answered.add(what)
        assert service.credit.live == live
        assert service.credit.reserved == sum(live.values()) >= 0
