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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from threading import Event as Stop
from threading import Thread
from time import monotonic, sleep
from types import MappingProxyType
from typing import TypeVar

from eventcore import jsontext, observe
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
from eventcore.observe import HEART, Health
from eventcore.projection import Document, Projection, event_id_of, version_of
from eventcore.readmodel import SLOTS, Generation, Lease, Parked, ReadModel, Write, generation_of
from eventcore.retry import backoff
from eventcore.store import PAGE
from eventcore.tracing import processing

Result = TypeVar("Result")

ALONE = 0.5
"""Seconds between two sweeps while the broker is away: less than an order waits for its user."""

SILENT = 3
"""Sweeps that bring something, with no delivery between them, until the queue is opened anew."""

REMEMBERED = 10_000
"""Streams of which a projector remembers how far it has brought them: more than begin in the time
between two sweeps, which then need not ask for them. They take 1.5 MB."""

RACES = 20
"""How often a batch is folded anew because another replica wrote one of its documents first."""

TOUR = 100
"""Entries of the parked list that one sweep looks at, about; all of a list that is shorter."""

NAMED = 5
"""Streams that a log line about many of them names."""

log = logging.getLogger(__name__)


def by_stream(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Events by the stream that they belong to."""
    streams: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        streams[str(event.aggregate_id)].append(event)
    return streams


def in_thread(act: Callable[[], Result], name: str) -> "Future[Result]":
    """Runs `act` in a daemon thread, which does not keep the process from ending."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - raised by the future
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future


def _close(opened: "Future[Consumer]") -> None:
    """Closes a consumer that was opened too late."""
    if opened.exception() is None:
        opened.result().close()


@dataclass(slots=True)
class Folded:
    """The result of folding events into the document of one stream.

    `known` is the last version of the events that follow the document without a gap; `beyond`
    are the events after such a gap. `error` says why the event after the document, `failed`,
    cannot be applied.
    """

    stream: str
    before: Document | None
    known: int
    beyond: list[Event]
    error: str = ""
    failed: Event | None = None
    applied: list[Event] = field(default_factory=list)
    document: Document | None = None

    def __post_init__(self) -> None:
        self.document = self.before

    @property
    def version(self) -> int:
        """The version of the document now."""
        return version_of(self.document)

    @property
    def stopped_at(self) -> int:
        """The version that cannot be applied, where there is an error."""
        return self.version + 1

    @property
    def write(self) -> Write:
        """The document in place of the one before."""
        assert self.document
        return Write(self.document, version_of(self.before))

    def refuse(self, error: CannotApply) -> None:
        """Takes back what was applied: the document cannot be stored."""
        self.document, self.error = self.before, str(error)
        self.applied.clear()


@dataclass(eq=False)
class Folder:
    """Applies events to the documents of one projection, whatever order they come in.

    They are those of the generation that serves, once `follow` was called; or of the `fixed` one.
    """

    projection: Projection
    readmodel: ReadModel
    feed: Feed
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    fixed: Generation | None = None

    def __post_init__(self) -> None:
        self.generation = self.fixed or generation_of(self.projection)
        self._skips: frozenset[tuple[str, int]] = frozenset()
        self._reached: OrderedDict[str, int] = OrderedDict()
        self.furthest = START
        """The event with the highest position that this process has folded into the generation."""

    def follow(self) -> None:
        """Goes over to the generation that serves now, and reads the skips.

        Raises ReadModelAway.
        """
        name = self.projection.name
        self._skips = frozenset((s.stream, s.version) for s in self.readmodel.skips(name))
        serving = self.readmodel.generations(name).serving
        if not self.fixed and serving != self.generation.number:
            self.generation = generation_of(self.projection, serving)
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
        refuses it if a document is there; and the parked list is read only where a step fails.
        """
        known = [
            stream
            for stream, events in streams.items()
            if stream in self._reached or not any(event.version == 1 for event in events)
        ]
        found = self.readmodel.find(self.generation.collection, known) if known else {}
        folded = self._advance(streams, found)
        last = {s: max(e.version for e in each.beyond) for s, each in folded.items() if each.beyond}
        return self._fill(last) if last else {}

    def _fill(self, last: Mapping[str, int]) -> dict[str, int]:
        """Applies what the log has of streams with a gap, whose `last` version was delivered.

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
                observe.CAUGHT_UP.labels(self.projection.name).inc(applied)
        except FeedAway as away:
            log.warning("Gaps left to the sweep", extra={**_some(last), "reason": str(away)})
        return ahead

    def retry(self, entries: Mapping[str, Parked]) -> set[str]:
        """Tries parked streams again; returns those that are released, the others stay parked.

        A stream is released once its document has reached everything that is known of it. Raises
        ReadModelAway and FeedAway.
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
            told = {"projection": self.projection.name, **_some(released)}
            log.info("Streams released", extra=told)
        return released

    def _catch_up(
        self, streams: Iterable[str], entries: Mapping[str, Parked] = MappingProxyType({})
    ) -> Iterator[tuple[Mapping[str, Sequence[Event]], dict[str, Folded]]]:
        """Applies what the log has of these streams, from the event of each document on.

        Yields each page of the log, by stream, with its result. Raises ReadModelAway and FeedAway.
        """
        left = list(streams)
        while left:
            HEART.beat()
            documents = self.readmodel.find(self.generation.collection, left[:MANY])
            versions = {stream: version_of(documents.get(stream)) for stream in left[:MANY]}
            answer = self.feed.streams({s: max(v - 1, 0) for s, v in versions.items()})
            folded = self._advance(answer, documents, entries, is_log=True)
            yield answer, folded
            done = {s for s, each in folded.items() if each.error or len(answer[s]) < PAGE}
            left = [stream for stream in left if stream not in done]

    def renew(self, entries: Iterable[tuple[Parked, int]]) -> None:
        """Notes how far parked streams are known to go; an entry never goes back."""
        news = [replace(each, highest=to) for each, to in entries if to > each.highest]
        if news:
            self.readmodel.park(news)

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
        into = self.generation.collection
        for attempt in range(RACES):
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
            sleep(backoff(attempt) / 50)  # a replica was faster with one of them
        raise ReadModelAway(f"documents of {into} kept changing under {RACES} attempts")

    def _fold(
        self, stream: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> Folded:
        if not _follow(document, events):
            return self._misfit(stream, document, events, is_log)
        ordered, beyond = self._in_order(version_of(document), events)
        if not is_log:
            duplicates = len(events) - len(ordered) - len(beyond)
            observe.DUPLICATES.labels(self.projection.name).inc(duplicates)
        result = Folded(stream, document, version_of(document) + len(ordered), beyond)
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

    def _misfit(
        self, stream: str, document: Document | None, events: Sequence[Event], is_log: bool
    ) -> Folded:
        """Asks the log itself, from the document's event on; the answer decides.

        Events that are not the log's are left out then. A document that is not is parked.
        """
        version = version_of(document)
        if not is_log:
            return Folded(stream, document, max(version - 1, 0), list(events))
        error = (
            f"the document is of event {event_id_of(document)}, version {version}, which the log"
            " does not have: it was put back. Fold the stream anew: python -m eventcore rebuild"
            f" {self.projection.name} --stream {stream}"
        )
        return Folded(stream, document, version + 1, [], error)

    def _in_order(self, after: int, events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
        """The events that follow version `after` without a gap, and those after the gap."""
        later = {event.version: event for event in events if event.version > after}
        ordered = []
        while after + 1 in later:
            after += 1
            ordered.append(later.pop(after))
        return ordered, list(later.values())

    def _write(self, folded: Iterable[Folded]) -> bool:
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
            self._note([each for each in changed if each.applied])
        return complete

    def _note(self, written: Sequence[Folded]) -> None:
        """Notes and logs the events that are readable now, and counts how long each took."""
        now, readable = self.clock(), observe.READABLE.labels(self.projection.name)
        logs = log.isEnabledFor(logging.INFO)  # a rebuild logs none of its events
        observe.APPLIED.labels(self.projection.name).inc(sum(len(each.applied) for each in written))
        for each in written:
            self._remember(each.stream, each.version)
            last = each.applied[-1].mark
            self.furthest = max(self.furthest, last, key=lambda mark: mark.position)
            for event in each.applied:
                readable.observe(max(0.0, (now - event.recorded_at).total_seconds()))
                if logs:
                    at = {"id": each.stream, "version": event.version}
                    log.info(self.projection.says, extra={**at, **ids_of(event)})

    def _remember(self, stream: str, version: int) -> None:
        self._reached[stream] = version
        self._reached.move_to_end(stream)
        if len(self._reached) > REMEMBERED:
            self._reached.popitem(last=False)

    def _park(self, folded: Iterable[Folded], entries: Mapping[str, Parked]) -> None:
        """Parks the streams that stopped, in bulk, but those that are on the list already.

        `entries` are those of the list, where they are known.
        """
        stopped = {each.stream: each for each in folded if each.error}
        if not stopped:
            return
        known = entries or self.readmodel.parked(self.generation.name, stopped)
        wanted = [self._entry(each) for each in stopped.values()]
        news = [each for each in wanted if not _is_on(each, known.get(each.stream))]
        if news:
            reach("projector:parking")
            if new := self.readmodel.park(news):
                self._tell_parked([stopped[stream] for stream in new])
        for each in wanted:
            self._remember(each.stream, each.highest)

    def _entry(self, stopped: Folded) -> Parked:
        return Parked(
            generation=self.generation.name,
            stream=stopped.stream,
            version=stopped.stopped_at,
            highest=stopped.known,
            error=stopped.error[:500],
            when=self.clock(),
        )

    def _tell_parked(self, parked: Sequence[Folded]) -> None:
        """Logs one line for all that are parked now, about the first; at DEBUG one for each."""
        many = _some(each.stream for each in parked) if len(parked) > 1 else {}
        for number, each in enumerate(parked):
            told = {
                "projection": self.projection.name,
                "id": each.stream,
                "version": each.stopped_at,
                "error": each.error,
            }
            if each.failed:
                told |= {"event_type": each.failed.event_type, **ids_of(each.failed)}
            if number:
                log.debug("Stream parked", extra=told)
            else:
                log.error("Streams parked" if many else "Stream parked", extra={**told, **many})


def _is_on(new: Parked, entry: Parked | None) -> bool:
    """Whether the parked list says so already."""
    return entry is not None and entry.version == new.version and entry.highest >= new.highest


def _some(streams: Iterable[str]) -> dict[str, object]:
    """How many streams, and the ids of a few."""
    ids = list(streams)
    return {"streams": len(ids), "ids": ",".join(ids[:NAMED])}


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


class Tour:
    """Goes through a parked list, some entries at each sweep, and finds those to be tried.

    An entry is due once for this process, since new code may know what the old did not, and again
    where its document has gone past the version at which it stopped: a replica that is slow, or
    whose code is older, may have put it on the list too late.
    """

    def __init__(self, readmodel: ReadModel, generation: Generation) -> None:
        self._readmodel = readmodel
        self._generation = generation
        self._slot, self._width = 0, SLOTS // 64
        self._met: dict[str, int] = {}
        self._tried: dict[str, int] = {}
        self.is_complete = False
        """Whether every entry has been due once."""

    def due(self) -> dict[str, Parked]:
        """The entries that are due, of about TOUR that it looks at. Raises ReadModelAway."""
        seen: dict[str, Parked] = {}
        while len(seen) < TOUR // 2 and self._slot < SLOTS:
            until = min(self._slot + self._width, SLOTS)
            found = self._readmodel.parked_in(self._generation.name, range(self._slot, until))
            seen |= found
            self._slot = until
            if len(found) < TOUR // 2:
                self._width = min(2 * self._width, SLOTS)
            elif len(found) > TOUR:
                self._width = max(1, self._width // 2)
        versions = self._readmodel.versions(self._generation.collection, seen) if seen else {}
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


@dataclass(eq=False)
class Sweep:
    """Compares the feed with the documents, from the checkpoint on, while it has the lease.

    It looks only at what had settled when it looked the last time, so that it does not do
    again what the broker is about to bring.
    """

    folder: Folder
    holder: str
    lease_seconds: float

    def __post_init__(self) -> None:
        self._readmodel = self.folder.readmodel
        self._name = self.folder.projection.name
        self.caught_up = 0
        """How many events the last `run` had to bring."""
        self._begin()

    def _begin(self) -> None:
        """Nothing is known yet of the generation that the folder has now."""
        self._generation = self.folder.generation
        self._seen: tuple[int, datetime | None] | None = None
        self._tour = Tour(self._readmodel, self._generation)

    def run(self) -> bool:
        """Sweeps one page; True if there is more to sweep at once.

        Raises Away, and StoreRestored, by which every replica knows that nothing may be applied.
        """
        self.caught_up = 0
        self.folder.follow()
        if self.folder.generation != self._generation:
            self.release()
            self._begin()
        lease = self._readmodel.take_lease(
            self._generation.name, self.holder, self.lease_seconds, self.folder.furthest
        )
        if lease is None:
            self._seen = None
            self._tell_lag(0, None)  # the holder tells
            if reason := self._readmodel.checkpoint(self._generation.name).halted:
                raise StoreRestored(reason)
            return False
        until, covered_at = self._seen or (0, None)
        page = self.folder.feed.heads(lease.position, until, lease.marks)
        lease = self._same_log(lease, page)
        if due := self._tour.due():
            self.folder.retry(due)
        self._catch_up(lease.position, page)
        reach("sweep:caught-up")
        if page.end.position < until:
            self._readmodel.move_checkpoint(lease, page.end, None)
            return True
        self._seen = (page.settled.position, page.at)
        self._readmodel.move_checkpoint(lease, page.end, covered_at)
        return not self._tour.is_complete

    def release(self) -> None:
        """Lets a replica sweep at once, rather than when the lease has run out."""
        try:
            self._readmodel.release_lease(self._generation.name, self.holder)
        except ReadModelAway as away:
            log.warning("Lease left to run out", extra={"reason": str(away)})

    def _same_log(self, lease: Lease, page: HeadsPage) -> Lease:
        """The lease, with the epoch of its log. Raises StoreRestored if this is another one.

        A halt is lifted where the log has the checkpoint's events, whatever else it has.
        """
        if reason := halted_by(self._name, lease.position, lease.store_epoch, page):
            self._readmodel.halt(lease.generation, reason)
            raise StoreRestored(reason)
        if lease.halted:
            self._readmodel.halt(lease.generation, "")
        return replace(lease, store_epoch=page.epoch)

    def _catch_up(self, position: int, page: HeadsPage) -> None:
        """Applies what the streams lack whose document is behind their head on this page.

        Raises FeedAway if one is neither applied nor parked then: the checkpoint must not pass it.
        """
        behind = self._behind(page.heads)
        if not behind:
            self._tell_lag(page.settled.position, None)
            return
        versions = self._readmodel.versions(self._generation.collection, behind)
        events = [
            event
            for event in self.folder.feed.between(position, page.end.position)
            if (stream := str(event.aggregate_id)) in behind
            and event.version > versions.get(stream, 0)
        ]
        observe.CAUGHT_UP.labels(self._name).inc(len(events))
        self.caught_up = len(events)
        self._tell_lag(page.settled.position, next(iter(events), None))
        self.folder.apply(by_stream(events))
        if still := self._behind(behind):
            raise FeedAway(f"{len(still)} streams cannot be brought to where the feed is")

    def _tell_lag(self, settled: int, oldest: Event | None) -> None:
        """Sets the lag: from the oldest event that should be applied by now, None: all are."""
        age = (self.folder.clock() - oldest.recorded_at).total_seconds() if oldest else 0.0
        observe.LAG.labels(self._name).set(settled - oldest.position + 1 if oldest else 0)
        observe.LAG_SECONDS.labels(self._name).set(max(0.0, age))

    def _behind(self, heads: Mapping[str, int]) -> dict[str, int]:
        """The streams whose document is behind; of those that are parked the entry is renewed."""
        unsure = {s: v for s, v in heads.items() if not self.folder.has_reached(s, v)}
        versions = self._readmodel.versions(self._generation.collection, unsure)
        behind = {s: v for s, v in unsure.items() if versions.get(s, 0) < v}
        parked = self._readmodel.parked(self._generation.name, behind)
        stopped = [e for stream, e in parked.items() if versions.get(stream, 0) < e.version]
        self.folder.renew([(entry, behind.pop(entry.stream)) for entry in stopped])
        return behind


@dataclass(eq=False)
class Projector:
    """Consumes one queue into one projection, and sweeps; as many replicas as are needed."""

    folder: Folder
    sweeping: Sweep
    open_consumer: Callable[[], Consumer]
    health: Health
    batch: int
    sweep_interval: float

    def __post_init__(self) -> None:
        self._name = self.folder.projection.name
        self._consumer: Consumer | None = None
        self._opening: Future[Consumer] | None = None
        self._connect_at = 0.0
        self._failures = 0
        self._silent = 0
        self._halted = False
        for counter in (
            observe.APPLIED,
            observe.DUPLICATES,
            observe.CAUGHT_UP,
            observe.DEAD_LETTERS,
        ):
            counter.labels(self._name)  # 0 from the start, or nobody sees the first rise

    def run(self, stop: Stop) -> None:
        """Projects until `stop` is set, whatever servers come and go meanwhile."""
        self._until_done(self._prepare, stop)
        sweep_at = monotonic()
        while not stop.is_set():
            HEART.beat()
            self.consume(stop, wait=max(0.0, min(0.25, sweep_at - monotonic())))
            if monotonic() >= sweep_at and not stop.is_set():
                more = self.sweep()
                pause = self.sweep_interval if self._consumer else min(self.sweep_interval, ALONE)
                sweep_at = monotonic() + (0 if more else pause)
        self.disconnect()
        self.sweeping.release()

    def handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        """Applies a batch and acknowledges it whole; raises ReadModelAway, BrokerAway."""
        messages = [delivery.message for delivery in deliveries]
        traced = processing(self.folder.projection.queue, messages)
        with observe.BATCH_SECONDS.labels(self._name).time(), traced:
            self._handle(deliveries, consumer)
        observe.BATCHES.labels(self._name).observe(len(deliveries))

    def _handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        reach("projector:delivered")
        carried: list[tuple[Event, Delivery]] = []
        unreadable: list[tuple[Delivery, str]] = []
        for delivery in deliveries:
            try:
                carried.append((self._read(delivery), delivery))
            except NotAnEvent as error:
                unreadable.append((delivery, str(error)))
        # While halted, an event is left to a later sweep or to the rebuild: it may be one that the
        # log has lost.
        streams = {} if self._halted else by_stream(event for event, _ in carried)
        ahead = self.folder.apply(streams)
        for event, delivery in carried:
            if event.version > ahead.get(str(event.aggregate_id), event.version):
                unreadable.append((delivery, f"version {event.version} is ahead of the log"))
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
        if event.aggregate_type != self.folder.projection.aggregate_type:
            raise NotAnEvent(f"an event of {event.aggregate_type} has no place in this queue")
        return event

    def _dead_letter(self, delivery: Delivery, consumer: Consumer, reason: str) -> None:
        log.error(
            "Failed to parse message",
            extra={"projection": self._name, "id": delivery.message.id, "error": reason},
        )
        consumer.dead_letter(delivery, reason)
        observe.DEAD_LETTERS.labels(self._name).inc()

    def _prepare(self) -> None:
        self.folder.follow()
        into, readmodel = self.folder.generation, self.folder.readmodel
        readmodel.prepare(into.collection, self.folder.projection.indexes)
        self._halted = bool(readmodel.checkpoint(into.name).halted)

    def consume(self, stop: Stop, wait: float) -> None:
        """Takes what is there and applies it; without a broker lets `wait` pass."""
        try:
            consumer = self._connected(wait)
            if consumer is None:
                if self._opening is None:
                    stop.wait(wait or 0.01)
                return
            if deliveries := consumer.take(self.batch, wait):
                self._silent = 0
                self._until_done(partial(self.handle, deliveries, consumer), stop, consumer)
        except BrokerAway as away:
            self.health.lacks("broker", str(away))
            self.disconnect()
            self._connect_at = monotonic() + backoff(self._failures)
            self._failures += 1

    def _connected(self, wait: float) -> Consumer | None:
        """The consumer, or None while there is none.

        It is opened beside the loop, since a broker that does not even refuse takes seconds, in
        which sweeps must go on.
        """
        if self._consumer is None and self._opening is None and monotonic() >= self._connect_at:
            self._opening = in_thread(self.open_consumer, "opening")
        if self._opening is not None:
            try:
                self._consumer = self._opening.result(timeout=max(wait, 0.05))
            except TimeoutError:
                return None
            self._opening = None
            self._failures = 0
            self.health.well("broker")
        return self._consumer

    def disconnect(self) -> None:
        """Closes the connection to the broker; the next `consume` opens another."""
        if self._opening is not None:
            self._opening.add_done_callback(_close)
            self._opening = None
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _until_done(
        self, act: Callable[[], object], stop: Stop, consumer: Consumer | None = None
    ) -> None:
        """Retries in place while the read model is away; `consumer` takes no more meanwhile."""
        failures = 0
        while not stop.is_set():
            HEART.beat()
            try:
                act()
                self.health.well("readmodel")
                if consumer:
                    consumer.resume()
                return
            except ReadModelAway as away:
                self.health.lacks("readmodel", str(away))
                if consumer:
                    consumer.pause()
                stop.wait(backoff(failures))
                failures += 1

    def sweep(self) -> bool:
        """Sweeps one page; True if more is to be swept at once."""
        try:
            more = self.sweeping.run()
            self._halted = False
        except StoreRestored as restored:
            if not self._halted:
                log.error("Projection halted", extra={"reason": str(restored)})
            self._halted = True
            self.health.lacks("feed", str(restored))
            return False
        except Away as away:
            self.health.lacks("feed" if isinstance(away, FeedAway) else "readmodel", str(away))
            return False
        self.health.well("feed")
        self.health.well("readmodel")
        self._notice_silence()
        return more

    def _notice_silence(self) -> None:
        """Opens the queue anew where sweeps bring all, deliveries nothing, and nobody says why.

        A broker may lose a consumer without a word, while its connection lives and is quiet.
        """
        if self.sweeping.caught_up and self._consumer:
            self._silent += 1
        if self._silent == SILENT:
            log.warning("Nothing is delivered", extra={"projection": self._name})
            self._silent = 0
            self.disconnect()
