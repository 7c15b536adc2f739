"""The read model of customers: what each user has ordered. Pure.

{_id: the user's id, version, positions, name, orders, cancelled, rejected, total, lastOrderAt}

`total` is of the orders that are neither cancelled nor rejected. `name` is missing as long as the
user's event is, `rejected` as long as it is 0; `lastOrderAt` is "" as long as there is no order.
"""

from collections.abc import Sequence
from decimal import Decimal

from eventcore.model.event import Data, Event, to_timestamp
from eventcore.model.projection import Document
from eventcore.model.view import On, View
from order import events as orders
from user import events as users

_NOTHING: Document = {"orders": 0, "cancelled": 0, "total": Decimal(0), "lastOrderAt": ""}


def _user(event: Event) -> Sequence[str]:
    return [str(event.aggregate_id)]


def _customer(event: Event) -> Sequence[str]:
    return [str(event.data["userId"])]


def _named(document: Document, event: Event) -> Document:
    return {**_NOTHING, **document, "name": event.data["name"]}


def _placed(document: Document, event: Event) -> Document:
    known = {**_NOTHING, **document}
    return {
        **known,
        "orders": known["orders"] + 1,
        "total": known["total"] + event.data["price"],
        "lastOrderAt": max(str(known["lastOrderAt"]), to_timestamp(event.recorded_at)),
    }


def _cancelled(document: Document, event: Event) -> Document:
    return {
        "cancelled": document["cancelled"] + 1,
        "total": document["total"] - event.data["price"],
    }


def _rejected(document: Document, event: Event) -> Document:
    return {
        "rejected": document.get("rejected", 0) + 1,
        "total": document["total"] - event.data["price"],
    }


VIEW = View(
    name="customers",
    catalogues=(users.CATALOGUE, orders.CATALOGUE),
    queue="order_customers_queue",
    collection="customers",
    log_message="Customers updated",
    on={
        "user": {"USER_CREATED": On(_user, _named), "USER_NAME_CHANGED": On(_user, _named)},
        "order": {
            "ORDER_PLACED": On(_customer, _placed),
            "ORDER_CANCELLED": On(_customer, _cancelled, with_first=True),
            "ORDER_REJECTED": On(_customer, _rejected, with_first=True),
        },
    },
    indexes=(("total", "_id"), ("lastOrderAt", "_id")),
)


def shown(document: Document) -> Data:
    """A customer, as queries answer one."""
    return {
        "_id": document["_id"],
        "userId": document["_id"],
        "name": document.get("name"),
        "orders": document["orders"],
        "cancelled": document["cancelled"],
        "rejected": document.get("rejected", 0),
        "total": document["total"],
        "lastOrderAt": document["lastOrderAt"] or None,
    }
