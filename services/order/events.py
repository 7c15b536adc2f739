"""The catalogues of the order service: the events of an order, and of its saga. Pure.

It is in the image of every service.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from eventcore.model.catalogue import Catalogue
from eventcore.model.saga import SagaEvent


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    """A user has ordered an item at a price. If `pending`, it waits for its saga."""

    user_id: str
    item: str
    price: Decimal
    pending: bool | None = None


@dataclass(frozen=True, slots=True)
class OrderConfirmed:
    """A pending order will be carried out."""


@dataclass(frozen=True, slots=True)
class OrderRejected:
    """A pending order will not be carried out."""

    reason: str


@dataclass(frozen=True, slots=True)
class OrderCancelled:
    """The order will not be carried out."""

    reason: str | None = None


OrderEvent: TypeAlias = OrderPlaced | OrderConfirmed | OrderRejected | OrderCancelled

CATALOGUE = Catalogue(aggregate_type="order", events=OrderEvent)

ORDER_SAGA = Catalogue(aggregate_type="order_saga", events=SagaEvent, owner="order")
