"""A model of RabbitMQ, and the real publisher and consumer on top of it.

What is submitted goes over a wire that may be cut; a message is taken some time after it was
sent and confirmed some time after that, out of order or many at once. What was not confirmed may
be lost. Queues can be purged, deleted, shuffled and doubled.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from eventcore.broker.connection import BrokerConnection
from eventcore.broker.consumer import BatchConsumer
from eventcore.broker.port import Queue
from eventcore.broker.publisher import ConfirmedPublisher
from eventcore.broker.topology import DEAD_LETTERS, EXCHANGE, Topology
from eventcore.errors import BrokerUnavailable
from tests.sim.judge import Judge
from tests.sim.world import Condition, Process, World


@dataclass(eq=False)
class Stored:
    """A message in a queue."""

    id: str
    key: str
    body: bytes
    headers: Mapping[str, str]
    deliveries: int = 0


class FakeRabbit:
    """The server: queues, what they are bound with, and who is connected."""

    def __init__(self, world: World, judge: Judge, delivery_limit: int) -> None:
        self.world = world
        self.judge = judge
        self.queues: dict[str, deque[Stored]] = {}
        self.bindings: dict[str, str] = {}
        self.channels: list[Channel] = []
        self.away_until = 0.0
        self.silent_until = 0.0
        self._limit = delivery_limit
        self._kicked: set[str] = set()

    # ── what goes through it ──────────────────────────────────────────────────────────────

    def bound(self, key: str) -> list[str]:
        """The queues for a routing key; bindings here are `user.#`."""
        prefixes = {name: binding.removesuffix("#") for name, binding in self.bindings.items()}
        return [n for n, prefix in prefixes.items() if key.startswith(prefix) and n in self.queues]

    def put(self, queue: str, stored: Stored) -> None:
        """Take a message into a queue."""
        self.queues[queue].append(stored)
        self.kick(queue)

    def give_back(self, queue: str, stored: list[Stored]) -> None:
        """Put deliveries that were not acknowledged back, in front; some have had too many."""
        for each in reversed(stored):
            if each.deliveries > self._limit:
                self.world.reach("a message is dropped at the delivery limit")
                self.judge.lost(each.id)
            elif queue in self.queues:
                self.queues[queue].appendleft(each)
            else:
                self.judge.lost(each.id)
        self.kick(queue)

    def kick(self, queue: str) -> None:
        """Deliver soon, if somebody takes."""
        if queue not in self._kicked and self.queues.get(queue):
            self._kicked.add(queue)
            self.world.later(self.world.latency(), lambda: self._deliver(queue))

    def _deliver(self, queue: str) -> None:
        self._kicked.discard(queue)
        waiting = self.queues.get(queue)
        takers = [c for c in self.channels if c.queue == queue and c.room() > 0]
        if not waiting or not takers:
            return
        taker = self.world.random.choice(takers)
        for _ in range(min(len(waiting), taker.room(), self.world.random.randint(1, 6))):
            taker.deliver(waiting.popleft())
        self.kick(queue)

    # ── what happens to it ────────────────────────────────────────────────────────────────

    def restart(self, seconds: float) -> None:
        """Lose all connections; queues are kept."""
        self.away_until = self.world.now + seconds
        for channel in list(self.channels):
            channel.lose("RabbitMQ stopped")

    def purge(self, queue: str) -> None:
        """Lose what is in a queue."""
        if self.queues.get(queue):
            self.world.reach("a queue is purged that is not empty")
            self._lose_all(queue)

    def delete(self, queue: str) -> None:
        """Lose a queue; its consumers are told."""
        self._lose_all(queue)
        self.queues.pop(queue, None)
        self.bindings.pop(queue, None)
        for channel in [c for c in self.channels if c.queue == queue]:
            self.world.reach("a queue is deleted while it is consumed")
            channel.queue = None
            channel.connection._break(BrokerUnavailable(f"{queue} was deleted"))

    def _lose_all(self, queue: str) -> None:
        for stored in self.queues.get(queue, ()):
            self.judge.lost(stored.id)
        self.queues.get(queue, deque()).clear()

    def repeat(self, queue: str) -> None:
        """Have what is in a queue twice."""
        if self.queues.get(queue):
            self.world.reach("messages are doubled")
            copies = [Stored(s.id, s.key, s.body, s.headers) for s in self.queues[queue]]
            self.queues[queue].extend(copies)

    def shuffle(self, queue: str) -> None:
        """Lose the order of a queue."""
        if len(self.queues.get(queue, ())) > 1:
            self.world.reach("messages are shuffled")
            some = list(self.queues[queue])
            self.world.random.shuffle(some)
            self.queues[queue] = deque(some)


@dataclass(eq=False)
class Channel:
    """A connection's one channel, with what is on the wire and what waits for an answer."""

    server: FakeRabbit
    connection: Any
    owner: Process | None
    may_publish: Callable[[], bool]
    open: bool = True
    reachable: bool = True
    queue: str | None = None
    prefetch: int = 0
    tags: int = 0
    publishes: int = 0
    _wire: deque[Callable[[], object]] = field(default_factory=deque)
    _untaken: deque[tuple[int, Stored, list[str], bool]] = field(default_factory=deque)
    _unconfirmed: dict[int, tuple[Stored, bool]] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _unacknowledged: dict[int, tuple[str, Stored]] = field(default_factory=dict)
    _on_delivery: Any = None
    _moving: bool = False
    _confirming: bool = False

    # ── the wire ──────────────────────────────────────────────────────────────────────────

    def submit(self, act: Callable[[], object]) -> None:
        """Have the I/O thread do something, after all that was submitted before."""
        self._wire.append(act)
        if not self._moving:
            self._moving = True
            self.server.world.later(self.server.world.latency() / 2, self._move)

    def _move(self) -> None:
        self._moving = False
        if self.owner and self.server.world.now < self.owner.paused_until:
            self._moving = True
            self.server.world.later(0.1, self._move)
            return
        while self._wire and self.open and self.reachable:
            self._wire.popleft()()

    def hang_up(self) -> None:
        """The client says goodbye, after all that it submitted before."""
        while self._wire and self.open and self.reachable:
            self._wire.popleft()()
        self.close()

    def lose(self, why: str) -> None:
        """The connection is gone: the server knows at once, the client soon."""
        self.reachable = False
        self.server.world.later(
            self.server.world.latency(), lambda: self.connection._break(BrokerUnavailable(why))
        )
        self.close()

    def close(self) -> None:
        """The server's end of it: what it had not taken is lost, in part."""
        if not self.open:
            return
        self.open = False
        if self._untaken or self._unconfirmed:
            self.server.world.reach("a connection ends with messages unconfirmed")
        self._take(self.server.world.random.randint(0, len(self._untaken)))
        if self._untaken:
            self.server.world.reach("messages are dropped that were not confirmed")
        if self in self.server.channels:
            self.server.channels.remove(self)
        by_queue: dict[str, list[Stored]] = {}
        for queue, stored in self._unacknowledged.values():
            by_queue.setdefault(queue, []).append(stored)
        self._unacknowledged.clear()
        for queue, some in by_queue.items():
            self.server.give_back(queue, some)

    # ── what pika's channel has ───────────────────────────────────────────────────────────

    def exchange_declare(self, name: str, exchange_type: str, durable: bool, callback: Any) -> None:
        """There are exchanges."""
        callback(None)

    def queue_declare(
        self, name: str, passive: bool, durable: bool, arguments: Mapping[str, Any], callback: Any
    ) -> None:
        """Make a queue, if there is none."""
        self.server.queues.setdefault(name, deque())
        callback(None)

    def queue_bind(self, name: str, exchange: str, binding: str, callback: Any) -> None:
        """Bind it; dead letters go by the queue's name."""
        if exchange == EXCHANGE:
            self.server.bindings[name] = binding
        callback(None)

    def confirm_delivery(self, on_answer: Any, callback: Any) -> None:
        """Confirm what is published."""
        callback(None)

    def add_on_cancel_callback(self, callback: Any) -> None:
        """Deleting a queue ends the connection by itself."""

    def basic_qos(self, prefetch_count: int, callback: Any) -> None:
        """How much may be unacknowledged."""
        self.prefetch = prefetch_count
        callback(None)

    def basic_consume(self, queue: str, on_delivery: Any, callback: Any) -> str:
        """Deliver from now on."""
        self.queue, self._on_delivery = queue, on_delivery
        self.server.kick(queue)
        if callback:
            callback(None)
        return "tag"

    def basic_cancel(self, tag: str) -> None:
        """Deliver no more."""
        self.server.world.reach("a consumer pauses while its read model is away")
        self.queue = None

    def basic_ack(self, tag: int, multiple: bool) -> None:
        """Forget deliveries."""
        for each in [t for t in self._unacknowledged if t == tag or (multiple and t < tag)]:
            _, stored = self._unacknowledged.pop(each)
            self.server.judge.acknowledged(stored.id, stored.body, self.owner)
        if self.queue:
            self.server.kick(self.queue)

    def basic_nack(self, tag: int, multiple: bool = False, requeue: bool = True) -> None:
        """Give a delivery back."""
        if tag in self._unacknowledged:
            queue, stored = self._unacknowledged.pop(tag)
            self.server.give_back(queue, [stored])

    def basic_publish(
        self, exchange: str, key: str, body: bytes, properties: Any, mandatory: bool
    ) -> None:
        """Send a message."""
        self.publishes += 1
        stored = Stored(properties.message_id, key, body, dict(properties.headers or {}))
        if exchange == DEAD_LETTERS:
            queues = [key] if key in self.server.queues else []
            self.server.judge.dead_lettered(stored.id, body)
        else:
            queues = self.server.bound(key)
            self._tries[stored.id] = self._tries.get(stored.id, 0) + 1
            self.server.judge.published(stored.id, body, self.may_publish())
        self._untaken.append((self.publishes, stored, queues, mandatory))
        self._confirm_soon()

    # ── the server's side ─────────────────────────────────────────────────────────────────

    def room(self) -> int:
        """How much may be delivered now."""
        return self.prefetch - len(self._unacknowledged) if self.reachable else 0

    def deliver(self, stored: Stored) -> None:
        """Bring a message to its consumer."""
        self.tags += 1
        stored.deliveries += 1
        self.server.judge.delivered.add(stored.id)
        if stored.deliveries > 1:
            self.server.world.reach("a message is delivered again")
        assert self.queue
        self._unacknowledged[self.tags] = (self.queue, stored)
        method = SimpleNamespace(
            delivery_tag=self.tags, routing_key=stored.key, redelivered=stored.deliveries > 1
        )
        properties = SimpleNamespace(headers=stored.headers, message_id=stored.id)
        self._on_delivery(self, method, properties, stored.body)

    def _confirm_soon(self) -> None:
        if not self._confirming:
            self._confirming = True
            self.server.world.later(self.server.world.latency(), self._confirm)

    def _confirm(self) -> None:
        self._confirming = False
        world = self.server.world
        if not self.open or not self.reachable:
            return
        if world.now < self.server.silent_until:
            self._confirming = True
            world.later(self.server.silent_until - world.now, self._confirm)
            return
        self._take(world.random.randint(0, len(self._untaken)))
        if self._unconfirmed:
            if world.chance("nack"):
                world.reach("the broker refuses a message")
                tag = world.random.choice(list(self._unconfirmed))
                self._unconfirmed.clear()
                self._answer("Basic.Nack", tag, False)
            elif world.random.random() < 0.5:
                tag = world.random.choice(list(self._unconfirmed))
                if any(each < tag for each in self._unconfirmed):
                    world.reach("a confirm comes out of order")
                self._told(tag)
                self._answer("Basic.Ack", tag, False)
            else:
                tag = max(self._unconfirmed)
                for each in sorted(self._unconfirmed):
                    self._told(each)
                self._answer("Basic.Ack", tag, True)
        if self.open and (self._untaken or self._unconfirmed):
            self._confirm_soon()

    def _answer(self, name: str, tag: int, multiple: bool) -> None:
        method = SimpleNamespace(NAME=name, delivery_tag=tag, multiple=multiple)
        self.connection._guarded(
            partial(self.connection._on_answer, SimpleNamespace(method=method))
        )

    def _told(self, tag: int) -> None:
        stored, in_queue = self._unconfirmed.pop(tag)
        if stored.id in self.server.judge.garbage:
            self.server.judge.dead.add(stored.id)
        tries = self._tries.get(stored.id, 0)
        self.server.judge.confirmed(stored.id, in_queue=in_queue, tries=tries)

    def _take(self, count: int) -> None:
        """Take what has arrived, in order; what finds no queue comes back first."""
        for _ in range(count):
            tag, stored, queues, mandatory = self._untaken.popleft()
            for queue in queues:
                if queue in self.server.queues:
                    copy = Stored(stored.id, stored.key, stored.body, stored.headers)
                    self.server.put(queue, copy)
            if not queues and mandatory and self.open:
                self.server.world.reach("a message finds no queue and comes back")
                self.connection._on_return(stored.id)
            self._unconfirmed[tag] = (stored, bool(queues))


class SecondChannel:
    """A channel on which a consumer asks how many messages there are."""

    def __init__(self, server: FakeRabbit) -> None:
        self._queues = server.queues
        self._on_close: Any = None

    def add_on_close_callback(self, callback: Any) -> None:
        """Say when it is closed."""
        self._on_close = callback

    def queue_declare(self, name: str, passive: bool, callback: Any) -> None:
        """Count what is ready in a queue; one that is not there ends the channel."""
        assert passive
        if name not in self._queues:
            self.close()
        else:
            counted = SimpleNamespace(message_count=len(self._queues[name]))
            callback(SimpleNamespace(method=counted))

    def close(self) -> None:
        """Close it, from either side."""
        self._on_close()


class SimConnection(BrokerConnection):
    """The real connection, whose I/O is a simulated channel."""

    def __init__(self, parameters: Any, topology: Topology) -> None:
        self._topology = topology
        server: FakeRabbit = parameters.server
        self._world = server.world
        self._changed = Condition(self._world)  # type: ignore[assignment]
        self._is_open = False
        self._broken = None
        self._notifying = False
        self._world.point("rabbit open")
        if self._world.now < server.away_until:
            raise BrokerUnavailable("RabbitMQ cannot be reached")
        self._channel = Channel(server, self, self._world.running, parameters.may_publish)
        server.channels.append(self._channel)
        self._connection = SimpleNamespace(
            channel=lambda on_open_callback: on_open_callback(SecondChannel(server))
        )
        self._in_turn(self._opening())

    def close(self) -> None:
        """Say goodbye, unless killed."""
        self._break(BrokerUnavailable("the connection to RabbitMQ was closed here"))
        if self._world.running is None or not self._world.running.dying:
            self._channel.hang_up()

    def _submit(self, act: Callable[[], object]) -> None:
        self._check()
        self._channel.submit(partial(self._guarded, act))

    def _later(self, delay: float, act: Callable[[], object]) -> None:
        def once_due() -> None:
            if self._channel.open:
                self._guarded(act)

        self._world.later(delay, once_due)

    def _notify_soon(self) -> None: ...


class SimPublisher(ConfirmedPublisher, SimConnection):
    """The real publisher."""


class SimConsumer(BatchConsumer, SimConnection):
    """The real consumer."""


@dataclass(frozen=True)
class SimBroker:
    """Opens them."""

    server: FakeRabbit

    def publisher(
        self, queue: Queue, window: int, may_publish: Callable[[], bool]
    ) -> ConfirmedPublisher:
        """A publisher that a relay uses while it `may_publish`."""
        return SimPublisher(
            self._parameters(may_publish),
            Topology([queue]),
            window,
            self.server.world.clock.monotonic,
        )

    def consumer(self, queue: Queue, prefetch: int) -> BatchConsumer:
        """A consumer."""
        return SimConsumer(self._parameters(lambda: True), Topology([queue]), queue, prefetch)

    def _parameters(self, may_publish: Callable[[], bool]) -> Any:
        return SimpleNamespace(
            server=self.server, may_publish=may_publish, blocked_connection_timeout=2.0
        )
