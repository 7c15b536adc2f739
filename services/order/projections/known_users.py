"""The order service's own read model of users: those that may order. Pure.

    {_id: the user's id, version}

It needs to know that a user exists and nothing else, so it keeps nothing else.
"""

from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection
from user.events import CATALOGUE


def _created(_: Document, __: Event) -> Document:
    return {}


PROJECTION = Projection(
    name="known-users",
    catalogue=CATALOGUE,
    queue="order_service_user_sync",
    collection="known_users",
    log_message="User cached in Order Service",
    steps={"USER_CREATED": _created},
    ignores=frozenset({"USER_NAME_CHANGED", "USER_EMAIL_CHANGED"}),
)
