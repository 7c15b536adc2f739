"""Verify: compares a projection with the log, stream by stream.

A stream is right if the log has its versions without a gap, and its document equals their fold,
field by field, or the stream is on the parked list. A stream whose events may still be on their
way is compared again before it counts as wrong.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection, event_id_of, version_of
from eventcore.readmodel.port import SCANNED, ReadModel
from eventcore.readmodel.records import Checkpoint, Generation
from eventcore.store.feed import MANY, SWEEP_RANGE, Feed, halted_by, read_whole_streams
from eventcore.store.port import Progress

ATTEMPTS = 10
"""Comparisons of a stream whose events may be on their way, before it counts as wrong."""

ATTEMPT_INTERVAL = 0.5
"""Seconds between two of these comparisons."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A stream that is wrong, or the checkpoint itself (`stream` is empty), and the difference.

    It is late, not wrong, if the first missing event is above the checkpoint.
    """

    stream: str
    what: str
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a comparison: the number of streams, and the wrong ones.

    `parts`: the generation, or each part of a view's, with its checkpoint and its log.
    """

    checked: int
    wrong: tuple[Finding, ...]
    parts: tuple[tuple[Generation, Checkpoint, Progress], ...]


@dataclass(eq=False)
class Verifier:
    """Compares one generation of a projection with the log. Every method may raise Unavailable."""

    projection: Projection
    readmodel: ReadModel
    feed: Feed
    generation: Generation
    wait: Callable[[float], object]

    def run(self, sample: int | None, chance: random.Random) -> Verified:
        """Compares `sample` streams by chance, or every stream and every document (None)."""
        self._skips = defaultdict[str, list[int]](list)
        for skip in self.readmodel.skips(self.projection.name):
            self._skips[skip.stream].append(skip.version)
        checkpoint = self.readmodel.checkpoint(self.generation.name)  # before the log: both go on
        log = self.feed.progress()
        streams = (
            self._all_streams(log.settled) if sample is None else self._sample(log, sample, chance)
        )
        checked, seem = 0, list[Finding]()
        for some in _batches(streams):
            checked += len(some)
            seem += self._compare(some, checkpoint.position)
        still = self._compare_again(seem, checkpoint.position)
        halted = checkpoint.halted or why_halted(self.projection.name, checkpoint, self.feed)
        wrong = [Finding("", halted), *still] if halted else still
        return Verified(checked, tuple(wrong), ((self.generation, checkpoint, log),))

    def _all_streams(self, settled: int) -> Iterator[str]:
        """The streams of all documents, then those of the log that have none."""
        after = ""
        while page := self.readmodel.scan(self.generation.collection, after, SCANNED):
            yield from (str(document["_id"]) for document in page)
            after = str(page[-1]["_id"])
        reached = 0
        while reached < settled:
            changes = self.feed.heads(reached, settled)
            reached = max(changes.end.position, reached + 1)
            there = self.readmodel.versions(self.generation.collection, changes.heads)
            yield from (stream for stream in changes.heads if stream not in there)

    def _sample(self, log: Progress, wanted: int, chance: random.Random) -> Iterator[str]:
        """Streams that changed in stretches of the log taken by chance; each once."""
        seen: set[str] = set()
        for _ in range(wanted):
            begin = chance.randrange(max(1, log.settled - SWEEP_RANGE + 1))
            found = self.feed.heads(begin, log.settled).heads.keys() - seen
            some = chance.sample(sorted(found), min(len(found), MANY, wanted - len(seen)))
            seen.update(some)
            yield from some
            if len(seen) == wanted or (log.settled <= SWEEP_RANGE and not found):
                return

    def _compare_again(self, findings: list[Finding], applied: int) -> list[Finding]:
        """Compares again; returns the streams that are still wrong, or still late."""
        wrong: list[Finding] = []
        for _ in range(ATTEMPTS - 1):
            if not findings:
                break
            self.wait(ATTEMPT_INTERVAL)
            streams = [finding.stream for finding in findings]
            again = [each for some in _batches(streams) for each in self._compare(some, applied)]
            wrong += [finding for finding in again if not finding.is_late]
            findings = [finding for finding in again if finding.is_late]
        return wrong + findings

    def _compare(self, streams: list[str], applied: int) -> list[Finding]:
        documents = self.readmodel.find(self.generation.collection, streams)
        parked = self.readmodel.parked(self.generation.name, streams)
        logged = read_whole_streams(self.feed, streams)
        findings = []
        for stream in streams:
            document, events = documents.get(stream), logged[stream]
            if what := self._difference(document, events, stream, stream in parked):
                missing = events[version_of(document) :]
                is_late = bool(missing) and missing[0].position > applied
                findings.append(Finding(stream, what, is_late))
        return findings

    def _difference(
        self, document: Document | None, events: list[Event], stream: str, parked: bool
    ) -> str:
        if [event.version for event in events] != list(range(1, len(events) + 1)):
            return "the log has a gap in its versions"
        if not events:
            return "the document belongs to no stream of the log"
        version = version_of(document)
        if version > len(events):
            return f"the document is at version {version}, ahead of the log's {len(events)}"
        if version < len(events) and not parked:
            return f"the document is at version {version} of {len(events)}"
        if document is None:
            return ""
        try:
            folded = self.projection.fold(events[:version], self._skips[stream])
        except Exception as error:  # noqa: BLE001 - whatever a step raises
            return f"this code cannot fold it: {type(error).__name__}"
        assert folded
        return different(document, folded)


def why_halted(projection: str, checkpoint: Checkpoint, feed: Feed) -> str:
    """Why the projection must not go on from its checkpoint; "": it may. Raises FeedUnavailable."""
    page = feed.heads(0, 0, checkpoint.marks)
    return halted_by(projection, checkpoint.position, checkpoint.store_epoch, page)


def different(document: Document, folded: Document) -> str:
    """The names of the fields that differ; values may be personal data."""
    if not event_id_of(document):  # an older version kept no id
        folded = {name: value for name, value in folded.items() if name != "eventId"}
    names = sorted(
        name
        for name in document.keys() | folded.keys()
        if (name in document, document.get(name)) != (name in folded, folded.get(name))
    )
    return f"the document differs from the log in {', '.join(names)}" if names else ""


def _batches(streams: Iterable[str]) -> Iterator[list[str]]:
    left = iter(streams)
    while some := list(islice(left, MANY)):
        yield some
