"""The read model of orders: its documents, its fold, and what a query shows of one. Pure.

{_id: the order's id, version, userId, item, price, status, reason, placedAt}

`status` is `placed` for a confirmed order, as documents from before the other statuses have it.
`reason` is that of a rejection, and missing elsewhere.
"""

from eventcore.model.event import Data, Event, to_timestamp
from eventcore.model.projection import Document, Projection
from order.events import CATALOGUE

_CONFIRMED = "placed"


def _placed(_: Document, event: Event) -> Document:
    return {
        "userId": event.data["userId"],
        "item": event.data["item"],
        "price": event.data["price"],
        "status": "pending" if event.data.get("pending") else _CONFIRMED,
        "placedAt": to_timestamp(event.recorded_at),
    }


def _confirmed(_: Document, __: Event) -> Document:
    return {"status": _CONFIRMED}


def _rejected(_: Document, event: Event) -> Document:
    return {"status": "rejected", "reason": event.data["reason"]}


def _cancelled(_: Document, __: Event) -> Document:
    return {"status": "cancelled"}


PROJECTION = Projection(
    name="orders",
    catalogue=CATALOGUE,
    queue="order_read_model_queue",
    collection="orders",
    log_message="Order Read Model updated",
    steps={
        "ORDER_PLACED": _placed,
        "ORDER_CONFIRMED": _confirmed,
        "ORDER_REJECTED": _rejected,
        "ORDER_CANCELLED": _cancelled,
    },
    indexes=(("userId", "_id"), ("status", "_id")),
)


def stored(status: str) -> str:
    """The status in documents, by that which queries show."""
    return _CONFIRMED if status == "confirmed" else status


def shown(document: Document) -> Data:
    """An order, as queries answer one."""
    shown = {
        "_id": document["_id"],
        "orderId": document["_id"],
        "userId": document["userId"],
        "item": document["item"],
        "price": document["price"],
        "status": "confirmed" if document["status"] == _CONFIRMED else document["status"],
        "placedAt": document["placedAt"],
        "version": document["version"],
    }
    return {**shown, "reason": document["reason"]} if "reason" in document else shown
