"""Applies events to documents, fills gaps, parks what cannot be applied."""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import CannotApply, FeedUnavailable, ReadModelUnavailable
from eventcore.failpoints import failpoint
from eventcore.model.event import START, Event, ids_of
from eventcore.model.projection import Document, Projection, version_of
from eventcore.observe import metrics
from eventcore.observe.health import HEARTBEAT
from eventcore.project.fold_result import (
    FoldResult,
    continues,
    is_listed,
    log_parked,
    log_sample,
    to_contradiction,
)
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Generation, Parked, generation_of
from eventcore.retry import backoff
from eventcore.store.feed import MANY, Feed
from eventcore.store.port import PAGE

log = logging.getLogger(__name__)

REMEMBERED_STREAMS = 10_000
"""Maximum number of streams whose applied version is cached. Sweeps skip cached streams. They take
1.5 MB, and are more than the streams that change between two sweeps."""

WRITE_ATTEMPTS = 20
"""Maximum number of attempts at a batch while other replicas write its documents first."""


@dataclass(eq=False)
class EventApplier:
    """Applies events to the documents of one projection, in any order of arrival.

    The documents are those of the serving generation, as of the last `follow`, or of `fixed`.
    """

    projection: Projection
    readmodel: ReadModel
    feed: Feed
    clock: Clock = SYSTEM_CLOCK
    fixed: Generation | None = None

    def __post_init__(self) -> None:
        self.generation = self.fixed or generation_of(self.projection)
        self._skips: frozenset[tuple[str, int]] = frozenset()
        self.applied_versions: OrderedDict[str, int] = OrderedDict()
        """The versions to which this process itself has brought documents lately, by stream."""
        self.furthest = START
        """The event with the highest position that this process has folded into the generation."""

    def follow(self) -> None:
        """Switches to the generation that serves now, and reads the skips.

        Raises ReadModelUnavailable.
        """
        name = self.projection.name
        self._skips = frozenset((s.stream, s.version) for s in self.readmodel.skips(name))
        serving = self.readmodel.generations(name).serving
        if not self.fixed and serving != self.generation.number:
            self.generation = generation_of(self.projection, serving)
            self.applied_versions.clear()
            self.furthest = START
            log.info("Another generation serves", extra={"projection": name, "generation": serving})

    def apply(self, streams: Mapping[str, Sequence[Event]]) -> dict[str, int]:
        """Applies events by stream, fills gaps from the feed, parks what cannot be applied.

        On return each event is applied, or its stream is parked, or, if the feed is unavailable,
        the sweep applies it later. Returns the streams whose events are ahead of the log, with the
        last version of the log. Raises ReadModelUnavailable; then some events may be applied, and
        it can be called again.

        The usual case needs no read: a new stream is written at once, because the guard refuses it
        if a document exists; and the parked list is read only if a step fails.
        """
        known = [
            stream
            for stream, events in streams.items()
            if stream in self.applied_versions or not any(event.version == 1 for event in events)
        ]
        found = self.readmodel.find(self.generation.collection, known) if known else {}
        folded = self._advance(streams, found)
        last = {
            s: max(e.version for e in each.after_gap)
            for s, each in folded.items()
            if each.after_gap
        }
        return self._fill(last) if last else {}

    def _fill(self, last: Mapping[str, int]) -> dict[str, int]:
        """Fills the gaps of streams from the log; `last` has the last delivered version of each.

        Returns the streams whose events are ahead of the log, as `apply` does.
        """
        ahead = dict[str, int]()
        try:
            for answer, folded in self._catch_up(last):
                for stream, events in answer.items():
                    end = events[-1].version if events else folded[stream].version
                    if len(events) < PAGE and end < last[stream]:
                        ahead[stream] = end
                applied = sum(len(each.applied) for each in folded.values())
                metrics.CAUGHT_UP.labels(self.projection.name).inc(applied)
        except FeedUnavailable as error:
            log.warning("Gaps left to the sweep", extra={**log_sample(last), "reason": str(error)})
        return ahead

    def retry(self, entries: Mapping[str, Parked]) -> set[str]:
        """Retries parked streams; returns the released ones. The others stay parked.

        A stream is released once its document is at the highest known version. Raises
        ReadModelUnavailable and FeedUnavailable.
        """
        name, moved = self.generation.name, set[str]()
        for _, folded in self._catch_up(entries, entries):
            reached = {
                stream: each.version
                for stream, each in folded.items()
                if not each.error and each.version >= entries[stream].version
            }
            if reached:
                self.readmodel.release(name, reached)
                moved |= reached.keys()
        released = moved - self.readmodel.parked(name, moved).keys() if moved else set[str]()
        if released:
            fields = {"projection": self.projection.name, **log_sample(released)}
            log.info("Streams released", extra=fields)
        return released

    def _catch_up(
        self, streams: Iterable[str], entries: Mapping[str, Parked] = MappingProxyType({})
    ) -> Iterator[tuple[Mapping[str, Sequence[Event]], dict[str, FoldResult]]]:
        """Applies the events of these streams in the log, from the event of each document on.

        Yields each page of the log, by stream, with its result. Raises ReadModelUnavailable and
        FeedUnavailable.
        """
        left = list(streams)
        while left:
            HEARTBEAT.beat()
            documents = self.readmodel.find(self.generation.collection, left[:MANY])
            versions = {stream: version_of(documents.get(stream)) for stream in left[:MANY]}
            answer = self.feed.streams({s: max(v - 1, 0) for s, v in versions.items()})
            folded = self._advance(answer, documents, entries, is_log=True)
            yield answer, folded
            done = {s for s, each in folded.items() if each.error or len(answer[s]) < PAGE}
            left = [stream for stream in left if stream not in done]

    def renew(self, entries: Iterable[tuple[Parked, int]]) -> None:
        """Records the highest known versions of parked streams; they never decrease."""
        news = [replace(each, highest=to) for each, to in entries if to > each.highest]
        if news:
            self.readmodel.park(news)

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

    def _fold(
        self, stream: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> FoldResult:
        if not continues(document, events):
            return to_contradiction(self.projection.name, stream, document, events, is_log)
        ordered, after_gap = self._in_order(version_of(document), events)
        if not is_log:
            duplicates = len(events) - len(ordered) - len(after_gap)
            metrics.DUPLICATES.labels(self.projection.name).inc(duplicates)
        result = FoldResult(stream, document, version_of(document) + len(ordered), after_gap)
        for event in ordered:
            skipped = (stream, event.version) in self._skips
            step = self.projection.skip if skipped else self.projection.apply
            try:
                result.document = step(result.document, event)
            except Exception as error:  # noqa: BLE001 - whatever a step raises parks its stream
                result.error, result.failed = f"{type(error).__name__}: {error}", event
                break
            result.applied.append(event)
        return result

    def _in_order(self, after: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        """The events that follow version `after` without a gap, and those after the gap."""
        later = {event.version: event for event in events if event.version > after}
        ordered = []
        while after + 1 in later:
            after += 1
            ordered.append(later.pop(after))
        return ordered, list(later.values())

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
        now, readable = self.clock.now(), metrics.READABLE.labels(self.projection.name)
        logs = log.isEnabledFor(logging.INFO)  # a rebuild logs none of its events
        metrics.APPLIED.labels(self.projection.name).inc(sum(len(each.applied) for each in written))
        for each in written:
            self._remember(each.stream, each.version)
            last = each.applied[-1].mark
            self.furthest = max(self.furthest, last, key=lambda mark: mark.position)
            for event in each.applied:
                readable.observe(max(0.0, (now - event.recorded_at).total_seconds()))
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
                log_parked(self.projection.name, [stopped[stream] for stream in new])
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
