"""The read model of credit: how much of it is reserved. Pure.

{_id: the user's id, version, reserved}

`reserved` is missing as long as nothing was ever reserved. The limit is in the user's document.
"""

from decimal import Decimal

from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection
from user.events import CREDIT


def reserved(document: Document) -> Decimal:
    """How much is reserved, as a document has it."""
    return Decimal(document.get("reserved", 0))


def _reserved(document: Document, event: Event) -> Document:
    return {"reserved": reserved(document) + event.data["amount"]}


def _released(document: Document, event: Event) -> Document:
    return {"reserved": reserved(document) - event.data.get("amount", 0)}


PROJECTION = Projection(
    name="credit",
    catalogue=CREDIT,
    queue="user_credit_queue",
    collection="credit",
    log_message="Credit updated",
    steps={"CREDIT_RESERVED": _reserved, "CREDIT_RELEASED": _released},
    ignores=frozenset({"CREDIT_REFUSED"}),
)
