"""The event store on PostgreSQL: append, read a stream, read the feed.

The schema and its functions are `init.sql`; this file calls them, matches their SQLSTATEs
and keeps the one algorithm that is ours: settling. The only file that imports SQLAlchemy.
"""

import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Protocol
from uuid import UUID

import psycopg2
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.pool import NullPool

from eventcore import jsontext
from eventcore.errors import (
    Away,
    Busy,
    Conflict,
    Error,
    KeyReused,
    Misconfigured,
    StoreAway,
    StoreSlow,
)
from eventcore.event import Data, Event, NewEvent
from eventcore.failpoints import reach
from eventcore.observe import POOL_MAX, POOL_USED
from eventcore.retry import CircuitBreaker, retry
from eventcore.settings import Server

SCHEMA_VERSION = 3
"""What `init.sql` must have recorded, at least, for this code to work."""

RETRY_FOR = 3.0
"""Seconds after which an append whose connection broke is not tried again."""

PAGE = 500
"""Events in one page of a stream or of the feed."""

log = logging.getLogger(__name__)


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
    body: Data
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
class Head:
    """The last version of a stream within a range of positions."""

    aggregate_id: UUID
    version: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a log goes: drawn, settled, and confirmed by the broker; positions.

    `epoch` names the life of the log: a restored one has another.
    """

    head: int
    settled: int
    relayed: int
    epoch: str


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
        is known already appends nothing and brings its answer. Raises Conflict, KeyReused.
        Safe against a commit whose answer was lost: it is found again by its event ids.
        """

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        """The answer under a key, if there is one; raises KeyReused for another request's."""

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        """Up to `limit` events with a version above `after`, oldest first."""

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

    def read_heads(self, aggregate_type: str, after: int, until: int) -> list[Head]:
        """The streams that changed between two settled positions, with their last versions."""


class RelayStore(Protocol):
    """The port that a relay uses: one session, which holds the relay's lock while it lives."""

    head: int
    """The last position drawn, as `settled` saw it."""

    def lock(self) -> bool:
        """Whether this session is now the one relay of the store."""

    def checkpoint(self) -> int:
        """The position up to which everything is confirmed; 0 at first."""

    def move_checkpoint(self, position: int) -> None:
        """Record that everything up to `position` is confirmed."""

    def settled(self) -> int:
        """The position up to which nothing can still appear; does not wait for more."""

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]: ...

    def expire_idempotency_keys(self) -> int:
        """Delete some of the keys that are older than 24 hours, and count them."""

    def wait(self, timeout: float) -> None:
        """Return when something was appended, or after `timeout` seconds."""

    def close(self) -> None: ...


class Settling:
    """Which positions have settled: the algorithm, apart from the SQL that feeds it.

    `observe` takes what the database's `settle()` answered. A position is settled once
    none of the transactions that were writing when it was the head are left; a fresh head
    is watched as soon as the one before has settled, so an unrelated or even an endless
    transaction elsewhere never holds it back, and a slow writer only what came after it.
    """

    def __init__(self) -> None:
        self.position = 0
        self._watched = 0
        self._holders: frozenset[str] = frozenset()

    def observe(self, head: int, holders: Sequence[str]) -> int:
        """The settled position after an observation of the head and its writers."""
        if not self._holders & set(holders):
            self.position = max(self.position, self._watched)
            self._watched, self._holders = head, frozenset(holders)
        if not holders:
            self.position = max(self.position, head)
        return self.position


_EVENT_COLUMNS = (
    "position, event_id, aggregate_type, aggregate_id, version, event_type,"
    " schema_version, data::text, metadata::text, recorded_at"
)


_Values = tuple[Any, ...]
"""What `append_events` takes."""


class Postgres:
    """A Store on one database, over a pool of `connections`.

    Nothing is opened before the first call. `settled` waits up to `patience` seconds for
    the writers it sees, then answers with what is known.
    """

    def __init__(self, server: Server, connections: int, patience: float = 0.25) -> None:
        self._pool = Pool(server, connections + 1)  # one more for the wake-up
        self._settling = Settling()
        self._settling_lock = threading.Lock()
        self._patience = patience
        self._circuit = CircuitBreaker()
        self._hangs = Hangs()
        self._wakeup = Wakeup(lambda: self._rows("notify events"))
        self._together = Together(self._begin_streams)

    def append(
        self,
        stream: Stream,
        expected_version: int,
        events: Sequence[NewEvent],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        """See Store."""
        if not events and idempotency is None:
            return Appended(expected_version)
        values = _append_values(stream, expected_version, events, metadata, idempotency, answer)
        if expected_version or not events:
            return self._append(values, expected_version, events)
        with self._together.turn(values) as turn:
            if turn.is_done:
                self._wakeup.ring()
                return Appended(len(events))
            return self._append(values, 0, events, turn.outcome_unknown)

    def _append(
        self,
        values: _Values,
        expected_version: int,
        events: Sequence[NewEvent],
        outcome_unknown: bool = False,
    ) -> Appended:
        give_up_at = time.monotonic() + RETRY_FOR
        for last_try in (False, False, True):
            try:
                reach("append:begin")
                row = self._rows(_APPEND, values)[0]
                reach("append:committed")
                break
            except Conflict as conflict:
                # Ours, if the connection broke between the commit and its answer.
                if outcome_unknown and self._holds(events[0].event_id):
                    row = (False, None, expected_version + len(events))
                    break
                raise Conflict(str(conflict)) from conflict
            except StoreAway:
                if last_try or time.monotonic() > give_up_at:
                    raise
                outcome_unknown = True
        replayed, recorded, version = row
        if replayed:
            return Appended(version, _to_answer(recorded))
        self._wakeup.ring()
        return Appended(version)

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        """See Store."""
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
        """See Store."""
        return _to_events(
            self._rows(
                f"select {_EVENT_COLUMNS} from read_stream(%s, %s::uuid, %s, %s)",  # nosec B608
                (stream.aggregate_type, str(stream.aggregate_id), after, limit),
            )
        )

    def settled(self) -> int:
        """See Store."""
        deadline = time.monotonic() + self._patience
        wanted = 0
        while True:
            with self._settling_lock:  # observations must come in the order they were made
                head, holders = self._rows("select head, holders from settle()")[0]
                position = self._settling.observe(head, holders)
            wanted = wanted or head
            if position >= wanted or time.monotonic() > deadline:
                return position
            time.sleep(0.005)

    def progress(self, relay: str) -> Progress:
        """See Store."""
        with self._settling_lock:
            head, holders, relayed, epoch = self._rows(_PROGRESS, (relay,))[0]
            return Progress(head, self._settling.observe(head, holders), relayed, epoch)

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        """See Store."""
        return _read_feed(self._rows, after, until, limit)

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        """See Store."""
        return _to_events(
            self._rows(
                f"select {_EVENT_COLUMNS} from events"  # nosec B608
                " where position > %s and position <= %s"
                " and metadata->>'correlationId' = %s order by position",
                (after, until, correlation_id),
            )
        )

    def read_heads(self, aggregate_type: str, after: int, until: int) -> list[Head]:
        """See Store."""
        rows = self._rows(
            "select aggregate_id, version from read_heads(%s, %s, %s)",
            (aggregate_type, after, until),
        )
        return [Head(*row) for row in rows]

    def schema_version(self) -> int:
        """The version of `init.sql` that the database has; 0 without any."""
        return _schema_version(self._rows)

    def close(self) -> None:
        """Give up all connections; the next call opens new ones."""
        self._pool.close()

    def _begin_streams(self, appends: Sequence[_Values]) -> Sequence[int]:
        """Append them in one transaction; the places, from 1, of those whose key is not known."""
        reach("append:begin")
        places: Sequence[int] = self._rows(_BEGIN_STREAMS, _together_values(appends))[0][0]
        reach("append:committed")
        return places

    def _holds(self, event_id: UUID) -> bool:
        return bool(self._rows("select 1 from events where event_id = %s::uuid", (str(event_id),)))

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        with (
            self._circuit.call(),
            translated(),
            self._pool.connection() as connection,
            connection.cursor() as cursor,
            self._hangs.limit(connection),
        ):
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


class Pool:
    """Connections for threads to share: the one that was given back last is taken first.

    SQLAlchemy makes them; its own pool makes proxies and fires events besides, for each call.
    """

    PATIENCE = 2.0
    """Seconds that a caller waits for a connection; then it is told to come back."""

    def __init__(self, server: Server, size: int) -> None:
        self._engine = connect(server)
        self._free: LifoQueue[Any] = LifoQueue()
        for _ in range(size):
            self._free.put(None)  # a place where no connection is yet
        POOL_MAX.labels("PostgreSQL").set(size)
        self._in_use = POOL_USED.labels("PostgreSQL")

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """The driver's, for one caller. Raises Busy, and what the driver raises."""
        try:
            connection = self._free.get(timeout=self.PATIENCE)
        except Empty:
            raise Busy("all connections to PostgreSQL are in use; nothing was written") from None
        self._in_use.inc()
        try:
            connection = connection or self._new()
            yield connection
        finally:
            if connection and connection.closed:
                self.close()  # the others are as old
                connection = None
            self._free.put(connection)
            self._in_use.dec()

    def close(self) -> None:
        """Close those that nobody uses."""
        taken = []
        with suppress(Empty):
            while True:
                taken.append(self._free.get_nowait())
        for connection in taken:
            if connection:
                connection.close()
            self._free.put(None)

    def _new(self) -> Any:
        connection = self._engine.raw_connection()
        connection.detach()
        return connection.dbapi_connection


class Turn:
    """One append's place among those that go together."""

    def __init__(self, values: _Values) -> None:
        self.values = values
        self.leads = False
        """Whether it has a transaction of its own, in which others may be taken along."""
        self.is_done = False
        """Whether it has been appended, by itself or along with others."""
        self.outcome_unknown = False
        """Whether it may have been appended although nobody said so."""
        self._waits = threading.Lock()
        self._waits.acquire()

    def wait(self) -> None:
        """Until it has been taken along, or leads."""
        self._waits.acquire()

    def wake(self) -> None:
        """End its wait."""
        self._waits.release()


class Together:
    """Group commit: where many streams begin at once, they share a transaction.

    A few transactions are under way at a time; what comes meanwhile gathers, and when one of them
    ends, the first takes all others along. So nobody waits where nobody else is, and under load
    the cost of a transaction is shared. Only streams that begin are taken: they wait for no lock,
    so that none can hold up the others.
    """

    UNDER_WAY = 2
    """Transactions at a time."""

    MOST = 64
    """Appends of one transaction."""

    def __init__(self, append: Callable[[Sequence[_Values]], Sequence[int]]) -> None:
        self._append = append
        self._lock = threading.Lock()
        self._under_way = 0
        self._gathered: deque[Turn] = deque()

    @contextmanager
    def turn(self, values: _Values) -> Iterator[Turn]:
        """Around an append: it is done already, or is for the caller to do."""
        turn = Turn(values)
        with self._lock:
            turn.leads = self._under_way < self.UNDER_WAY
            if turn.leads:
                self._under_way += 1
            else:
                self._gathered.append(turn)
        if not turn.leads:
            turn.wait()
        if not turn.leads:
            yield turn
            return
        try:
            self._take_along(turn)
            yield turn
        finally:
            self._hand_on()

    def _take_along(self, turn: Turn) -> None:
        """Append all that have gathered with this one; where that fails, each is to go alone."""
        with self._lock:
            others = [
                self._gathered.popleft() for _ in range(min(len(self._gathered), self.MOST - 1))
            ]
        if not others:
            return
        all_of_them = [turn, *others]
        for each in all_of_them:
            each.outcome_unknown = True
        try:
            places = self._append([each.values for each in all_of_them])
            for place, each in enumerate(all_of_them, 1):
                each.is_done, each.outcome_unknown = place in places, False
        except Error as error:
            log.info("Each is appended alone", extra={"reason": str(error)})
        finally:
            for each in others:
                each.wake()

    def _hand_on(self) -> None:
        with self._lock:
            if not self._gathered:
                self._under_way -= 1
                return
            next_one = self._gathered.popleft()
        next_one.leads = True
        next_one.wake()


_PROGRESS = (
    "select head, holders, coalesce((select position from checkpoints where name = %s), 0),"
    " (select epoch::text from store_epochs order by number desc limit 1) from settle()"
)

_APPEND = (
    "select replayed, answer, version from append_events("
    "%s, %s::uuid, %s, %s::uuid[], %s::text[], %s::int[], %s::text[], %s::jsonb, %s, %s, %s::jsonb)"
)


_BEGIN_STREAMS = (
    "select begin_streams(%s::text[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[],"
    " %s::int[], %s::uuid[], %s::text[], %s::int[], %s::text[])"
)


def _append_values(
    stream: Stream,
    expected_version: int,
    events: Sequence[NewEvent],
    metadata: Data,
    idempotency: Idempotency | None,
    answer: Answer | None,
) -> _Values:
    return (
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


def _together_values(appends: Sequence[_Values]) -> tuple[object, ...]:
    """Those of `_append_values` of each, as `begin_streams` takes them: by column."""
    kinds, ids, _, *of_events, metadata, keys, hashes, answers = zip(*appends, strict=True)
    return (
        list(kinds),
        list(ids),
        list(metadata),
        list(keys),
        list(hashes),
        list(answers),
        [place for place, event_ids in enumerate(of_events[0], 1) for _ in event_ids],
        *(list(chain.from_iterable(column)) for column in of_events),
    )


def _to_answer(text: str) -> Answer:
    return Answer(**jsontext.parse(text))


def _to_events(rows: Sequence[Sequence[Any]]) -> list[Event]:
    return [
        Event(*place, jsontext.parse(data), jsontext.parse(metadata), recorded_at)  # type: ignore[call-arg]
        for *place, data, metadata, recorded_at in rows
    ]


_Rows = Callable[[str, tuple[object, ...]], list[Any]]


def _read_feed(rows: _Rows, after: int, until: int, limit: int) -> list[Event]:
    statement = f"select {_EVENT_COLUMNS} from read_feed(%s, %s, %s)"  # nosec B608
    return _to_events(rows(statement, (after, until, limit)))


def _schema_version(rows: _Rows) -> int:
    if rows("select to_regclass('public.schema_versions') is null", ())[0][0]:
        return 0
    version: int = rows("select coalesce(max(version), 0) from schema_versions", ())[0][0]
    return version


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
            self._connection = connect(server).connect()
        self._rows("listen events")

    def lock(self) -> bool:
        """See RelayStore."""
        taken: bool = self._rows(
            "select pg_try_advisory_lock(hashtext('relay'), hashtext(%s))", (self._name,)
        )[0][0]
        return taken

    def checkpoint(self) -> int:
        """See RelayStore."""
        rows = self._rows("select position from checkpoints where name = %s", (self._name,))
        return rows[0][0] if rows else 0

    def move_checkpoint(self, position: int) -> None:
        """See RelayStore."""
        self._rows("select move_checkpoint(%s, %s)", (self._name, position))

    def settled(self) -> int:
        """See RelayStore."""
        self.head, holders = self._rows("select head, holders from settle()")[0]
        return self._settling.observe(self.head, holders)

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        """See Store."""
        return _read_feed(self._rows, after, until, limit)

    def schema_version(self) -> int:
        """See Postgres."""
        return _schema_version(self._rows)

    def expire_idempotency_keys(self) -> int:
        """See RelayStore."""
        expired: int = self._rows("select expire_idempotency_keys(1000)")[0][0]
        return expired

    def wait(self, timeout: float) -> None:
        """See RelayStore."""
        driver = self._driver()
        if not driver.notifies:
            select.select([driver], [], [], timeout)
            with translated(), _driver_errors(driver):
                driver.poll()
        driver.notifies.clear()

    def close(self) -> None:
        """Give up the connection, and the lock with it."""
        self._connection.invalidate()
        self._connection.close()

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        with translated(), self._driver().cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def _driver(self) -> Any:
        return self._connection.connection.driver_connection


class Hangs:
    """Ends calls that a server holds and does not answer: stopped, or behind a dead link.

    PostgreSQL's own time limits need a server that works, and TCP's one that does not even
    acknowledge; the driver has none. So a thread looks for calls that are too old, and shuts their
    connection, which the caller finds lost.
    """

    LIMIT = 6.0
    """Seconds; more than `statement_timeout`, within which a server that works has answered."""

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        self._calls: dict[int, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, connection: Any) -> Iterator[None]:
        """Around a call on a psycopg2 connection."""
        number = connection.fileno()
        self._calls[number] = time.monotonic()
        if self._thread is None:
            self._watch()
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def _watch(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hangs", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(min(0.5, self._limit / 2))
            with self._lock:  # while a call is listed, its connection is open and its own
                begun_before = time.monotonic() - self._limit
                for number, begun in list(self._calls.items()):
                    if begun < begun_before:
                        self._shut(number)

    @staticmethod
    def _shut(number: int) -> None:
        with socket.socket(fileno=os.dup(number)) as hanging:
            try:
                hanging.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                log.debug("A connection was lost already", extra={"error": str(error)})


class Wakeup:
    """Tells the relay that something was appended, at once; more seldom than each time if much is.

    It is sent beside the append, not within it: a NOTIFY in the transaction would take a
    lock of the whole PostgreSQL instance at commit. One that is lost costs a little time,
    since the relay polls as well.
    """

    REST, MOST = 0.005, 0.015
    """Seconds between two of them, for each append of the last one, and at most."""

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self._appends = 0  # about: nobody takes a lock for it
        self._rung = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ring(self) -> None:
        """Wake the relay soon; never blocks, never fails."""
        self._appends += 1
        self._rung.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="wakeup", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while self._rung.wait():
            self._rung.clear()
            appends, self._appends = self._appends, 0
            reach("wakeup:begin")
            try:
                self._notify()
            except Away as away:
                log.debug("relay not woken, it will poll", extra={"error": str(away)})
            time.sleep(min(self.REST * appends, self.MOST))


def connect(server: Server) -> Engine:
    """An engine for `server` that keeps no connection: autocommit, every wait with a limit.

    The password is read at each connect. A dead peer is noticed within ten seconds, so
    that a lock it held is soon free.
    """
    url = URL.create(
        "postgresql+psycopg2", server.user, None, server.host, server.port, server.name
    )
    engine = create_engine(
        url,
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        connect_args={
            "connect_timeout": 3,
            "sslmode": "verify-full" if server.tls else "prefer",
            **({"sslrootcert": server.ca_file or _system_ca()} if server.tls else {}),
            "application_name": "eventcore",
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "tcp_user_timeout": 8000,
            "options": "-c statement_timeout=5s -c lock_timeout=3s"
            " -c idle_in_transaction_session_timeout=10s",
        },
    )

    @event.listens_for(engine, "do_connect")
    def fresh_password(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters["password"] = server.password.read()

    return engine


def _system_ca() -> str:
    """The CAs that this machine trusts; libpq comes with an OpenSSL that does not find them."""
    return ssl.get_default_verify_paths().cafile or "system"


def migrate(owner: Server, script: Path, wait: float = 30) -> int:
    """Apply `init.sql` as the database's owner and return the schema version.

    It does not hold up a live database: where a lock cannot be had at once it lets go and
    tries again, for `wait` seconds at most. Raises StoreAway.
    """

    def apply() -> int:
        with translated(), connect(owner).connect() as connection:
            plain = connection.execution_options(no_parameters=True)
            plain.exec_driver_sql(script.read_text())
            found = plain.exec_driver_sql("select max(version) from schema_versions")
            return int(found.scalar_one())

    return retry(apply, wait)


def require_schema(schema_version: int) -> None:
    """Raise StoreAway while the schema is older than this code; a newer one is welcome."""
    if schema_version < SCHEMA_VERSION:
        raise StoreAway(
            f"the schema is at version {schema_version}, version {SCHEMA_VERSION} is needed:"
            " apply init.sql (python -m eventcore migrate)"
        )


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction on an autocommit engine, for tools and tests."""
    isolated = engine.execution_options(isolation_level="READ COMMITTED")
    with isolated.begin() as connection:
        yield connection


_CONFLICT, _KEY_REUSED = "ES001", "ES002"
_BUSY = {"57014", "55P03", "53300", "40001", "40P01"}
_NOT_ALLOWED = {"42501", "42883", "28P01", "28000", "3D000"}


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into ours, by SQLSTATE."""
    try:
        yield
    except DBAPIError as error:
        raise _to_error(getattr(error.orig, "pgcode", None), str(error.orig)) from error
    except psycopg2.Error as error:
        raise _to_error(error.pgcode, str(error)) from error
    except InvalidRequestError as error:  # a connection that was lost before
        raise StoreAway("the connection to PostgreSQL was lost") from error


@contextmanager
def _driver_errors(driver: Any) -> Iterator[None]:
    """The same for a call past SQLAlchemy, straight at the driver."""
    try:
        yield
    except driver.OperationalError as error:
        raise StoreAway(f"the connection to PostgreSQL was lost: {error}") from error


def _to_error(sqlstate: str | None, text: str) -> Exception:
    reason = text.strip().splitlines()[0] if text.strip() else "no reason given"
    if sqlstate == _CONFLICT:
        return Conflict(reason)
    if sqlstate == _KEY_REUSED:
        return KeyReused("this Idempotency-Key was used for another request")
    if sqlstate in _NOT_ALLOWED:
        return StoreAway(f"PostgreSQL does not let us: {reason}")
    if sqlstate in _BUSY:
        return StoreSlow(f"PostgreSQL did not answer in time: {reason}")
    if sqlstate is None or sqlstate[:2] in {"08", "57", "53", "58", "25"}:
        return StoreAway(f"PostgreSQL cannot be reached: {reason}")
    return Misconfigured(f"PostgreSQL refused a statement of ours ({sqlstate}): {reason}")
