"""Guards of the order service's calls: orders and customers are shown to their user alone."""

from collections.abc import Callable
from typing import Any

from eventcore.errors import Invalid, NotFound
from eventcore.store.port import Store, Stream
from eventcore.web.request import Incoming

Guard = Callable[[Incoming[Any, Any]], None]


def own_user(incoming: Incoming[Any, Any]) -> None:
    """Orders are placed for the caller's own user. Raises Invalid, as for an unknown user."""
    orders = getattr(incoming.body, "orders", None)
    refused = {
        f"orders.{place}.userId" if orders else "userId": (
            f"There is no user {each.userId}. Create one with POST /users, then order."
        )
        for place, each in enumerate(orders or [incoming.body])
        if not incoming.caller.may(each.userId)
    }
    if refused and orders:
        detail = f"{len(refused)} of the {len(orders)} orders are of no user: none was placed."
        raise Invalid(detail, "User unknown", refused)
    if refused:
        raise Invalid(refused["userId"], "User unknown")


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


def own_customer(incoming: Incoming[Any, Any]) -> None:
    """A customer is the caller's own user; raises NotFound, as for an unknown one."""
    if not incoming.caller.may(str(incoming.id)):
        raise NotFound(f"customers has no {incoming.id}, or its events have not arrived yet.")
