"""One simulation: processes, clients and faults by one seed, then a drain, then the verdict."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from eventcore import command
from eventcore.broker.port import Queue
from eventcore.command import Call
from eventcore.errors import Refused, Unavailable
from eventcore.model.event import START
from eventcore.model.token import SEEN_HEADER, Token
from eventcore.observe.health import Health
from eventcore.project.applier import EventApplier
from eventcore.project.projector import Projector
from eventcore.project.sweep import Sweep
from eventcore.readmodel.records import generation_of
from eventcore.relay import Relay, to_broker
from eventcore.store.port import Answer, Idempotency
from tests.sim.judge import Issued, Judge
from tests.sim.mongo import FakeMongo, SimMongo, by_stream
from tests.sim.people import DECIDER, FIXED, OLD, Marry, NumberEmail
from tests.sim.postgres import FakePostgres, SimFeed, SimRelaySession, SimStore
from tests.sim.rabbitmq import FakeRabbit, SimBroker, Stored
from tests.sim.world import Process, World
from user.user import ChangeUser, CreateUser

ACTIVE = 3.0
"""Seconds, about, in which there are commands and faults."""

DRAIN = 120.0
"""Seconds after which everything must have come to rest when nothing fails any more."""

QUEUE = Queue(OLD.queue, OLD.binding)
LEASE = 0.8
SWEEP = 0.4


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one seed."""

    seed: int
    steps: int
    trace_hash: str
    reached: dict[str, int]
    wrong: tuple[str, ...]


def simulate(seed: int, tells: Callable[[str], object] | None = None) -> Result:
    """Run one seed to its end."""
    world, level = World(seed, tells=tells), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        System(world).run()
    finally:
        world.end()
        logging.disable(level)
    return Result(
        seed,
        world.steps,
        world.trace_hash,
        dict(world.reached),
        tuple(world.wrong),
    )


class System:
    """Two clients, two relays, two projectors; their servers; and whoever does harm to them."""

    def __init__(self, world: World) -> None:
        self.world = world
        chance = world.random
        self.judge = Judge(world, FIXED, DECIDER)
        self.postgres = FakePostgres(world, self.judge)
        self.mongo = FakeMongo(world, self.judge, OLD.collection)
        self.rabbit = FakeRabbit(world, self.judge, delivery_limit=chance.choice((2, 5, 20)))
        self.judge.documents = self.mongo.folds
        self.judge.parked = lambda: by_stream(self.mongo.of("parked").values())
        self.projection = OLD
        self._ids = 0
        self._batch, self._prefetch = chance.choice(((3, 5), (20, 40)))
        self._window = chance.choice((2, 500))
        self._patience = chance.choice((0.0, 0.25))
        self.poisonous = chance.random() < 0.5
        busy = chance.randint(4, 9) + (6 if self.poisonous else 0)
        self._clients = {f"client-{n}": Client(self, busy) for n in range(2)}
        self._programs: dict[str, Callable[[Process], object]] = {
            **{name: client.main for name, client in self._clients.items()},
            "relay-0": self._relay,
            "relay-1": self._relay,
            "projector-0": self._project,
            "projector-1": self._project,
        }
        world.on_death = self._died

    def new_id(self) -> UUID:
        """Ids that grow, and are the same for the same seed."""
        self._ids += 1
        return UUID(int=self.world.seed << 64 | self._ids)

    def run(self) -> None:
        """Work under faults, then without, then be judged."""
        world = self.world
        for name in self._programs:
            self._start(name)
        world.rates = rates(world)
        harm = Harm(self)
        for _ in range(world.random.randint(2, 9)):
            world.later(world.random.random() * ACTIVE, harm.one)
        if self.poisonous and world.random.random() < 0.7:
            world.later(world.random.random() * ACTIVE, self.deploy)
        end = ACTIVE * (0.6 + 0.4 * world.random.random())
        world.run(lambda: world.now >= end, ACTIVE)
        self._heal()
        if self.projection is OLD and self.judge.poisoned:
            world.reach("poison stays when all faults are over")
            if not world.run(lambda: not self._held_up(), DRAIN):
                world.blame(f"after {DRAIN:.0f} s without a fault: {self._held_up()}")
        self.deploy()
        if not world.wrong and not world.run(lambda: not self._missing(), DRAIN):
            world.blame(f"after {DRAIN:.0f} s without a fault: {self._missing()}")
        if not world.wrong:
            self.judge.judge_commands()

    def _heal(self) -> None:
        """Faults are over."""
        world = self.world
        world.note("no more faults")
        world.rates = {}
        self.postgres.away_until = self.mongo.away_until = self.rabbit.away_until = 0.0
        self.rabbit.silent_until = 0.0
        if self.postgres.expired_keys:  # a relay that begins deletes them at once, not in a minute
            self._replace("relay")

    def deploy(self) -> None:
        """Replaces the projectors, one after the other, by such as know every event."""
        self.projection = FIXED
        self._replace("projector")

    def _replace(self, kind: str) -> None:
        for process in [p for p in self.world.processes if p.name.startswith(kind)]:
            self.world.later(self.world.random.random(), process.stop.set)

    def _missing(self) -> str:
        relayed = self.postgres.checkpoints.get("user", START).position
        if self.postgres.expired_keys:
            return f"{self.postgres.expired_keys} expired keys are left"
        return self._at_work() or self.judge.what_is_missing(relayed, self.postgres.head)

    def _held_up(self) -> str:
        return self._at_work() or self.judge.what_holds_others_up()

    def _at_work(self) -> str:
        clients = [name for name, client in self._clients.items() if client.at_work]
        return f"{clients} are at work" if clients else ""

    # ── processes ─────────────────────────────────────────────────────────────────────────

    def _start(self, name: str) -> None:
        self.world.begin(name, self._programs[name])

    def _died(self, process: Process) -> None:
        """Servers notice sooner or later; a new one is started."""
        world = self.world
        if self.postgres.open:
            world.reach("a process ends while an append is open")
        for session in [s for s in self.postgres.sessions if s.owner is process]:
            world.later(self._notice(), partial(self.postgres.close, session))
        for channel in [c for c in self.rabbit.channels if c.owner is process]:
            if process.dying:
                channel.reachable = False
                world.later(self._notice(), channel.close)
        client = self._clients.get(process.name)
        if client is None or client.at_work:
            world.later(0.05 + world.random.random() * 0.5, lambda: self._start(process.name))

    def _notice(self) -> float:
        """Seconds after which a server knows that a peer is dead."""
        draw = self.world.random.random()
        return draw * 0.02 if draw < 0.6 else draw * 1.5

    def _relay(self, process: Process) -> None:
        opened: list[SimRelaySession] = []

        def open_store() -> SimRelaySession:
            opened.append(SimRelaySession(self.postgres, self.world, "user"))
            return opened[-1]

        def may_publish() -> bool:
            if (holder := self.postgres.relay) not in (None, opened[-1].session):
                if opened[-1].session.open:
                    return False
                self.world.reach(
                    "two relays publish, since one does not know that it lost its lock"
                )
                assert holder
            return True

        publishers = SimBroker(self.rabbit)
        Relay(
            "user",
            open_store,
            lambda: publishers.publisher(QUEUE, self._window, may_publish),
            Health(),
            self.world.clock,
        ).run(process.stop)

    def _project(self, process: Process) -> None:
        projection = self.projection
        mongo = SimMongo(self.mongo)
        feed = SimFeed(
            SimStore(self.postgres, self.world, self._patience), self.world, self.judge, "user"
        )
        applying = EventApplier(projection, mongo, feed, self.world.clock)
        sweep = Sweep(applying, str(process), LEASE)
        consumers = SimBroker(self.rabbit)
        Projector(
            applying,
            sweep,
            lambda: consumers.consumer(QUEUE, self._prefetch),
            Health(),
            batch=self._batch,
            sweep_interval=SWEEP,
            open_beside=_at_once,
        ).run(process.stop)


class Client:
    """Somebody who sends commands and writes down each answer; the service dies, he does not."""

    def __init__(self, system: System, count: int) -> None:
        self._system = system
        self._world = system.world
        self._left = count
        self._now: Issued | None = None

    @property
    def at_work(self) -> bool:
        """Whether there is something that he has not been told about."""
        return self._left > 0 or self._now is not None

    def main(self, process: Process) -> None:
        """Send one after the other, from where he was."""
        own = SimStore(self._system.postgres, self._world)
        while self.at_work:
            if self._now is None:
                self._left -= 1
                self._now = self._next()
                self._system.judge.commands.append(self._now)
            self._try(own, self._now)
            self._world.sleep(self._world.random.random() * 0.2)

    def _try(self, own: SimStore, issued: Issued) -> None:
        """Once; a command without a key is not sent again when its fate is unknown."""
        if issued.tries and (issued.key is None or issued.tries > 30):
            issued.outcome = "unknown"
            self._now = None
            return
        issued.tries += 1
        try:
            answer = self._serve(own, issued)
        except Refused:
            self._told(issued, "refused")
        except Unavailable as away:
            if away.outcome_known and issued.tries == 1 and issued.key is None:
                self._world.reach("a command is answered that nothing was written")
                self._told(issued, "refused")
        else:
            if "Idempotency-Replayed" in answer.headers:
                self._world.reach("a command that is sent again gets its first answer")
            first = {k: v for k, v in answer.headers.items() if k != "Idempotency-Replayed"}
            token = Token.parse(str(first[SEEN_HEADER]))
            # A repeat whose store is away at that moment leaves the position out.
            first[SEEN_HEADER] = str(replace(token, positions={}))
            issued.answer = replace(answer, headers=first)
            self._told(issued, "acknowledged")

    def _serve(self, own: SimStore, issued: Issued) -> Answer:
        """A request as the web layer serves one: the command, and its key where that is refused."""
        digest = f"{issued.stream} {issued.command}"
        idempotency = Idempotency(issued.key, digest) if issued.key else None
        call = Call({"commandId": issued.id}, idempotency)
        try:
            return command.handle(
                own,
                DECIDER,
                issued.stream,
                issued.command,
                call,
                lambda _, version: Answer(200, {"id": str(issued.stream), "version": version}, {}),
                creates=issued.creates,
                clock=replace(self._world.clock, sleep=self._sleep_after_conflict),
                new_id=self._system.new_id,
            )
        except Refused:
            if earlier := command.answered_before(own, call):
                return earlier
            raise

    def _sleep_after_conflict(self, seconds: float) -> None:
        self._world.reach("a command is decided again after a conflict")
        self._world.sleep(seconds)

    def _told(self, issued: Issued, outcome: str) -> None:
        issued.outcome = outcome
        self._world.note(f"{issued.id} is {outcome}")
        self._now = None

    def _next(self) -> Issued:
        """Something new, or a change to what there is, or the same again."""
        chance, judge = self._world.random, self._system.judge
        known = [c.stream for c in judge.commands if c.creates]
        place = len(judge.commands) + 1
        key = f"key-{place}" if chance.random() < 0.7 else None
        if not known or chance.random() < 0.2:
            made = CreateUser(f"name {place}", f"{place}@example.com")
            return Issued(f"c{place}", self._system.new_id(), made, key, creates=True)
        with_keys = [c for c in judge.commands if c.key]
        if with_keys and chance.random() < 0.1:
            earlier = chance.choice(with_keys)
            return Issued(earlier.id, earlier.stream, earlier.command, earlier.key, earlier.creates)
        stream = chance.choice(known[-3:])
        if judge.poisoned and chance.random() < 0.6:
            stream = UUID(chance.choice(sorted(judge.poisoned)))
        if with_keys and chance.random() < 0.06:
            earlier = chance.choice(with_keys)
            return Issued(f"c{place}", stream, ChangeUser(name=f"thief {place}"), earlier.key)
        draw = chance.random()
        if draw < 0.1 and self._system.poisonous:
            judge.poisoned.add(str(stream))
            return Issued(f"c{place}", stream, Marry(), key)
        if draw < 0.15 and self._system.poisonous:
            judge.poisoned.add(str(stream))
            return Issued(f"c{place}", stream, NumberEmail(), key)
        if draw < 0.4:
            return Issued(
                f"c{place}", stream, ChangeUser(f"name {place}", f"{place}@example.com"), key
            )
        return Issued(f"c{place}", stream, ChangeUser(name=f"name {place % 4}"), key)


class Harm:
    """What happens to processes and servers from outside."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._world = system.world
        self._injected = 0
        kinds = [
            self._kill,
            self._kill,
            self._pause,
            self._pause_sweeper,
            self._stop_in_order,
            self._end_relay_session,
            self._expire_keys,
            self._restart_postgres,
            self._restart_mongo,
            self._restart_rabbit,
            self._silence_rabbit,
            self._cut_channel,
            self._purge,
            self._delete,
            self._repeat,
            self._shuffle,
            self._garbage,
            self._ahead,
            self._deploy,
            self._deploy,
        ]
        self._kinds = system.world.random.sample(kinds, system.world.random.randint(3, 9))

    def one(self) -> None:
        """One of the kinds of this seed."""
        if self._world.rates and self._world.processes:  # all may be between two lives
            kind = self._world.random.choice(self._kinds)
            self._world.note(f"harm: {kind.__name__}")
            kind()

    def _kill(self) -> None:
        self._world.kill(self._any())

    def _pause(self) -> None:
        self._world.pause(self._any(), 0.2 + self._world.random.random() * 2)

    def _stop_in_order(self) -> None:
        process = self._any()
        if not process.name.startswith("client"):
            self._world.reach("a process is stopped in order")
            process.stop.set()

    def _pause_sweeper(self) -> None:
        """While it sweeps, for longer than its lease."""
        self._once(lambda: self._sweeper() is not None, self._pause_long)

    def _pause_long(self) -> None:
        if process := self._sweeper():
            self._world.pause(process, LEASE * (1 + self._world.random.random()))

    def _sweeper(self) -> Process | None:
        """Who has the lease, when it is just asking the feed or about to move the checkpoint."""
        found = self._system.mongo.of("checkpoints").get(OLD.name, {})
        holder = self._world.named(str(found.get("holder")))
        at_it = holder and (holder.at.startswith("pg") or "find users" in holder.at)
        return holder if at_it else None

    def _end_relay_session(self) -> None:
        if session := self._system.postgres.relay:
            if session.owner and self._world.random.random() < 0.6:
                self._world.pause(session.owner, 0.5 + self._world.random.random())
            self._system.postgres.close(session)

    def _expire_keys(self) -> None:
        """A day has passed since many commands."""
        self._system.postgres.expired_keys += self._world.random.choice((1, 1000, 2500))

    def _restart_postgres(self) -> None:
        self._system.postgres.restart(self._world.random.random())

    def _restart_mongo(self) -> None:
        self._world.reach("MongoDB is away for a while")
        self._system.mongo.restart(self._world.random.random())

    def _restart_rabbit(self) -> None:
        self._world.reach("RabbitMQ is away for a while")
        self._system.rabbit.restart(self._world.random.random())

    def _silence_rabbit(self) -> None:
        self._world.reach("RabbitMQ confirms nothing for a while")
        self._system.rabbit.silent_until = self._world.now + self._world.random.random() * 4

    def _cut_channel(self) -> None:
        if self._system.rabbit.channels:
            self._world.random.choice(self._system.rabbit.channels).lose("the link was cut")

    def _deploy(self) -> None:
        self._system.deploy()

    def _purge(self) -> None:
        self._once_filled(self._system.rabbit.purge)

    def _delete(self) -> None:
        self._system.rabbit.delete(QUEUE.name)

    def _repeat(self) -> None:
        self._once_filled(self._system.rabbit.repeat)

    def _shuffle(self) -> None:
        self._once_filled(self._system.rabbit.shuffle)

    def _once_filled(self, act: Callable[[str], None]) -> None:
        """Do it as soon as there is more than one message in the queue."""
        queues = self._system.rabbit.queues
        self._once(lambda: len(queues.get(QUEUE.name, ())) > 1, lambda: act(QUEUE.name))

    def _once(
        self, condition: Callable[[], bool], act: Callable[[], None], tries: int = 200
    ) -> None:
        """Do it as soon as something is so, if it soon is."""
        if not self._world.rates:
            return
        if condition():
            act()
        elif tries:
            self._world.later(0.005, lambda: self._once(condition, act, tries - 1))

    def _garbage(self) -> None:
        """What is no event at all."""
        self._inject(self._world.random.choice((b"{", b"[]", b"\xff", b'{"specVersion":9}')))

    def _ahead(self) -> None:
        """An event that the log does not have."""
        judge = self._system.judge
        if not judge.log:
            return
        event = judge.log[self._world.random.choice(sorted(judge.log))]
        message, version = to_broker(event), 70 + self._injected
        body = message.body.replace(b'"version":%d' % event.version, b'"version":%d' % version)
        self._world.reach("a message is ahead of the log")
        judge.ahead.add(self._inject(body))

    def _inject(self, body: bytes) -> str:
        judge, queues = self._system.judge, self._system.rabbit.queues
        self._injected += 1
        place = f"garbage {self._injected}"
        if QUEUE.name in queues:
            judge.garbage.add(place)
            self._system.rabbit.put(QUEUE.name, Stored(place, "user.created", body, {}))
        return place

    def _any(self) -> Process:
        return self._world.random.choice(self._world.processes)


def rates(world: World) -> dict[str, float]:
    """Which troubles this seed has, and how often; each seed has some of them."""
    usual = {
        "crash": 0.005,
        "pg cut": 0.01,
        "pg answer lost": 0.02,
        "pg slow commit": 0.3,
        "mongo cut": 0.02,
        "mongo answer lost": 0.02,
        "mongo bulk cut": 0.1,
        "feed away": 0.1,
        "feed slow": 0.3,
        "nack": 0.03,
    }
    chosen = {name: rate for name, rate in usual.items() if world.random.random() < 0.5}
    return chosen or {"crash": 0.005}


def _at_once(act: Callable[[], Any], _name: str) -> "Future[Any]":
    """Opens a connection in one step of the simulation."""
    future: Future[Any] = Future()
    try:
        future.set_result(act())
    except Exception as error:  # noqa: BLE001 - told to whoever asks the future
        future.set_exception(error)
    return future


assert generation_of(OLD).collection == OLD.collection
