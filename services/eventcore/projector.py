"""The projector: deliveries to documents, each event once, in the order of its stream.

    guard     a document knows its version; event n is applied only onto n-1
    catch up  what is missing in between is fetched from the owner's feed
    park      a stream whose next event cannot be applied is set aside, alone
    sweep     every few seconds, who holds the lease compares the feed with the documents,
              catches up what the broker lost, and moves the checkpoint

The broker makes it fast, the sweep makes it sure: a delivery that cannot be dealt with now
may be acknowledged, since the checkpoint is not past it. Replicas need not agree on
anything but the guard.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Event as Stop
from threading import Thread
from time import monotonic, sleep
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
from eventcore.event import Event, from_message, ids_of
from eventcore.failpoints import reach
from eventcore.feed import Feed, HeadsPage
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
from eventcore.projection import Document, Projection, version_of
from eventcore.readmodel import Generation, Lease, Parked, ReadModel, Write, generation_of
from eventcore.retry import backoff
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
    """What became of one stream's events: the document, and what stopped it, if anything.

    `highest` came; the log is known to go to `known`.
    """

    before: int
    document: Document | None
    highest: int
    known: int
    stopped_at: int = 0
    error: str = ""
    applied: list[Event] = field(default_factory=list)
    """Those that are now in the document."""

    @property
    def is_ahead(self) -> bool:
        """Whether there are events that the log itself does not lead up to."""
        return self.highest > self.known

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
            log.info("Another generation serves", extra={"projection": name, "generation": serving})

    def has_reached(self, stream: str, version: int) -> bool:
        """Whether this process itself has brought a stream's document to `version`."""
        return self._reached.get(stream, 0) >= version

    def apply(self, streams: Mapping[str, Sequence[Event]], retry: bool = False) -> dict[str, int]:
        """Apply events by stream, filling gaps from the feed, and park what cannot be applied.

        When it returns, each event is applied, or its stream stands on the parked list, or
        (the feed being away) it is left to the sweep. What comes back names the streams
        whose events are ahead of the log itself, each with the version to which the log goes. A
        stream that is parked already only has its entry renewed, unless `retry`. Raises
        ReadModelAway; then some may be applied, and it can be called again.

        The usual case costs no question: a stream that begins is written without a look
        whether it is there, since the guard says so; and whether a stream is parked is asked
        where there is a gap, since the event that it stopped at is one.
        """
        into = self.generation
        parked = self._readmodel.parked(into.name, streams) if retry else {}
        pending = dict(streams)
        ahead: dict[str, int] = {}
        for attempt in range(RACES):
            known = pending if attempt or retry else self._begun(pending)
            documents = self._readmodel.find(into.collection, known) if known else {}
            if not retry:
                ahead.update(self._leave_parked(pending, documents))
            folded: dict[str, Folded] = {}
            for stream, events in pending.items():
                try:
                    folded[stream] = self._fold(stream, documents.get(stream), events)
                except FeedAway as away:
                    log.warning("Gap left to the sweep", extra={"id": stream, "reason": str(away)})
            if self._write(folded):
                self._settle(folded, parked)
                ahead.update((s, f.known) for s, f in folded.items() if f.is_ahead)
                return ahead
            pending = {stream: pending[stream] for stream in folded}
            sleep(backoff(attempt) / 50)  # a replica was faster with one of them
        raise ReadModelAway(f"documents of {into.name} kept changing under {RACES} attempts")

    def _begun(self, streams: Mapping[str, Sequence[Event]]) -> list[str]:
        """Those of which there may be a document: all but those that seem to begin here."""
        return [
            stream
            for stream, events in streams.items()
            if stream in self._reached or not any(event.version == 1 for event in events)
        ]

    def _leave_parked(
        self, pending: dict[str, Sequence[Event]], documents: Mapping[str, Document]
    ) -> dict[str, int]:
        """Take those out that are parked, with their entries renewed; only a gap can be one.

        An entry goes no further than the log: what is ahead of that comes back, as from `apply`.
        """
        gaps, ahead = [], dict[str, int]()
        for stream, events in pending.items():
            above = sorted(
                e.version for e in events if e.version > version_of(documents.get(stream))
            )
            if above and above[0] != version_of(documents.get(stream)) + 1:
                gaps.append(stream)
        if gaps:
            for stream, parked in self._readmodel.parked(self.generation.name, gaps).items():
                highest = max(event.version for event in pending.pop(stream))
                if highest > (known := self._renew_from_feed(parked, highest)):
                    ahead[stream] = known
        return ahead

    def _renew_from_feed(self, parked: Parked, highest: int) -> int:
        """How far the log goes, if `highest` is news; then the entry says so too."""
        if highest <= parked.highest:
            return highest
        try:
            news = self._feed.stream(parked.stream, parked.highest)
        except FeedAway as away:
            log.warning(
                "Parked stream left to the sweep",
                extra={"id": parked.stream, "reason": str(away)},
            )
            return highest
        known = news[-1].version if news else parked.highest
        self.renew(parked, known)
        return known

    def retry(self, stream: str) -> bool:
        """Try a parked stream again; True if it has been released, False if it stays parked.

        It is released once its document has reached everything that is known of it.
        """
        name, collection = self.generation.name, self.generation.collection
        for _ in range(RACES):
            before = self._readmodel.versions(collection, [stream]).get(stream, 0)
            self.apply({stream: self._feed.stream(stream, after=before)}, retry=True)
            if not self._readmodel.parked(name, [stream]):
                log.info("Stream released", extra={"projection": name, "id": stream})
                return True
            if self._readmodel.versions(collection, [stream]).get(stream, 0) == before:
                return False
        return False

    def renew(self, parked: Parked, highest: int) -> None:
        """Note on a parked stream's entry how far the stream is known to go."""
        if highest > parked.highest:
            self._readmodel.park(replace(parked, highest=highest))

    def _fold(self, stream: str, document: Document | None, events: Sequence[Event]) -> Folded:
        before = version_of(document)
        highest = max((event.version for event in events), default=before)
        ordered = self._in_order(stream, before, events)
        known = ordered[-1].version if ordered else before
        result = Folded(before, document, highest, known)
        for event in ordered:
            try:
                skipped = (stream, event.version) in self._skips
                step = self._projection.skip if skipped else self._projection.apply
                result.document = step(result.document, event)
                result.applied.append(event)
            except Exception as error:  # noqa: BLE001 - whatever a step raises parks its stream
                result.stopped_at, result.error = event.version, f"{type(error).__name__}: {error}"
                log.error(
                    "Stream parked",
                    extra={
                        "projection": self._projection.name,
                        "id": stream,
                        "version": event.version,
                        "event_type": event.event_type,
                        **ids_of(event),
                        "error": result.error,
                    },
                )
                break
        return result

    def _in_order(self, stream: str, after: int, events: Sequence[Event]) -> list[Event]:
        """The events above version `after`, each once, with the gaps between them filled."""
        known = {event.version: event for event in events if event.version > after}
        if duplicates := len(events) - len(known):
            DUPLICATES.labels(self._projection.name).inc(duplicates)
        if known and max(known) - after > len(known):
            fetched = self._feed.stream(stream, after)
            CAUGHT_UP.labels(self._projection.name).inc(len(fetched))
            known.update((event.version, event) for event in fetched)
        ordered = []
        while after + 1 in known:
            after += 1
            ordered.append(known[after])
        return ordered

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

    def _settle(self, folded: Mapping[str, Folded], parked: Mapping[str, Parked]) -> None:
        """Park the streams that stopped, release those that have gone on."""
        for stream, each in folded.items():
            if each.error:
                self._park(stream, each)
            elif stream in parked:
                self._readmodel.release(self.generation.name, stream, each.version)

    def _park(self, stream: str, folded: Folded) -> None:
        reach("projector:parking")
        self._readmodel.park(
            Parked(
                generation=self.generation.name,
                stream=stream,
                version=folded.stopped_at,
                highest=folded.known,
                error=folded.error[:500],
                when=self._clock(),
            )
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
        self._tried: dict[str, int] = {}
        self.caught_up = 0

    def run(self) -> bool:
        """One page of it; True if there is more to sweep at once.

        `caught_up` is how many events it has had to bring.

        Raises Away, and StoreRestored, by which every replica knows that nothing may be applied.
        """
        self.caught_up = 0
        self._follow()
        lease = self._readmodel.take_lease(self._generation.name, self._holder, self._lease_seconds)
        if lease is None:
            self._seen = None
            self._tell_lag(0, None)  # whoever has it tells
            self.require_going()
            return False
        until, covered_at = self._seen or (0, None)
        page = self._feed.heads(lease.position, until)
        lease = self._same_store(lease, page)
        self._retry_parked()
        self._catch_up(lease.position, page)
        reach("sweep:caught-up")
        if page.until < until:
            self._readmodel.move_checkpoint(lease, page.until, None)
            return True
        self._seen = (page.settled, page.at)
        self._readmodel.move_checkpoint(lease, page.until, covered_at)
        return False

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
            self._tried = {}

    def _same_store(self, lease: Lease, page: HeadsPage) -> Lease:
        """The lease, with the epoch of the log it was folded from; raises StoreRestored.

        A log that was restored has another epoch. One that was put back without telling (a
        snapshot of the volume, say) can be known only as long as it is behind the checkpoint.
        """
        if not page.epoch:
            return lease
        known = lease.store_epoch or page.epoch
        if known == page.epoch and lease.position <= page.head:
            if lease.halted:
                self._readmodel.halt(lease.generation, "")
            return replace(lease, store_epoch=known)
        reason = (
            f"{self._projection.name} is at position {lease.position} of another log: this one was"
            f" restored and goes to {page.head}. Nothing is applied until it is folded anew:"
            f" python -m eventcore rebuild {self._projection.name}"
        )
        self._readmodel.halt(lease.generation, reason)
        raise StoreRestored(reason)

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
        """Those whose document is behind; of the parked ones only the entry is renewed."""
        unsure = {s: v for s, v in heads.items() if not self._folder.has_reached(s, v)}
        versions = self._readmodel.versions(self._generation.collection, unsure)
        behind = {s: v for s, v in unsure.items() if versions.get(s, 0) < v}
        for stream, parked in self._readmodel.parked(self._generation.name, behind).items():
            self._folder.renew(parked, behind.pop(stream))
        return behind

    def _retry_parked(self) -> None:
        """Try each entry of the parked list once: new code may know what the old did not.

        A replica whose code is older, or that was slow, may put a stream on the list when newer
        ones have tried theirs: so each entry that this process has not tried yet, and each whose
        document has gone past where it stopped.
        """
        parked = self._readmodel.parked(self._generation.name)
        versions = self._readmodel.versions(self._generation.collection, parked) if parked else {}
        for stream, entry in parked.items():
            is_tried = self._tried.get(stream) == entry.version
            if not is_tried or versions.get(stream, 0) >= entry.version:
                HEART.beat()
                self._folder.retry(stream)
        self._tried = {stream: entry.version for stream, entry in parked.items()}


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
        for delivery in deliveries:
            try:
                event = self._read(delivery)
            except NotAnEvent as error:
                self._dead_letter(delivery, consumer, str(error))
                continue
            stream = str(event.aggregate_id)
            streams[stream].append(event)
            carriers[stream, event.version] = delivery
        ahead = self._folder.apply(streams) if streams else {}
        for (stream, version), delivery in carriers.items():
            if version > ahead.get(stream, version):
                self._dead_letter(delivery, consumer, f"version {version} is ahead of the log")
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
        """Take what is there and apply it; without a broker, or while halted, let `wait` pass."""
        if self._halted:
            self.disconnect()
            stop.wait(wait or 0.01)
            return
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
