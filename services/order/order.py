"""An order: state, commands and the rules between them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import TypeAlias, assert_never

from eventcore.errors import Invalid
from eventcore.model.decider import Decider
from order.events import CATALOGUE, OrderCancelled, OrderEvent, OrderPlaced


class Status(StrEnum):
    """Where an order is in its life."""

    PLACED = "placed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Order:
    """An order, as far as decisions need one."""

    status: Status


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """Order an item for a user."""

    user_id: str
    item: str
    price: Decimal


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Call the order off."""

    reason: str | None = None


OrderCommand: TypeAlias = PlaceOrder | CancelOrder


def decide(command: OrderCommand, order: Order | None) -> Sequence[OrderEvent]:
    """The new events; cancelling a cancelled order makes none."""
    match command:
        case PlaceOrder(user_id, item, price):
            if order is not None:
                raise Invalid("This order was placed before.", "Order exists")
            return [OrderPlaced(user_id, item, price)]
        case CancelOrder(reason):
            if order is None:
                raise Invalid("This order was never placed.", "Order unknown")
            return [] if order.status is Status.CANCELLED else [OrderCancelled(reason)]
        case _:
            assert_never(command)


def evolve(order: Order | None, event: OrderEvent) -> Order | None:
    """The order after an event."""
    match event:
        case OrderPlaced():
            return Order(Status.PLACED)
        case OrderCancelled():
            return replace(order, status=Status.CANCELLED) if order else None
        case _:
            assert_never(event)


DECIDER: Decider[OrderCommand, Order | None, OrderEvent] = Decider(
    catalogue=CATALOGUE, initial=None, decide=decide, evolve=evolve
)
