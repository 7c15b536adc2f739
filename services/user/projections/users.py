"""The read model of users: its documents, its fold, and what a query shows of one. Pure.

{_id: the user's id, version, name, email, creditLimit}

`creditLimit` is missing as long as none was set; null is unlimited.
"""

from eventcore.model.event import Data, Event
from eventcore.model.projection import Document, Projection
from user.events import CATALOGUE


def _created(_: Document, event: Event) -> Document:
    return {"name": event.data["name"], "email": event.data["email"]}


def _name_changed(_: Document, event: Event) -> Document:
    return {"name": event.data["name"]}


def _email_changed(_: Document, event: Event) -> Document:
    return {"email": event.data["email"]}


def _credit_limit_changed(_: Document, event: Event) -> Document:
    return {"creditLimit": event.data.get("limit")}


PROJECTION = Projection(
    name="users",
    catalogue=CATALOGUE,
    queue="user_projection_queue",
    collection="users",
    log_message="Updating User Projection",
    steps={
        "USER_CREATED": _created,
        "USER_NAME_CHANGED": _name_changed,
        "USER_EMAIL_CHANGED": _email_changed,
        "USER_CREDIT_LIMIT_CHANGED": _credit_limit_changed,
    },
)


def shown(document: Document) -> Data:
    """A user, as queries answer one."""
    return {
        "_id": document["_id"],
        "userId": document["_id"],
        "name": document["name"],
        "email": document["email"],
    }
