"""Connections to PostgreSQL: pools, limits, and calls through a circuit breaker."""

import select
import ssl
import time
from contextlib import suppress
from typing import Any

import psycopg2
from psycopg2 import extensions
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.pool import NullPool, QueuePool

from eventcore.errors import Overloaded, StoreUnavailable
from eventcore.observe.metrics import POOL_MAX, POOL_USED
from eventcore.retry import CircuitBreaker
from eventcore.settings import Server
from eventcore.store.sqlstates import CURED_BY_A_NEW_CONNECTION, READ_ONLY, of_driver, translated

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


class ConnectionPool:
    """Runs statements over a connection pool of its own, behind a circuit breaker of its own.

    With `attempts` > 1, retries after a lost connection; use it for reads only.
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
            raise Overloaded(
                "all connections to PostgreSQL are in use; nothing was written"
            ) from None
        driver, began = connection.driver_connection, time.monotonic()
        try:
            return fetch(driver, statement, values)
        except psycopg2.Error as error:
            if not (driver.closed or error.pgcode in CURED_BY_A_NEW_CONNECTION):  # type: ignore[union-attr]
                raise of_driver(error) from error
            connection.invalidate(error)
            self.close()  # the other connections are as old
            stale = _Stale(str(of_driver(error)))
            stale.outcome_known = error.pgcode == READ_ONLY or self._attempts > 1
            stale.unreachable = time.monotonic() - began > CALL_TIME
            raise stale from error
        finally:
            connection.close()


class _Stale(StoreUnavailable):
    """A connection that was lost during a statement, or that leads to a read-only server.

    A new connection may do; only a server that held the statement counts as unreachable.
    """

    unreachable = False


def fetch(driver: Any, statement: str, values: tuple[object, ...]) -> list[Any]:
    """Runs one statement on a psycopg2 connection."""
    with driver.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def _wait(connection: Any) -> None:
    """Waits for PostgreSQL in place of psycopg2, which would wait for ever.

    Neither PostgreSQL's nor TCP's timeouts detect a stopped server or a hung disk. After the error
    psycopg2 closes the connection.
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
    engine = create_engine(
        URL.create("postgresql+psycopg2", server.user, None, server.host, server.port, server.name),
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        connect_args={
            **_tls(server),
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


def _tls(server: Server) -> dict[str, str]:
    if not server.tls:
        return {"sslmode": "prefer"}
    # libpq comes with an OpenSSL that does not find the machine's own CAs
    trusted = server.ca_file or ssl.get_default_verify_paths().cafile or "system"
    return {"sslmode": "verify-full", "sslrootcert": trusted}
