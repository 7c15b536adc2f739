"""A broker in memory: the Broker port, single-threaded, which can also lose and repeat."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from eventcore.broker import Broker, Delivery, Message, Queue
from eventcore.errors import BrokerAway


@dataclass
class FakeBroker:
    """Queues are lists of messages with a mark whether they were delivered before.

    `away` refuses connections, `cut` breaks those there are. `declared` is what publishers
    and consumers have declared; deleting a queue forgets it.
    """

    queues: dict[str, deque[tuple[Message, bool]]] = field(default_factory=dict)
    bindings: dict[str, str] = field(default_factory=dict)
    away: bool = False
    generation: int = 0

    def publisher(self, queues: Sequence[Queue], window: int) -> "FakePublisher":
        """See Broker."""
        self._connect(queues)
        return FakePublisher(self, queues, self.generation)

    def consumer(self, queue: Queue, prefetch: int) -> "FakeConsumer":
        """See Broker."""
        self._connect([queue])
        return FakeConsumer(self, queue, prefetch, self.generation)

    def declare(self, queues: Sequence[Queue]) -> None:
        """Make what is not there."""
        for queue in queues:
            self.queues.setdefault(queue.name, deque())
            self.queues.setdefault(queue.dead_letters, deque())
            self.bindings[queue.name] = queue.binding.removesuffix("#")

    def route(self, message: Message) -> bool:
        """Put a message into every queue that is bound for it; False: there is none."""
        bound = [n for n, key in self.bindings.items() if message.routing_key.startswith(key)]
        for name in bound:
            self.queues[name].append((message, False))
        return bool(bound)

    def purge(self, queue: str) -> None:
        """Lose what is in a queue."""
        self.queues[queue].clear()

    def delete(self, queue: str) -> None:
        """Lose a queue; its consumers are cut off."""
        del self.queues[queue], self.bindings[queue]
        self.cut()

    def cut(self) -> None:
        """Break all connections."""
        self.generation += 1

    def _connect(self, queues: Sequence[Queue]) -> None:
        if self.away:
            raise BrokerAway("RabbitMQ cannot be reached: a test said so")
        self.declare(queues)


@dataclass
class _Connection:
    broker: FakeBroker
    generation: int
    closed: bool = False

    def check(self) -> None:
        if self.closed or self.broker.away or self.generation != self.broker.generation:
            raise BrokerAway("the connection to RabbitMQ was lost: a test said so")


class FakePublisher:
    """A Publisher whose messages are confirmed at once."""

    def __init__(self, broker: FakeBroker, queues: Sequence[Queue], generation: int) -> None:
        self._connection = _Connection(broker, generation)
        self._broker = broker
        self._queues = queues
        self._confirmed = 0
        self.returned = 0

    def publish(self, messages: Sequence[Message]) -> None:
        """See Publisher."""
        for message in messages:
            self._connection.check()
            if not self._broker.route(message):
                self.returned += 1
                self._broker.declare(self._queues)
                self._broker.route(message)
            self._confirmed += 1

    def confirmed(self) -> int:
        """See Publisher."""
        self._connection.check()
        return self._confirmed

    def wait(self, more_than: int, timeout: float) -> int:
        """See Publisher."""
        return self.confirmed()

    def close(self) -> None:
        """See Publisher."""
        self._connection.closed = True


class FakeConsumer:
    """A Consumer whose deliveries go back to the front of the queue when it is closed."""

    def __init__(self, broker: FakeBroker, queue: Queue, prefetch: int, generation: int) -> None:
        self._connection = _Connection(broker, generation)
        self._broker = broker
        self._queue = queue
        self._prefetch = prefetch
        self._paused = False
        self._unacknowledged: list[Delivery] = []
        self._tags = 0

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """See Consumer; does not wait."""
        self._connection.check()
        waiting = self._broker.queues[self._queue.name]
        taken: list[Delivery] = []
        while waiting and len(taken) < limit and not self._paused:
            if len(self._unacknowledged) >= self._prefetch:
                break
            message, redelivered = waiting.popleft()
            self._tags += 1
            taken.append(Delivery(self._tags, message, redelivered))
            self._unacknowledged.append(taken[-1])
        return taken

    def acknowledge(self, delivery: Delivery) -> None:
        """See Consumer."""
        self._connection.check()
        self._unacknowledged = [d for d in self._unacknowledged if d.tag > delivery.tag]

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """See Consumer."""
        self._connection.check()
        headers = {**delivery.message.headers, "x-reason": reason[:500]}
        dead = replace(delivery.message, headers=headers)
        self._broker.queues[self._queue.dead_letters].append((dead, False))

    def pause(self) -> None:
        """See Consumer."""
        self._paused = True

    def resume(self) -> None:
        """See Consumer."""
        self._paused = False

    def close(self) -> None:
        """See Consumer."""
        if self._connection.closed:
            return
        self._connection.closed = True
        waiting = self._broker.queues.get(self._queue.name)
        if waiting is not None:
            waiting.extendleft((d.message, True) for d in reversed(self._unacknowledged))


_is_a_broker: Broker = FakeBroker()
