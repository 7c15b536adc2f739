"""The relay: moves one store's feed to the broker, in order, confirmed.

Its checkpoint is the last event up to which everything is confirmed. After a nack or a lost
connection it goes on from there, so events may be published twice, and are never left out. Where
the log does not have that event, the relay is halted: it publishes nothing until the log has it.
"""

import logging
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from threading import Event as Stop

from eventcore import jsontext
from eventcore.broker.port import Publisher
from eventcore.broker.topology import EXCHANGE
from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import StoreRestored, Unavailable
from eventcore.failpoints import failpoint
from eventcore.model.event import Event, Mark, to_message
from eventcore.model.message import Message
from eventcore.observe.health import HEARTBEAT, Health
from eventcore.observe.metrics import CONFIRM_SECONDS, IN_FLIGHT, PUBLISHED, RELAY_ACTIVE, RETURNED
from eventcore.observe.tracing import Published, publishing
from eventcore.retry import backoff
from eventcore.store.port import EXPIRED_AT_ONCE, PAGE, RelayStore

log = logging.getLogger(__name__)

POLL_DELAYS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Seconds between two polls of an idle relay; the last one repeats."""

SAVE_EVERY = 0.2  # seconds between two moves of the checkpoint while there is work

EXPIRE_EVERY = 60.0  # seconds between two rounds of deleting expired idempotency keys

EXPIRE_AGAIN = 0.2  # seconds until the next statement of a round: 5,000 keys a second


def gather_delay(events: int) -> float:
    """Delay before the next page in seconds, to collect more events; 0 after a full page.

    The fixed cost of an iteration is high in the relay, in PostgreSQL and in every projector, so
    larger batches are cheaper.
    """
    return min(0.004 + 0.001 * events, 0.015) if events < PAGE else 0.0


class Relay:
    """Runs a Forwarder while it holds the lock of its store; one relay is active per store."""

    def __init__(
        self,
        store_name: str,
        open_store: Callable[[], RelayStore],
        open_publisher: Callable[[], Publisher],
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._name = store_name
        self._open_store = open_store
        self._open_publisher = open_publisher
        self._health = health
        self._clock = clock
        self._halted = False

    def run(self, stop: Stop) -> None:
        """Relays until `stop` is set; waits for servers that are unavailable."""
        failures = 0
        while not stop.is_set():
            HEARTBEAT.beat()
            try:
                self._with_store(stop)
                failures = 0
            except Unavailable as error:
                part = "broker" if error.code == "broker-away" else "store"
                if isinstance(error, StoreRestored) and not self._halted:  # logged once
                    log.error("Relay halted", extra={"store": self._name, "reason": str(error)})
                    self._halted = True
                self._health.mark_down(part, str(error))
                stop.wait(backoff(failures, self._clock))
                failures += 1

    def _with_store(self, stop: Stop) -> None:
        active = RELAY_ACTIVE.labels(self._name)
        active.set(0)
        with closing(self._open_store()) as store, ExitStack() as held:
            while not store.lock():
                HEARTBEAT.beat()
                self._health.mark_up("store")
                self._health.mark_up("broker")  # a standby is ready to take over
                if stop.wait(1.0):
                    return
            checkpoint = store.checkpoint()
            store.read_page(checkpoint, checkpoint)  # raises StoreRestored if it is not there
            self._halted = False
            self._health.mark_up("store")
            active.set(1)
            held.callback(active.set, 0)
            publisher = held.enter_context(closing(self._open_publisher()))
            self._health.mark_up("broker")
            log.info("Relaying", extra={"store": self._name, "from": checkpoint.position})
            Forwarder(self._name, store, publisher, self._clock).run(stop)


class Forwarder:
    """Publishes the feed over one store session and one publisher, and moves the checkpoint."""

    def __init__(
        self, name: str, store: RelayStore, publisher: Publisher, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._monotonic = clock.monotonic
        self._name = name
        self._store = store
        self._publisher = publisher
        self._checkpoint = self._sent = store.checkpoint()
        self._saved = self._checkpoint
        self._saved_at = 0.0
        self._in_flight: deque[Mark] = deque()
        self._pages: deque[tuple[int, float, Published]] = deque()
        self._confirmed = 0
        self._returned = 0

    def run(self, stop: Stop) -> None:
        """Forwards events until `stop` is set; then waits up to 5 s for confirms, and saves."""
        idle = 0
        expire_at = self._monotonic()
        while not stop.is_set():
            HEARTBEAT.beat()
            if self._monotonic() >= expire_at:
                more = self._store.expire_idempotency_keys() == EXPIRED_AT_ONCE
                expire_at = self._monotonic() + (EXPIRE_AGAIN if more else EXPIRE_EVERY)
            sent = self.turn()
            if sent:
                idle = 0
                stop.wait(gather_delay(sent))
                continue
            if self._in_flight:
                idle = 0
                self._collect_confirms(wait=0.02)
                continue
            if self._monotonic() - self._saved_at > SAVE_EVERY:
                self.save()
            if self._store.head > self._sent.position:
                self._store.wait(0.003)  # a writer that drew a position is still at work
            else:
                self._store.wait(POLL_DELAYS[min(idle, len(POLL_DELAYS) - 1)])
                idle += 1
        deadline = self._monotonic() + 5
        while self._in_flight and self._monotonic() < deadline:
            self._collect_confirms(wait=0.1)
        self.save()

    def turn(self) -> int:
        """Publishes one page of the newly settled events; returns their number."""
        settled = self._store.settled_event()
        if settled == self._sent:
            return 0
        if settled.position < self._sent.position:  # writers are at work, or the log was restored
            settled = self._sent
        page = self._store.read_page(self._sent, settled)
        if page:
            failpoint("relay:read")
            began = self._monotonic()
            published = publishing(EXCHANGE, page, [to_broker(event) for event in page])
            self._publisher.publish(published.messages)
            failpoint("relay:published")
            self._pages.append((page[-1].position, began, published))
            self._in_flight.extend(event.mark for event in page)
            self._sent = page[-1].mark
        self._collect_confirms(wait=0)
        if self._monotonic() - self._saved_at > SAVE_EVERY:
            self.save()
        return len(page)

    def save(self) -> None:
        """Moves the checkpoint to the last event up to which everything is confirmed."""
        if self._checkpoint.position > self._saved.position:
            failpoint("relay:confirmed")
            self._store.move_checkpoint(self._checkpoint)
            failpoint("relay:saved")
            self._saved, self._saved_at = self._checkpoint, self._monotonic()

    def _collect_confirms(self, wait: float) -> None:
        if wait:
            confirmed = self._publisher.wait(self._confirmed, wait)
        else:
            confirmed = self._publisher.confirmed()
        for _ in range(confirmed - self._confirmed):
            self._checkpoint = self._in_flight.popleft()
        while self._pages and self._pages[0][0] <= self._checkpoint.position:
            _, began, published = self._pages.popleft()
            CONFIRM_SECONDS.labels(self._name).observe(self._monotonic() - began)
            published.end()
        IN_FLIGHT.labels(self._name).set(len(self._in_flight))
        PUBLISHED.labels(self._name).inc(confirmed - self._confirmed)
        RETURNED.labels(self._name).inc(self._publisher.returned - self._returned)
        self._confirmed, self._returned = confirmed, self._publisher.returned


def to_broker(event: Event) -> Message:
    """The message that carries an event: its id, its routing key, its JSON, its trace."""
    headers = {}
    if isinstance(traceparent := event.metadata.get("traceparent"), str):
        headers["traceparent"] = traceparent
    return Message(
        id=str(event.event_id),
        routing_key=event.routing_key,
        body=jsontext.render(to_message(event)),
        headers=headers,
    )
