"""The order service's own read model of users: those that may order. Pure.

    {_id: the user's id, version, limited}

It keeps what an order needs: that the user exists, and whether their credit has a limit. `limited`
is missing as long as no limit was set.
"""

from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection
from user.events import CATALOGUE


def _created(_: Document, __: Event) -> Document:
    return {}


def _credit_limit_changed(_: Document, event: Event) -> Document:
    return {"limited": event.data.get("limit") is not None}


PROJECTION = Projection(
    name="known-users",
    catalogue=CATALOGUE,
    queue="order_service_user_sync",
    collection="known_users",
    log_message="User cached in Order Service",
    steps={"USER_CREATED": _created, "USER_CREDIT_LIMIT_CHANGED": _credit_limit_changed},
    ignores=frozenset({"USER_NAME_CHANGED", "USER_EMAIL_CHANGED"}),
)
