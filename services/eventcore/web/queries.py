"""The queries of a read model: a document, now or as it was, and the history of its stream."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from eventcore.consistency import Lag
from eventcore.errors import CannotApply, Invalid, NotFound
from eventcore.model.event import Data, tag_of
from eventcore.model.projection import Document, version_of
from eventcore.query import Views
from eventcore.store.port import Answer
from eventcore.web.inputs import DIGITS, TIME, QueryInput
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, in_handler

SOURCE = "Answered-From"
"""Header of a query's answer: view, live (folded from the stream), or stale, with the reason."""

MOST_DOCUMENTS = 100
"""Events of a page of a history that has documents."""

_MOST = 2**53
"""Bound of versions: every reader of JSON has exact integers up to here."""


class AsOf(QueryInput):
    """Asks for the state as it was: after a version, or at a moment."""

    version: Annotated[int, Field(ge=1, lt=_MOST), DIGITS] | None = Field(
        None, description="The state after this event."
    )
    at: Annotated[datetime, TIME] | None = Field(
        None, description="The state at this moment (RFC 3339, with an offset from UTC)."
    )

    def is_past(self) -> bool:
        """Whether the past is asked for; raises Invalid for a question with two answers."""
        if self.version is not None and self.at is not None:
            raise Invalid("Ask for a version or for a moment, not for both.")
        return self.version is not None or self.at is not None


class Page(QueryInput):
    """A page of a stream's history."""

    after: Annotated[int, Field(ge=0, lt=_MOST), DIGITS] = Field(
        0, description="Events above this version."
    )
    limit: Annotated[int, Field(ge=1, le=500), DIGITS] = Field(
        100, description="How many events at most."
    )
    include: Literal["documents"] | None = Field(
        None,
        description="Adds the document after each event to it; then a page has"
        f" {MOST_DOCUMENTS} events at most.",
    )


class HistoryEntry(BaseModel):
    """One event of a stream."""

    eventId: str
    eventType: str
    version: int
    recordedAt: str
    correlationId: str | None
    causationId: str | None
    actor: str | None = Field(description="null: nobody was asked for an identity.")
    data: dict[str, Any]
    document: dict[str, Any] | None = Field(
        None,
        description="As it was after this event, if it is asked for; null: it cannot be shown.",
    )


class History(BaseModel):
    """A page of the events of one stream, oldest first."""

    events: list[HistoryEntry]
    next: int | None = Field(description="The `after` of the next page; null: there is none.")


def add_queries(
    route: Routes,
    path: str,
    views: Views,
    shown: Callable[[Document], Data],
    model: type[BaseModel],
    history_path: str | None = None,
    owner: str = "_id",
) -> None:
    """Adds the queries of a read model: its documents by id, and the histories of their streams.

    Without `history_path` there is no query of histories: one for each aggregate type is enough.
    `owner` names the field of a document with the id of the user whom it belongs to.
    """
    name, own = views.projection.aggregate_type, _own(views, owner)

    @route("GET", path, f"The {name}, now or as it was", {200: model}, query=AsOf, guard=in_handler)
    def get(incoming: Incoming[None, AsOf]) -> Answer:
        document, source = _find(views, own, incoming)
        incoming.caller.require(document.get(owner), f"{name} {incoming.id}")
        tag = tag_of(version_of(document), str(document.get("eventId", "")))
        return Answer(200, shown(document), {"ETag": f'"{tag}"', SOURCE: source})

    if history_path is None:
        return

    @route(
        "GET", history_path, f"The {name}'s events, oldest first", {200: History}, query=Page,
        guard=own,
    )  # fmt: skip
    def history(incoming: Incoming[None, Page]) -> Answer:
        page = incoming.query
        limit = min(page.limit, MOST_DOCUMENTS) if page.include else page.limit
        found = views.history(incoming.id, page.after, limit, shown if page.include else None)
        return Answer(200, found, {SOURCE: "live"})


def _find(
    views: Views, own: Callable[[Incoming[Any, Any]], None], incoming: Incoming[None, AsOf]
) -> tuple[Document, str]:
    """The document that is asked for, and its source. Refusals name no other user's stream."""
    asked = incoming.query
    if asked.is_past():
        own(incoming)
        return views.as_it_was(incoming.id, asked.version, asked.at), "live"
    try:
        return views.current(incoming.id, incoming.seen)
    except (NotFound, CannotApply):
        own(incoming)
        raise


def _own(views: Views, owner: str) -> Callable[[Incoming[Any, Any]], None]:
    """Returns a guard: the stream must be the caller's own, as its first event says."""

    def guard(incoming: Incoming[Any, Any]) -> None:
        if not incoming.caller.is_limited:
            return
        try:
            began = views.as_it_was(incoming.id, version=1)
        except (NotFound, CannotApply):
            began = {}
        named = f"{views.projection.aggregate_type} {incoming.id}"
        incoming.caller.require(began.get(owner), named)

    return guard


def source_of(lag: Lag) -> str:
    """The source of a list: the view, or a view that does not show all that the caller has seen."""
    return f"stale; reason={lag}" if lag else "view"
