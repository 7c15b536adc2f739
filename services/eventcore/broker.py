"""RabbitMQ: the exchange, queues and keys; publishing with confirms, consuming in batches.

Each Publisher and Consumer has one connection, whose I/O loop runs in a thread of its own, so that
heartbeats are served while the caller works. None of them reconnects: after BrokerAway the caller
closes it and opens another, which declares the topology again.

Queues are quorum queues. Their limits (bytes, deliveries) are policies of the virtual host, which
`provision` sets, so they can change under an existing queue.

Sources: RabbitMQ's guides on publisher confirms, consumer acknowledgements and quorum queues.
"""

import hashlib
import logging
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from time import monotonic
from typing import Any, Literal, Protocol, TypeAlias

import pika
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.adapters.utils.nbio_interface import AbstractStreamTransport
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter
from pika.exceptions import AMQPError, ChannelClosedByBroker

from eventcore.errors import BrokerAway, Error, Misconfigured
from eventcore.settings import Server

EXCHANGE = "events"
"""The topic exchange that every event goes through."""

DEAD_LETTERS = "dead-letters"
"""The direct exchange for messages that are not events; its keys are names of queues.

It is not the default exchange, because a login that may publish there may publish to any queue.
"""

OPEN_TIMEOUT = 10.0
"""Seconds for a connection to open and its topology to be declared."""

CLOSE_TIMEOUT = 2.0
"""Seconds for the broker to answer a close before the connection is aborted."""

BLOCKED_TIMEOUT = 30.0
"""Seconds that a publisher waits while the broker blocks it or confirms nothing."""

KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 8000}
"""Options of the sockets: a dead peer is noticed within 8 to 11 seconds."""

REPUBLISH_AFTER = (0.1, 0.5, 2.0)
"""Seconds before each retry of a message that could not be routed."""

_ADDED = ("x-reason", "x-routing-key")
"""The headers that a dead letter has beside its own."""

Fate: TypeAlias = Literal["keep", "requeue", "discard"]
"""The decision about a dead letter."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """A message; `id` is the event's id, `headers` carry the traceparent."""

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
        """The queue for messages that are not events; only a projector publishes to it."""
        return f"{self.name}.dead-letters"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was taken and is not acknowledged yet."""

    tag: int
    message: Message
    redelivered: bool


class Publisher(Protocol):
    """Publishes in order, with a window of unconfirmed messages."""

    @property
    def returned(self) -> int:
        """Number of messages that came back because no queue was bound for them."""

    def publish(self, messages: Sequence[Message]) -> None:
        """Sends messages; returns as soon as the window has room for the last of them.

        A message that cannot be routed is sent again a few times, with the topology
        declared anew, then left to the sweep. Raises BrokerAway.
        """

    def confirmed(self) -> int:
        """Number of messages that are confirmed, from the first on, without a gap.

        Raises BrokerAway after a lost connection, a refusal (nack), or too long a silence.
        """

    def wait(self, more_than: int, timeout: float) -> int:
        """Waits until more than that are confirmed, or `timeout` seconds; returns `confirmed()`.

        Raises BrokerAway as `confirmed` does.
        """

    def close(self) -> None:
        """Closes the connection."""


class Consumer(Protocol):
    """Takes messages from one queue, in batches; several consumers may share a queue."""

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """Takes up to `limit` deliveries; waits up to `wait` seconds for the first."""

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledges it and everything taken before it, in one `multiple` ack."""

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Publishes it unchanged to the dead-letter queue; returns once that is confirmed."""

    def pause(self) -> None:
        """Stops deliveries; those that were not taken yet go back to the queue."""

    def resume(self) -> None:
        """Starts deliveries again."""

    def close(self) -> None:
        """Closes the connection; unacknowledged deliveries go back to the queue."""


@dataclass(frozen=True, slots=True)
class RabbitMQ:
    """One virtual host of RabbitMQ 3.10 or later; `name` is its connections' name there.

    Each method opens a connection, declares the topology, and raises BrokerAway.
    """

    server: Server
    name: str
    blocked_timeout: float = BLOCKED_TIMEOUT

    def publisher(self, queues: Sequence[Queue], window: int) -> "ConfirmedPublisher":
        """A publisher that has up to `window` messages unconfirmed."""
        return ConfirmedPublisher(self._parameters(), Topology(queues), window)

    def consumer(self, queue: Queue, prefetch: int) -> "BatchConsumer":
        """A consumer that has up to `prefetch` deliveries unacknowledged."""
        return BatchConsumer(self._parameters(), Topology([queue]), queue, prefetch)

    def dead_letters(self, queue: Queue) -> "DeadLetters":
        """The dead letters of a queue; opens nothing yet."""
        return DeadLetters(self._parameters(), queue)

    def _parameters(self) -> pika.ConnectionParameters:
        server = self.server
        return pika.ConnectionParameters(
            host=server.host,
            port=server.port,
            virtual_host=server.name,
            credentials=pika.PlainCredentials(server.user, server.password.read()),
            ssl_options=_tls(server) if server.tls else None,
            heartbeat=10,
            socket_timeout=3,
            stack_timeout=5,
            blocked_connection_timeout=self.blocked_timeout,
            client_properties={"connection_name": self.name},
            tcp_options=KEEPALIVE,
        )


def _tls(server: Server) -> pika.SSLOptions:
    """Encrypted, with the server's certificate and name verified; raises Misconfigured."""
    try:
        context = ssl.create_default_context(cafile=server.ca_file or None)
    except OSError as error:
        raise Misconfigured(
            f"{server.ca_file} cannot be used as RABBITMQ_CA_FILE: {error}"
        ) from error
    return pika.SSLOptions(context, server.host)


Act = Callable[..., Any]
"""An act of a channel; takes a `callback` that is called when the broker has answered."""


@dataclass(slots=True)
class Topology:
    """Exchanges, queues, bindings and dead-letter queues; declared as often as needed."""

    queues: Sequence[Queue]
    _declaring: str = ""
    _accepted: set[str] = field(default_factory=set)

    def steps(self, channel: Any) -> Iterator[Act]:
        """The declarations, to be made one after the other."""
        self._declaring = ""
        for name, kind in ((EXCHANGE, "topic"), (DEAD_LETTERS, "direct")):
            yield partial(channel.exchange_declare, name, exchange_type=kind, durable=True)
        for queue in self.queues:
            for name, exchange, key in (
                (queue.name, EXCHANGE, queue.binding),
                (queue.dead_letters, DEAD_LETTERS, queue.dead_letters),
            ):
                self._declaring = name
                yield partial(
                    channel.queue_declare,
                    name,
                    passive=name in self._accepted,
                    durable=True,
                    arguments={"x-queue-type": "quorum"},
                )
                yield partial(channel.queue_bind, name, exchange, key)

    def accept(self) -> bool:
        """Accepts the queue of the last declaration as it is; False if that did not help.

        RabbitMQ refuses to declare a queue of an earlier release, which has its limits as
        arguments (406). A passive declaration checks nothing but its existence.
        """
        name = self._declaring
        if not name or name in self._accepted:
            return False
        self._accepted.add(name)
        log.info("Queue exists with other arguments, used as it is", extra={"queue": name})
        return True


class _IO(SelectorIOServicesAdapter):  # type: ignore[misc]
    """pika's I/O services on an IOLoop; keeps the transport, which alone can be aborted."""

    transport: AbstractStreamTransport | None = None

    def create_streaming_connection(
        self, protocol_factory: Any, sock: Any, on_done: Act, *tls: Any, **more: Any
    ) -> Any:
        def done(result: Any) -> None:
            if not isinstance(result, BaseException):
                self.transport, _ = result
            on_done(result)

        return super().create_streaming_connection(protocol_factory, sock, done, *tls, **more)


class _Link:
    """A connection with one channel in confirm mode, and the thread that runs its I/O.

    Methods below the line "in the I/O thread" run there; that thread alone uses the
    connection. It notifies `_changed` once for all changes of one turn of its loop.
    """

    def __init__(self, parameters: pika.ConnectionParameters, topology: Topology) -> None:
        self._topology = topology
        self._changed = threading.Condition()
        self._is_open = False
        self._broken: Error | None = None
        self._notifying = False
        self._connection: Any = None
        self._channel: Any = None
        self._loop = IOLoop()
        self._io = _IO(self._loop)
        self._thread = threading.Thread(
            target=self._run, args=(parameters,), name="rabbitmq", daemon=True
        )
        self._thread.start()
        if not self._await(lambda: self._is_open, OPEN_TIMEOUT):
            error = self._broken or BrokerAway(f"RabbitMQ did not answer for {OPEN_TIMEOUT:.0f} s")
            self.close()
            raise error

    def close(self) -> None:
        """Closes the connection, within a few seconds whatever the broker does."""
        self._break(BrokerAway("the connection to RabbitMQ was closed here"))
        self._loop.add_callback_threadsafe(self._close_or_abort)
        self._thread.join(CLOSE_TIMEOUT + 1)

    def _await(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Waits for a condition, until the link is broken, and for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._broken or condition(), seconds)
            return self._broken is None and condition()

    def _check(self) -> None:
        """Raises the error that broke the link, if there is one."""
        if self._broken is not None:
            raise BrokerAway(str(self._broken)) from self._broken

    def _submit(self, act: Callable[[], object]) -> None:
        """Runs `act` in the I/O thread soon; raises BrokerAway if the link is broken."""
        self._check()
        self._loop.add_callback_threadsafe(partial(self._guarded, act))

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _extra_steps(self) -> Iterator[Act]:
        """Steps on the channel after the topology is declared."""
        return iter(())

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        """Called when the broker has taken a message, or all up to it."""

    def _on_return(self, message_id: str) -> None:
        """Called when a message could not be routed; its confirm comes next."""

    def _run(self, parameters: pika.ConnectionParameters) -> None:
        try:
            self._connection = SelectConnection(
                parameters,
                on_open_callback=lambda opened: opened.channel(on_open_callback=self._on_channel),
                on_open_error_callback=self._on_connection_gone,
                on_close_callback=self._on_connection_gone,
                custom_ioloop=self._io,
            )
            self._loop.start()
        except Exception as error:  # noqa: BLE001 - raised in the caller
            self._break(BrokerAway(f"RabbitMQ cannot be used: {error!r}"))
        finally:
            self._loop.close()

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(
            lambda _channel, _method, properties, _body: self._on_return(properties.message_id)
        )
        self._in_turn(self._opening())

    def _opening(self) -> Iterator[Act]:
        yield from self._topology.steps(self._channel)
        yield partial(self._channel.confirm_delivery, self._on_answer)
        yield from self._extra_steps()
        self._is_open = True
        self._notify()

    def _in_turn(self, steps: Iterator[Act]) -> None:
        """Takes each step when the one before it has been answered."""
        if step := next(steps, None):
            step(callback=lambda *_: self._in_turn(steps))

    def _publish(
        self, exchange: str, key: str, message: Message, headers: Mapping[str, str]
    ) -> None:
        properties = _properties(message.id, headers)
        self._channel.basic_publish(exchange, key, message.body, properties, mandatory=True)

    def _on_answer(self, frame: Any) -> None:
        method = frame.method
        if method.NAME == "Basic.Nack":
            self._break(BrokerAway("RabbitMQ refused a message (nack)"))
        else:
            self._on_confirm(method.delivery_tag, method.multiple)
            self._notify_soon()

    def _on_connection_gone(self, _connection: Any, reason: BaseException) -> None:
        self._break(BrokerAway(f"RabbitMQ cannot be reached: {_cause(reason)}"))
        self._loop.stop()

    def _on_channel_closed(self, _channel: Any, reason: BaseException) -> None:
        if not isinstance(reason, ChannelClosedByBroker):
            return  # the connection closes as well, and that callback has the reason
        if reason.reply_code == 406 and not self._is_open and self._topology.accept():
            self._connection.channel(on_open_callback=self._on_channel)
        else:
            self._break(BrokerAway(f"RabbitMQ closed the channel: {reason.reply_text}"))

    def _guarded(self, act: Callable[[], object]) -> None:
        """Runs `act`; a failure breaks the link, not the loop."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - raised in the caller
            self._break(BrokerAway(f"RabbitMQ cannot be reached: {error!r}"))

    def _later(self, delay: float, act: Callable[[], object]) -> None:
        """Runs `act` after `delay` seconds."""
        self._loop.call_later(delay, partial(self._guarded, act))

    def _notify_soon(self) -> None:
        """Notifies after this turn of the loop: threads that wake each other often are slow."""
        if not self._notifying:
            self._notifying = True
            self._loop.call_later(0, self._notify)

    def _notify(self) -> None:
        self._notifying = False
        with self._changed:
            self._changed.notify_all()

    def _break(self, error: Error) -> None:
        """Makes every later call raise this error; the first error counts. For either thread."""
        with self._changed:
            self._broken = self._broken or error
            self._changed.notify_all()

    def _close_or_abort(self) -> None:
        """Closes the connection; aborts it where the broker does not answer."""
        if not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()
        self._later(CLOSE_TIMEOUT, self._abort)

    def _abort(self) -> None:
        """Without it, thread and socket would stay until heartbeats fail, for 20 seconds."""
        if self._io.transport:
            self._io.transport.abort()


def _properties(message_id: str, headers: Mapping[str, str]) -> pika.BasicProperties:
    """Properties of each message: persistent JSON."""
    return pika.BasicProperties(
        message_id=message_id,
        headers=dict(headers),
        content_type="application/json",
        delivery_mode=2,
    )


def _cause(error: BaseException) -> str:
    """The text of the innermost of pika's nested errors."""
    inner = getattr(error, "exceptions", None) or [getattr(error, "exception", None), *error.args]
    nested = [each for each in inner if isinstance(each, BaseException)]
    return _cause(nested[-1]) if nested else str(error) or type(error).__name__


class ConfirmedPublisher(_Link):
    """A Publisher. Messages are counted by their place: 0 for the first one."""

    def __init__(
        self, parameters: pika.ConnectionParameters, topology: Topology, window: int
    ) -> None:
        self._window = window
        self._silence = parameters.blocked_connection_timeout
        self._handed_over = 0
        self._prefix = 0
        self._moved_at = monotonic()
        self._done: set[int] = set()
        self._tags = 0
        self._unconfirmed: dict[int, _Sent] = {}
        self._came_back: set[str] = set()
        self._astray: list[list[_Sent]] = [[] for _ in REPUBLISH_AFTER]
        self.returned = 0
        super().__init__(parameters, topology)

    def publish(self, messages: Sequence[Message]) -> None:
        start = 0
        while start < len(messages):
            count = self._wait_for_room(len(messages) - start)
            batch = messages[start : start + count]
            if self._handed_over == self._prefix:
                self._moved_at = monotonic()
            self._submit(partial(self._send_all, batch, self._handed_over))
            self._handed_over += count
            start += count

    def confirmed(self) -> int:
        self._check()
        return self._prefix

    def wait(self, more_than: int, timeout: float) -> int:
        self._await(lambda: self._prefix > more_than, timeout)
        return self.confirmed()

    def _wait_for_room(self, wanted: int) -> int:
        """Waits until the window has room for a good part of `wanted`; returns how much."""
        enough = min(wanted, max(1, self._window // 2))
        most = self._window - self._handed_over
        while not self._await(lambda: most + self._prefix >= enough, 1):
            self._check()
        return min(wanted, most + self._prefix)

    def _check(self) -> None:
        """Raises the error that broke the link, or BrokerAway after too long a silence."""
        super()._check()
        waiting = self._handed_over > self._prefix
        if waiting and monotonic() - self._moved_at > self._silence:
            raise BrokerAway(f"RabbitMQ has confirmed nothing for {self._silence:.0f} s")

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _send_all(self, messages: Sequence[Message], first: int) -> None:
        for place, message in enumerate(messages, first):
            self._send(_Sent(place, message))

    def _send(self, sent: "_Sent") -> None:
        self._tags += 1
        self._unconfirmed[self._tags] = sent
        message = sent.message
        self._publish(EXCHANGE, message.routing_key, message, message.headers)

    def _on_return(self, message_id: str) -> None:
        """Notes that the confirm that follows does not count for this message."""
        self._came_back.add(message_id)

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        sent_before = takewhile(lambda each: each <= tag, self._unconfirmed)  # in order of sending
        for each in list(sent_before) if multiple else (tag,):
            sent = self._unconfirmed.pop(each)
            if sent.message.id in self._came_back:
                self._came_back.remove(sent.message.id)
                self._try_again(sent)
            else:
                self._done.add(sent.place)
        self._move_prefix()

    def _move_prefix(self) -> None:
        before = prefix = self._prefix
        while prefix in self._done:
            self._done.remove(prefix)
            prefix += 1
        if prefix > before:
            self._moved_at = monotonic()
            self._prefix = prefix

    def _try_again(self, sent: "_Sent") -> None:
        """Sends an unroutable message again, a little later, with the others of its try."""
        self.returned += sent.tries == 0
        if sent.tries == len(REPUBLISH_AFTER):
            log.warning("Not routable, left to the sweep", extra={"event_id": sent.message.id})
            self._done.add(sent.place)
            return
        waiting = self._astray[sent.tries]
        if not waiting:
            self._later(REPUBLISH_AFTER[sent.tries], partial(self._declare_and_send, waiting))
        waiting.append(sent)

    def _declare_and_send(self, waiting: list["_Sent"]) -> None:
        def steps() -> Iterator[Act]:
            yield from self._topology.steps(self._channel)
            for sent in waiting:
                self._send(replace(sent, tries=sent.tries + 1))
            waiting.clear()

        self._in_turn(steps())


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message, its place among those that were published, and how often it came back."""

    place: int
    message: Message
    tries: int = 0


class BatchConsumer(_Link):
    """A Consumer."""

    def __init__(
        self, parameters: pika.ConnectionParameters, topology: Topology, queue: Queue, prefetch: int
    ) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._patience = parameters.blocked_connection_timeout
        self._delivered: deque[Delivery] = deque()
        self._paused = False
        self._tag = ""
        self._published = 0
        self._confirmed = 0
        super().__init__(parameters, topology)

    def take(self, limit: int, wait: float) -> list[Delivery]:
        self._await(lambda: self._takeable() > 0, wait)
        with self._changed:
            self._check()
            return [self._delivered.popleft() for _ in range(min(limit, self._takeable()))]

    def acknowledge(self, delivery: Delivery) -> None:
        self._submit(lambda: self._channel.basic_ack(delivery.tag, multiple=True))

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """See Consumer; the headers `x-reason` and `x-routing-key` are added."""
        self._published += 1
        wanted = self._published
        self._submit(lambda: self._send_dead_letter(delivery.message, reason))
        if not self._await(lambda: self._confirmed >= wanted, self._patience):
            self._check()
            raise BrokerAway("RabbitMQ did not confirm a dead letter in time")

    def pause(self) -> None:
        """See Consumer; a second time changes nothing."""
        if not self._paused:
            self._submit(self._stop)
            self._paused = True

    def resume(self) -> None:
        """See Consumer; without a pause it changes nothing."""
        if self._paused:
            self._submit(self._consume)
            self._paused = False

    def _takeable(self) -> int:
        return 0 if self._paused else len(self._delivered)

    # ── in the I/O thread ─────────────────────────────────────────────────────────────────

    def _extra_steps(self) -> Iterator[Act]:
        self._channel.add_on_cancel_callback(
            lambda _frame: self._break(BrokerAway(f"{self._queue.name} was deleted"))
        )
        yield partial(self._channel.basic_qos, prefetch_count=self._prefetch)
        yield self._consume

    def _consume(self, callback: Act | None = None) -> None:
        name = self._queue.name
        self._tag = self._channel.basic_consume(name, self._on_delivery, callback=callback)

    def _stop(self) -> None:
        """Cancels and requeues; pika itself requeues deliveries that are still on their way.

        One by one, since a `multiple` nack would requeue those in progress as well.
        A nack and not a reject: from RabbitMQ 4.3 only a reject counts as a failed delivery.
        """
        self._channel.basic_cancel(self._tag)
        with self._changed:
            untaken = list(self._delivered)
            self._delivered.clear()
        for delivery in untaken:
            self._channel.basic_nack(delivery.tag, requeue=True)

    def _on_delivery(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._delivered.append(_delivery(method, properties, body))
        self._notify_soon()

    def _send_dead_letter(self, message: Message, reason: str) -> None:
        sendable = reason[:500].encode(errors="replace").decode()  # it may quote half a character
        added = dict(zip(_ADDED, (sendable, message.routing_key), strict=True))
        self._publish(DEAD_LETTERS, self._queue.dead_letters, message, {**message.headers, **added})

    def _on_confirm(self, tag: int, _multiple: bool) -> None:
        self._confirmed = max(self._confirmed, tag)

    def _on_return(self, _message_id: str) -> None:
        self._break(BrokerAway(f"{self._queue.dead_letters} was deleted"))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that is not an event; `id` is unique within one listing."""

    id: str
    message: Message
    reason: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Lists, requeues and discards dead letters of one queue, for an operator's tool."""

    parameters: pika.ConnectionParameters
    queue: Queue

    def go_through(self, decide: Callable[[DeadLetter], Fate], limit: int = 10_000) -> int:
        """Reads up to `limit` letters, oldest first, and does as decided; returns their number.

        "keep" leaves a letter where it is; "requeue" publishes it to the work queue, confirmed,
        and then removes it; "discard" removes it. Raises BrokerAway, Misconfigured.
        """
        try:
            with pika.BlockingConnection(self.parameters) as connection:
                return self._go_through(connection.channel(), decide, limit)
        except ChannelClosedByBroker as error:
            raise Misconfigured(f"RabbitMQ refused: {error.reply_text}") from error
        except AMQPError as error:
            raise BrokerAway(f"RabbitMQ cannot be reached: {_cause(error)}") from error

    def _go_through(self, channel: Any, decide: Callable[[DeadLetter], Fate], limit: int) -> int:
        work, name = self.queue.name, self.queue.dead_letters
        there = channel.queue_declare(name, passive=True).method.message_count
        channel.queue_bind(work, DEAD_LETTERS, work)
        channel.confirm_delivery()
        seen = 0
        while seen < min(there, limit):
            method, properties, body = channel.basic_get(name)
            if method is None:
                break
            seen += 1
            message = _delivery(method, properties, body).message
            name_of = f"{seen}-{hashlib.sha256(body).hexdigest()[:8]}"
            reason, key = (message.headers.get(each, "") for each in _ADDED)
            letter = DeadLetter(name_of, message, reason, key)
            fate = decide(letter)
            if fate == "requeue":
                headers = {k: v for k, v in message.headers.items() if k not in _ADDED}
                again = _properties(message.id, headers)
                channel.basic_publish(DEAD_LETTERS, work, body, again, mandatory=True)
            if fate != "keep":
                channel.basic_ack(method.delivery_tag)
        channel.basic_nack(0, multiple=True, requeue=True)  # the rest goes back to its place
        return seen


def _delivery(method: Any, properties: Any, body: bytes) -> Delivery:
    """A delivery of pika's as ours; headers that are not text are left out."""
    headers = {
        name: value
        for name, value in (properties.headers or {}).items()
        if isinstance(name, str) and isinstance(value, str)
    }
    message = Message(_text(properties.message_id), _text(method.routing_key), body, headers)
    return Delivery(method.delivery_tag, message, method.redelivered)


def _text(value: str | bytes | None) -> str:
    """A short string of pika's as text: it is bytes where it is not UTF-8, and may be None."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
