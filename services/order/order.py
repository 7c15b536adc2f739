"""An order: state, commands and the rules between them. Pure.

An order of a user with a credit limit is pending until its saga has an outcome; any other one is
confirmed from the beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import TypeAlias, assert_never

from eventcore.errors import Invalid
from eventcore.model.decider import Decider
from order.events import (
    CATALOGUE,
    OrderCancelled,
    OrderConfirmed,
    OrderEvent,
    OrderPlaced,
    OrderRejected,
)


class Status(StrEnum):
    """Where an order is in its life."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Order:
    """An order, as far as decisions need one."""

    status: Status
    has_saga: bool = False


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """Order an item for a user; `pending` until the order's saga has an outcome."""

    user_id: str
    item: str
    price: Decimal
    pending: bool = False


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Call the order off. The saga of a pending one keeps that, and cancels it by EndPending."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class EndPending:
    """Give a pending order the status that its saga has come to."""

    status: Status
    reason: str | None = None


OrderCommand: TypeAlias = PlaceOrder | CancelOrder | EndPending


def decide(command: OrderCommand, order: Order | None) -> Sequence[OrderEvent]:
    """The new events; cancelling an order that is cancelled, rejected or pending makes none."""
    if isinstance(command, PlaceOrder):
        if order is not None:
            raise Invalid("This order was placed before.", "Order exists")
        pending = command.pending or None
        return [OrderPlaced(command.user_id, command.item, command.price, pending)]
    if order is None:
        raise Invalid("This order was never placed.", "Order unknown")
    match command:
        case CancelOrder(reason):
            return [OrderCancelled(reason)] if order.status is Status.CONFIRMED else []
        case EndPending(status, reason):
            return [_end(status, reason)] if order.status is Status.PENDING else []
        case _:
            assert_never(command)


def _end(status: Status, reason: str | None) -> OrderEvent:
    match status:
        case Status.CONFIRMED:
            return OrderConfirmed()
        case Status.CANCELLED:
            return OrderCancelled(reason)
        case _:
            return OrderRejected(reason or "")


def evolve(order: Order | None, event: OrderEvent) -> Order | None:
    """The order after an event."""
    match event:
        case OrderPlaced(pending=True):
            return Order(Status.PENDING, has_saga=True)
        case OrderPlaced():
            return Order(Status.CONFIRMED)
        case OrderConfirmed():
            return replace(order, status=Status.CONFIRMED) if order else None
        case OrderRejected():
            return replace(order, status=Status.REJECTED) if order else None
        case OrderCancelled():
            return replace(order, status=Status.CANCELLED) if order else None
        case _:
            assert_never(event)


DECIDER: Decider[OrderCommand, Order | None, OrderEvent] = Decider(
    catalogue=CATALOGUE, initial=None, decide=decide, evolve=evolve
)
