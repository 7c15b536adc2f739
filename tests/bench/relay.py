"""P8: the relay with a backlog, beside bare asynchronous pika with the same bytes."""

from collections.abc import Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import pika
from pika.adapters.select_connection import SelectConnection

from eventcore.broker.port import Queue
from eventcore.broker.rabbitmq import RabbitMQ
from eventcore.relay import Forwarder
from eventcore.settings import Server
from eventcore.store.relay_session import RelaySession
from tests.bench.backlog import Backlog
from tests.bench.bed import Bed, Size
from tests.bench.machine import Spent
from tests.bench.rows import Row, Values, require

WINDOW = 500
"""Messages that may be unconfirmed, ours and theirs."""

QUEUE = Queue("bench_relay_queue", "order.#")
BARE_QUEUE = "bench_bare_queue"


class Relaying:
    """Measures on an event store of their own."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._count = size.relayed
        self._spent = ""

    def rows(self) -> Sequence[Row]:
        """The row of this family."""
        return (
            Row(
                "P8", f"relay, backlog of {self._count:,}", self._relay,
                beside=f"bare asynchronous pika, window {WINDOW}, same bytes, quorum queue",
                ceiling=self._publish, notes=lambda: (self._spent,),
            ),
        )  # fmt: skip

    @cached_property
    def _backlog(self) -> Backlog:
        return Backlog(self._bed, "relaybench", self._count)

    def _relay(self) -> Values:
        """From the feed to confirmed messages, checkpoint included."""
        backlog = self._backlog
        session = RelaySession(self._bed.store(backlog.name, "relay"), "bench")
        address = self._bed.new_broker()
        broker = RabbitMQ(address, name="bench")
        publisher = broker.publisher([QUEUE], WINDOW)
        forwarder = Forwarder("bench", session, publisher)
        began, spent = perf_counter(), Spent()
        sent = 0
        while sent < self._count:
            sent += forwarder.turn()
        while publisher.wait(self._count - 1, 30) < self._count:
            pass
        forwarder.save()
        took = perf_counter() - began
        self._spent = spent.each(self._count, "an event, relay and benchmark being one process")
        publisher.close()
        backlog.forget_checkpoint()
        session.close()
        require(_emptied(address, QUEUE.name) == self._count, "all are queued")
        return (self._count / took,)

    def _publish(self) -> Values:
        address = self._bed.new_broker()
        rate = BarePublisher(address, self._backlog.bodies).run()
        queued = _emptied(address, BARE_QUEUE)
        require(queued == self._count, "all are queued")
        return (rate,)


class BarePublisher:
    """pika's SelectConnection, a quorum queue, a window of unconfirmed messages."""

    def __init__(self, server: Server, bodies: Sequence[bytes]) -> None:
        self._bodies = bodies
        self._sent = self._confirmed = 0
        self._took = 0.0
        self._channel: Any = None
        self._properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=2, message_id="0" * 36
        )
        self._connection = SelectConnection(
            _parameters(server),
            on_open_callback=lambda c: c.channel(on_open_callback=self._on_channel),
            on_close_callback=lambda c, _: c.ioloop.stop(),
        )

    def run(self) -> float:
        """Messages confirmed a second."""
        self._connection.ioloop.start()
        require(self._confirmed == len(self._bodies), "every message is confirmed")
        return len(self._bodies) / self._took

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        kind = {"x-queue-type": "quorum"}
        channel.queue_declare(BARE_QUEUE, durable=True, arguments=kind, callback=self._on_queue)

    def _on_queue(self, _frame: Any) -> None:
        self._channel.confirm_delivery(self._on_confirm, callback=self._begin)

    def _begin(self, _frame: Any) -> None:
        self._took = -perf_counter()
        self._fill_window()

    def _fill_window(self) -> None:
        while self._sent < len(self._bodies) and self._sent - self._confirmed < WINDOW:
            self._channel.basic_publish("", BARE_QUEUE, self._bodies[self._sent], self._properties)
            self._sent += 1

    def _on_confirm(self, frame: Any) -> None:
        self._confirmed = frame.method.delivery_tag
        if self._confirmed < len(self._bodies):
            self._fill_window()
        elif self._took < 0:
            self._took += perf_counter()
            self._connection.close()


def _parameters(server: Server) -> pika.ConnectionParameters:
    who = pika.PlainCredentials(server.user, server.password.read())
    return pika.ConnectionParameters(server.host, server.port, server.name, who)


def _emptied(server: Server, queue: str) -> int:
    """Empty a queue; how many messages were in it."""
    connection = pika.BlockingConnection(_parameters(server))
    count: int = connection.channel().queue_purge(queue).method.message_count
    connection.close()
    return count
