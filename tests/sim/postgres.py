"""A model of PostgreSQL with `init.sql` in it, and the real store on top of it.

What is simulated is each function of `init.sql`, one act at a time: locks are taken and waited
for, positions are drawn before the commit, and a commit may come late, or after its client has
been told that the connection is lost, or never.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

from eventcore import jsontext
from eventcore.errors import FeedUnavailable, StoreUnavailable
from eventcore.model.event import START, Event, Mark
from eventcore.retry import CircuitBreaker
from eventcore.store.connection import ConnectionPool, _Stale
from eventcore.store.feed import HeadsPage, StoreFeed
from eventcore.store.port import Progress
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from eventcore.store.settling import Settling
from eventcore.store.sqlstates import to_error
from tests.sim.judge import Judge
from tests.sim.world import Crash, Lock, Process, World

LOCK_TIMEOUT = 3.0
"""Seconds, as in `connect`."""

Rows = list[Any]
Result = TypeVar("Result")


@dataclass(eq=False)
class Session:
    """One connection; `open` as far as the server knows."""

    owner: Process | None
    open: bool = True
    notified: bool = False


@dataclass(frozen=True)
class Wanted:
    """A stream of an append: its expected version, the events for it, and its deadline."""

    stream: tuple[str, str]
    expected: int
    added: int
    due_in: float | None = None


@dataclass(eq=False)
class Transaction:
    """One append, from its first lock to its end."""

    name: str
    wanted: Sequence[Wanted]
    events: Sequence[tuple[tuple[str, str], str, str, int, str]]
    """Of each: its stream, id, type, schema version and data."""
    metadata: str
    key: tuple[str | None, str, str]
    """The key, the hash of the request, and the answer."""
    many: bool
    session: Session
    positions: list[int] = field(default_factory=list)
    locks: list[object] = field(default_factory=list)
    waits_for: object = None
    writes: bool = False
    ended: bool = False
    result: Rows = field(default_factory=list)

    @classmethod
    def of_one(cls, name: str, values: tuple[Any, ...], session: Session) -> "Transaction":
        """The transaction of `append_events`."""
        kind, each, expected, ids, types, schemas, data, metadata, *key = values
        streams = [(kind, each)] * len(ids)
        events = [*zip(streams, ids, types, schemas, data, strict=True)]
        wanted = [Wanted((kind, each), expected, len(ids))]
        return cls(name, wanted, events, metadata, (key[0], key[1], key[2]), False, session)

    @classmethod
    def of_many(cls, name: str, values: tuple[Any, ...], session: Session) -> "Transaction":
        """The transaction of `append_many`."""
        kinds, each, expected, places, *columns, metadata, key, digest, answer, due_in = values
        streams = [*zip(kinds, each, strict=True)]
        events = [*zip([streams[place - 1] for place in places], *columns, strict=True)]
        counts = [places.count(place) for place in range(1, len(streams) + 1)]
        due_in = due_in or [None] * len(streams)
        wanted = [Wanted(*some) for some in zip(streams, expected, counts, due_in, strict=True)]
        return cls(name, wanted, events, metadata, (key, digest, answer), True, session)


class FakePostgres:
    """The server: what is committed, who holds which lock, and how far positions are drawn."""

    def __init__(self, world: World, judge: Judge) -> None:
        self._world = world
        self._judge = judge
        self._names = count(1)
        self.rows: dict[int, tuple[Any, ...]] = {}
        self.positions: list[int] = []
        self.streams: dict[tuple[str, str], list[int]] = {}
        self.ids: set[str] = set()
        self.keys: dict[str, tuple[str, str]] = {}
        self.expired_keys = 0
        self.head = 0
        self.epoch = "the first"
        self.deadlines: dict[tuple[str, str], tuple[int, float]] = {}
        self.snapshots: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.open: dict[str, Transaction] = {}
        self._begun: dict[str, Transaction] = {}
        self.checkpoints: dict[str, Mark] = {}
        self.relay: Session | None = None
        self.away_until = 0.0
        self.sessions: list[Session] = []
        self._held: dict[object, Transaction] = {}

    # ── connections ───────────────────────────────────────────────────────────────────────

    def connect(self) -> Session:
        """Open a session; raises StoreUnavailable."""
        self._world.point("pg connect")
        if self._world.now < self.away_until:
            raise StoreUnavailable("PostgreSQL cannot be reached")
        session = Session(self._world.running)
        self.sessions.append(session)
        return session

    def close(self, session: Session) -> None:
        """The server learns that a session is over: its lock is free; what it runs goes on."""
        session.open = False
        if session in self.sessions:
            self.sessions.remove(session)
        if self.relay is session:
            self.relay = None

    def restart(self, seconds: float) -> None:
        """Lose all sessions and what was not committed."""
        if self.open:
            self._world.reach("PostgreSQL restarts with a transaction open")
        self.away_until = self._world.now + seconds
        for session in list(self.sessions):
            self.close(session)
        for transaction in list(self._begun.values()):
            self._roll_back(transaction)

    def execute(self, session: Session, statement: str, values: tuple[Any, ...]) -> Rows:
        """Carry out one statement of the store; raises what the driver's errors become."""
        name, act = self._act(statement)
        self._world.point(f"pg {name}")
        if self._world.now < self.away_until or not session.open:
            raise lost()
        if self._world.chance("pg cut"):
            self.close(session)
            raise lost()
        rows = act(session, values)
        if name in ("append", "move checkpoint"):
            self._world.point(f"pg {name} done")
        if not session.open or self._world.chance("pg answer lost"):
            self.close(session)
            if name == "append":
                self._world.reach("a commit's answer is lost")
            raise lost()
        return rows

    def _act(self, statement: str) -> tuple[str, Callable[[Session, tuple[Any, ...]], Rows]]:
        for begin, name, act in (
            ("select replayed, answer from append_many", "append", self._append_many),
            ("select replayed", "append", self._append_one),
            ("select aggregate_id, version, late from take_due", "take due", self._take_due),
            ("select aggregate_id, version, event_id", "read snapshot", self._read_snapshot),
            ("select write_snapshot", "write snapshot", self._write_snapshot),
            ("select t.type, coalesce", "overdue", self._overdue),
            ("select t.type, (select count", "stuck", self._stuck),
            ("select head, event_id::text, holders", "settle", self._settle),
            ("select s.head", "progress", self._progress),
            ("select l.same, l.settled", "read changes", self._read_changes),
            ("select request_hash", "recorded answer", self._recorded_answer),
            ("select position from events", "event id", self._event_id),
            ("select pg_try_advisory_lock", "lock", self._lock_relay),
            ("select position, event_id::text from checkpoints", "checkpoint", self._checkpoint),
            ("select move_checkpoint", "move checkpoint", self._move_checkpoint),
            ("select expire_idempotency_keys", "expire", self._expire),
            ("select clock_timestamp", "clock", lambda *_: [(self._world.utc(),)]),
            ("notify events", "notify", self._notify),
            ("listen events", "listen", lambda *_: []),
        ):
            if statement.startswith(begin):
                return name, act
        if "from read_stream" in statement:
            return "read stream", self._read_stream
        if "read_feed(" in statement:
            return "read feed", self._read_feed
        raise AssertionError(statement)

    # ── appending ─────────────────────────────────────────────────────────────────────────

    def _append_one(self, session: Session, values: tuple[Any, ...]) -> Rows:
        return self._append(Transaction.of_one(f"t{next(self._names)}", values, session))

    def _append_many(self, session: Session, values: tuple[Any, ...]) -> Rows:
        return self._append(Transaction.of_many(f"t{next(self._names)}", values, session))

    def _append(self, transaction: Transaction) -> Rows:
        session = transaction.session
        self._begun[transaction.name] = transaction
        steps = self._steps(transaction)
        try:
            while (label := next(steps, None)) is not None:
                if transaction.waits_for is not None:
                    self._wait_for_lock(transaction)
                else:
                    slow = label == "pg inserted" and self._world.chance("pg slow commit")
                    self._world.point(label, self._world.random.random() * 0.6 if slow else None)
                if (transaction.ended and not transaction.result) or not session.open:
                    raise lost()
                if self._world.chance("pg cut"):
                    self.close(session)
                    raise lost()
        except (Crash, StoreUnavailable):
            if not transaction.ended:
                self._world.note(f"{transaction.name} goes on without its client")
                self._go_on_alone(transaction, steps)
            raise
        return transaction.result

    def _wait_for_lock(self, transaction: Transaction) -> None:
        wanted = transaction.waits_for
        kind = "a key" if isinstance(wanted, str) else "a stream"
        self._world.reach(f"an append waits for another one with {kind}")
        free = self._world.until(
            "pg waits for a lock",
            lambda: wanted not in self._held or transaction.ended,
            LOCK_TIMEOUT,
        )
        if not free:
            self._roll_back(transaction)
            raise to_error("55P03", "canceling statement due to lock timeout")

    def _go_on_alone(self, transaction: Transaction, steps: Iterator[str]) -> None:
        """The client is gone: the server finishes what it was told, or rolls it back."""
        if self._world.random.random() < 0.25:
            self._world.later(self._world.latency() * 20, lambda: self._roll_back(transaction))
            return

        def go_on() -> None:
            if transaction.ended:
                return
            if transaction.waits_for is None or transaction.waits_for not in self._held:
                with suppress(Exception):  # a conflict that nobody hears of
                    if next(steps, None) is None:
                        self._world.reach("a commit that its client has given up")
                        return
            self._world.later(self._world.latency() * 4, go_on)

        self._world.later(self._world.latency() * 8, go_on)

    def _steps(self, own: Transaction) -> Iterator[str]:
        key, digest, _ = own.key
        try:
            if key is not None:
                yield from self._lock(own, key)
                if key in self.keys:
                    known_digest, known = self.keys[key]
                    if known_digest != digest:
                        self._world.reach("a key comes with another request")
                        raise to_error("ES002", "this key stands for another request")
                    self._world.reach("an append is answered by its key")
                    own.result = [(True, known, own.wanted[0].expected, 0)[: 2 if own.many else 4]]
                    return
                yield "pg key locked"
            if own.events or own.many:
                yield from self._lock_streams(own)
                yield "pg row locked"
                yield from self._insert(own)
                yield "pg inserted"
            self._commit(own)
            reached = own.wanted[0].expected + own.wanted[0].added
            last = max(own.positions, default=0)
            own.result = [(False, None, reached, last)[: 2 if own.many else 4]]
            yield "pg committed"
        finally:
            self._let_go(own)

    def _lock_streams(self, own: Transaction) -> Iterator[str]:
        """New streams first, then the others, each by type and id; raises on conflicts.

        A stream that exists, or does not, against what is expected has nothing to be locked.
        """
        conflicts = {}
        for each in sorted(own.wanted, key=lambda each: (each.expected > 0, each.stream)):
            if (each.expected > 0) is (each.stream in self.streams):
                yield from self._lock(own, each.stream)
        for place, each in enumerate(own.wanted):
            version = len(self.streams.get(each.stream, ()))
            if version != each.expected or not (each.expected or each.added):
                conflicts[str(place)] = version
        if conflicts:
            detail = jsontext.render(conflicts).decode() if own.many else None
            raise to_error("ES001", "conflict: not at the expected version", detail)

    def _insert(self, own: Transaction) -> Iterator[str]:
        own.writes = True
        self.open[own.name] = own
        for _ in own.events:
            self.head += 1
            own.positions.append(self.head)
            yield "pg position drawn"
        if clash := self.ids & {event_id for _, event_id, *_ in own.events}:
            raise to_error("23505", f"event ids {clash} are there already")

    def _lock(self, own: Transaction, wanted: object) -> Iterator[str]:
        while self._held.get(wanted, own) is not own:
            own.waits_for = wanted
            yield "pg waits"
        own.waits_for = None
        self._held[wanted] = own
        own.locks.append(wanted)

    def _commit(self, own: Transaction) -> None:
        key, digest, answer = own.key
        if key is not None:
            self.keys[key] = (digest, answer)
        if own.positions and own.positions[-1] < self.head:
            self._world.reach("a commit below the head")
        for position, event in zip(own.positions, own.events, strict=True):
            stream, event_id, event_type, schema_version, data = event
            versions = self.streams.setdefault(stream, [])
            row = (
                position,
                UUID(event_id),
                stream[0],
                UUID(stream[1]),
                len(versions) + 1,
                event_type,
                schema_version,
                data,
                own.metadata,
                self._world.utc(),
            )
            self.rows[position] = row
            self.ids.add(event_id)
            versions.append(position)
            insort(self.positions, position)
            self._judge.appended(to_event(row))
        for each in own.wanted:
            self._set_deadline(each)
        if own.events:
            streams = ", ".join(each.stream[1][-4:] for each in own.wanted if each.added)
            self._world.note(f"{own.name} commits {own.positions} of {streams}")

    def _set_deadline(self, wanted: Wanted) -> None:
        if wanted.due_in is None:
            return
        self.deadlines.pop(wanted.stream, None)
        if wanted.due_in != -math.inf:
            version = wanted.expected + wanted.added
            self.deadlines[wanted.stream] = (version, self._world.now + wanted.due_in)

    def _take_due(self, _: Session, values: tuple[Any, ...]) -> Rows:
        kind, limit, hold = values
        rows: Rows = []
        for stream, (version, due_at) in sorted(
            self.deadlines.items(), key=lambda item: (item[1][1], item[0])
        ):
            due = stream[0] == kind and due_at <= self._world.now and len(rows) < limit
            if due and stream not in self._held:  # else it is skipped: an append may move it
                self.deadlines[stream] = (version, self._world.now + hold)
                rows.append((UUID(stream[1]), version, self._world.now - due_at))
        return rows

    def _roll_back(self, own: Transaction) -> None:
        if own.ended:
            return
        if own.positions and own.positions[0] not in self.rows:
            self._world.reach("a rolled back append leaves a gap")
        self._world.note(f"{own.name} is rolled back or over")
        self._let_go(own)

    def _let_go(self, own: Transaction) -> None:
        own.ended = True
        own.waits_for = None
        self.open.pop(own.name, None)
        self._begun.pop(own.name, None)
        for lock in own.locks:
            if self._held.get(lock) is own:
                del self._held[lock]

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def _has(self, positions: list[int], ids: list[str]) -> bool:
        return all(
            position in self.rows and str(self.rows[position][1]) == id
            for position, id in zip(positions, ids, strict=True)
        )

    def _mark(self, position: int) -> tuple[int, str | None]:
        """The last event up to a position."""
        below = bisect_right(self.positions, position)
        last = self.positions[below - 1] if below else 0
        return last, str(self.rows[last][1]) if last else None

    def _settle(self, session: Session, values: tuple[Any, ...]) -> Rows:
        head, event_id = self._mark(self.head)
        self._world.point("pg settle between")
        holders = list(self.open)
        if holders and session is self.relay:
            self._world.reach("a relay looks while an append is open")
        return [(head, event_id, holders, self._has(*values[:2]))]

    def _progress(self, session: Session, values: tuple[Any, ...]) -> Rows:
        [settle] = self._settle(session, values[:2])
        mark = self.checkpoints.get(values[2], START)
        is_there = not mark.position or self._has([mark.position], [mark.event_id])
        return [(*settle, mark.position, mark.event_id, is_there, self.epoch)]

    def _recorded_answer(self, _: Session, values: tuple[Any, ...]) -> Rows:
        return [self.keys[values[0]]] if values[0] in self.keys else []

    def _event_id(self, _: Session, values: tuple[Any, ...]) -> Rows:
        if values[0] not in self.ids:
            return []
        self._world.reach("an append is found again by its event id")
        return [(position,) for position, row in self.rows.items() if str(row[1]) == values[0]]

    def _read_stream(self, _: Session, values: tuple[Any, ...]) -> Rows:
        kind, each, after, limit = values
        positions = self.streams.get((kind, each), [])[after:][:limit]
        return [(*self.rows[p], self._previous(p)) for p in positions]

    def _read_feed(self, _: Session, values: tuple[Any, ...]) -> Rows:
        positions, ids, after, until, limit = values
        if not self._has(positions, ids):
            return [(False, *[None] * 11)]
        found = self._between(after, until)
        if not found:
            return [(True, *[None] * 11)]
        if found[-1] - after > len(found):
            self._world.reach("a page of the feed with gaps")
        return [(True, *self.rows[p], self._previous(p)) for p in found[:limit]]

    def _previous(self, position: int) -> UUID | None:
        _, _, kind, each, version, *_ = self.rows[position]
        if version == 1:
            return None
        return UUID(str(self.rows[self.streams[kind, str(each)][version - 2]][1]))

    def _read_changes(self, _: Session, values: tuple[Any, ...]) -> Rows:
        *marks, after, until, span, kind, _after = values
        same, settled = self._has(*marks[:2]), self._has(*marks[2:])
        if not (same and settled):
            return [(same, settled, None, None, None, None)]
        above = self._between(after, until)
        page = [p for p in above if p <= after + span] or above[:1]
        end = self._mark(page[-1] if page else after)
        heads: dict[UUID, int] = {}
        for position in page:
            if self.rows[position][2] == kind:
                heads[self.rows[position][3]] = self.rows[position][4]
        return [(True, True, *end, *head) for head in heads.items()] or [
            (True, True, *end, None, None)
        ]

    def _between(self, after: int, until: int) -> list[int]:
        begin, end = bisect_right(self.positions, after), bisect_right(self.positions, until)
        return self.positions[begin:end]

    def _overdue(self, _: Session, values: tuple[Any, ...]) -> Rows:
        now = self._world.now
        due = dict.fromkeys(values[0], now)
        for stream, (_version, at) in self.deadlines.items():
            due[stream[0]] = min(due.get(stream[0], now), at)
        return [(kind, now - due[kind]) for kind in values[0]]

    def _stuck(self, _: Session, values: tuple[Any, ...]) -> Rows:
        _limit, kinds = values
        never = [stream[0] for stream, (_version, at) in self.deadlines.items() if at == math.inf]
        return [(kind, never.count(kind)) for kind in kinds]

    def _read_snapshot(self, _: Session, values: tuple[Any, ...]) -> Rows:
        kind, each = values
        found = self.snapshots.get((kind, each))
        return [(UUID(each), *found)] if found else []

    def _write_snapshot(self, _: Session, values: tuple[Any, ...]) -> Rows:
        kind, each, *columns = values
        self.snapshots[kind, each] = tuple(columns)
        return [(None,)]

    # ── the relay's ───────────────────────────────────────────────────────────────────────

    def _lock_relay(self, session: Session, _: tuple[Any, ...]) -> Rows:
        if self.relay is None:
            self.relay = session
        return [(self.relay is session,)]

    def _checkpoint(self, _: Session, values: tuple[Any, ...]) -> Rows:
        mark = self.checkpoints.get(values[0])
        return [(mark.position, mark.event_id or None)] if mark else []

    def _move_checkpoint(self, session: Session, values: tuple[Any, ...]) -> Rows:
        name, position, event_id = values
        known = self.checkpoints.get(name, START)
        marks = [Mark(position, event_id), *([known] if known.position else [])]
        if not self._has([m.position for m in marks], [m.event_id for m in marks]):
            raise to_error("ES005", "the log does not have the event of the checkpoint")
        if position > known.position:
            self.checkpoints[name] = Mark(position, event_id)
            self._world.note(f"the relay's checkpoint is {position}")
            self._judge.relay_checkpoint(position)
        return [(None,)]

    def _expire(self, _: Session, values: tuple[Any, ...]) -> Rows:
        gone = min(self.expired_keys, values[0])
        self.expired_keys -= gone
        if gone and self.expired_keys:
            self._world.reach("one statement does not delete all expired keys")
        return [(gone,)]

    def _notify(self, *_: object) -> Rows:
        for session in self.sessions:
            session.notified = True
        return []


def to_event(row: tuple[Any, ...]) -> Event:
    """A row as the store reads it."""
    *place, data, metadata, recorded_at = row
    return Event(*place, jsontext.parse(data), jsontext.parse(metadata), recorded_at)  # type: ignore[call-arg]


def lost() -> StoreUnavailable:
    """A connection that was lost after a statement was sent."""
    return _Stale("the connection to PostgreSQL was lost")


class SimCalls(ConnectionPool):
    """The real calls with their circuit breaker, on one simulated connection."""

    def __init__(self, server: FakePostgres, world: World, attempts: int) -> None:
        self._server = server
        self._session: Session | None = None
        self._circuit = CircuitBreaker(world.clock.monotonic)
        self._attempts = attempts

    def _once(self, statement: str, values: tuple[object, ...]) -> Rows:
        if self._session is None or not self._session.open:
            self._session = self._server.connect()
        try:
            return self._server.execute(self._session, statement, values)
        except _Stale as stale:
            stale.outcome_known = self._attempts > 1
            raise


class SimStore(Postgres):
    """The real store, on simulated connections."""

    def __init__(self, server: FakePostgres, world: World, patience: float = 0.25) -> None:
        self._server = server
        self._reads = SimCalls(server, world, attempts=2)
        self._writes = SimCalls(server, world, attempts=1)
        self._settling = Settling()
        self._settling_lock = Lock(world)  # type: ignore[assignment]
        self._patience = patience
        self._clock = world.clock
        self._wakeup = SimpleNamespace(schedule=self._ring)  # type: ignore[assignment]
        self._world = world

    def _ring(self) -> None:
        """A wake-up is sent beside the append, and may be lost."""
        if self._world.random.random() < 0.8:
            self._world.later(0.005, self._server._notify)


class SimRelaySession(RelaySession):
    """The real relay's session, on a simulated connection."""

    def __init__(self, server: FakePostgres, world: World, name: str) -> None:
        self._name = name
        self._server = server
        self._world = world
        self._settling = Settling()
        self.head = 0
        self.session = server.connect()
        self._rows("listen events")

    def wait(self, timeout: float) -> None:
        """See RelayStore."""
        self._world.until("waits for appends", lambda: self.session.notified, timeout)
        self.session.notified = False
        if not self.session.open:
            raise StoreUnavailable("the connection to PostgreSQL was lost")

    def close(self) -> None:
        """Say goodbye, unless killed."""
        if self._world.running and not self._world.running.dying:
            self._server.close(self.session)

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> Rows:
        return self._server.execute(self.session, statement, values)


class SimFeed:
    """The owner's feed, which may be away by itself."""

    def __init__(self, store: SimStore, world: World, judge: Judge, aggregate_type: str) -> None:
        self._feed = StoreFeed(store, aggregate_type, world.clock)
        self._world = world
        self._judge = judge
        self.away_until = 0.0

    def stream(self, aggregate_id: str, after: int) -> list[Event]:
        """See Feed."""
        try:
            found = self._ask(lambda: self._feed.stream(aggregate_id, after))
            if self._world.chance("feed slow"):
                self._world.point("feed answers", self._world.random.random() * 0.4)
            return found
        except FeedUnavailable:
            self._judge.feed_was_away(aggregate_id)
            raise

    def streams(self, after: Mapping[str, int]) -> dict[str, list[Event]]:
        """See Feed."""
        try:
            found = self._ask(lambda: self._feed.streams(after))
            if self._world.chance("feed slow"):
                self._world.point("feed answers", self._world.random.random() * 0.4)
            return found
        except FeedUnavailable:
            for aggregate_id in after:
                self._judge.feed_was_away(aggregate_id)
            raise

    def heads(self, after: int, until: int, marks: Sequence[Mark] = ()) -> HeadsPage:
        """See Feed."""
        return self._ask(lambda: self._feed.heads(after, until, marks))

    def between(self, after: int, until: int) -> list[Event]:
        """See Feed."""
        return self._ask(lambda: self._feed.between(after, until))

    def progress(self) -> Progress:
        """See Feed."""
        return self._ask(self._feed.progress)

    def _ask(self, question: Callable[[], Result]) -> Result:
        if self._world.chance("feed away"):
            raise FeedUnavailable("the owner cannot be reached")
        try:
            return question()
        except StoreUnavailable as away:
            raise FeedUnavailable(str(away)) from away
