"""A simulated view over two stores: its processes, the writers of both logs, faults, the verdict.

The system has the view `customers`, folded by two replicas from the logs of users and orders. The
broker is away all along, so the sweeps alone bring every event.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from eventcore.broker.port import Consumer
from eventcore.errors import BrokerUnavailable, Conflict, Unavailable
from eventcore.model.event import Event, NewEvent
from eventcore.model.projection import Document, version_of
from eventcore.model.view import fold, positions_of
from eventcore.observe.health import Health
from eventcore.project.parts import open_parts
from eventcore.project.view_projector import PartSweep, ViewProjector, ViewSweep
from eventcore.readmodel.conversion import LONG_AGO
from eventcore.store.port import Stream
from order.projections.customers import VIEW
from tests.sim.judge import Judge
from tests.sim.mongo import FakeMongo, SimMongo
from tests.sim.people import DECIDER, FIXED
from tests.sim.postgres import FakePostgres, SimFeed, SimStore
from tests.sim.run import ACTIVE, DRAIN, LEASE, SWEEP, Result, rates
from tests.sim.world import Process, World

PEOPLE = 3
"""Users; few, so that each has many events in each log."""


class ViewJudge(Judge):
    """Holds the logs of all stores against the documents and checkpoints of the view."""

    def __init__(self, world: World) -> None:
        super().__init__(world, FIXED, DECIDER)
        self.logs: dict[str, dict[int, Event]] = {store: {} for store in VIEW.stores}
        self.at: dict[str, int] = dict.fromkeys(VIEW.stores, 0)

    def appended(self, event: Event) -> None:
        """An event has become visible."""
        store, position = event.aggregate_type, event.position
        if position <= self.at[store]:
            self.world.blame(f"position {position} of {store} appears below the checkpoint")
        self.logs[store][position] = event

    def document_written(self, old: Document | None, new: Document) -> None:
        """A document is exactly the fold of the events of each store up to its position there."""
        key, now = str(new["_id"]), positions_of(new)
        if version_of(new) <= version_of(old):
            self.world.blame(f"{key} goes from version {version_of(old)} to {version_of(new)}")
        for store, before in positions_of(old).items():
            if now.get(store, 0) < before:
                self.world.blame(f"{key} goes back to position {now.get(store)} of {store}")
        if (wanted := self.fold(now).get(key)) != new:
            self.world.blame(f"{key} is {new}, and the fold of the logs is {wanted}")

    def swept(self, position: int, holder: str, generation: str) -> None:
        """The checkpoint of one store moves: all events up to it are in the documents."""
        store, process = generation.removeprefix(f"{VIEW.name}/"), self.world.running
        if process and str(process) != holder:
            self.world.blame(f"{process} moves the checkpoint, and {holder} has the lease")
        if position < self.at[store]:
            self.world.blame(f"the checkpoint of {store} goes back to {position}")
        self.at[store] = max(self.at[store], position)
        documents = self.documents()
        for key, wanted in self.fold({store: position}).items():
            reached = positions_of(documents.get(key)).get(store, 0)
            if reached < positions_of(wanted)[store]:
                self.world.blame(f"the checkpoint of {store} is {position}, and {key} at {reached}")

    def fold(self, until: Mapping[str, int]) -> dict[str, Document]:
        """The documents of the events up to a position of each store."""
        return fold(
            VIEW,
            [
                log[position]
                for store, log in self.logs.items()
                for position in sorted(log)
                if position <= until.get(store, 0)
            ],
        )

    def what_is_missing(self, *_: int) -> str:
        """The first thing that still has to happen after the last fault; "": all is at rest."""
        ends = {store: max(log, default=0) for store, log in self.logs.items()}
        if self.at != ends:
            return f"the checkpoints are {self.at}, and the logs end at {ends}"
        if (documents := self.documents()) != (wanted := self.fold(ends)):
            return f"the documents are {documents}, and should be {wanted}"
        return ""


class Viewing:
    """Two writers, two replicas of the view, two stores and a read model, under faults."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.judge = ViewJudge(world)
        self.stores = {store: FakePostgres(world, self.judge) for store in VIEW.stores}
        self.mongo = FakeMongo(world, self.judge, VIEW.collection)
        self.judge.documents = self.mongo.folds
        self._ids = 0
        self._left = {f"writer-{number}": world.random.randint(8, 20) for number in range(2)}
        self._programs: dict[str, Callable[[Process], object]] = {
            "writer-0": self._write,
            "writer-1": self._write,
            "view-0": self._view,
            "view-1": self._view,
        }
        world.on_death = self._died

    def run(self) -> None:
        """Work under faults, then without, then be judged."""
        world = self.world
        for name in self._programs:
            self._start(name)
        world.rates = rates(world)
        for _ in range(world.random.randint(2, 9)):
            world.later(world.random.random() * ACTIVE, self._harm)
        end = ACTIVE * (0.6 + 0.4 * world.random.random())
        world.run(lambda: world.now >= end, ACTIVE)
        world.note("no more faults")
        world.rates = {}
        self.mongo.away_until = 0.0
        for server in self.stores.values():
            server.away_until = 0.0
        if not world.run(lambda: not self._missing(), DRAIN):
            world.blame(f"after {DRAIN:.0f} s without a fault: {self._missing()}")

    def _missing(self) -> str:
        return (
            f"{self._left} are to be written"
            if any(self._left.values())
            else (self.judge.what_is_missing())
        )

    # ── processes ─────────────────────────────────────────────────────────────────────────

    def _start(self, name: str) -> None:
        self.world.begin(name, self._programs[name])

    def _died(self, process: Process) -> None:
        world = self.world
        for server in self.stores.values():
            for session in [s for s in server.sessions if s.owner is process]:
                world.later(world.random.random() * 0.5, partial(server.close, session))
        if self._left.get(process.name, 1):
            world.later(0.05 + world.random.random() * 0.5, lambda: self._start(process.name))

    def _view(self, process: Process) -> None:
        """A replica as `python -m eventcore project` wires it, with a clock that is wrong."""
        world = self.world
        wrong = timedelta(hours=world.random.choice((-30, 0, 30)))
        clock = replace(world.clock, now=lambda: world.utc() + wrong)
        feeds = {
            store: SimFeed(SimStore(server, world, 0.0), world, self.judge, store)
            for store, server in self.stores.items()
        }
        parts = open_parts(VIEW, SimMongo(self.mongo, clock), feeds)
        for part in parts:
            part.clock = clock
        ViewProjector(
            parts[0],
            ViewSweep([PartSweep(part, str(process), LEASE) for part in parts]),
            _no_consumer,
            Health(),
            batch=20,
            sweep_interval=SWEEP,
            open_beside=_away,
        ).run(process.stop)

    def _write(self, process: Process) -> None:
        """Appends to both logs; an append whose fate is unknown is not repeated."""
        stores = {store: SimStore(each, self.world) for store, each in self.stores.items()}
        while self._left[process.name]:
            self._left[process.name] -= 1
            stream, event_type, data = self._next()
            try:
                store = stores[stream.aggregate_type]
                known = store.read_stream(stream)
                new = NewEvent(self._new_id(), self._type(event_type, known), 1, data)
                store.append(stream, len(known), [new], {})
            except (Conflict, Unavailable) as error:
                self.world.note(f"not written, or unknown: {type(error).__name__}")
            self.world.sleep(self.world.random.random() * 0.2)

    def _next(self) -> tuple[Stream, str, dict[str, Any]]:
        chance = self.world.random
        user = UUID(int=chance.randint(1, PEOPLE))
        orders = [each.aggregate_id for each in self.judge.logs["order"].values()]
        draw = chance.random()
        if draw < 0.3:
            data = {"name": f"name {chance.randint(1, 99)}", "email": "a@b"}
            return Stream("user", user), "USER_NAME_CHANGED", data
        if draw < 0.8 or not orders:
            price = Decimal(chance.randint(1, 10_000)) / 100
            placed = {"userId": str(user), "item": "x", "price": price}
            return Stream("order", self._new_id()), "ORDER_PLACED", placed
        return Stream("order", chance.choice(orders)), "ORDER_CANCELLED", {}

    def _type(self, event_type: str, known: list[Event]) -> str:
        return "USER_CREATED" if event_type == "USER_NAME_CHANGED" and not known else event_type

    def _new_id(self) -> UUID:
        """Ids that grow, and are the same for the same seed."""
        self._ids += 1
        return UUID(int=(self.world.seed + 1) << 64 | self._ids)

    # ── faults ────────────────────────────────────────────────────────────────────────────

    def _harm(self) -> None:
        if not self.world.rates or not self.world.processes:
            return
        chance = self.world.random
        process = chance.choice(self.world.processes)
        kinds: list[Callable[[], object]] = [
            partial(self.world.kill, process),
            partial(self.world.pause, process, LEASE * 3 * chance.random()),
            process.stop.set,
            self._pause_holder,
            self._steal,
            self._steal,
            partial(self.mongo.restart, chance.random()),
            partial(chance.choice([*self.stores.values()]).restart, chance.random()),
        ]
        chance.choice(kinds)()

    def _pause_holder(self, tries: int = 200) -> None:
        """Pauses the holder as it writes a page, for longer than its lease."""
        holder = self._holder(VIEW.stores[0])
        if holder and "bulk" in holder.at:
            self.world.pause(holder, LEASE * (1 + self.world.random.random()))
        elif tries and self.world.rates:
            self.world.later(0.005, lambda: self._pause_holder(tries - 1))

    def _steal(self) -> None:
        """Ends the leases, or that of one store alone; a jump of the server's clock does this."""
        for store in self.world.random.choice((VIEW.stores, VIEW.stores[:1], VIEW.stores[1:])):
            if found := self.mongo.of("checkpoints").get(f"{VIEW.name}/{store}"):
                self.world.note(f"the lease of {store} is over")
                found["expiresAt"] = LONG_AGO

    def _holder(self, store: str) -> Process | None:
        found = self.mongo.of("checkpoints").get(f"{VIEW.name}/{store}", {})
        return self.world.named(str(found.get("holder")))


def simulate(seed: int, tells: Callable[[str], object] | None = None) -> Result:
    """Runs one seed to its end."""
    world, level = World(seed, tells=tells), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        Viewing(world).run()
    finally:
        world.end()
        logging.disable(level)
    return Result(seed, world.steps, world.trace_hash, dict(world.reached), tuple(world.wrong))


def _no_consumer() -> Consumer:
    raise BrokerUnavailable("the broker is away")


def _away(act: Callable[[], Consumer], _name: str) -> "Future[Consumer]":
    future: Future[Consumer] = Future()
    try:
        future.set_result(act())
    except BrokerUnavailable as error:
        future.set_exception(error)
    return future
