"""Verify: compares a projection with the log, stream by stream, as nothing in daily work does.

A stream is right when the log has its versions without a gap, and the document is what they
fold to, field by field, or the stream stands on the parked list. What is only on its way is
looked at again before it counts as wrong.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from eventcore.event import Event
from eventcore.feed import MANY, SWEEP_RANGE, Feed, halted_by, whole
from eventcore.projection import Document, Projection, event_id_of, version_of
from eventcore.readmodel import SCANNED, Checkpoint, Generation, ReadModel
from eventcore.store import Progress

LOOKS = 10
"""How often a stream is looked at whose events may be on their way, before it counts as wrong."""

BETWEEN = 0.5
"""Seconds between two of these looks."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A stream that is wrong, or the checkpoint itself (`stream` is empty), and how.

    What the checkpoint has not come to yet may be on its way: it is only late.
    """

    stream: str
    what: str
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found: how many streams were compared, and which are wrong."""

    generation: Generation
    checked: int
    wrong: tuple[Finding, ...]
    checkpoint: Checkpoint
    log: Progress


class Verifier:
    """Compares one generation of a projection with the log. Every method may raise Away."""

    def __init__(
        self,
        projection: Projection,
        readmodel: ReadModel,
        feed: Feed,
        generation: Generation,
        wait: Callable[[float], object],
    ) -> None:
        self._projection = projection
        self._readmodel = readmodel
        self._feed = feed
        self._generation = generation
        self._wait = wait
        self._skips: dict[str, list[int]] = {}

    def run(self, sample: int | None, chance: random.Random) -> Verified:
        """Compare `sample` streams by chance, or every stream and every document (None)."""
        for skip in self._readmodel.skips(self._projection.name):
            self._skips.setdefault(skip.stream, []).append(skip.version)
        checkpoint = self._readmodel.checkpoint(self._generation.name)  # before the log: both go on
        log = self._feed.progress()
        streams = self._every(log.settled) if sample is None else self._some(log, sample, chance)
        checked, seem = 0, list[Finding]()
        for some in _batches(streams):
            checked += len(some)
            seem += self._look(some, checkpoint.position)
        still = self._still_wrong(seem, checkpoint.position)
        halted = checkpoint.halted or why_halted(self._projection.name, checkpoint, self._feed)
        wrong = [Finding("", halted), *still] if halted else still
        return Verified(self._generation, checked, tuple(wrong), checkpoint, log)

    def _every(self, settled: int) -> Iterator[str]:
        """The streams of all documents, then those of the log that have none."""
        after = ""
        while page := self._readmodel.scan(self._generation.collection, after, SCANNED):
            yield from (str(document["_id"]) for document in page)
            after = str(page[-1]["_id"])
        reached = 0
        while reached < settled:
            changes = self._feed.heads(reached, settled)
            reached = max(changes.until, reached + 1)
            heads = [str(head.aggregate_id) for head in changes.heads]
            there = self._readmodel.versions(self._generation.collection, heads)
            yield from (stream for stream in heads if stream not in there)

    def _some(self, log: Progress, wanted: int, chance: random.Random) -> Iterator[str]:
        """Streams that changed in stretches of the log taken by chance; each once."""
        seen: set[str] = set()
        for _ in range(wanted):
            begin = chance.randrange(max(1, log.settled - SWEEP_RANGE + 1))
            heads = self._feed.heads(begin, log.settled).heads
            found = {str(head.aggregate_id) for head in heads} - seen
            some = chance.sample(sorted(found), min(len(found), MANY, wanted - len(seen)))
            seen.update(some)
            yield from some
            if len(seen) == wanted or (log.settled <= SWEEP_RANGE and not found):
                return

    def _still_wrong(self, findings: list[Finding], applied: int) -> list[Finding]:
        """Those that are wrong when they are looked at again, and late ones that stay so."""
        wrong: list[Finding] = []
        for _ in range(LOOKS - 1):
            if not findings:
                break
            self._wait(BETWEEN)
            streams = [finding.stream for finding in findings]
            again = [each for some in _batches(streams) for each in self._look(some, applied)]
            wrong += [finding for finding in again if not finding.is_late]
            findings = [finding for finding in again if finding.is_late]
        return wrong + findings

    def _look(self, streams: list[str], applied: int) -> list[Finding]:
        documents = self._readmodel.find(self._generation.collection, streams)
        parked = self._readmodel.parked(self._generation.name, streams)
        logged = whole(self._feed, streams)
        findings = []
        for stream in streams:
            events = logged[stream]
            what = self._what_is_wrong(documents.get(stream), events, stream, stream in parked)
            if what:
                missing = events[version_of(documents.get(stream)) :]
                is_late = bool(missing) and missing[0].position > applied
                findings.append(Finding(stream, what, is_late))
        return findings

    def _what_is_wrong(
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
            folded = self._projection.fold(events[:version], self._skips.get(stream, ()))
        except Exception as error:  # noqa: BLE001 - whatever a step raises
            return f"this code cannot fold it: {type(error).__name__}"
        assert folded
        return _different(document, folded)


def why_halted(projection: str, checkpoint: Checkpoint, feed: Feed) -> str:
    """Why the projection must not go on from its checkpoint; "": it may. Raises FeedAway."""
    page = feed.heads(0, 0, checkpoint.marks)
    return halted_by(projection, checkpoint.position, checkpoint.store_epoch, page)


def _different(document: Document, folded: Document) -> str:
    """The names of the fields that differ; their values are nobody's business here."""
    names = sorted(
        name
        for name in document.keys() | folded.keys()
        if (name != "eventId" or event_id_of(document))  # an older version kept no id
        and document.get(name, _NOTHING) != folded.get(name, _NOTHING)
    )
    return f"the document differs from the log in {', '.join(names)}" if names else ""


_NOTHING = object()


def _batches(streams: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    for stream in streams:
        some.append(stream)
        if len(some) == MANY:
            yield some
            some = []
    if some:
        yield some
