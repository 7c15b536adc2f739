"""The catalogue of the order service: the events of an order. Pure.

It is in the image of every service.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from eventcore.model.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    """A user has ordered an item at a price."""

    user_id: str
    item: str
    price: Decimal


@dataclass(frozen=True, slots=True)
class OrderCancelled:
    """The order will not be carried out."""

    reason: str | None = None


OrderEvent: TypeAlias = OrderPlaced | OrderCancelled

CATALOGUE = Catalogue(aggregate_type="order", events=OrderEvent)
