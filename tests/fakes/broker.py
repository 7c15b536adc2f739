"""A broker in memory, single-threaded, which can also lose and repeat."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from random import Random

from eventcore.broker.port import Consumer, Delivery, Publisher, Queue
from eventcore.errors import BrokerUnavailable
from eventcore.model.message import Message


@dataclass
class FakeBroker:
    """Queues hold messages, each with a mark whether it was delivered before.

    `away` refuses connections and fails those there are; a `silent` one takes messages but
    confirms none. Nothing waits: where the real one would wait too long, this one raises.
    """

    queues: dict[str, deque[tuple[Message, bool]]] = field(default_factory=dict)
    bindings: dict[str, str] = field(default_factory=dict)
    away: bool = False
    silent: bool = False
    _connections: list["FakePublisher | FakeConsumer"] = field(default_factory=list)

    def publisher(self, queues: Sequence[Queue], window: int) -> "FakePublisher":
        """As RabbitMQ does."""
        publisher = FakePublisher(self, queues, window)
        self._connect(publisher, queues)
        return publisher

    def consumer(self, queue: Queue, prefetch: int) -> "FakeConsumer":
        """As RabbitMQ does."""
        consumer = FakeConsumer(self, queue, prefetch)
        self._connect(consumer, [queue])
        return consumer

    def declare(self, queues: Sequence[Queue]) -> None:
        """Make what is not there."""
        for queue in queues:
            self.queues.setdefault(queue.name, deque())
            self.queues.setdefault(queue.dead_letters, deque())
            self.bindings[queue.name] = queue.binding

    def route(self, message: Message) -> bool:
        """Put a message into every queue that is bound for it; False: there is none."""
        key = message.routing_key.split(".")
        bound = [name for name, each in self.bindings.items() if _matches(each.split("."), key)]
        for name in bound:
            self.queues[name].append((message, False))
        return bool(bound)

    def purge(self, queue: str) -> None:
        """Lose what is in a queue."""
        self.queues[queue].clear()

    def delete(self, queue: str) -> None:
        """Lose a queue; its consumers are cut off."""
        del self.queues[queue]
        self.bindings.pop(queue, None)
        for connection in self._connections:
            if isinstance(connection, FakeConsumer) and connection.queue.name == queue:
                connection.close()

    def forget(self, queue: str) -> None:
        """Deliver nothing more to the consumers there are, and tell them nothing."""
        for connection in self._connections:
            if isinstance(connection, FakeConsumer) and connection.queue.name == queue:
                connection.pause()

    def cut(self) -> None:
        """Break all connections."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def duplicate(self, queue: str) -> None:
        """Have everything in a queue twice."""
        self.queues[queue].extend(list(self.queues[queue]))

    def reorder(self, queue: str, seed: int) -> None:
        """Shuffle a queue."""
        Random(seed).shuffle(self.queues[queue])

    def check(self) -> None:
        """Raise BrokerUnavailable while it is away."""
        if self.away:
            raise BrokerUnavailable("RabbitMQ cannot be reached: a test said so")

    def _connect(self, new: "FakePublisher | FakeConsumer", queues: Sequence[Queue]) -> None:
        self.check()
        self.declare(queues)
        self._connections.append(new)


class FakePublisher:
    """A Publisher whose messages are confirmed at once, if the broker is not silent."""

    def __init__(self, broker: FakeBroker, queues: Sequence[Queue], window: int) -> None:
        self._broker = broker
        self._queues = queues
        self._window = window
        self._confirmed = 0
        self._unconfirmed = 0
        self._closed = False
        self.returned = 0

    def publish(self, messages: Sequence[Message]) -> None:
        """See Publisher; a message that finds no queue finds those that are declared for it."""
        for message in messages:
            self._check()
            if self._broker.silent:
                self._wait_in_vain()
                continue
            if not self._broker.route(message):
                self.returned += 1
                self._broker.declare(self._queues)
                self._broker.route(message)
            self._confirmed += 1

    def confirmed(self) -> int:
        """See Publisher."""
        self._check()
        return self._confirmed

    def wait(self, more_than: int, timeout: float) -> int:
        """See Publisher; does not wait."""
        return self.confirmed()

    def close(self) -> None:
        """See Publisher."""
        self._closed = True

    def _wait_in_vain(self) -> None:
        if self._unconfirmed == self._window:
            raise BrokerUnavailable("RabbitMQ has confirmed nothing for long: a test said so")
        self._unconfirmed += 1

    def _check(self) -> None:
        self._broker.check()
        if self._closed:
            raise BrokerUnavailable("the connection to RabbitMQ was lost: a test said so")


class FakeConsumer:
    """A Consumer whose deliveries go back to the front of the queue when it is closed."""

    def __init__(self, broker: FakeBroker, queue: Queue, prefetch: int) -> None:
        self.queue = queue
        self._broker = broker
        self._prefetch = prefetch
        self._paused = False
        self._closed = False
        self._unacknowledged: deque[Delivery] = deque()
        self._tags = 0

    def take(self, limit: int, wait: float) -> list[Delivery]:
        """See Consumer; does not wait."""
        self._check()
        waiting = self._broker.queues[self.queue.name]
        room = 0 if self._paused else self._prefetch - len(self._unacknowledged)
        return [self._deliver(*waiting.popleft()) for _ in range(min(limit, room, len(waiting)))]

    def acknowledge(self, delivery: Delivery) -> None:
        """See Consumer."""
        self._check()
        for _ in list(takewhile(lambda each: each.tag <= delivery.tag, self._unacknowledged)):
            self._unacknowledged.popleft()

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """See Consumer."""
        self._check()
        message = delivery.message
        added = {"x-reason": reason[:500], "x-routing-key": message.routing_key}
        dead = replace(message, headers={**message.headers, **added})
        self._broker.declare([self.queue])
        self._broker.queues[self.queue.dead_letters].append((dead, False))

    def depths(self) -> tuple[int, int] | None:
        """See Consumer; None where a queue is lost."""
        names = (self.queue.name, self.queue.dead_letters)
        found = [len(self._broker.queues[name]) for name in names if name in self._broker.queues]
        return (found[0], found[1]) if len(found) == 2 else None

    def pause(self) -> None:
        """See Consumer."""
        self._check()
        self._paused = True

    def resume(self) -> None:
        """See Consumer."""
        self._check()
        self._paused = False

    def close(self) -> None:
        """See Consumer."""
        self._closed = True
        waiting = self._broker.queues.get(self.queue.name, deque())
        while self._unacknowledged:
            waiting.appendleft((self._unacknowledged.pop().message, True))

    def _deliver(self, message: Message, redelivered: bool) -> Delivery:
        self._tags += 1
        delivery = Delivery(self._tags, message, redelivered)
        self._unacknowledged.append(delivery)
        return delivery

    def _check(self) -> None:
        self._broker.check()
        if self._closed:
            raise BrokerUnavailable("the connection to RabbitMQ was lost: a test said so")


def _matches(binding: Sequence[str], key: Sequence[str]) -> bool:
    """Whether a topic binding takes a routing key: `*` is one word, `#` any number of them."""
    if not binding:
        return not key
    if binding[0] == "#":
        return _matches(binding[1:], key) or (bool(key) and _matches(binding, key[1:]))
    return bool(key) and binding[0] in ("*", key[0]) and _matches(binding[1:], key[1:])


_is_a_publisher: Publisher = FakePublisher(FakeBroker(), [], 1)
_is_a_consumer: Consumer = FakeConsumer(FakeBroker(), Queue("", ""), 1)
