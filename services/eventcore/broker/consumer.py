"""Takes deliveries in batches, and dead-letters those that are not events."""

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import pika

from eventcore.broker.connection import BrokerConnection
from eventcore.broker.port import Delivery, Queue
from eventcore.broker.topology import ADDED, DEAD_LETTERS, ChannelOperation, Topology
from eventcore.errors import BrokerUnavailable
from eventcore.model.message import Message

COUNT_INTERVAL = 5.0
"""Seconds from one answer about the depths of the queues to the next question."""


class BatchConsumer(BrokerConnection):
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
        self._counted: tuple[int, int] | None = None
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
            raise BrokerUnavailable("RabbitMQ did not confirm a dead letter in time")

    def depths(self) -> tuple[int, int] | None:
        counted, self._counted = self._counted, None
        return counted

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

    def _extra_steps(self) -> Iterator[ChannelOperation]:
        self._channel.add_on_cancel_callback(
            lambda _frame: self._break(BrokerUnavailable(f"{self._queue.name} was deleted"))
        )
        yield partial(self._channel.basic_qos, prefetch_count=self._prefetch)
        yield self._consume
        self._ask()

    def _consume(self, callback: ChannelOperation | None = None) -> None:
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

    def _ask(self) -> None:
        self._connection.channel(on_open_callback=self._count)

    def _count(self, channel: Any) -> None:
        """Asks by passive declarations, on a channel of its own: a refusal ends that one alone."""
        names, counted = (self._queue.name, self._queue.dead_letters), list[int]()

        def note(frame: Any) -> None:
            counted.append(frame.method.message_count)
            if len(counted) == len(names):
                self._counted = (counted[0], counted[1])
                channel.close()

        channel.add_on_close_callback(lambda *_: self._later(COUNT_INTERVAL, self._ask))
        for name in names:
            channel.queue_declare(name, passive=True, callback=note)

    def _on_delivery(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:
        self._delivered.append(to_delivery(method, properties, body))
        self._notify_soon()

    def _send_dead_letter(self, message: Message, reason: str) -> None:
        sendable = reason[:500].encode(errors="replace").decode()  # it may quote half a character
        added = dict(zip(ADDED, (sendable, message.routing_key), strict=True))
        self._publish(DEAD_LETTERS, self._queue.dead_letters, message, {**message.headers, **added})

    def _on_confirm(self, tag: int, _multiple: bool) -> None:
        self._confirmed = max(self._confirmed, tag)

    def _on_return(self, _message_id: str) -> None:
        self._break(BrokerUnavailable(f"{self._queue.dead_letters} was deleted"))


def to_delivery(method: Any, properties: Any, body: bytes) -> Delivery:
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
