"""A simulated shop whose users have credit: orders with their saga, its two reactors, and faults.

All is real but the servers: the relays of both logs, two replicas of each reactor, the deadlines.
Steps are late after less than a second, so that pauses and restarts force time-outs.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any
from unittest.mock import patch
from uuid import UUID

from eventcore import command as commands
from eventcore.broker.port import Queue
from eventcore.command import Call
from eventcore.errors import Refused, Unavailable
from eventcore.model.event import Event
from eventcore.model.projection import version_of
from eventcore.model.saga import Saga
from eventcore.observe.health import Health
from eventcore.project.reacting import ReactingApplier
from eventcore.project.reactor_projector import ReactorProjector
from eventcore.project.sweep import Sweep
from eventcore.reactor import Reactor
from eventcore.readmodel.conversion import LONG_AGO
from eventcore.relay import Relay
from eventcore.store.port import Answer, Append, Idempotency
from order import credit_saga
from order.order import DECIDER as ORDERS
from order.order import CancelOrder, Order, PlaceOrder
from order.pending import cancel_saga, saga_of
from tests.credit_judge import Log, orders_of, unended, wrong
from tests.sim.judge import Judge
from tests.sim.mongo import FakeMongo, SimMongo
from tests.sim.people import DECIDER, FIXED
from tests.sim.postgres import FakePostgres, SimFeed, SimRelaySession, SimStore
from tests.sim.rabbitmq import FakeRabbit, SimBroker
from tests.sim.run import DRAIN, LEASE, SWEEP, Result, _at_once, rates
from tests.sim.world import Process, World
from user import credit, credit_reactor
from user.user import DECIDER as USERS
from user.user import ChangeCreditLimit, CreateUser

ACTIVE = 8.0
"""Seconds, about, in which there are orders and faults."""

LIMIT = 30

QUICK = Saga(
    credit_saga.SAGA.catalogue,
    tuple(replace(step, timeout=0.6, attempts=2) for step in credit_saga.SAGA.steps),
)
"""The saga of an order, which waits for a shorter time."""

STORES = {"user": "user", "credit": "user", "order": "order", "order_saga": "order"}
"""The service that has the streams of an aggregate type."""

REACTORS = {"user": credit_reactor.REACTOR, "order": credit_saga.REACTOR}
"""The reactor of each service; it reads the log of the other one."""


class CreditJudge(Judge):
    """Watches the credit at each commit, and holds both logs against each other in the end."""

    def __init__(self, world: World) -> None:
        super().__init__(world, FIXED, DECIDER)
        self.logs: dict[str, dict[tuple[str, str], list[Event]]] = {"user": {}, "order": {}}
        self.reserved: dict[str, dict[str, Decimal]] = {}
        self.limits: dict[str, Decimal | None] = {}

    def appended(self, event: Event) -> None:
        """An event has become visible."""
        kind, id = event.aggregate_type, str(event.aggregate_id)
        known = self.logs[STORES[kind]].setdefault((kind, id), [])
        if event.version != len(known) + 1:
            self.world.blame(f"{kind} {id} got version {event.version} after {len(known)}")
        known.append(event)
        if event.event_type == "USER_CREDIT_LIMIT_CHANGED":
            self.limits[id] = event.data.get("limit")
        elif event.event_type == "CREDIT_RELEASED":
            self.reserved.get(id, {}).pop(event.data["orderId"], None)
        elif event.event_type == "CREDIT_RESERVED":
            own, limit = self.reserved.setdefault(id, {}), self.limits[id]
            own[event.data["orderId"]] = event.data["amount"]
            if limit is not None and sum(own.values()) > limit:
                self.world.blame(f"user {id} has {sum(own.values())} reserved, of {limit}")

    def published(self, id: str, body: bytes, holds_lock: bool) -> None:
        """A relay hands a message to the broker."""

    def acknowledged(self, id: str, body: bytes, owner: Process | None) -> None:
        """A reactor says that it need not see this message again."""

    def swept(self, position: int, holder: str, _generation: str) -> None:
        """The checkpoint of a reactor moves."""
        process = self.world.running
        if process and str(process) != holder:
            self.world.blame(f"{process} moves the checkpoint, and {holder} has the lease")


class Selling:
    """Two customers, two relays, two replicas of each reactor, their servers, and faults."""

    def __init__(self, world: World) -> None:
        self.world = world
        chance = world.random
        self.judge = CreditJudge(world)
        self.stores = {name: FakePostgres(world, self.judge) for name in REACTORS}
        self.mongo = FakeMongo(world, self.judge, "")
        self.rabbit = FakeRabbit(world, self.judge, delivery_limit=chance.choice((2, 20)))
        self.placed: list[str] = []
        self._ids = 0
        self._batch = chance.choice((3, 20))
        self.customers = {f"customer-{n}": Customer(self, chance.randint(6, 12)) for n in range(2)}
        self._programs: dict[str, Callable[[Process], object]] = {
            **{name: each.main for name, each in self.customers.items()},
            **{f"{name}-relay-0": partial(self._relay, name) for name in REACTORS},
            **{
                f"{reactor.name}-{number}": partial(self._react, name, reactor)
                for name, reactor in REACTORS.items()
                for number in range(2)
            },
        }
        self.users = [self._create_user() for _ in range(2)]
        world.on_death = self._died

    def new_id(self) -> UUID:
        """Ids that grow, and are the same for the same seed."""
        self._ids += 1
        return UUID(int=(self.world.seed + 1) << 64 | self._ids)

    def run(self) -> None:
        """Work under faults, then without, then be judged."""
        world = self.world
        for name in self._programs:
            self._start(name)
        world.rates = rates(world)
        for _ in range(world.random.randint(3, 12)):
            world.later(world.random.random() * ACTIVE, self._harm)
        world.run(lambda: world.now >= ACTIVE, ACTIVE)
        world.note("no more faults")
        world.rates = {}
        self.mongo.away_until = self.rabbit.away_until = 0.0
        for server in self.stores.values():
            server.away_until = 0.0
        if not world.wrong and not world.run(lambda: not self._missing(), DRAIN):
            world.blame(f"after {DRAIN:.0f} s without a fault: {self._missing()}")
        orders, credits = self.logs
        if not world.wrong:
            for error in wrong([*map(str, self.users)], orders, credits):
                world.blame(error)
            if sorted(self.placed) != sorted(orders_of([*map(str, self.users)], orders)):
                world.blame(f"the customers know of {self.placed}")

    @property
    def logs(self) -> tuple[Log, Log]:
        """The logs of orders and of users."""
        return self.judge.logs["order"], self.judge.logs["user"]

    def _missing(self) -> str:
        """The work that is left; "": all sagas have ended, and no reactor has any."""
        if busy := [name for name, each in self.customers.items() if each.at_work]:
            return f"{busy} are at work"
        if left := unended([*map(str, self.users)], self.logs[0]):
            return f"{sorted(left)} have not ended"
        for reactor in REACTORS.values():
            documents = self.mongo.of(reactor.collection)
            for (kind, id), events in self.judge.logs[reactor.catalogue.owner].items():
                if kind == reactor.aggregate_type:
                    reached = version_of(documents.get(id))
                    if reached < len(events):
                        return f"{reactor.name} is at {reached} of {len(events)} of {id}"
        return ""

    def _create_user(self) -> UUID:
        user, store = self.new_id(), SimStore(self.stores["user"], self.world)
        for command in (CreateUser("Ada", "ada@example.com"), ChangeCreditLimit(Decimal(LIMIT))):
            commands.handle(
                store, USERS, user, command, Call({}), _accept,
                creates=isinstance(command, CreateUser), new_id=self.new_id,
            )  # fmt: skip
        return user

    # ── processes ─────────────────────────────────────────────────────────────────────────

    def _start(self, name: str) -> None:
        self.world.begin(name, self._programs[name])

    def _died(self, process: Process) -> None:
        world = self.world
        for server in self.stores.values():
            for session in [s for s in server.sessions if s.owner is process]:
                world.later(world.random.random() * 0.5, partial(server.close, session))
        for channel in [c for c in self.rabbit.channels if c.owner is process]:
            if process.dying:
                channel.reachable = False
                world.later(world.random.random() * 0.5, channel.close)
        customer = self.customers.get(process.name)
        if customer is None or customer.at_work:
            world.later(0.05 + world.random.random() * 0.5, lambda: self._start(process.name))

    def _relay(self, name: str, process: Process) -> None:
        other = REACTORS["order" if name == "user" else "user"]
        publishers = SimBroker(self.rabbit)
        Relay(
            name,
            lambda: SimRelaySession(self.stores[name], self.world, name),
            lambda: publishers.publisher(_queue(other), 500, lambda: True),
            Health(),
            self.world.clock,
        ).run(process.stop)

    def _react(self, name: str, reactor: Reactor, process: Process) -> None:
        """A replica of the reactor of a service, as `python -m eventcore project` wires it."""
        world = self.world
        log = SimStore(self.stores[reactor.catalogue.owner], world, 0.0)
        own = SimStore(self.stores[name], world)
        feed = SimFeed(log, world, self.judge, reactor.aggregate_type)
        applying = ReactingApplier(reactor, SimMongo(self.mongo), feed, world.clock, own=own)
        consumers = SimBroker(self.rabbit)
        ReactorProjector(
            applying,
            Sweep(applying, str(process), LEASE),
            lambda: consumers.consumer(_queue(reactor), 2 * self._batch),
            Health("store"),
            batch=self._batch,
            sweep_interval=SWEEP,
            open_beside=_at_once,
            check_store=own.clock,
        ).run(process.stop)

    # ── faults ────────────────────────────────────────────────────────────────────────────

    def _harm(self) -> None:
        world, chance = self.world, self.world.random
        if not world.rates or not world.processes:
            return
        process, queue = (
            chance.choice(world.processes),
            chance.choice([*self.rabbit.queues] or [""]),
        )
        kinds: list[Callable[[], object]] = [
            partial(world.kill, process),
            partial(world.pause, process, 3 * chance.random()),
            process.stop.set,
            partial(self._pause_reactor, chance.choice([*REACTORS.values()])),
            self._steal,
            self._expire_keys,
            partial(self.mongo.restart, chance.random()),
            partial(chance.choice([*self.stores.values()]).restart, chance.random()),
            partial(self.rabbit.restart, chance.random()),
        ]
        if self.rabbit.queues.get(queue):
            kinds += [
                partial(self.rabbit.purge, queue),
                partial(self.rabbit.delete, queue),
                partial(self.rabbit.repeat, queue),
                partial(self.rabbit.shuffle, queue),
            ]
        chance.choice(kinds)()

    def _pause_reactor(self, reactor: Reactor) -> None:
        """All replicas of a reactor, for longer than its steps may take."""
        for process in self.world.processes:
            if process.name.startswith(reactor.name):
                self.world.pause(process, 1 + 3 * self.world.random.random())

    def _steal(self) -> None:
        """Ends the leases of all sweeps."""
        for found in self.mongo.of("checkpoints").values():
            found["expiresAt"] = LONG_AGO

    def _expire_keys(self) -> None:
        """A day has passed since all reactions; the keys of customers have no space."""
        for server in self.stores.values():
            for key in [key for key in server.keys if " " in key]:
                del server.keys[key]


class Customer:
    """Places orders, cancels some, and changes limits; repeats a call until it is answered."""

    def __init__(self, selling: Selling, count: int) -> None:
        self._selling = selling
        self._left = count
        self._now: tuple[str, Callable[[Call], object]] | None = None

    @property
    def at_work(self) -> bool:
        """Whether there is something that he has not been told about."""
        return self._left > 0 or self._now is not None

    def main(self, process: Process) -> None:
        """Send one call after the other, from where he was."""
        world = self._selling.world
        self._orders = SimStore(self._selling.stores["order"], world)
        self._users = SimStore(self._selling.stores["user"], world)
        while self.at_work:
            if self._now is None:
                self._left -= 1
                self._now = (f"{process.name}:{self._left}", self._next())
            key, act = self._now
            try:
                act(Call({}, Idempotency(key, key)))
                self._now = None
            except (Refused, Unavailable) as error:
                world.note(f"{key} is tried again after {type(error).__name__}")
            world.sleep(world.random.random() * 0.4)

    def _next(self) -> Callable[[Call], object]:
        selling, chance = self._selling, self._selling.world.random
        draw, user = chance.random(), chance.choice(selling.users)
        if draw < 0.15:
            return partial(self._limit, user, chance.choice((LIMIT // 3, LIMIT, None)))
        if draw < 0.45 and selling.placed:
            return partial(self._cancel, UUID(chance.choice(selling.placed[-4:])))
        return partial(self._place, str(user), Decimal(chance.randint(1, LIMIT)))

    def _limit(self, user: UUID, limit: int | None, call: Call) -> None:
        wanted = None if limit is None else Decimal(limit)
        commands.handle(self._users, USERS, user, ChangeCreditLimit(wanted), call, _accept)

    def _place(self, user: str, price: Decimal, call: Call) -> None:
        order_id = self._selling.new_id()
        command = PlaceOrder(user, "Pen", price, pending=True)

        def start(_: Order | None, __: Order | None) -> Sequence[Append]:
            return saga_of(self._orders, order_id, command)

        def accept(_: Order | None, __: int) -> Answer:
            return Answer(200, {"orderId": str(order_id)}, {})

        answer = commands.handle(
            self._orders, ORDERS, order_id, command, call, accept, creates=True, also=start
        )
        assert not isinstance(answer.body, str)
        self._selling.placed.append(str(answer.body["orderId"]))

    def _cancel(self, order_id: UUID, call: Call) -> None:
        command = CancelOrder()

        def turn_back(_: Order | None, __: Order | None) -> Sequence[Append]:
            return cancel_saga(self._orders, order_id, command)

        commands.handle(self._orders, ORDERS, order_id, command, call, _accept, also=turn_back)


def _accept(_: object, __: int) -> Answer:
    return Answer(200, {}, {})


def _queue(reactor: Reactor) -> Queue:
    return Queue(reactor.queue, reactor.binding)


@dataclass(frozen=True)
class Sold:
    """The outcome of one seed, and its logs."""

    result: Result
    orders: Log
    credits: Log


def simulate(seed: int, tells: Callable[[str], object] | None = None) -> Sold:
    """Runs one seed to its end."""
    world, level = World(seed, tells=tells), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        selling = Selling(world)
        with in_simulated_time(selling):
            selling.run()
    finally:
        world.end()
        logging.disable(level)
    result = Result(seed, world.steps, world.trace_hash, dict(world.reached), tuple(world.wrong))
    return Sold(result, *selling.logs)


@contextmanager
def in_simulated_time(selling: Selling) -> Iterator[None]:
    """Commands wait by the simulated clock and make its ids; no thread writes a snapshot."""
    made: dict[str, Any] = {"new_id": selling.new_id}
    with ExitStack() as stack:
        for target, name, other in (
            (credit_saga, "SAGA", QUICK),
            (credit_saga, "DECIDER", QUICK.decider),
            (credit_reactor, "DECIDER", replace(credit.DECIDER, snapshot_every=0)),
            (commands, "handle", partial(commands.handle, clock=selling.world.clock, **made)),
            (commands, "append_of", partial(commands.append_of, **made)),
        ):
            stack.enter_context(patch.object(target, name, other))
        stack.enter_context(patch("order.pending.append_of", partial(commands.append_of, **made)))
        stack.enter_context(patch("eventcore.project.reacting.HOLD", 0.5))
        yield
