"""The queries of a read model: the document as it is, the document as it was, and the history.

Reads the document from the read model. If it is missing or unavailable, folds the stream. So an
answered write is never a 404.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from time import monotonic
from uuid import UUID

from eventcore.errors import CannotApply, NotFound, ReadModelUnavailable, Unavailable
from eventcore.model.event import Data, Event, Json, to_timestamp
from eventcore.model.projection import Document, Projection, version_of
from eventcore.readmodel.port import Bookkeeping, ReadModel
from eventcore.readmodel.records import Generation, generation_of
from eventcore.store.port import Store, Stream, read_pages

GENERATION_TTL = 1.0
"""Seconds for which a process caches which generation serves."""

log = logging.getLogger(__name__)


class Serving:
    """Which generation of a projection serves; asked once a second at most."""

    def __init__(self, projection: Projection, readmodel: Bookkeeping) -> None:
        self._projection = projection
        self._readmodel = readmodel
        self._known = generation_of(projection)
        self._asked_at = float("-inf")

    def now(self) -> Generation:
        """The generation; raises ReadModelUnavailable."""
        if monotonic() - self._asked_at > GENERATION_TTL:
            number = self._readmodel.generations(self._projection.name).serving
            self._known = generation_of(self._projection, number)
            self._asked_at = monotonic()
        return self._known


class Views:
    """One projection's documents, as queries see them."""

    def __init__(self, projection: Projection, readmodel: ReadModel, store: Store) -> None:
        self.projection = projection
        self._readmodel = readmodel
        self._store = store
        self._serving = Serving(projection, readmodel)

    def current(self, aggregate_id: UUID) -> Document:
        """The document now. Raises NotFound, and StoreUnavailable if the stream is needed."""
        try:
            collection = self._serving.now().collection
            document = self._readmodel.find(collection, [str(aggregate_id)]).get(str(aggregate_id))
        except ReadModelUnavailable as error:
            log.warning("Answered from the stream", extra={"reason": str(error)})
            document = None
        if document is None:
            return self.as_it_was(aggregate_id)
        self._require_shown(aggregate_id, document)
        return document

    def as_it_was(
        self, aggregate_id: UUID, version: int | None = None, at: datetime | None = None
    ) -> Document:
        """The document folded from events, up to a version or a moment; raises NotFound."""
        stream = self._stream(aggregate_id)

        def past() -> Iterator[Event]:
            for page in read_pages(self._store, stream, until=version):
                for event in page:
                    if at is not None and event.recorded_at > at:
                        return
                    yield event

        document = self._fold(aggregate_id, past)
        reached = version_of(document)
        if version is not None and at is None and 0 < reached < version:
            raise NotFound(f"{stream} has no version {version}: it is at {reached}.")
        if document is None:
            first = self._store.read_stream(stream, 0, 1)
            if not first:
                raise NotFound(f"There is no {stream}.")
            began = to_timestamp(first[0].recorded_at)
            raise NotFound(f"{stream} did not exist yet: it began at {began}.")
        self._require_shown(aggregate_id, document)
        return document

    def page(self, where: Mapping[str, str], before: str | None, limit: int) -> list[Document]:
        """Up to `limit` documents, newest first, and one more if there are more."""
        collection = self._serving.now().collection
        return self._readmodel.page(collection, where, before, limit + 1)

    def history(self, aggregate_id: UUID, after: int, limit: int) -> Data:
        """A page of the stream, oldest first; `next` is the `after` of the next page, if any."""
        stream = self._stream(aggregate_id)
        events = self._store.read_stream(stream, after, limit + 1)
        if not events and not self._store.read_stream(stream, 0, 1):
            raise NotFound(f"There is no {stream}.")
        shown = events[:limit]
        after_it = shown[-1].version if len(events) > limit else None
        return {"events": tuple(map(to_entry, shown)), "next": after_it}

    def _fold(self, aggregate_id: UUID, read: Callable[[], Iterable[Event]]) -> Document | None:
        """The document after the events of `read`; reads the skips if an event does not apply."""
        try:
            return self.projection.fold(read())
        except Unavailable:
            raise
        except Exception as error:
            skips = self._readmodel.skips(self.projection.name)
            skipped = [s.version for s in skips if s.stream == str(aggregate_id)]
            if not skipped:
                raise CannotApply(
                    f"{self._stream(aggregate_id)} has an event that cannot be shown yet: {error}."
                    " Nothing is lost; its history can be read."
                ) from error
            return self.projection.fold(read(), skipped)

    def _require_shown(self, aggregate_id: UUID, document: Document) -> None:
        """Raises NotFound for a document that is removed."""
        if "removed" in document:
            raise NotFound(
                f"{self._stream(aggregate_id)} is not shown: its first event was skipped."
                " Its history can be read."
            )

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
