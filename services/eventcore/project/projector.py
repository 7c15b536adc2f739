"""The projector: deliveries to documents, each event once, in the order of its stream.

    guard     a document knows the version and the id of its last event; event n is applied only
              onto n-1, and only if that is the event before it in the log
    catch up  missing events are read from the owner's feed
    park      a stream whose next event cannot be applied is set aside, alone
    sweep     every few seconds, the lease holder compares the feed with the documents,
              catches up what the broker lost, and moves the checkpoint
    halt      the checkpoint and the furthest folded event must be in the log; if not, the log is
              another one or was restored, and nothing is applied until a rebuild

The broker gives low latency; the sweep guarantees completeness. So an unapplied delivery may be
acknowledged: the checkpoint is not past it. Replicas share nothing but the guard and the lease.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Event as Stop  # not an event of the log
from threading import Thread
from typing import ClassVar, Generic

from eventcore import jsontext
from eventcore.broker.port import Consumer, Delivery
from eventcore.errors import (
    BrokerUnavailable,
    FeedUnavailable,
    NotAnEvent,
    ReadModelUnavailable,
    StoreRestored,
    Unavailable,
)
from eventcore.failpoints import failpoint
from eventcore.model.event import Event, from_message
from eventcore.observe import metrics
from eventcore.observe.health import HEARTBEAT, Health
from eventcore.observe.tracing import processing
from eventcore.project.applier import EventApplier
from eventcore.project.fold_result import by_stream
from eventcore.project.sweep import Applier, Sweep, Sweeping
from eventcore.readmodel.records import Depth
from eventcore.retry import backoff

SWEEP_INTERVAL_WITHOUT_BROKER = 0.5
"""Seconds between two sweeps while the broker is unavailable: less than an order waits for its
user."""

STALLED_SWEEPS = 3
"""Reconnect the consumer after this many sweeps found events that the broker did not deliver."""

log = logging.getLogger(__name__)


def in_thread(act: Callable[[], Consumer], name: str) -> "Future[Consumer]":
    """Runs `act` in a daemon thread, which does not keep the process from ending."""
    future: Future[Consumer] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:  # noqa: BLE001 - raised by the future
            future.set_exception(error)

    Thread(target=run, name=name, daemon=True).start()
    return future


def _read(delivery: Delivery) -> Event:
    """The event of a delivery; raises NotAnEvent."""
    try:
        return from_message(jsontext.parse(delivery.message.body))
    except ValueError as error:
        raise NotAnEvent(str(error)) from error


def _close(opened: "Future[Consumer]") -> None:
    """Closes a consumer that was opened too late."""
    if opened.exception() is None:
        opened.result().close()


@dataclass(eq=False)
class ProjectorLoop(ABC, Generic[Applier]):
    """Takes deliveries of one queue, and sweeps; may have many replicas."""

    applier: Applier
    sweeping: Sweeping
    open_consumer: Callable[[], Consumer]
    health: Health
    batch: int
    sweep_interval: float
    open_beside: Callable[[Callable[[], Consumer], str], Future[Consumer]] = in_thread

    waits_for: ClassVar[tuple[type[Unavailable], ...]] = (ReadModelUnavailable,)
    """The errors after which a batch is tried again until it succeeds."""

    def __post_init__(self) -> None:
        self._name = self.applier.generation.label
        self._clock = self.applier.clock
        self._consumer: Consumer | None = None
        self._opening: Future[Consumer] | None = None
        self._connect_at = 0.0
        self._failures = 0
        self._stalled_sweeps = 0
        self._sweep_at = 0.0
        self._halted = False
        named = (metrics.APPLIED, metrics.DUPLICATES, metrics.CAUGHT_UP, metrics.DEAD_LETTERS)
        for counter in named:
            counter.labels(self._name)  # creates it at 0, so that `rate()` sees the first increment

    def run(self, stop: Stop) -> None:
        """Projects until `stop` is set; waits for servers that are unavailable."""
        self._until_done(self._prepare, stop)
        while not stop.is_set():
            HEARTBEAT.beat()
            self.consume(stop, wait=max(0.0, min(0.25, self._sweep_at - self._clock.monotonic())))
            if self._clock.monotonic() >= self._sweep_at and not stop.is_set():
                more = self.sweep()
                pause = (
                    self.sweep_interval
                    if self._consumer
                    else min(self.sweep_interval, SWEEP_INTERVAL_WITHOUT_BROKER)
                )
                self._sweep_at = self._clock.monotonic() + (0 if more else pause)
        self.disconnect()
        self.sweeping.release()

    def handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        """Applies a batch and acknowledges it. Raises ReadModelUnavailable, BrokerUnavailable."""
        messages = [delivery.message for delivery in deliveries]
        traced = processing(self.applier.projection.queue, messages)
        with metrics.BATCH_SECONDS.labels(self._name).time(), traced:
            self._handle(deliveries, consumer)
        metrics.BATCHES.labels(self._name).observe(len(deliveries))

    @abstractmethod
    def _handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        """Does what `handle` does, untimed."""

    def _prepare(self) -> None:
        self.applier.follow()
        into, readmodel = self.applier.generation, self.applier.readmodel
        readmodel.prepare(into.collection, self.applier.projection.indexes)
        self._halted = bool(readmodel.checkpoint(into.name).halted)

    def consume(self, stop: Stop, wait: float) -> None:
        """Applies the available deliveries; without a broker waits for `wait` seconds."""
        try:
            consumer = self._connected(wait)
            if consumer is None:
                if self._opening is None:
                    stop.wait(wait or 0.01)
                return
            if deliveries := consumer.take(self.batch, wait):
                self._stalled_sweeps = 0
                self._until_done(partial(self.handle, deliveries, consumer), stop, consumer)
        except BrokerUnavailable as error:
            self.health.mark_down("broker", str(error))
            self.disconnect()
            self._connect_at = self._clock.monotonic() + backoff(self._failures, self._clock)
            self._failures += 1

    def _connected(self, wait: float) -> Consumer | None:
        """The consumer, or None while there is none.

        It is opened in another thread, so that sweeps go on: connecting to a silent broker takes
        seconds.
        """
        is_due = self._clock.monotonic() >= self._connect_at
        if self._consumer is None and self._opening is None and is_due:
            self._opening = self.open_beside(self.open_consumer, "opening")
        if self._opening is not None:
            try:
                self._consumer = self._opening.result(timeout=max(wait, 0.05))
            except TimeoutError:
                return None
            self._opening = None
            self._failures = 0
            self.health.mark_up("broker")
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
        """Retries while a server that `act` needs is unavailable; pauses `consumer` until then."""
        failures = 0
        while not stop.is_set():
            HEARTBEAT.beat()
            try:
                act()
                self.health.mark_up("readmodel")
                if consumer:
                    consumer.resume()
                return
            except self.waits_for as error:
                self.health.mark_down(self._part_of(error), str(error))
                if consumer:
                    consumer.pause()
                self._while_waiting()
                stop.wait(backoff(failures, self._clock))
                failures += 1

    def _while_waiting(self) -> None:
        """Does what cannot wait, at each turn of such a wait."""

    def _part_of(self, error: Unavailable) -> str:
        """The part of the process's health that an error is about."""
        return "feed" if isinstance(error, FeedUnavailable) else "readmodel"

    def sweep(self) -> bool:
        """Sweeps one page; returns True if the next page is due at once."""
        try:
            more = self.sweeping.run()
            self._halted = False
            if self._consumer and (counted := self._consumer.depths()):
                depth = Depth(self.applier.projection.name, self._clock.now(), *counted)
                self.applier.readmodel.note_depth(depth)
        except StoreRestored as restored:
            if not self._halted:
                log.error("Projection halted", extra={"reason": str(restored)})
            self._halted = True
            self.health.mark_down("feed", str(restored))
            return False
        except Unavailable as error:
            self.health.mark_down(self._part_of(error), str(error))
            return False
        self.health.mark_up("feed")
        self.health.mark_up("readmodel")
        self._reconnect_if_stalled()
        return more

    def _reconnect_if_stalled(self) -> None:
        """Reconnects if only sweeps find events: the broker may have lost the consumer silently."""
        if self.sweeping.caught_up and self._consumer:
            self._stalled_sweeps += 1
        if self._stalled_sweeps == STALLED_SWEEPS:
            log.warning("Nothing is delivered", extra={"projection": self._name})
            self._stalled_sweeps = 0
            self.disconnect()


@dataclass(eq=False)
class Projector(ProjectorLoop[EventApplier]):
    """Consumes one queue into one projection."""

    sweeping: Sweep

    def _handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        failpoint("projector:delivered")
        carried: list[tuple[Event, Delivery]] = []
        refused: list[tuple[Delivery, str, str]] = []
        aggregate_type = self.applier.projection.aggregate_type
        for delivery in deliveries:
            try:
                event = _read(delivery)
            except NotAnEvent as error:
                refused.append((delivery, "Failed to parse message", str(error)))
                continue
            if event.aggregate_type == aggregate_type:
                carried.append((event, delivery))
            else:
                reason = f"an event of {event.aggregate_type} does not belong to this queue"
                refused.append((delivery, "Event dead-lettered", reason))
        # While halted, an event is left to a later sweep or to the rebuild: it may be one that the
        # log has lost.
        streams = {} if self._halted else by_stream(event for event, _ in carried)
        ahead = self.applier.apply(streams)
        for event, delivery in carried:
            if event.version > ahead.get(str(event.aggregate_id), event.version):
                reason = f"version {event.version} is ahead of the log"
                refused.append((delivery, "Event dead-lettered", reason))
        for delivery, log_message, reason in refused:  # last: a batch may be repeated up to here
            self._dead_letter(delivery, consumer, log_message, reason)
        failpoint("projector:written")
        consumer.acknowledge(deliveries[-1])
        failpoint("projector:acknowledged")

    def _dead_letter(
        self, delivery: Delivery, consumer: Consumer, log_message: str, reason: str
    ) -> None:
        log.error(
            log_message,
            extra={"projection": self._name, "id": delivery.message.id, "error": reason},
        )
        consumer.dead_letter(delivery, reason)
        metrics.DEAD_LETTERS.labels(self._name).inc()
