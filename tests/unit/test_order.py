"""Rules of an order: given events, when a command, then events."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import Invalid
from order.events import OrderCancelled, OrderEvent, OrderPlaced
from order.order import (
    CancelOrder,
    Order,
    OrderCommand,
    PlaceOrder,
    Status,
    decide,
    evolve,
)

PLACE = PlaceOrder("u", "Laptop", Decimal("19.99"))
commands = st.lists(st.just(PLACE) | st.builds(CancelOrder, st.none() | st.text()), max_size=12)


def test_placing_an_order_says_what_was_ordered() -> None:
    assert decide(PLACE, None) == [OrderPlaced("u", "Laptop", Decimal("19.99"))]


def test_cancelling_says_why() -> None:
    assert decide(CancelOrder("too late"), Order(Status.PLACED)) == [OrderCancelled("too late")]


def test_cancelling_what_is_cancelled_is_nothing_new() -> None:
    assert decide(CancelOrder(), Order(Status.CANCELLED)) == []


@pytest.mark.parametrize(
    ("command", "order"), [(PLACE, Order(Status.PLACED)), (CancelOrder(), None)]
)
def test_what_makes_no_sense_is_refused(command: OrderCommand, order: Order | None) -> None:
    with pytest.raises(Invalid):
        decide(command, order)


@given(commands)
def test_an_order_is_placed_first_and_cancelled_once_at_most(sequence: list[OrderCommand]) -> None:
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
    assert [type(event) for event in events] in (
        [],
        [OrderPlaced],
        [OrderPlaced, OrderCancelled],
    )
