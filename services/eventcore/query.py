"""What queries share: the document as it is, the document as it was, and the history.

A document is what its projection folds, wherever it comes from: the read model, or, where
that has none (yet) or is away, the stream itself. So an answered write is never a 404.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from eventcore.command import read_all
from eventcore.errors import NotFound, ReadModelAway
from eventcore.event import Data, Event, Json, to_timestamp
from eventcore.projection import Document, Projection
from eventcore.readmodel import ReadModel
from eventcore.store import Store, Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Views:
    """One projection's documents, as queries see them."""

    projection: Projection
    readmodel: ReadModel
    store: Store

    def current(self, aggregate_id: UUID) -> Document:
        """The document now; raises NotFound, or StoreAway where only the stream could tell."""
        try:
            found = self.readmodel.find(self.projection.collection, [str(aggregate_id)])
        except ReadModelAway as away:
            log.warning("Answered from the stream", extra={"reason": str(away)})
            found = {}
        document = found.get(str(aggregate_id))
        return document or self.as_it_was(aggregate_id)

    def as_it_was(
        self, aggregate_id: UUID, version: int | None = None, at: datetime | None = None
    ) -> Document:
        """The document folded from events, up to a version or a moment; raises NotFound."""
        events = read_all(self.store, self._stream(aggregate_id))
        if not events:
            raise NotFound(f"There is no {self._stream(aggregate_id)}.")
        if version is not None and version > len(events):
            raise NotFound(
                f"{self._stream(aggregate_id)} has no version {version}: it is at {len(events)}."
            )
        past = [e for e in events if _is_past(e, version, at)]
        document = self.projection.fold(past)
        if document is None:
            began = to_timestamp(events[0].recorded_at)
            raise NotFound(f"{self._stream(aggregate_id)} did not exist yet: it began at {began}.")
        return document

    def page(self, where: Mapping[str, str], before: str | None, limit: int) -> list[Document]:
        """Up to `limit` documents, newest first, and one more if there are more."""
        return self.readmodel.page(self.projection.collection, where, before, limit + 1)

    def history(self, aggregate_id: UUID, after: int, limit: int) -> Data:
        """A page of the stream, oldest first; `next` is the `after` of the next page, if any."""
        stream = self._stream(aggregate_id)
        events = self.store.read_stream(stream, after, limit + 1)
        if not events and not self.store.read_stream(stream, 0, 1):
            raise NotFound(f"There is no {stream}.")
        shown = events[:limit]
        more = len(events) > limit
        entries = tuple(to_entry(event) for event in shown)
        return {"events": entries, "next": shown[-1].version if more else None}

    def _stream(self, aggregate_id: UUID) -> Stream:
        return Stream(self.projection.aggregate_type, aggregate_id)


def to_entry(event: Event) -> dict[str, Json]:
    """An event as the history shows it."""
    return {
        "eventId": str(event.event_id),
        "eventType": event.event_type,
        "version": event.version,
        "recordedAt": to_timestamp(event.recorded_at),
        "correlationId": event.metadata.get("correlationId"),
        "causationId": event.metadata.get("causationId"),
        "data": event.data,
    }


def _is_past(event: Event, version: int | None, at: datetime | None) -> bool:
    return (version is None or event.version <= version) and (at is None or event.recorded_at <= at)
