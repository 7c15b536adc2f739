"""Rules of an order: given events, when a command, then events."""

from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import Invalid
from order.events import OrderCancelled, OrderConfirmed, OrderEvent, OrderPlaced, OrderRejected
from order.order import (
    DECIDER,
    CancelOrder,
    EndPending,
    Order,
    OrderCommand,
    PlaceOrder,
    Status,
    decide,
    evolve,
)

PLACE = PlaceOrder("u", "Laptop", Decimal("19.99"))
PENDING = Order(Status.PENDING, has_saga=True)
commands = st.lists(
    st.builds(PlaceOrder, st.just("u"), st.just("Laptop"), st.just(Decimal(1)), st.booleans())
    | st.builds(CancelOrder, st.none() | st.text())
    | st.builds(EndPending, st.sampled_from(Status), st.none() | st.text()),
    max_size=12,
)


def test_placing_an_order_says_what_was_ordered() -> None:
    assert decide(PLACE, None) == [OrderPlaced("u", "Laptop", Decimal("19.99"))]


def test_an_order_without_a_saga_is_appended_as_it_was_before_sagas() -> None:
    [placed] = decide(PLACE, None)
    data = DECIDER.to_new_event(placed, UUID(int=1)).data
    assert data == {"userId": "u", "item": "Laptop", "price": Decimal("19.99")}
    assert evolve(None, placed) == Order(Status.CONFIRMED, has_saga=False)


def test_a_pending_order_says_so() -> None:
    [placed] = decide(PlaceOrder("u", "Laptop", Decimal(1), pending=True), None)
    assert placed == OrderPlaced("u", "Laptop", Decimal(1), pending=True)
    assert evolve(None, placed) == PENDING


def test_cancelling_says_why() -> None:
    order = Order(Status.CONFIRMED)
    assert decide(CancelOrder("too late"), order) == [OrderCancelled("too late")]


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.REJECTED, Status.PENDING])
def test_cancelling_any_but_a_confirmed_order_is_nothing_new(status: Status) -> None:
    assert decide(CancelOrder(), Order(status)) == []


@pytest.mark.parametrize(
    ("status", "event"),
    [
        (Status.CONFIRMED, OrderConfirmed()),
        (Status.REJECTED, OrderRejected("too much")),
        (Status.CANCELLED, OrderCancelled("too much")),
    ],
)
def test_a_pending_order_ends_as_its_saga_does(status: Status, event: OrderEvent) -> None:
    assert decide(EndPending(status, "too much"), PENDING) == [event]
    ended = evolve(PENDING, event)
    assert ended == Order(status, has_saga=True)
    assert decide(EndPending(Status.REJECTED, "later"), ended) == []


@pytest.mark.parametrize(
    ("command", "order"),
    [(PLACE, Order(Status.CONFIRMED)), (CancelOrder(), None), (EndPending(Status.REJECTED), None)],
)
def test_what_makes_no_sense_is_refused(command: OrderCommand, order: Order | None) -> None:
    with pytest.raises(Invalid):
        decide(command, order)


@given(commands)
def test_an_order_is_placed_first_decided_once_and_cancelled_last(
    sequence: list[OrderCommand],
) -> None:
    order: Order | None = None
    events: list[OrderEvent] = []
    for command in sequence:
        try:
            new = decide(command, order)
        except Invalid:
            continue
        for event in new:
            order = evolve(order, event)
        events += new
    kinds = [type(event) for event in events]
    assert kinds[:1] in ([], [OrderPlaced])
    assert kinds[1:] in (
        [],
        [OrderCancelled],
        [OrderConfirmed],
        [OrderConfirmed, OrderCancelled],
        [OrderRejected],
    )
    if OrderConfirmed in kinds or OrderRejected in kinds:
        assert events[0] == OrderPlaced("u", "Laptop", Decimal(1), pending=True)
