"""Guards of the order service's calls: orders and customers are shown to their user alone."""

from collections.abc import Callable
from typing import Any

from eventcore.errors import NotFound
from eventcore.query import ViewDocuments
from eventcore.store.port import Store, Stream
from eventcore.web.request import Incoming
from order.customers import require_users, unknown_user

Guard = Callable[[Incoming[Any, Any]], None]


def own_user(incoming: Incoming[Any, Any]) -> None:
    """Orders are placed for the caller's own user. Raises Invalid, as for an unknown user."""
    orders = getattr(incoming.body, "orders", None)
    users = [each.userId for each in orders or [incoming.body]]
    refused = {id: unknown_user(id) for id in users if not incoming.caller.may(id)}
    if orders:
        require_users(users, refused)
    elif refused:
        raise refused[users[0]]


def own_order(store: Store) -> Guard:
    """Returns the guard of a command on an order, whose first event names its user."""

    def guard(incoming: Incoming[Any, Any]) -> None:
        first = store.read_stream(Stream("order", incoming.id), 0, 1)
        user_id = first[0].data.get("userId") if first else None
        incoming.caller.require(user_id, f"order {incoming.id}")

    return guard


def own_list(incoming: Incoming[Any, Any]) -> None:
    """A list of orders is of the caller's own user; raises NotFound for another user's."""
    asked = incoming.query.userId
    if asked is not None:
        incoming.caller.require(asked, f"user {asked}")
    if not incoming.caller.user:
        raise NotFound("Your token names no user, so there are no orders to list.")


def own_customer(customers: ViewDocuments) -> Guard:
    """Returns the guard of a query of a customer, who must be the caller's own user."""

    def guard(incoming: Incoming[Any, Any]) -> None:
        if not incoming.caller.may(str(incoming.id)):
            raise customers.missing(str(incoming.id))

    return guard
