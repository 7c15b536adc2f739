"""The event store on PostgreSQL: append, read a stream, read the feed.

The schema and its functions are `init.sql`; this file calls them, matches their SQLSTATEs
and keeps the one algorithm that is ours: settling. The only file that imports SQLAlchemy.
"""

import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import psycopg2
from psycopg2 import extensions
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.pool import NullPool, QueuePool

from eventcore import jsontext
from eventcore.background import repeat
from eventcore.errors import (
    Away,
    Busy,
    Conflict,
    KeyReused,
    Misconfigured,
    OutcomeUnknown,
    SequenceBehind,
    StoreAway,
    StoreRestored,
    StoreSlow,
)
from eventcore.event import Data, Event, Mark, NewEvent
from eventcore.failpoints import reach
from eventcore.observe import POOL_MAX, POOL_USED
from eventcore.retry import CircuitBreaker, backoff, retry
from eventcore.settings import Server

SCHEMA_VERSION = 4  # the least that `init.sql` must have recorded for this code to work
RETRY_FOR = 3.0  # seconds after which an append whose answer was lost is not tried again
PAGE = 500  # events in one page of a stream or of the feed
SPAN = 1000  # positions that one page of changed streams covers, unless there is a larger gap
EXPIRED_AT_ONCE = 1000  # expired idempotency keys that one statement deletes at most
CONNECT_TIME = 3.0  # seconds that PostgreSQL may be silent while a connection is made
CALL_TIME = 6.0  # seconds that it may be silent during a call: more than `statement_timeout`

LIMITS = {
    "statement_timeout": "5s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "5s",
    "tcp_keepalives_interval": "2s",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "8s",
}
"""PostgreSQL's settings for our sessions: no statement and no lock takes longer, and the server
notices a client that is gone within ten seconds. Roles of services and relays have them by
`provision`: a pooler such as PgBouncer passes no settings on.
"""


@dataclass(frozen=True, slots=True)
class Stream:
    """All events of one aggregate."""

    aggregate_type: str
    aggregate_id: UUID

    def __str__(self) -> str:
        return f"{self.aggregate_type} {self.aggregate_id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command was answered, kept under its idempotency key."""

    status: int
    body: Data | str
    headers: Data


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key that a command came with, and the hash of the request it stands for."""

    key: str
    request_hash: str


@dataclass(frozen=True, slots=True)
class Appended:
    """The stream's version after an append, or the answer an earlier one was given."""

    version: int
    replayed: Answer | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a log goes: its last event, the settled one, and what the broker has confirmed.

    Positions; `event_id` is the id of the settled event, `epoch` the name of the log's life, which
    `begin_epoch` changes. `relay_halted` says why the relay must not go on from its checkpoint.
    """

    head: int
    settled: int
    relayed: int
    epoch: str
    event_id: str = ""
    relay_halted: str = ""

    @property
    def mark(self) -> Mark:
        """The settled event."""
        return Mark(self.settled, self.event_id)


@dataclass(frozen=True, slots=True)
class Changes:
    """The last version of each stream that changed within a page of the log, and its last event."""

    heads: dict[str, int]
    end: Mark


class Store(Protocol):
    """The port that services use; every method may raise StoreAway."""

    def append(
        self,
        stream: Stream,
        expected_version: int,
        events: Sequence[NewEvent],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        """Append `events` to `stream`, which must be at `expected_version` (0: new).

        One transaction, one round trip, with the answer recorded under the key. A key that
        is known already appends nothing and brings its answer. Raises Conflict, KeyReused,
        StoreAway, Busy: nothing was written. A commit whose answer was lost is found again by its
        event ids; raises OutcomeUnknown where that takes too long.
        """

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        """The answer under a key, if there is one; raises KeyReused for another request's."""

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        """Up to `limit` events with a version above `after`, oldest first."""

    def clock(self) -> datetime:
        """The time of the database's clock."""

    def settled(self) -> int:
        """The position up to which nothing can still appear."""

    def progress(self, relay: str) -> Progress:
        """How far the log goes now, and how far `relay` has come; does not wait for writers."""

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        """Events of all streams by position, above `after`, up to the settled `until`."""

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        """The events with a correlation id, by position, above `after` and up to `until`.

        Each event between them is looked at, so they must not be far apart.
        """

    def read_changes(
        self, aggregate_type: str, after: int, until: int, settled: Mark, marks: Sequence[Mark]
    ) -> Changes | None:
        """The streams that changed above `after`, in a page of SPAN positions up to `until`.

        None: the log does not have one of `marks`. All of it is one statement: the page is of the
        log that was looked at. `until` is at most `settled`; raises StoreAway if that is gone.
        """


class RelayStore(Protocol):
    """The port that a relay uses: one session, which holds the relay's lock while it lives."""

    @property
    def head(self) -> int:
        """The position of the last event, as `settled_event` saw it."""

    def lock(self) -> bool:
        """Whether this session is now the one relay of the store."""

    def checkpoint(self) -> Mark:
        """The event up to which everything is confirmed; position 0 at first."""

    def move_checkpoint(self, mark: Mark) -> None:
        """Record that everything up to an event is confirmed. Raises StoreRestored."""

    def settled_event(self) -> Mark:
        """The event up to which nothing can still appear; does not wait for more."""

    def read_page(self, after: Mark, until: Mark, limit: int = PAGE) -> list[Event]:
        """Events above `after`, up to the settled `until`, by position.

        Raises StoreRestored if the log does not have both events.
        """

    def expire_idempotency_keys(self) -> int:
        """Deletes up to EXPIRED_AT_ONCE keys that are older than 24 hours, and counts them."""

    def wait(self, timeout: float) -> None:
        """Return when something was appended, or after `timeout` seconds."""

    def close(self) -> None: ...


class Settling:
    """Which events have settled: the algorithm, apart from the SQL that feeds it.

    `observe` takes what the database's `settle()` answered. A head is settled once none of the
    transactions that were writing when it was the head are left; a fresh head is watched as soon
    as the one before has settled, so an unrelated or even an endless transaction elsewhere never
    holds it back, and a slow writer only what came after it. Where the log has lost the settled
    event or the watched one, nothing is known of it any more.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.mark = Mark()
        self.watched = Mark()
        self._holders: frozenset[str] = frozenset()

    def observe(self, head: Mark, holders: Sequence[str], same: bool = True) -> Mark:
        """The settled event after an observation of the head and its writers.

        `same`: the log still has `mark` and `watched`.
        """
        if not same:
            self._forget()
        if not self._holders & set(holders):
            self.mark = self.watched
            self.watched, self._holders = head, frozenset(holders)
        if not holders:
            self.mark = head
        return self.mark


_EVENT_COLUMNS = (
    "position, event_id, aggregate_type, aggregate_id, version, event_type,"
    " schema_version, data::text, metadata::text, recorded_at"
)


class Postgres:
    """A Store on one database, over at most `connections` + 1 connections.

    Reads and writes have a connection pool and a circuit breaker each, so that reads go on while
    the server accepts no writes. Nothing is opened before the first call. `settled` waits up to
    `patience` seconds for the writers it sees, then answers with what is known.
    """

    def __init__(self, server: Server, connections: int, patience: float = 0.25) -> None:
        for_reads = max(1, connections // 3)
        for_writes = connections + 1 - for_reads  # one of them sends the wake-up
        self._reads = _Calls("reads", server, for_reads, "any", attempts=2)
        self._writes = _Calls("writes", server, for_writes, "read-write", attempts=1)
        self._settling = Settling()
        self._settling_lock = threading.Lock()
        self._patience = patience
        self._wakeup = Wakeup(lambda: self._write("notify events"))

    def append(
        self,
        stream: Stream,
        expected_version: int,
        events: Sequence[NewEvent],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        if not events and idempotency is None:
            return Appended(expected_version)
        values = (
            stream.aggregate_type,
            str(stream.aggregate_id),
            expected_version,
            [str(e.event_id) for e in events],
            [e.event_type for e in events],
            [e.schema_version for e in events],
            [jsontext.render(e.data).decode() for e in events],
            jsontext.render(metadata).decode(),
            idempotency.key if idempotency else None,
            idempotency.request_hash if idempotency else None,
            jsontext.render(answer).decode() if idempotency and answer else None,
        )
        deadline, losses = time.monotonic() + RETRY_FOR, 0
        while True:
            try:
                appended = self._append(values, bool(losses))
                break
            except Away as away:
                if away.outcome_known and not losses:
                    raise
                if losses and time.monotonic() > deadline:
                    raise OutcomeUnknown(
                        f"PostgreSQL's answer was lost: {stream} may have been written, or may"
                        " still be. Repeat the request with the same Idempotency-Key, or look"
                        " whether it is there before you repeat it without one.",
                        stream.aggregate_id,
                    ) from away
            time.sleep(backoff(losses))
            losses += 1
        if not appended.replayed:
            self._wakeup.ring()
        return appended

    def _append(self, values: tuple[Any, ...], outcome_unknown: bool) -> Appended:
        """Appends once; `outcome_unknown`: an earlier attempt may have been committed."""
        reach("append:begin")
        _, _, expected_version, event_ids, *_ = values
        try:
            replayed, recorded, version = self._write(_APPEND, values)[0]
        except Conflict:
            if outcome_unknown and self._rows(_HOLDS, (event_ids[0],)):
                return Appended(expected_version + len(event_ids))
            raise
        reach("append:committed")
        return Appended(version, _to_answer(recorded) if replayed else None)

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        rows = self._rows(
            "select request_hash, answer::text from idempotency_keys"
            " where key = %s and recorded_at > clock_timestamp() - interval '24 hours'",
            (idempotency.key,),
        )
        if not rows:
            return None
        request_hash, recorded = rows[0]
        if request_hash != idempotency.request_hash:
            raise KeyReused("this Idempotency-Key was used for another request")
        return _to_answer(recorded)

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        values = (stream.aggregate_type, str(stream.aggregate_id), after, limit)
        return [_to_event(row, previous) for *row, previous in self._rows(_STREAM, values)]

    def clock(self) -> datetime:
        now: datetime = self._rows("select clock_timestamp()", ())[0][0]
        return now

    def settled(self) -> int:
        deadline = time.monotonic() + self._patience
        wanted = 0
        while True:
            with self._settling_lock:  # observations must come in the order they were made
                [head] = _observe(self._settling, self._rows, _SETTLE)
                position = self._settling.mark.position
            wanted = min(wanted, head) if wanted else head
            if position >= wanted or time.monotonic() > deadline:
                return position
            time.sleep(0.005)

    def progress(self, relay: str) -> Progress:
        with self._settling_lock:
            found = _observe(self._settling, self._rows, _PROGRESS, relay)
            settled = self._settling.mark
        head, position, event_id, is_there, epoch = found
        halted = "" if is_there else relay_halted(Mark(position, event_id))
        return Progress(head, settled.position, position, epoch, settled.event_id, halted)

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        return _read_page(self._rows, (), after, until, limit) or []

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        return [_to_event(row) for row in self._rows(_CORRELATED, (after, until, correlation_id))]

    def read_changes(
        self, aggregate_type: str, after: int, until: int, settled: Mark, marks: Sequence[Mark]
    ) -> Changes | None:
        looked_at = (*_columns(marks), *_columns([settled]))
        rows = self._rows(_CHANGES, (*looked_at, after, until, SPAN, aggregate_type, after))
        same, is_settled, position, event_id, *_ = rows[0]
        if not is_settled:
            raise StoreAway("the log was put back while it was read; nothing was lost, try again")
        if not same:
            return None
        heads = {str(stream): version for *_, stream, version in rows if version}
        return Changes(heads, Mark(position or 0, event_id or ""))

    def require_schema(self) -> None:
        """Raises StoreAway while the schema does not fit; see the function `require_schema`."""
        require_schema(self._rows)

    def require_writable(self) -> None:
        """Raises StoreAway while the server accepts no writes."""
        if self._write("show transaction_read_only")[0][0] == "on":
            self._writes.close()
            raise StoreAway("PostgreSQL accepts no writes: it is read-only")

    def close(self) -> None:
        """Closes all idle connections; the next call opens new ones."""
        self._reads.close()
        self._writes.close()

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        return self._reads.run(statement, values)

    def _write(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        return self._writes.run(statement, values)


class _Calls:
    """Runs statements over a connection pool of its own, behind a circuit breaker of its own.

    With `attempts` above 1 a statement is sent again where its connection was lost: it must read.
    """

    PATIENCE = 2.0  # seconds that a caller waits for a free connection

    def __init__(self, name: str, server: Server, size: int, target: str, attempts: int) -> None:
        self._engine = _engine(
            server,
            {"target_session_attrs": target},
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=self.PATIENCE,
            pool_use_lifo=True,
            pool_recycle=600,
        )
        self._circuit = CircuitBreaker()
        self._attempts = attempts
        POOL_MAX.labels(f"PostgreSQL {name}").set(size)
        used = POOL_USED.labels(f"PostgreSQL {name}")
        event.listen(self._engine, "checkout", lambda *_: used.inc())
        event.listen(self._engine, "checkin", lambda *_: used.dec())

    def run(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        """Returns the rows of one statement."""
        with self._circuit.call():
            for _ in range(self._attempts - 1):
                with suppress(_Stale):
                    return self._once(statement, values)
            return self._once(statement, values)

    def close(self) -> None:
        """Closes the idle connections, and the others when they are given back."""
        self._engine.dispose()

    def _once(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        try:
            with translated():
                connection = self._engine.raw_connection()
        except NoConnectionFree:
            raise Busy("all connections to PostgreSQL are in use; nothing was written") from None
        driver, began = connection.driver_connection, time.monotonic()
        try:
            return _fetch(driver, statement, values)
        except psycopg2.Error as error:
            if not (driver.closed or error.pgcode in _CURED_BY_A_NEW_CONNECTION):  # type: ignore[union-attr]
                raise _to_error(error.pgcode, str(error)) from error
            connection.invalidate(error)
            self.close()  # the other connections are as old
            stale = _Stale(str(_to_error(error.pgcode, str(error))))
            stale.outcome_known = error.pgcode == _READ_ONLY or self._attempts > 1
            stale.unreachable = time.monotonic() - began > CALL_TIME
            raise stale from error
        finally:
            connection.close()


class _Stale(StoreAway):
    """A connection that was lost during a statement, or that leads to a read-only server.

    A new connection may do; only a server that held the statement counts as unreachable.
    """

    unreachable = False


def _fetch(driver: Any, statement: str, values: tuple[object, ...]) -> list[Any]:
    """Runs one statement on a psycopg2 connection."""
    with driver.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


_SETTLE = "select head, event_id::text, holders, same from settle(%s::bigint[], %s::uuid[])"

_PROGRESS = (
    "select s.head, s.event_id::text, s.holders, s.same,"
    " coalesce(c.position, 0), c.event_id::text,"
    " c.name is null or log_has(array[c.position], array[c.event_id]),"
    " (select epoch::text from store_epochs order by number desc limit 1)"
    " from settle(%s::bigint[], %s::uuid[]) s left join checkpoints c on c.name = %s"
)

_CHANGES = (
    "select l.same, l.settled, e.ends_at, e.event_id::text, h.aggregate_id, h.version"
    " from (select log_has(%s::bigint[], %s::uuid[]) as same,"
    "              log_has(%s::bigint[], %s::uuid[]) as settled) l"
    " left join lateral page_end(%s, %s, %s) e on l.same and l.settled"
    " left join lateral read_heads(%s, %s, e.ends_at) h on true"
)

_CORRELATED = (
    f"select {_EVENT_COLUMNS} from events"  # nosec B608
    " where position > %s and position <= %s"
    " and metadata->>'correlationId' = %s order by position"
)

_PREVIOUS = (
    "(select p.event_id from events p where p.aggregate_type = f.aggregate_type"
    " and p.aggregate_id = f.aggregate_id and p.version = f.version - 1)"
)  # the id of the event before an event in its stream

_STREAM = (
    f"select {_EVENT_COLUMNS}, coalesce(lag(event_id) over (order by version), {_PREVIOUS})"  # nosec B608
    " from read_stream(%s, %s::uuid, %s, %s) f order by version"
)

_PAGE = (
    f"select l.same, {_EVENT_COLUMNS}, {_PREVIOUS}"  # nosec B608
    " from (select log_has(%s::bigint[], %s::uuid[]) as same) l"
    " left join lateral read_feed(%s, %s, %s) f on l.same order by f.position"
)

_HOLDS = "select 1 from events where event_id = %s::uuid"

_APPEND = (
    "select replayed, answer, version from append_events("
    "%s, %s::uuid, %s, %s::uuid[], %s::text[], %s::int[], %s::text[], %s::jsonb, %s, %s, %s::jsonb)"
)


def _to_answer(text: str) -> Answer:
    return Answer(**jsontext.parse(text))


def _to_event(row: Sequence[Any], previous: UUID | None = None) -> Event:
    *place, data, metadata, recorded_at = row
    parsed = jsontext.parse(data), jsontext.parse(metadata)
    return Event(*place, *parsed, recorded_at, previous)  # type: ignore[call-arg]


_Rows = Callable[[str, tuple[object, ...]], list[Any]]


def _observe(settling: Settling, rows: _Rows, statement: str, *values: object) -> list[Any]:
    """Observes the log by a statement that begins with what `settle()` answers.

    Returns the head's position, then what else the statement answers.
    """
    known = _columns([settling.mark, settling.watched])
    head, event_id, holders, same, *more = rows(statement, (*known, *values))[0]
    settling.observe(Mark(head, event_id or ""), holders, same)
    return [head, *more]


def _columns(marks: Sequence[Mark]) -> tuple[list[int], list[str]]:
    """Marks as two arrays; those without an id are left out."""
    known = [mark for mark in marks if mark.event_id]
    return [mark.position for mark in known], [mark.event_id for mark in known]


def _read_page(
    rows: _Rows, marks: Sequence[Mark], after: int, until: int, limit: int
) -> list[Event] | None:
    """A page of the feed; None if the log does not have all of `marks`."""
    found = rows(_PAGE, (*_columns(marks), after, until, limit))
    if not found[0][0]:
        return None
    return [_to_event(row, previous) for _, *row, previous in found if row[0]]


def relay_halted(checkpoint: Mark) -> str:
    """Why a relay publishes nothing, and what to do."""
    return (
        f"the relay's checkpoint is event {checkpoint.event_id} at position {checkpoint.position},"
        " which this log does not have there: it is another log, or was put back. Nothing is"
        " published until the right database is back, or until its owner says that this is the"
        " right one: select begin_epoch('why'); then the whole log is published again"
    )


def require_schema(rows: _Rows) -> None:
    """Raises StoreAway while the schema is older than this code; a newer one is welcome.

    Raises SequenceBehind where the sequence of positions is behind the log.
    """
    there = rows("select to_regclass('public.schema_versions') is not null", ())[0][0]
    found = there and rows("select coalesce(max(version), 0) from schema_versions", ())[0][0]
    if found < SCHEMA_VERSION:
        raise StoreAway(
            f"the schema is at version {found:d}, version {SCHEMA_VERSION} is needed:"
            " apply init.sql (python -m eventcore migrate)"
        )
    rows("select require_sequence()", ())


class RelaySession:
    """A RelayStore: one connection that holds the advisory lock and listens for appends.

    The checkpoint is moved on the connection that holds the lock. A relay that lost its
    lock with its connection can therefore not move it any more.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._name = name
        self._settling = Settling()
        self.head = 0
        with translated():
            self._connection = connect(server).raw_connection()
        self._driver: Any = self._connection.driver_connection
        self._rows("listen events")

    def lock(self) -> bool:
        taken: bool = self._rows(
            "select pg_try_advisory_lock(hashtext('relay'), hashtext(%s))", (self._name,)
        )[0][0]
        return taken

    def checkpoint(self) -> Mark:
        statement = "select position, event_id::text from checkpoints where name = %s"
        rows = self._rows(statement, (self._name,))
        return Mark(rows[0][0], rows[0][1] or "") if rows else Mark()

    def move_checkpoint(self, mark: Mark) -> None:
        values = (self._name, mark.position, mark.event_id)
        self._rows("select move_checkpoint(%s, %s, %s::uuid)", values)

    def settled_event(self) -> Mark:
        [self.head] = _observe(self._settling, self._rows, _SETTLE)
        return self._settling.mark

    def read_page(self, after: Mark, until: Mark, limit: int = PAGE) -> list[Event]:
        page = _read_page(self._rows, (after, until), after.position, until.position, limit)
        if page is None:
            raise StoreRestored(relay_halted(after))
        return page

    def require_schema(self) -> None:
        """Raises StoreAway while the schema does not fit; see the function `require_schema`."""
        require_schema(self._rows)

    def expire_idempotency_keys(self) -> int:
        statement = "select expire_idempotency_keys(%s)"
        expired: int = self._rows(statement, (EXPIRED_AT_ONCE,))[0][0]
        return expired

    def wait(self, timeout: float) -> None:
        if not self._driver.notifies:
            select.select([self._driver], [], [], timeout)
            with translated():
                self._driver.poll()
        self._driver.notifies.clear()

    def close(self) -> None:
        """Give up the connection, and the lock with it."""
        self._connection.invalidate()
        self._connection.close()

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        with translated():
            return _fetch(self._driver, statement, values)


def _wait(connection: Any) -> None:
    """Waits for PostgreSQL in place of psycopg2, which would wait for ever.

    PostgreSQL's own time limits need a server that works, and TCP's one that is gone; one that is
    stopped, or whose disk hangs, meets neither. After the error psycopg2 closes the connection.
    """
    connected = connection.status in (extensions.STATUS_READY, extensions.STATUS_BEGIN)
    seconds = CALL_TIME if connected else CONNECT_TIME
    while (state := connection.poll()) != extensions.POLL_OK:
        reads = state == extensions.POLL_READ
        waiting = select.poll()
        waiting.register(connection, select.POLLIN if reads else select.POLLOUT)
        if not waiting.poll(seconds * 1000):
            raise psycopg2.OperationalError(f"PostgreSQL was silent for {seconds:g} seconds")


extensions.set_wait_callback(_wait)


class Wakeup:
    """Sends NOTIFY after an append, coalesced under load, so that the relay need not poll often.

    Sent within the append's transaction it would take a lock of the whole PostgreSQL instance at
    commit. A lost one costs a little time, since the relay polls as well.
    """

    DELAY, MAX_DELAY = 0.005, 0.015  # seconds between two NOTIFYs: for each append, and at most

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self._appends = 0  # approximate: it is counted without a lock
        self._rung = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ring(self) -> None:
        """Wakes the relay soon. Never blocks, never fails."""
        self._appends += 1
        self._rung.set()
        if self._thread is None:
            with self._lock:
                self._thread = self._thread or repeat(self._send, "wakeup")

    def _send(self) -> None:
        self._rung.wait()
        self._rung.clear()
        appends, self._appends = self._appends, 0
        reach("wakeup:begin")
        self._notify()
        time.sleep(min(self.DELAY * appends, self.MAX_DELAY))


def connect(server: Server) -> Engine:
    """An engine that keeps no connection: for a relay's session, and for tools.

    Each session gets LIMITS, so that a lock of a client that is gone is soon free.
    """
    engine = _engine(server, {}, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def limit(driver: Any, _record: Any) -> None:
        with driver.cursor() as cursor:
            cursor.execute("; ".join(f"set {name} = '{value}'" for name, value in LIMITS.items()))

    return engine


def _engine(server: Server, connect_args: dict[str, str], **pool: Any) -> Engine:
    """An engine in autocommit mode. It reads the password, which may change, at each connect."""
    tls = {"sslmode": "prefer"}
    if server.tls:  # libpq comes with an OpenSSL that does not find the machine's own CAs
        trusted = server.ca_file or ssl.get_default_verify_paths().cafile or "system"
        tls = {"sslmode": "verify-full", "sslrootcert": trusted}
    engine = create_engine(
        URL.create("postgresql+psycopg2", server.user, None, server.host, server.port, server.name),
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        connect_args={
            **tls,
            "application_name": "eventcore",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "tcp_user_timeout": 8000,
            **connect_args,
        },
        **pool,
    )

    @event.listens_for(engine, "do_connect")
    def open_connection(dialect: Any, _record: Any, args: Any, parameters: dict[str, Any]) -> Any:
        parameters["password"] = server.password.read()
        try:
            return dialect.connect(*args, **parameters)
        except psycopg2.OperationalError as error:
            if error.pgcode:
                raise
            where = f"{server.host}, port {server.port}"  # libpq leaves it out under a callback
            raise psycopg2.OperationalError(f"connection to {where} failed: {error}") from error

    return engine


def migrate(owner: Server, script: Path, wait: float = 30) -> int:
    """Applies `init.sql` as the database's owner and returns the schema version.

    Where a lock cannot be had at once, it lets go and tries again, for `wait` seconds at most, so
    that a live database is not held up. Raises StoreAway.
    """

    def apply() -> int:
        with translated(), connect(owner).connect() as connection:
            plain = connection.execution_options(no_parameters=True)
            plain.exec_driver_sql(script.read_text())
            found = plain.exec_driver_sql("select max(version) from schema_versions")
            return int(found.scalar_one())

    return retry(apply, wait)


_READ_ONLY = "25006"
_CURED_BY_A_NEW_CONNECTION = {_READ_ONLY, "25P03", "57P01", "57P02", "57P03", "57P05"}
_SLOW = StoreSlow, "PostgreSQL did not answer in time: {}"
_FORBIDDEN = StoreAway, "PostgreSQL does not let us: {}"
_UNREACHABLE = StoreAway, "PostgreSQL cannot be reached: {}"
_ERRORS: dict[str, tuple[type[Exception], str]] = {
    "ES001": (Conflict, "{}"),
    "ES002": (KeyReused, "this Idempotency-Key was used for another request"),
    "ES004": (SequenceBehind, "{}"),
    "ES005": (StoreRestored, "{}: it is another log, or was put back"),
    _READ_ONLY: (StoreAway, "PostgreSQL accepts no writes: {}"),
    **dict.fromkeys(("57014", "55P03", "53300", "40001", "40P01"), _SLOW),
    **dict.fromkeys(("42501", "42883", "28P01", "28000", "3D000"), _FORBIDDEN),
    **dict.fromkeys(("08", "25", "53", "57", "58"), _UNREACHABLE),
}
"""Errors and their texts by SQLSTATE, or by its class."""


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours, by SQLSTATE."""
    try:
        yield
    except DBAPIError as error:
        raise _to_error(getattr(error.orig, "pgcode", None), str(error.orig)) from error
    except psycopg2.Error as error:
        raise _to_error(error.pgcode, str(error)) from error


def _to_error(sqlstate: str | None, text: str) -> Exception:
    reason = next(iter(text.strip().splitlines()), "no reason given")
    state = sqlstate or "08"
    refused = Misconfigured, f"PostgreSQL refused a statement of ours ({state}): {{}}"
    kind, says = _ERRORS.get(state) or _ERRORS.get(state[:2], refused)
    return kind(says.format(reason))
