"""The queries of a read model: the document as it is, the document as it was, and the history.

Reads the document from the read model. If it is missing or unavailable, folds the stream. So an
answered write is never a 404.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import chain
from typing import TypeVar
from uuid import UUID

from eventcore.consistency import Lag, Waits, lag, require_seen, view_lag
from eventcore.errors import CannotApply, NotFound, NotYet, ReadModelUnavailable, Unavailable
from eventcore.model.event import Data, Event, Json, to_timestamp
from eventcore.model.projection import Document, Projection, version_of
from eventcore.model.token import Token
from eventcore.model.view import View
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Checkpoint, skipped_versions
from eventcore.readmodel.serving import Serving
from eventcore.store.port import Store, Stream, read_pages

Folded = TypeVar("Folded")

log = logging.getLogger(__name__)


class Views:
    """One projection's documents, as queries see them.

    `waits` bounds how long requests wait for documents that they have seen; without it none waits.
    """

    def __init__(
        self,
        projection: Projection,
        readmodel: ReadModel,
        store: Store,
        waits: Waits | None = None,
    ) -> None:
        self.projection = projection
        self._readmodel = readmodel
        self._store = store
        self._serving = Serving(projection, readmodel)
        self._waits = waits or Waits(0, 1)

    def current(self, aggregate_id: UUID, seen: Token | None = None) -> tuple[Document, str]:
        """The document now, and its source: "view" or, folded from its stream, "live".

        A document that is older than the token is folded. Raises NotFound, NotYet if the log that
        is read is older as well, and StoreUnavailable if the stream is needed.
        """
        wanted = seen.version(self.projection.aggregate_type, aggregate_id) if seen else 0
        document = self._find(aggregate_id, seen if wanted else None)
        if document is not None and version_of(document) >= wanted:
            self._require_shown(aggregate_id, document)
            return document, "view"
        document = self._fold_current(aggregate_id, wanted)
        return document, "live"

    def reached(self, seen: Token | None, wait: float | None) -> Lag:
        """Waits until the documents have the versions of a token; returns why they have not."""
        if not seen:
            return Lag.NONE
        generation, kind = self._serving.now(), self.projection.aggregate_type
        epoch = self._serving.epoch()
        return self._waits.until_seen(
            lambda: lag(self._readmodel, generation, kind, seen, epoch), wait
        )

    def _find(self, aggregate_id: UUID, seen: Token | None) -> Document | None:
        """The document in the view; None if it must be folded."""
        try:
            generation, id = self._serving.now(), str(aggregate_id)
            document = self._readmodel.find(generation.collection, [id]).get(id)
            kind = self.projection.aggregate_type
            if seen and not seen.is_of(kind, self._serving.epoch()):
                return None
        except ReadModelUnavailable as error:
            log.warning("Answered from the stream", extra={"reason": str(error)})
            return None
        return document

    def _fold_current(self, aggregate_id: UUID, wanted: int) -> Document:
        """The document folded from its stream, which must be at the version that is wanted."""
        try:
            document = self.as_it_was(aggregate_id)
        except NotFound:
            if not wanted or self._store.read_stream(self._stream(aggregate_id), 0, 1):
                raise
            document = {}
        if wanted and version_of(document) < wanted:
            raise NotYet(
                f"The copy of the log that is read here does not have version {wanted} of"
                f" {self._stream(aggregate_id)} yet. Try again."
            )
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

        document = self._fold(aggregate_id, lambda skipped: self.projection.fold(past(), skipped))
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

    def history(
        self,
        aggregate_id: UUID,
        after: int,
        limit: int,
        shown: Callable[[Document], Data] | None = None,
    ) -> Data:
        """A page of the stream, oldest first; `next` is the `after` of the next page, if any.

        With `shown` each entry has the document after its event; None: it cannot be shown.
        """
        stream = self._stream(aggregate_id)
        events = self._store.read_stream(stream, after, limit + 1)
        if not events and not self._store.read_stream(stream, 0, 1):
            raise NotFound(f"There is no {stream}.")
        listed = events[:limit]
        entries = [*map(to_entry, listed)]
        if shown:
            documents = self._documents(aggregate_id, after, listed)
            for event, entry in zip(listed, entries, strict=True):
                document = documents.get(event.version)
                entry["document"] = shown(document) if document else None
        after_it = listed[-1].version if len(events) > limit else None
        return {"events": tuple(entries), "next": after_it}

    def _documents(
        self, aggregate_id: UUID, after: int, listed: Sequence[Event]
    ) -> dict[int, Document]:
        """The documents after these events, which follow version `after`, by version.

        There is none from an event on that cannot be applied.
        """
        found = dict[int, Document]()

        def fold(skipped: Collection[int]) -> None:
            before = read_pages(self._store, self._stream(aggregate_id), until=after)
            events = chain(chain.from_iterable(before), listed)
            for document in self.projection.states(events, skipped):
                if version_of(document) > after and "removed" not in document:
                    found[version_of(document)] = document

        with suppress(CannotApply, ReadModelUnavailable):
            self._fold(aggregate_id, fold)
        return found

    def _fold(self, aggregate_id: UUID, fold: Callable[[Collection[int]], Folded]) -> Folded:
        """The result of `fold`, which gets the skipped versions if an event does not apply."""
        try:
            try:
                return fold(())
            except Unavailable:
                raise
            except Exception:
                skips = self._readmodel.skips(self.projection.name)
                skipped = skipped_versions(skips, str(aggregate_id))
                if not skipped:
                    raise
                return fold(skipped)
        except Unavailable:
            raise
        except Exception as error:
            raise CannotApply(
                f"{self._stream(aggregate_id)} has an event that cannot be shown yet: {error}."
                " Nothing is lost; its history can be read."
            ) from error

    def _require_shown(self, aggregate_id: UUID, document: Document) -> None:
        """Raises NotFound for a document that is removed."""
        if "removed" in document:
            raise NotFound(
                f"{self._stream(aggregate_id)} is not shown: its first event was skipped."
                " Its history can be read."
            )

    def _stream(self, aggregate_id: UUID) -> Stream:
        return Stream(self.projection.aggregate_type, aggregate_id)


class ViewDocuments:
    """The documents of a view, as queries see them: some milliseconds behind the logs.

    `waits` bounds how long requests wait for what they have seen; without it none waits.
    """

    def __init__(self, view: View, readmodel: ReadModel, waits: Waits | None = None) -> None:
        self._view = view
        self._readmodel = readmodel
        self._serving = Serving(view, readmodel)
        self._waits = waits or Waits(0, 1)
        self._complete: dict[str, Checkpoint] = {}

    def reached(self, seen: Token | None, wait: float | None) -> Lag:
        """Waits until the view has applied what a token names; returns why it has not."""
        if not seen:
            return Lag.NONE
        return self._waits.until_seen(lambda: self._lag(seen), wait)

    def _lag(self, token: Token) -> Lag:
        """Compares the checkpoint of each store with a token's positions.

        Keeps the checkpoints at which nothing was parked: a generation has what it has had.
        """
        for part in self._serving.parts():
            known = self._complete.get(part.name, Checkpoint())
            if view_lag(known, part.store, token) is not Lag.NONE:
                known = self._readmodel.checkpoint(part.name)
                if (reason := view_lag(known, part.store, token)) is not Lag.NONE:
                    return reason
                if self._readmodel.count_parked(part.name):
                    return Lag.PARKED
                self._complete[part.name] = known
        return Lag.NONE

    def find(self, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist among `ids`; raises ReadModelUnavailable."""
        return self._readmodel.find(self._serving.now().collection, set(ids))

    def one(self, id: str, reached: Lag = Lag.NONE) -> Document:
        """The document with an id, as far as the view has come.

        Raises NotFound, or what `require_seen` raises; and ReadModelUnavailable.
        """
        found = self.find([id]).get(id)
        if found is None:
            require_seen(reached, f"the {self._view.name}")
            raise self.missing(id)
        return found

    def missing(self, id: str) -> NotFound:
        """The refusal of an id that has no document, or one that must not be seen."""
        return NotFound(f"{self._view.name} has no {id}, or its events have not arrived yet.")

    def ranked(self, by: str, after: tuple[Json, str] | None, limit: int) -> list[Document]:
        """Up to `limit` documents, the highest first, after a value and an id."""
        return self._readmodel.ranked(self._serving.now().collection, by, after, limit)


def to_entry(event: Event) -> dict[str, Json]:
    """An event as the history shows it."""
    return {
        "eventId": str(event.event_id),
        "eventType": event.event_type,
        "version": event.version,
        "recordedAt": to_timestamp(event.recorded_at),
        "correlationId": event.metadata.get("correlationId"),
        "causationId": event.metadata.get("causationId"),
        "actor": event.metadata.get("actor"),
        "data": event.data,
    }
