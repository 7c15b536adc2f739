"""The read model of orders: its documents, its fold, and what a query shows of one. Pure.

{_id: the order's id, version, userId, item, price, status, placedAt}
"""

from eventcore.model.event import Data, Event, to_timestamp
from eventcore.model.projection import Document, Projection
from order.events import CATALOGUE


def _placed(_: Document, event: Event) -> Document:
    return {
        "userId": event.data["userId"],
        "item": event.data["item"],
        "price": event.data["price"],
        "status": "placed",
        "placedAt": to_timestamp(event.recorded_at),
    }


def _cancelled(_: Document, __: Event) -> Document:
    return {"status": "cancelled"}


PROJECTION = Projection(
    name="orders",
    catalogue=CATALOGUE,
    queue="order_read_model_queue",
    collection="orders",
    log_message="Order Read Model updated",
    steps={"ORDER_PLACED": _placed, "ORDER_CANCELLED": _cancelled},
    indexes=(("userId", "_id"), ("status", "_id")),
)


def shown(document: Document) -> Data:
    """An order, as queries answer one."""
    return {
        "_id": document["_id"],
        "orderId": document["_id"],
        "userId": document["userId"],
        "item": document["item"],
        "price": document["price"],
        "status": document["status"],
        "placedAt": document["placedAt"],
        "version": document["version"],
    }
