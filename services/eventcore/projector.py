"""The projector: deliveries to documents, each event once, in the order of its stream.

    guard     a document knows the version and the id of its last event; event n is applied only
              onto n-1, and only if that is the event before it in the log
    catch up  what is missing in between is fetched from the owner's feed
    park      a stream whose next event cannot be applied is set aside, alone
    sweep     every few seconds, who holds the lease compares the feed with the documents,
              catches up what the broker lost, and moves the checkpoint
    halt      the checkpoint, and the furthest event that was folded, must be in the log; else it
              is another log, or was put back, and nothing is applied until a rebuild

The broker makes it fast, the sweep makes it sure: a delivery that cannot be dealt with now
may be acknowledged, since the checkpoint is not past it. Replicas need not agree on
anything but the guard.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from threading import Event as Stop
from threading import Thread
from time import monotonic, sleep
from types import MappingProxyType
from typing import TypeVar

from eventcore import jsontext
from eventcore.broker import Consumer, Delivery
from eventcore.errors import (
    Away,
    BrokerAway,
    CannotApply,
    FeedAway,
    NotAnEvent,
    ReadModelAway,
    StoreRestored,
)
from eventcore.event import START, Event, from_message, ids_of
from eventcore.failpoints import reach
from eventcore.feed import MANY, Feed, HeadsPage, halted_by
from eventcore.observe import (
    APPLIED,
    BATCH_SECONDS,
    BATCHES,
    CAUGHT_UP,
    DEAD_LETTERS,
    DUPLICATES,
    HEART,
    LAG,
    LAG_SECONDS,
    READABLE,
    Health,
)
from eventcore.projection import Document, Projection, event_id_of, version_of
from eventcore.readmodel import (
    SLOTS,
    Generation,
    Lease,
    Parked,
    ReadModel,
    Write,
    generation_of,
)
from eventcore.retry import backoff
from eventcore.store import PAGE
from eventcore.tracing import processing

Result = TypeVar("Result")

ALONE = 0.5
"""Seconds between two sweeps while the broker is away: less than an order waits for its user."""

SILENT = 3
"""Sweeps that bring something, with no delivery between them, until the queue is opened anew."""

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Streams of which a projector remembers how far it has brought them: more than begin in the time
between two sweeps, which then need not ask for them. They take 1.5 MB."""

RACES = 20
"""How often a batch is folded anew because another replica wrote one of its documents first."""

TOUR = 100
"""Entries of the parked list that one sweep looks at, about; all of a list that is shorter."""

NAMED = 5
"""Streams that a log line about many of them names."""


def in_thread(act: Callable[[], Result], name: str) -> "Future[Result]":
    """Do it in a thread that nobody has to wait for, not even the end of the process."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - told to whoever asks the future
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future


def _close(opened: "Future[Consumer]") -> None:
    """Close what was opened too late."""
    if opened.exception() is None:
        opened.result().close()


@dataclass(slots=True)
class Folded:
    """The result of folding events into one document: the document, and the events left over.

    `known` is the last version of the events that follow the document without a gap; `beyond`
    are the events after such a gap. `error` says why the event at `stopped_at`, `failed`, cannot
    be applied.
    """

    before: int
    document: Document | None
    known: int
    beyond: list[Event]
    stopped_at: int = 0
    error: str = ""
    failed: Event | None = None
    applied: list[Event] = field(default_factory=list)

    @property
    def version(self) -> int:
        """The version of the document now."""
        return version_of(self.document)


class Folder:
    """Applies events to the documents of one projection, whatever order they come in.

    They are those of the generation that serves, once `follow` was called; or of the one that is
    given, for good.
    """

    def __init__(
        self,
        projection: Projection,
        readmodel: ReadModel,
        feed: Feed,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        generation: Generation | None = None,
    ) -> None:
        self._projection = projection
        self._readmodel = readmodel
        self._feed = feed
        self._clock = clock
        self._follows = generation is None
        self.generation = generation or generation_of(projection)
        self._skips: frozenset[tuple[str, int]] = frozenset()
        self._reached: OrderedDict[str, int] = OrderedDict()
        self.furthest = START
        """The event with the highest position that this process has folded into the generation."""

    def follow(self) -> None:
        """Go over to the generation that serves now, and learn what is to be skipped.

        Raises ReadModelAway.
        """
        name = self._projection.name
        self._skips = frozenset((s.stream, s.version) for s in self._readmodel.skips(name))
        serving = self._readmodel.generations(name).serving
        if self._follows and serving != self.generation.number:
            self.generation = generation_of(self._projection, serving)
            self._reached.clear()
            self.furthest = START
            log.info("Another generation serves", extra={"projection": name, "generation": serving})

    def has_reached(self, stream: str, version: int) -> bool:
        """Whether this process itself has brought a stream's document to `version`."""
        return self._reached.get(stream, 0) >= version

    def apply(self, streams: Mapping[str, Sequence[Event]]) -> dict[str, int]:
        """Applies events by stream, fills gaps from the feed, parks what cannot be applied.

        On return each event is applied, or its stream is parked, or (the feed being away) it is
        left to the sweep. Returns the streams whose events are ahead of the log, with the last
        version of the log. Raises ReadModelAway; then some events may be applied, and it can be
        called again.

        The usual case costs no read: a stream that begins is written at once, since the guard
        refuses it if a document is there; and the parked list is read only where there is a gap,
        since the event at which a stream is parked is one.
        """
        known = self._begun(streams)
        found = self._readmodel.find(self.generation.collection, known) if known else {}
        folded = self._advance(streams, found)
        gaps = {stream: each for stream, each in folded.items() if each.beyond}
        if not gaps:
            return {}
        parked = self._readmodel.parked(self.generation.name, gaps)
        stopped = {
            stream: each
            for stream, each in parked.items()
            if gaps[stream].error or each.version > gaps[stream].version
        }
        return self._fill(gaps, stopped)

    def _begun(self, streams: Mapping[str, Sequence[Event]]) -> list[str]:
        """The streams that may have a document: all but those that seem to begin here."""
        return [
            stream
            for stream, events in streams.items()
            if stream in self._reached or not any(event.version == 1 for event in events)
        ]

    def _fill(self, gaps: dict[str, Folded], stopped: dict[str, Parked]) -> dict[str, int]:
        """Applies what the feed has for each gap; of `stopped` streams only the entry is renewed.

        Returns the streams whose events are ahead of the log, as `apply` does.
        """
        ahead, highest = dict[str, int](), dict[str, int]()
        last = {s: max(event.version for event in each.beyond) for s, each in gaps.items()}
        left = {s: stopped[s].highest if s in stopped else f.known for s, f in gaps.items()}
        while left := {stream: after for stream, after in left.items() if last[stream] > after}:
            HEART.beat()
            try:
                answer = self._feed.streams(dict(islice(left.items(), MANY)))
            except FeedAway as away:
                log.warning("Gaps left to the sweep", extra={**_some(left), "reason": str(away)})
                break
            filled = dict[str, list[Event]]()
            for stream, events in answer.items():
                left[stream] = to = events[-1].version if events else left[stream]
                if len(events) < PAGE and to < last[stream]:
                    ahead[stream], left[stream] = to, last[stream]
                if stream in stopped:
                    highest[stream] = to
                elif events:
                    later = [event for event in gaps[stream].beyond if event.version > to]
                    filled[stream] = [*events, *later]
            CAUGHT_UP.labels(self._projection.name).inc(sum(len(answer[s]) for s in filled))
            for stream, each in self._advance(filled, is_log=True).items():
                gaps[stream] = each
                if each.error:
                    stopped[stream] = self._entry(stream, each)
        self.renew([(stopped[stream], to) for stream, to in highest.items()])
        return ahead

    def retry(self, entries: Mapping[str, Parked]) -> set[str]:
        """Tries parked streams again; returns those that are released, the others stay parked.

        A stream is released once its document has reached everything that is known of it. Raises
        ReadModelAway and FeedAway.
        """
        name, left, moved = self.generation.name, list(entries), set[str]()
        while left:
            HEART.beat()
            documents = self._readmodel.find(self.generation.collection, left[:MANY])
            after = {stream: version_of(documents.get(stream)) for stream in left[:MANY]}
            answer = self._feed.streams(after)
            folded = self._advance(answer, documents, entries, is_log=True)
            reached = {
                stream: each.version
                for stream, each in folded.items()
                if not each.error and each.version >= entries[stream].version
            }
            if reached:
                self._readmodel.release(name, reached)
                moved |= reached.keys()
            done = {s for s, each in folded.items() if each.error or len(answer[s]) < PAGE}
            left = [stream for stream in left if stream not in done]
        released = moved - self._readmodel.parked(name, moved).keys() if moved else set[str]()
        if released:
            log.info("Streams released", extra={"projection": name, **_some(released)})
        return released

    def renew(self, entries: Iterable[tuple[Parked, int]]) -> None:
        """Notes how far parked streams are known to go; an entry never goes back."""
        news = [replace(each, highest=to) for each, to in entries if to > each.highest]
        if news:
            self._readmodel.park(news)

    def _advance(
        self,
        streams: Mapping[str, Sequence[Event]],
        documents: Mapping[str, Document] | None = None,
        entries: Mapping[str, Parked] = MappingProxyType({}),
        is_log: bool = False,
    ) -> dict[str, Folded]:
        """Folds the events that follow each document without a gap, writes, and parks.

        `documents` are those that are known; `entries` are those of the parked list. `is_log`: the
        events come from the log itself, and from the document's last version on. Raises
        ReadModelAway.
        """
        if not streams:
            return {}
        for attempt in range(RACES):
            if documents is None:
                documents = self._readmodel.find(self.generation.collection, streams)
            folded = {
                stream: self._fold(stream, documents.get(stream), events, is_log)
                for stream, events in streams.items()
            }
            if self._write(folded):
                self._park(folded, entries)
                return folded
            documents = None
            sleep(backoff(attempt) / 50)  # a replica was faster with one of them
        into = self.generation.name
        raise ReadModelAway(f"documents of {into} kept changing under {RACES} attempts")

    def _fold(
        self, stream: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> Folded:
        if not _follow(document, events):
            return self._misfit(stream, document, events, is_log)
        ordered, beyond = self._in_order(version_of(document), events)
        known = ordered[-1].version if ordered else version_of(document)
        result = Folded(version_of(document), document, known, beyond)
        for event in ordered:
            try:
                skipped = (stream, event.version) in self._skips
                step = self._projection.skip if skipped else self._projection.apply
                result.document = step(result.document, event)
                result.applied.append(event)
            except Exception as error:  # noqa: BLE001 - whatever a step raises parks its stream
                result.stopped_at, result.failed = event.version, event
                result.error = f"{type(error).__name__}: {error}"
                break
        return result

    def _misfit(
        self, stream: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> Folded:
        """Asks the log itself, from the document's event on; the answer decides.

        Events that are not the log's are left out then. A document that is not is parked.
        """
        version = version_of(document)
        if not is_log:
            return Folded(version, document, max(version - 1, 0), list(events))
        error = (
            f"the document is of event {event_id_of(document)}, version {version}, which the log"
            " does not have: it was put back. Fold the stream anew: python -m eventcore rebuild"
            f" {self._projection.name} --stream {stream}"
        )
        return Folded(version, document, version + 1, [], version + 1, error)

    def _in_order(self, after: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        """The events that follow version `after` without a gap, and those after the gap."""
        later = {event.version: event for event in events if event.version > after}
        if duplicates := len(events) - len(later):
            DUPLICATES.labels(self._projection.name).inc(duplicates)
        ordered = []
        while after + 1 in later:
            after += 1
            ordered.append(later.pop(after))
        return ordered, list(later.values())

    def _write(self, folded: Mapping[str, Folded]) -> bool:
        """Write all documents that changed; False if someone else was faster with any."""
        writes = {
            stream: Write(each.document, each.before)
            for stream, each in folded.items()
            if each.document and each.version > each.before
        }
        if not writes:
            return True
        try:
            complete = self._readmodel.write(self.generation.collection, list(writes.values()))
        except CannotApply:
            complete = self._write_each(folded, writes)
        if complete:
            applied = sum(folded[s].version - folded[s].before for s in writes)
            APPLIED.labels(self._projection.name).inc(applied)
            self._tell({stream: folded[stream].applied for stream in writes})
            for stream in writes:
                self._remember(stream, folded[stream].version)
                last = folded[stream].applied[-1].mark
                self.furthest = max(self.furthest, last, key=lambda mark: mark.position)
        return complete

    def _tell(self, applied: Mapping[str, Sequence[Event]]) -> None:
        """Log that these events are readable now, and count how long each took."""
        now, readable = self._clock(), READABLE.labels(self._projection.name)
        logs = log.isEnabledFor(logging.INFO)  # a rebuild tells nothing of its events
        for stream, events in applied.items():
            for event in events:
                readable.observe(max(0.0, (now - event.recorded_at).total_seconds()))
                if logs:
                    at = {"id": stream, "version": event.version}
                    log.info(self._projection.says, extra={**at, **ids_of(event)})

    def _remember(self, stream: str, version: int) -> None:
        self._reached[stream] = version
        self._reached.move_to_end(stream)
        if len(self._reached) > REMEMBERED:
            self._reached.popitem(last=False)

    def _write_each(self, folded: Mapping[str, Folded], writes: dict[str, Write]) -> bool:
        """Document by document; one that MongoDB cannot store stops its own stream."""
        complete = True
        for stream, write in list(writes.items()):
            try:
                complete &= self._readmodel.write(self.generation.collection, [write])
            except CannotApply as error:
                del writes[stream]
                folded[stream].stopped_at = write.replaces + 1
                folded[stream].error = str(error)
        return complete

    def _park(self, folded: Mapping[str, Folded], entries: Mapping[str, Parked]) -> None:
        """Parks the streams that stopped, in bulk, but those that are on the list already.

        `entries` are those of the list, where they are known.
        """
        stopped = [self._entry(stream, each) for stream, each in folded.items() if each.error]
        if not stopped:
            return
        known = entries or self._readmodel.parked(
            self.generation.name, [each.stream for each in stopped]
        )
        news = [each for each in stopped if not _is_on(each, known.get(each.stream))]
        if news:
            reach("projector:parking")
            if new := self._readmodel.park(news):
                self._tell_parked({stream: folded[stream] for stream in new})
        for each in stopped:
            self._remember(each.stream, each.highest)

    def _entry(self, stream: str, stopped: Folded) -> Parked:
        return Parked(
            generation=self.generation.name,
            stream=stream,
            version=stopped.stopped_at,
            highest=stopped.known,
            error=stopped.error[:500],
            when=self._clock(),
        )

    def _tell_parked(self, parked: Mapping[str, Folded]) -> None:
        """Logs one line for all that are parked now, about the first; at DEBUG one for each."""
        for number, (stream, each) in enumerate(parked.items()):
            many = _some(parked) if number == 0 and len(parked) > 1 else {}
            event = each.failed
            log.log(
                logging.DEBUG if number else logging.ERROR,
                "Streams parked" if many else "Stream parked",
                extra={
                    "projection": self._projection.name,
                    "id": stream,
                    "version": each.stopped_at,
                    **({"event_type": event.event_type, **ids_of(event)} if event else {}),
                    "error": each.error,
                    **many,
                },
            )


def _is_on(new: Parked, entry: Parked | None) -> bool:
    """Whether the parked list says so already."""
    return entry is not None and entry.version == new.version and entry.highest >= new.highest


def _some(streams: Iterable[str]) -> dict[str, object]:
    """How many streams, and the ids of a few."""
    ids = list(streams)
    return {"streams": len(ids), "ids": ",".join(ids[:NAMED])}


class Tour:
    """Goes through a parked list, some entries at each sweep, and tells which are to be tried.

    An entry is due once for this process, since new code may know what the old did not, and again
    where its document has gone past the version at which it stopped: a replica that is slow, or
    whose code is older, may have put it on the list too late.
    """

    def __init__(self, readmodel: ReadModel) -> None:
        self._readmodel = readmodel
        self._slot = 0
        self._width = SLOTS // 64
        self._met: dict[str, int] = {}
        self._tried: dict[str, int] = {}
        self.is_complete = False
        """Whether every entry has been due once."""

    def due(self, generation: Generation) -> dict[str, Parked]:
        """The entries that are due, of about TOUR that it looks at. Raises ReadModelAway."""
        seen: dict[str, Parked] = {}
        while len(seen) < TOUR // 2:
            until = min(self._slot + self._width, SLOTS)
            found = self._readmodel.parked_in(generation.name, range(self._slot, until))
            seen |= found
            self._slot = until
            if len(found) < TOUR // 2:
                self._width = min(2 * self._width, SLOTS)
            elif len(found) > TOUR:
                self._width = max(1, self._width // 2)
            if until == SLOTS:
                break
        versions = self._readmodel.versions(generation.collection, seen) if seen else {}
        due = {
            stream: each
            for stream, each in seen.items()
            if each.version not in (self._tried.get(stream), self._met.get(stream))
            or versions.get(stream, 0) >= each.version
        }
        self._met |= {stream: each.version for stream, each in seen.items()}
        if self._slot == SLOTS:
            self._slot, self._tried, self._met, self.is_complete = 0, self._met, {}, True
        return due


def _follow(document: Document | None, events: Sequence[Event]) -> bool:
    """Whether these events and the document can be of one log, as far as their ids tell."""
    ids = {version_of(document): event_id_of(document)}
    for event in events:
        known = ids.get(event.version) or str(event.event_id)
        if known != str(event.event_id):
            return False
        ids[event.version] = known
    return all(
        event.previous is None or ids.get(event.version - 1, "") in ("", str(event.previous))
        for event in events
    )


class Sweep:
    """Compares the feed with the documents, from the checkpoint on, while it has the lease.

    It looks only at what had settled when it looked the last time, so that it does not do
    again what the broker is about to bring.
    """

    def __init__(
        self,
        folder: Folder,
        projection: Projection,
        readmodel: ReadModel,
        feed: Feed,
        holder: str,
        lease_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._projection = projection
        self._readmodel = readmodel
        self._feed = feed
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._generation = folder.generation
        self._seen: tuple[int, datetime | None] | None = None
        self._tour = Tour(readmodel)
        self.caught_up = 0

    def run(self) -> bool:
        """One page of it; True if there is more to sweep at once.

        `caught_up` is how many events it has had to bring.

        Raises Away, and StoreRestored, by which every replica knows that nothing may be applied.
        """
        self.caught_up = 0
        self._follow()
        lease = self._readmodel.take_lease(
            self._generation.name, self._holder, self._lease_seconds, self._folder.furthest
        )
        if lease is None:
            self._seen = None
            self._tell_lag(0, None)  # whoever has it tells
            self.require_going()
            return False
        until, covered_at = self._seen or (0, None)
        page = self._feed.heads(lease.position, until, lease.marks)
        lease = self._same_log(lease, page)
        if due := self._tour.due(self._generation):
            self._folder.retry(due)
        self._catch_up(lease.position, page)
        reach("sweep:caught-up")
        if page.until < until:
            self._readmodel.move_checkpoint(lease, page.end, None)
            return True
        self._seen = (page.settled, page.at)
        self._readmodel.move_checkpoint(lease, page.end, covered_at)
        return not self._tour.is_complete

    def release(self) -> None:
        """Let a replica sweep at once, rather than when the lease has run out."""
        try:
            self._readmodel.release_lease(self._generation.name, self._holder)
        except ReadModelAway as away:
            log.warning("Lease left to run out", extra={"reason": str(away)})

    def require_going(self) -> None:
        """Raise StoreRestored where it is noted that this generation must not go on."""
        if reason := self._readmodel.checkpoint(self._generation.name).halted:
            raise StoreRestored(reason)

    def _follow(self) -> None:
        """Sweep the generation that serves now; of another one nothing is known yet."""
        self._folder.follow()
        if self._folder.generation != self._generation:
            self.release()
            self._generation = self._folder.generation
            self._seen = None
            self._tour = Tour(self._readmodel)

    def _same_log(self, lease: Lease, page: HeadsPage) -> Lease:
        """The lease, with the epoch of its log. Raises StoreRestored if this is another one.

        A halt is lifted where the log has the checkpoint's events, whatever else it has.
        """
        if reason := halted_by(self._projection.name, lease.position, lease.store_epoch, page):
            self._readmodel.halt(lease.generation, reason)
            raise StoreRestored(reason)
        if lease.halted:
            self._readmodel.halt(lease.generation, "")
        return replace(lease, store_epoch=page.epoch)

    def _catch_up(self, position: int, page: HeadsPage) -> None:
        """Apply what the streams lack whose document is behind their head on this page.

        Raises FeedAway if one is neither applied nor parked then: the checkpoint must not pass it.
        """
        behind = self._behind({str(head.aggregate_id): head.version for head in page.heads})
        if not behind:
            self._tell_lag(page.settled, None)
            return
        versions = self._readmodel.versions(self._generation.collection, behind)
        events = [
            event
            for event in self._feed.between(position, page.until)
            if (stream := str(event.aggregate_id)) in behind
            and event.version > versions.get(stream, 0)
        ]
        CAUGHT_UP.labels(self._projection.name).inc(len(events))
        self.caught_up = len(events)
        self._tell_lag(page.settled, next(iter(events), None))
        missing: defaultdict[str, list[Event]] = defaultdict(list)
        for event in events:
            missing[str(event.aggregate_id)].append(event)
        self._folder.apply(missing)
        if still := self._behind(behind):
            raise FeedAway(f"{len(still)} streams cannot be brought to where the feed is")

    def _tell_lag(self, settled: int, oldest: Event | None) -> None:
        """Of what should be there by now; the newest, since the last sweep, is not looked at."""
        age = (self._clock() - oldest.recorded_at).total_seconds() if oldest else 0.0
        LAG.labels(self._projection.name).set(settled - oldest.position + 1 if oldest else 0)
        LAG_SECONDS.labels(self._projection.name).set(max(0.0, age))

    def _behind(self, heads: Mapping[str, int]) -> dict[str, int]:
        """The streams whose document is behind; of those that are parked the entry is renewed."""
        unsure = {s: v for s, v in heads.items() if not self._folder.has_reached(s, v)}
        versions = self._readmodel.versions(self._generation.collection, unsure)
        behind = {s: v for s, v in unsure.items() if versions.get(s, 0) < v}
        parked = self._readmodel.parked(self._generation.name, behind)
        stopped = [e for stream, e in parked.items() if versions.get(stream, 0) < e.version]
        self._folder.renew([(entry, behind.pop(entry.stream)) for entry in stopped])
        return behind


class Projector:
    """Consumes one queue into one projection, and sweeps; as many replicas as are needed."""

    def __init__(
        self,
        projection: Projection,
        readmodel: ReadModel,
        folder: Folder,
        sweep: Sweep,
        open_consumer: Callable[[], Consumer],
        health: Health,
        batch: int,
        sweep_interval: float,
    ) -> None:
        self._projection = projection
        self._readmodel = readmodel
        self._folder = folder
        self._sweep = sweep
        self._open_consumer = open_consumer
        self._health = health
        self._batch = batch
        self._sweep_interval = sweep_interval
        self._consumer: Consumer | None = None
        self._opening: Future[Consumer] | None = None
        self._connect_at = 0.0
        self._failures = 0
        self._silent = 0
        self._halted = False
        for counter in (APPLIED, DUPLICATES, CAUGHT_UP, DEAD_LETTERS):
            counter.labels(projection.name)  # 0 from the start, or nobody sees the first rise

    def run(self, stop: Stop) -> None:
        """Project until `stop` is set, whatever servers come and go meanwhile."""
        self._prepare(stop)
        sweep_at = monotonic()
        while not stop.is_set():
            HEART.beat()
            self.consume(stop, wait=max(0.0, min(0.25, sweep_at - monotonic())))
            if monotonic() >= sweep_at and not stop.is_set():
                sweep_at = monotonic() + (0 if self.sweep() else self._until_next_sweep())
        self.disconnect()
        self._sweep.release()

    def _until_next_sweep(self) -> float:
        """Seconds; few while no broker brings anything."""
        return self._sweep_interval if self._consumer else min(self._sweep_interval, ALONE)

    def handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        """Apply a batch and acknowledge it whole; raises ReadModelAway, BrokerAway."""
        reach("projector:delivered")
        streams: defaultdict[str, list[Event]] = defaultdict(list)
        carriers: dict[tuple[str, int], Delivery] = {}
        unreadable: list[tuple[Delivery, str]] = []
        for delivery in deliveries:
            try:
                event = self._read(delivery)
            except NotAnEvent as error:
                unreadable.append((delivery, str(error)))
                continue
            stream = str(event.aggregate_id)
            streams[stream].append(event)
            carriers[stream, event.version] = delivery
        # While halted, an event is left to a later sweep or to the rebuild: it may be one that the
        # log has lost.
        ahead = self._folder.apply(streams) if streams and not self._halted else {}
        for (stream, version), delivery in carriers.items():
            if version > ahead.get(stream, version):
                unreadable.append((delivery, f"version {version} is ahead of the log"))
        for delivery, reason in unreadable:  # only now: while MongoDB is away, all this is repeated
            self._dead_letter(delivery, consumer, reason)
        reach("projector:written")
        consumer.acknowledge(deliveries[-1])
        reach("projector:acknowledged")

    def _read(self, delivery: Delivery) -> Event:
        try:
            event = from_message(jsontext.parse(delivery.message.body))
        except ValueError as error:
            raise NotAnEvent(str(error)) from error
        if event.aggregate_type != self._projection.aggregate_type:
            raise NotAnEvent(f"an event of {event.aggregate_type} has no place in this queue")
        return event

    def _dead_letter(self, delivery: Delivery, consumer: Consumer, reason: str) -> None:
        log.error(
            "Failed to parse message",
            extra={"projection": self._projection.name, "id": delivery.message.id, "error": reason},
        )
        consumer.dead_letter(delivery, reason)
        DEAD_LETTERS.labels(self._projection.name).inc()

    def _prepare(self, stop: Stop) -> None:
        failures = 0
        while not stop.is_set():
            HEART.beat()
            try:
                self._folder.follow()
                into = self._folder.generation
                self._readmodel.prepare(into.collection, self._projection.indexes)
                self._halted = bool(self._readmodel.checkpoint(into.name).halted)
                self._health.well("readmodel")
                return
            except ReadModelAway as away:
                self._health.lacks("readmodel", str(away))
                stop.wait(backoff(failures))
                failures += 1

    def consume(self, stop: Stop, wait: float) -> None:
        """Take what is there and apply it; without a broker let `wait` pass."""
        try:
            consumer = self._connected(wait)
            if consumer is None:
                if self._opening is None:
                    stop.wait(wait or 0.01)
                return
            deliveries = consumer.take(self._batch, wait)
            if deliveries:
                self._silent = 0
                self._handle_until_done(deliveries, consumer, stop)
        except BrokerAway as away:
            self._health.lacks("broker", str(away))
            self.disconnect()
            self._connect_at = monotonic() + backoff(self._failures)
            self._failures += 1

    def _connected(self, wait: float) -> Consumer | None:
        """The consumer, or None while there is none.

        It is opened beside the loop, since a broker that does not even refuse takes seconds, in
        which sweeps must go on.
        """
        if self._consumer is None and self._opening is None and monotonic() >= self._connect_at:
            self._opening = in_thread(self._open_consumer, "opening")
        if self._opening is not None:
            try:
                self._consumer = self._opening.result(timeout=max(wait, 0.05))
            except TimeoutError:
                return None
            self._opening = None
            self._failures = 0
            self._health.well("broker")
        return self._consumer

    def disconnect(self) -> None:
        """Give up the connection to the broker; the next `consume` opens another."""
        if self._opening is not None:
            self._opening.add_done_callback(_close)
            self._opening = None
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _handle_until_done(
        self, deliveries: Sequence[Delivery], consumer: Consumer, stop: Stop
    ) -> None:
        """Retry in place while the read model is away, and take no more meanwhile."""
        failures = 0
        while not stop.is_set():
            HEART.beat()
            try:
                carried = [delivery.message for delivery in deliveries]
                with (
                    BATCH_SECONDS.labels(self._projection.name).time(),
                    processing(self._projection.queue, carried),
                ):
                    self.handle(deliveries, consumer)
                BATCHES.labels(self._projection.name).observe(len(deliveries))
                self._health.well("readmodel")
                if failures:
                    consumer.resume()
                return
            except ReadModelAway as away:
                self._health.lacks("readmodel", str(away))
                if not failures:
                    consumer.pause()
                stop.wait(backoff(failures))
                failures += 1

    def sweep(self) -> bool:
        """Sweep one page; True if more is to be swept at once."""
        try:
            more = self._sweep.run()
            self._halted = False
        except StoreRestored as restored:
            if not self._halted:
                log.error("Projection halted", extra={"reason": str(restored)})
            self._halted = True
            self._health.lacks("feed", str(restored))
            return False
        except Away as away:
            self._health.lacks("feed" if isinstance(away, FeedAway) else "readmodel", str(away))
            return False
        self._health.well("feed")
        self._health.well("readmodel")
        self._notice_silence()
        return more

    def _notice_silence(self) -> None:
        """Open the queue anew where sweeps bring all, deliveries nothing, and nobody says why.

        A broker may lose a consumer without a word, while its connection lives and is quiet.
        """
        if self._sweep.caught_up and self._consumer:
            self._silent += 1
        if self._silent == SILENT:
            log.warning("Nothing is delivered", extra={"projection": self._projection.name})
            self._silent = 0
            self.disconnect()
