"""Applies events to documents, fills gaps, parks what cannot be applied."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from eventcore.errors import FeedUnavailable, Unavailable
from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection, version_of
from eventcore.observe import metrics
from eventcore.observe.health import HEARTBEAT
from eventcore.project.fold_result import FoldResult, Later, continues, log_sample, to_contradiction
from eventcore.project.folding import Folding
from eventcore.readmodel.records import Parked, Skip
from eventcore.store.feed import MANY
from eventcore.store.port import PAGE

log = logging.getLogger(__name__)


@dataclass(eq=False)
class EventApplier(Folding[Projection]):
    """Applies events to the documents of one projection, in any order of arrival."""

    def apply(self, streams: Mapping[str, Sequence[Event]]) -> dict[str, int]:
        """Applies events by stream, fills gaps from the feed, parks what cannot be applied.

        On return each event is applied, or its stream is parked, or, if the feed is unavailable,
        the sweep applies it later. Returns the streams whose events are ahead of the log, with the
        last version of the log. Raises ReadModelUnavailable; then some events may be applied, and
        it can be called again.

        The usual case needs no read: a new stream is written at once, because the guard refuses it
        if a document exists; and the parked list is read only if a step fails.
        """
        known = [stream for stream, events in streams.items() if self._must_read(stream, events)]
        found = self.readmodel.find(self.generation.collection, known) if known else {}
        folded = self._advance(streams, found)
        last = {
            s: max(e.version for e in each.after_gap)
            for s, each in folded.items()
            if each.after_gap
        }
        return self._fill(last) if last else {}

    def _must_read(self, stream: str, events: Sequence[Event]) -> bool:
        """Whether the stream's document is read before it is written."""
        return stream in self.applied_versions or not any(event.version == 1 for event in events)

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

    def why_behind(self, streams: int) -> Unavailable:
        """Why so many streams are neither parked nor where the feed is."""
        return FeedUnavailable(f"{streams} streams cannot be brought to where the feed is")

    def reached(self, ids: Collection[str]) -> Mapping[str, int]:
        return self.readmodel.versions(self.generation.collection, ids)

    def retry_by_page(self, entries: Mapping[str, Parked]) -> Iterator[object]:
        for _, folded in self._catch_up(entries, entries):
            self._release(
                {
                    stream: each.version
                    for stream, each in folded.items()
                    if not each.error and each.version >= entries[stream].version
                }
            )
            yield None

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
            ended = {s for s, events in answer.items() if len(events) < PAGE}
            done = ended | {s for s, each in folded.items() if each.error or each.is_delayed}
            left = [stream for stream in left if stream not in done]

    def stopped_events(self, entry: Parked) -> list[Event]:
        return self.feed.stream(entry.stream, entry.version - 1)

    def _key_of(self, skip: Skip) -> tuple[str, int]:
        return skip.stream, skip.version

    def _fold(
        self, id: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> FoldResult:
        if not continues(document, events):
            return to_contradiction(self.projection.name, id, document, events, is_log)
        ordered, after_gap = self._in_order(version_of(document), events)
        if not is_log:
            duplicates = len(events) - len(ordered) - len(after_gap)
            metrics.DUPLICATES.labels(self.projection.name).inc(duplicates)
        result = FoldResult(id, document, version_of(document) + len(ordered), after_gap)
        for event in ordered:
            skipped = (id, event.version) in self._skips
            step = self.projection.skip if skipped else self._apply
            try:
                result.document = step(result.document, event)
            except Later:
                result.is_delayed = True
                break
            except Exception as error:  # noqa: BLE001 - whatever a step raises parks its stream
                result.error, result.failed = f"{type(error).__name__}: {error}", event
                break
            result.applied.append(event)
        return result

    def _apply(self, document: Document | None, event: Event) -> Document:
        """The document after the next event; raises Later, and whatever parks the stream."""
        return self.projection.apply(document, event)

    def _in_order(self, after: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        """The events that follow version `after` without a gap, and those after the gap."""
        later = {event.version: event for event in events if event.version > after}
        ordered = []
        while after + 1 in later:
            after += 1
            ordered.append(later.pop(after))
        return ordered, list(later.values())
