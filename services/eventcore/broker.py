"""RabbitMQ: the exchange, queues and keys; publishing with confirms, consuming in batches.

The only file that imports pika. Each Publisher and Consumer has one connection, whose I/O
loop runs in a thread of its own, so that heartbeats are served while the caller works. None
of them reconnects: after BrokerAway the caller closes it and opens another, which declares
the topology again.

Sources: RabbitMQ's guides on publisher confirms (acks may come out of order, and for many
at once; an unroutable mandatory message is returned before it is acknowledged) and on
quorum queues (delivery limit, length limit with drop-head).
"""

import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Protocol

import pika
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker

from eventcore.errors import BrokerAway, Misconfigured
from eventcore.settings import Server

EXCHANGE = "events"
"""The topic exchange that every event goes through."""

OPEN_TIMEOUT = 10.0
"""Seconds for a connection to open and its topology to be declared."""

BLOCKED_TIMEOUT = 30.0
"""Seconds that a publisher waits while the broker blocks it or confirms nothing."""

REPUBLISH_AFTER = (0.1, 0.5, 2.0)
"""Seconds before each further try with a message that could not be routed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """What travels; `id` is the event's id, `headers` carry the traceparent."""

    id: str
    routing_key: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Queue:
    """A projection's queue and the routing keys it is bound with, such as `user.#`."""

    name: str
    binding: str

    @property
    def dead_letters(self) -> str:
        """The queue for what cannot be read as an event; only a projector publishes to it."""
        return f"{self.name}.dead-letters"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was taken and waits to be acknowledged."""

    tag: int
    message: Message
    redelivered: bool


class Publisher(Protocol):
    """Publishes in order, with a window of messages that are not confirmed yet."""

    @property
    def returned(self) -> int:
        """How many messages came back because no queue was bound for them."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Hand messages over; returns as soon as the window has room for the last of them.

        A message that cannot be routed is tried again a few times, with the topology
        declared anew, then let go: the sweep brings it. Raises BrokerAway.
        """

    def confirmed(self) -> int:
        """How many are confirmed, from the first on, without a gap; raises BrokerAway."""

    def wait(self, more_than: int, timeout: float) -> int:
        """Wait until more than that are confirmed, or `timeout` seconds; how many are."""

    def close(self) -> None:
        """Give up the connection."""


class Consumer(Protocol):
    """Takes from one queue, in batches; several may share a queue."""

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """What has been delivered, `limit` at most; waits up to `wait` seconds for the first."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge it and everything taken before it, in one `multiple` ack."""

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Publish it whole to the dead-letter queue; returns once that is confirmed."""

    def pause(self) -> None:
        """Let nothing more be delivered; what has been delivered already can still be taken."""

    def resume(self) -> None:
        """Let deliveries come again."""

    def close(self) -> None:
        """Give up the connection; what was not acknowledged goes back to the queue."""


class Broker(Protocol):
    """The port; both methods raise BrokerAway, or Misconfigured for a queue that differs."""

    def publisher(self, queues: Sequence[Queue], window: int) -> Publisher:
        """Declare the topology and publish, with up to `window` messages unconfirmed."""

    def consumer(self, queue: Queue, prefetch: int) -> Consumer:
        """Declare the topology and consume, with up to `prefetch` deliveries unacknowledged."""


class RabbitMQ:
    """A Broker on one virtual host, for RabbitMQ 3.10 and later."""

    def __init__(self, server: Server, *, name: str, delivery_limit: int, queue_bytes: int) -> None:
        self._server = server
        self._name = name
        self._delivery_limit = delivery_limit
        self._queue_bytes = queue_bytes

    def publisher(self, queues: Sequence[Queue], window: int) -> "ConfirmedPublisher":
        """See Broker."""
        return ConfirmedPublisher(self._parameters(), self._topology(queues), window)

    def consumer(self, queue: Queue, prefetch: int) -> "BatchConsumer":
        """See Broker."""
        return BatchConsumer(self._parameters(), self._topology([queue]), queue, prefetch)

    def _topology(self, queues: Sequence[Queue]) -> "Topology":
        return Topology(queues, self._delivery_limit, self._queue_bytes)

    def _parameters(self) -> pika.ConnectionParameters:
        server = self._server
        context = ssl.create_default_context(cafile=server.ca_file or None) if server.tls else None
        return pika.ConnectionParameters(
            host=server.host,
            port=server.port,
            virtual_host=server.name,
            credentials=pika.PlainCredentials(server.user, server.password.read()),
            ssl_options=pika.SSLOptions(context, server.host) if context else None,
            heartbeat=10,
            socket_timeout=3,
            stack_timeout=5,
            blocked_connection_timeout=BLOCKED_TIMEOUT,
            client_properties={"connection_name": self._name},
            tcp_options={"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_USER_TIMEOUT": 8000},
        )


Act = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Topology:
    """Exchange, queues, bindings and dead-letter queues; declared as often as needed."""

    queues: Sequence[Queue]
    delivery_limit: int
    queue_bytes: int

    def steps(self, channel: Any) -> Iterator[Act]:
        """The declarations, each a function that takes a callback for when it is done."""
        bounded = {
            "x-queue-type": "quorum",
            "x-max-length-bytes": self.queue_bytes,
            "x-overflow": "drop-head",
        }
        work = {**bounded, "x-delivery-limit": self.delivery_limit}
        yield lambda done: channel.exchange_declare(
            EXCHANGE, exchange_type="topic", durable=True, callback=done
        )
        for queue in self.queues:
            for name, arguments in ((queue.name, work), (queue.dead_letters, bounded)):
                yield lambda done, name=name, arguments=arguments: channel.queue_declare(
                    name, durable=True, arguments=arguments, callback=done
                )
            yield lambda done, queue=queue: channel.queue_bind(
                queue.name, EXCHANGE, queue.binding, callback=done
            )


class _Link:
    """A connection with one channel in confirm mode, and the thread that runs its I/O.

    Methods named `_on_…` run in that thread; it alone touches the channel. What both
    threads see is guarded by `_changed`.
    """

    def __init__(self, parameters: pika.ConnectionParameters, topology: Topology) -> None:
        self._topology = topology
        self._changed = threading.Condition()
        self._is_open = False
        self._broken: Exception | None = None
        self._closing = False
        self._channel: Any = None
        self._connection: Any = None
        self._thread = threading.Thread(
            target=self._run, args=(parameters,), name="rabbitmq", daemon=True
        )
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self._broken, OPEN_TIMEOUT)
            error = self._broken or (None if self._is_open else BrokerAway("no answer in time"))
        if error is not None:
            self.close()
            raise error

    def close(self) -> None:
        """Give up the connection, within a few seconds whatever the broker does."""
        self._closing = True
        try:
            self._submit(self._connection.close)
        except (BrokerAway, AttributeError):
            log.debug("connection was gone already")
        self._thread.join(3)
        if self._thread.is_alive() and self._connection is not None:
            self._connection.ioloop.add_callback_threadsafe(self._connection.ioloop.stop)

    def _extra_steps(self) -> Iterator[Act]:
        """What has to happen on the channel after the topology is there."""
        return iter(())

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        """The broker has taken a message, or all up to it."""

    def _on_return(self, message_id: str) -> None:
        """A message could not be routed; its confirm comes next."""

    def _check(self) -> None:
        """Raise what broke the link, if anything did; call it with `_changed` held."""
        if self._broken is not None:
            raise BrokerAway(str(self._broken)) from self._broken

    def _submit(self, act: Callable[[], object]) -> None:
        """Have the I/O thread do something soon."""
        if self._broken is not None:
            raise BrokerAway(str(self._broken)) from self._broken
        try:
            self._connection.ioloop.add_callback_threadsafe(lambda: self._guarded(act))
        except (AMQPError, RuntimeError, OSError) as error:
            raise BrokerAway(f"the connection to RabbitMQ was lost: {error!r}") from error

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except AMQPError as error:  # the connection closed a moment ago
            self._break(BrokerAway(f"the connection to RabbitMQ was lost: {error!r}"))

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _run(self, parameters: pika.ConnectionParameters) -> None:
        try:
            self._connection = SelectConnection(
                parameters,
                on_open_callback=lambda connection: connection.channel(
                    on_open_callback=self._on_channel
                ),
                on_open_error_callback=self._on_connection_failed,
                on_close_callback=self._on_connection_failed,
            )
            self._connection.ioloop.start()
        except Exception as error:  # noqa: BLE001 - the thread's end is told to the caller
            self._break(BrokerAway(f"RabbitMQ failed: {error!r}"))

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(
            lambda _channel, _method, properties, _body: self._on_return(properties.message_id)
        )
        self._in_turn(self._opening())

    def _opening(self) -> Iterator[Act]:
        yield from self._topology.steps(self._channel)
        yield lambda done: self._channel.confirm_delivery(self._on_answer, callback=done)
        yield from self._extra_steps()
        yield self._opened

    def _in_turn(self, steps: Iterator[Act]) -> None:
        """Do each step when the one before it has been answered."""
        step = next(steps, None)
        if step is not None:
            step(lambda *_: self._in_turn(steps))

    def _opened(self, _done: Act) -> None:
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def _on_answer(self, frame: Any) -> None:
        method = frame.method
        if method.NAME == "Basic.Nack":
            self._break(BrokerAway("RabbitMQ refused a message (nack)"))
        else:
            self._on_confirm(method.delivery_tag, method.multiple)

    def _on_connection_failed(self, connection: Any, reason: Any) -> None:
        self._break(BrokerAway(f"RabbitMQ cannot be reached: {_reason(reason)}"))
        connection.ioloop.stop()

    def _on_channel_closed(self, _channel: Any, reason: Any) -> None:
        if isinstance(reason, ChannelClosedByBroker) and reason.reply_code == 406:
            error: Exception = Misconfigured(
                f"a queue exists with other settings: {reason.reply_text}. Delete it, or set"
                " DELIVERY_LIMIT and QUEUE_BYTES back; no event is lost, the sweep brings them."
            )
        else:
            error = BrokerAway(f"RabbitMQ closed the channel: {_reason(reason)}")
        self._break(error)
        if not self._closing and self._connection.is_open:
            self._connection.close()

    def _break(self, error: Exception) -> None:
        with self._changed:
            self._broken = self._broken or error
            self._changed.notify_all()


def _reason(reason: object) -> str:
    return str(reason) or type(reason).__name__


class ConfirmedPublisher(_Link):
    """A Publisher. A message counts as confirmed by its place: 0 for the first one."""

    def __init__(
        self, parameters: pika.ConnectionParameters, topology: Topology, window: int
    ) -> None:
        self._window = window
        self._handed_over = 0
        self._prefix = 0
        self._done: set[int] = set()
        self._unconfirmed: dict[int, tuple[int, Message]] = {}
        self._came_back: set[int] = set()
        self._tries: dict[int, int] = {}
        self._tags = 0
        self.returned = 0
        super().__init__(parameters, topology)

    def publish(self, messages: Sequence[Message]) -> None:
        """See Publisher."""
        rest = list(messages)
        while rest:
            count = self._wait_for_room(len(rest))
            batch, rest = rest[:count], rest[count:]
            first = self._handed_over
            self._handed_over += count
            self._submit(partial(self._send_all, batch, first))

    def _wait_for_room(self, wanted: int) -> int:
        """Wait until the window has room for a good part of what is wanted; for how much."""
        enough = min(wanted, max(1, self._window // 2))
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._broken or self._room() >= enough, BLOCKED_TIMEOUT
            ):
                raise BrokerAway(f"RabbitMQ confirmed nothing for {BLOCKED_TIMEOUT:.0f} s")
            self._check()
            return min(wanted, self._room())

    def confirmed(self) -> int:
        """See Publisher."""
        with self._changed:
            self._check()
            return self._prefix

    def wait(self, more_than: int, timeout: float) -> int:
        """See Publisher."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._prefix > more_than, timeout)
            self._check()
            return self._prefix

    def _room(self) -> int:
        return self._window - (self._handed_over - self._prefix)

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _send_all(self, messages: Sequence[Message], first: int) -> None:
        for place, message in enumerate(messages, first):
            self._send(place, message)

    def _send(self, place: int, message: Message) -> None:
        self._tags += 1
        self._unconfirmed[self._tags] = (place, message)
        _publish(self._channel, EXCHANGE, message.routing_key, message, message.headers)

    def _on_return(self, message_id: str) -> None:
        """The confirm that follows does not count for this message."""
        for place, message in self._unconfirmed.values():
            if message.id == message_id:
                self.returned += 1
                self._came_back.add(place)
                return

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        routed = []
        for each in self._confirmed_tags(tag, multiple):
            place, message = self._unconfirmed.pop(each)
            if place not in self._came_back or not self._try_again(place, message):
                routed.append(place)
        with self._changed:
            self._done.update(routed)
            while self._prefix in self._done:
                self._done.remove(self._prefix)
                self._prefix += 1
            self._changed.notify_all()

    def _confirmed_tags(self, tag: int, multiple: bool) -> list[int]:
        if not multiple:
            return [tag]
        return list(takewhile(lambda each: each <= tag, self._unconfirmed))  # in order of sending

    def _try_again(self, place: int, message: Message) -> bool:
        """Send what could not be routed again, a little later; False: it was tried enough."""
        self._came_back.remove(place)
        tries = self._tries[place] = self._tries.get(place, 0) + 1
        if tries > len(REPUBLISH_AFTER):
            log.warning("Not routable, left to the sweep", extra={"event_id": message.id})
            return False

        def send(_done: Act) -> None:
            self._send(place, message)

        def declare_and_send() -> None:
            self._in_turn(iter([*self._topology.steps(self._channel), send]))

        delay = REPUBLISH_AFTER[tries - 1]
        self._connection.ioloop.call_later(delay, lambda: self._guarded(declare_and_send))
        return True


class BatchConsumer(_Link):
    """A Consumer."""

    def __init__(
        self,
        parameters: pika.ConnectionParameters,
        topology: Topology,
        queue: Queue,
        prefetch: int,
    ) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._delivered: deque[Delivery] = deque()
        self._tag = ""
        self._published = 0
        self._confirmed = 0
        super().__init__(parameters, topology)

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """See Consumer."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or self._delivered, wait)
            self._check()
            return [self._delivered.popleft() for _ in range(min(limit, len(self._delivered)))]

    def acknowledge(self, delivery: Delivery) -> None:
        """See Consumer."""
        self._submit(lambda: self._channel.basic_ack(delivery.tag, multiple=True))

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """See Consumer."""
        message = delivery.message
        headers = {**message.headers, "x-reason": reason[:500]}
        self._published += 1
        wanted = self._published
        self._submit(
            lambda: _publish(self._channel, "", self._queue.dead_letters, message, headers)
        )
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._broken or self._confirmed >= wanted, BLOCKED_TIMEOUT
            ):
                raise BrokerAway("RabbitMQ did not confirm a dead letter in time")
            self._check()

    def pause(self) -> None:
        """See Consumer."""
        self._submit(lambda: self._channel.basic_cancel(self._tag))

    def resume(self) -> None:
        """See Consumer."""
        self._submit(self._consume)

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _extra_steps(self) -> Iterator[Act]:
        self._channel.add_on_cancel_callback(
            lambda _frame: self._break(BrokerAway(f"{self._queue.name} was deleted"))
        )
        yield lambda done: self._channel.basic_qos(prefetch_count=self._prefetch, callback=done)
        yield self._consume

    def _consume(self, done: Act | None = None) -> None:
        self._tag = self._channel.basic_consume(self._queue.name, self._on_delivery, callback=done)

    def _on_delivery(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        headers = {k: v for k, v in (properties.headers or {}).items() if isinstance(v, str)}
        message = Message(properties.message_id or "", method.routing_key, body, headers)
        with self._changed:
            self._delivered.append(Delivery(method.delivery_tag, message, method.redelivered))
            self._changed.notify_all()

    def _on_confirm(self, tag: int, _multiple: bool) -> None:
        with self._changed:
            self._confirmed = max(self._confirmed, tag)
            self._changed.notify_all()

    def _on_return(self, _message_id: str) -> None:
        self._break(BrokerAway(f"{self._queue.dead_letters} was deleted"))


def _publish(
    channel: Any, exchange: str, key: str, message: Message, headers: Mapping[str, str]
) -> None:
    properties = pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        message_id=message.id,
        headers=dict(headers),
    )
    channel.basic_publish(exchange, key, message.body, properties, mandatory=True)
