"""Folding: documents are read, folded and written, and those that cannot be are parked.

Projections and views share it; each has its own order in which events come.
"""

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, TypeVar

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import CannotApply, ReadModelUnavailable
from eventcore.failpoints import failpoint
from eventcore.model.event import START, Event, ids_of
from eventcore.model.projection import Document
from eventcore.model.view import AnyProjection
from eventcore.observe import metrics
from eventcore.observe.health import HEARTBEAT
from eventcore.observe.tracing import exemplar_of
from eventcore.project.fold_result import FoldResult, is_listed, log_parked, log_sample
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Generation, Parked, Skip, generation_of
from eventcore.retry import backoff
from eventcore.store.feed import Feed

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=AnyProjection)

REMEMBERED_STREAMS = 10_000
"""Maximum number of streams whose applied version is cached. Sweeps skip cached streams. They take
1.5 MB, and are more than the streams that change between two sweeps."""

WRITE_ATTEMPTS = 20
"""Maximum number of attempts at a batch while other replicas write its documents first."""


@dataclass(eq=False)
class Folding(ABC, Generic[Kind]):
    """Folds events into the documents of one projection, or of one store's part of a view.

    The documents are those of the serving generation, as of the last `follow`, or of `fixed`.
    """

    projection: Kind
    readmodel: ReadModel
    feed: Feed
    clock: Clock = SYSTEM_CLOCK
    fixed: Generation | None = None
    store: str = ""
    """The store that a part of a view is folded from; "" for a projection, which has one."""

    def __post_init__(self) -> None:
        self.generation = self.fixed or generation_of(self.projection, store=self.store)
        self._skips = frozenset[object]()
        self.applied_versions: OrderedDict[str, int] = OrderedDict()
        """The versions to which this process itself has brought documents lately, by stream."""
        self.furthest = START
        """The event with the highest position that this process has folded into the generation."""

    def follow(self) -> None:
        """Switches to the generation that serves now, and reads the skips.

        Raises ReadModelUnavailable.
        """
        name = self.projection.name
        self._skips = frozenset(map(self._key_of, self.readmodel.skips(name)))
        serving = self.readmodel.generations(name).serving
        if not self.fixed and serving != self.generation.number:
            self.generation = generation_of(self.projection, serving, self.store)
            self.applied_versions.clear()
            self.furthest = START
            log.info("Another generation serves", extra={"projection": name, "generation": serving})

    @abstractmethod
    def _key_of(self, skip: Skip) -> object:
        """The value by which `_fold` recognizes a skipped event."""

    @abstractmethod
    def _fold(
        self, id: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> FoldResult:
        """The document after those of the events that it lacks."""

    @abstractmethod
    def reached(self, ids: Collection[str]) -> Mapping[str, int]:
        """The version or the position, as the parked list counts, of the documents among `ids`."""

    @abstractmethod
    def retry_by_page(self, entries: Mapping[str, Parked]) -> Iterator[object]:
        """Does what `retry` does, and yields after each page of the log."""

    def retry(self, entries: Mapping[str, Parked]) -> set[str]:
        """Retries parked documents; returns the released ones. The others stay parked.

        A document is released once it is at the highest known version, or position.

        Raises ReadModelUnavailable and FeedUnavailable.
        """
        for _ in self.retry_by_page(entries):
            HEARTBEAT.beat()
        return entries.keys() - self.readmodel.parked(self.generation.name, entries).keys()

    @abstractmethod
    def stopped_events(self, entry: Parked) -> Sequence[Event]:
        """The event that a parked document stopped at, and later ones of its stream, if known."""

    def renew(self, entries: Iterable[tuple[Parked, int]]) -> None:
        """Records the highest known versions of parked streams; they never decrease."""
        news = [replace(each, highest=to) for each, to in entries if to > each.highest]
        if news:
            self.readmodel.park(news)

    def _release(self, reached: Mapping[str, int]) -> None:
        """Takes the documents off the parked list that are at the highest known version."""
        name = self.generation.name
        if reached and self.readmodel.release(name, reached):
            released = reached.keys() - self.readmodel.parked(name, reached).keys()
            fields = {"projection": self.generation.label, **log_sample(released)}
            log.info("Streams released", extra=fields)

    def _advance(
        self,
        streams: Mapping[str, Sequence[Event]],
        documents: Mapping[str, Document] | None = None,
        entries: Mapping[str, Parked] = MappingProxyType({}),
        is_log: bool = False,
    ) -> dict[str, FoldResult]:
        """Folds the events that follow each document without a gap, writes, and parks.

        `documents` are those that are known; `entries` are those of the parked list. `is_log`: the
        events come from the log itself, and from the document's last version on. Raises
        ReadModelUnavailable.
        """
        if not streams:
            return {}
        into = self.generation.collection
        for attempt in range(WRITE_ATTEMPTS):
            if documents is None:
                documents = self.readmodel.find(into, streams)
            folded = {
                stream: self._fold(stream, documents.get(stream), events, is_log)
                for stream, events in streams.items()
            }
            if self._write(folded.values()):
                self._park(folded.values(), entries)
                return folded
            documents = None
            self.clock.sleep(
                backoff(attempt, self.clock) / 50
            )  # a replica was faster with one of them
        raise ReadModelUnavailable(
            f"documents of {into} kept changing under {WRITE_ATTEMPTS} attempts"
        )

    def _write(self, folded: Iterable[FoldResult]) -> bool:
        """Writes all documents that changed; False if another replica was faster with any.

        A document that cannot be stored stops its own stream: then each is written by itself.
        """
        changed = [each for each in folded if each.applied]
        if not changed:
            return True
        into, complete = self.generation.collection, True
        try:
            complete = self.readmodel.write(into, [each.write for each in changed])
        except CannotApply:
            for each in changed:
                try:
                    complete &= self.readmodel.write(into, [each.write])
                except CannotApply as error:
                    each.refuse(error)
        if complete:
            self._record_written([each for each in changed if each.applied])
        return complete

    def _record_written(self, written: Sequence[FoldResult]) -> None:
        """Notes and logs the events that are readable now, and counts how long each took."""
        now, readable = self.clock.now(), metrics.READABLE.labels(self.generation.label)
        logs = log.isEnabledFor(logging.INFO)  # a rebuild logs none of its events
        metrics.APPLIED.labels(self.generation.label).inc(
            sum(len(each.applied) for each in written)
        )
        for each in written:
            self._remember(each.stream, each.version)
            last = each.applied[-1].mark
            self.furthest = max(self.furthest, last, key=lambda mark: mark.position)
            for event in each.applied:
                took = max(0.0, (now - event.recorded_at).total_seconds())
                readable.observe(took, exemplar_of(event.metadata.get("traceparent")))
                if logs:
                    at = {"id": each.stream, "version": event.version}
                    log.info(self.projection.log_message, extra={**at, **ids_of(event)})

    def _remember(self, stream: str, version: int) -> None:
        self.applied_versions[stream] = version
        self.applied_versions.move_to_end(stream)
        if len(self.applied_versions) > REMEMBERED_STREAMS:
            self.applied_versions.popitem(last=False)

    def _park(self, folded: Iterable[FoldResult], entries: Mapping[str, Parked]) -> None:
        """Parks failed streams in bulk, except those already parked.

        `entries` are the known ones of the parked list.
        """
        stopped = {each.stream: each for each in folded if each.error}
        if not stopped:
            return
        known = entries or self.readmodel.parked(self.generation.name, stopped)
        wanted = [self._entry(each) for each in stopped.values()]
        news = [each for each in wanted if not is_listed(each, known.get(each.stream))]
        if news:
            failpoint("projector:parking")
            if new := self.readmodel.park(news):
                log_parked(self.generation.label, [stopped[stream] for stream in new])
        for each in wanted:
            self._remember(each.stream, each.highest)

    def _entry(self, stopped: FoldResult) -> Parked:
        return Parked(
            generation=self.generation.name,
            stream=stopped.stream,
            version=stopped.stopped_at,
            highest=stopped.known,
            error=stopped.error[:500],
            when=self.clock.now(),
        )
