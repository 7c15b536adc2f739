"""A connection pool to one MongoDB database, behind a circuit breaker."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.model.projection import Document
from eventcore.observe.metrics import POOL_MAX, POOL_USED
from eventcore.readmodel.client import SOCKET_TIMEOUT, WRITE_TIMEOUT, to_url, translated
from eventcore.readmodel.conversion import EXACT
from eventcore.retry import CircuitBreaker
from eventcore.settings import Server

PASSWORD_TTL = 1.0
"""Seconds after which the password is read again from its file."""

AT_ONCE = 50
"""Documents that one request reads or writes, so that a slow server answers in time."""


class Connection:
    """One MongoDB database. Nothing is opened before the first call."""

    def __init__(self, server: Server, connections: int = 20, clock: Clock = SYSTEM_CLOCK) -> None:
        self._server = server
        self._connections = connections
        self._clock = clock
        self._database: Any = None
        self._password = ""  # nosec B105
        self._password_expires_at = 0.0
        self._connecting = threading.Lock()
        self._circuit = CircuitBreaker(clock.monotonic)
        self._in_use = POOL_USED.labels("MongoDB")

    def ping(self) -> None:
        """Return if the server answers."""
        with self.operation():
            self._connected().command("ping")

    def close(self) -> None:
        """Give up all connections; the next call opens new ones."""
        if self._database is not None:
            self._database.client.close()
            self._database = None

    def by_id(
        self,
        collection: str,
        ids: Iterable[str],
        fields: Mapping[str, int] | None = None,
        of_majority: bool = False,
    ) -> list[Document]:
        """Documents by their ids, some at a time: a long `$in` is slow on some servers."""
        wanted, found = list(ids), list[Document]()
        with self.operation():
            among = self.of(collection)
            if of_majority:
                among = among.with_options(read_concern=ReadConcern("majority"))
            for begin in range(0, len(wanted), AT_ONCE):
                some = wanted[begin : begin + AT_ONCE]
                which = some[0] if len(some) == 1 else {"$in": some}
                found += among.find({"_id": which}, fields)
        return found

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Translates errors, counts the operation as a connection in use, and may fail at once."""
        with self._in_use.track_inprogress(), self._circuit.call(), translated():
            yield

    def of(self, collection: str) -> Any:
        """The collection of that name."""
        return self._connected()[collection]

    def _connected(self) -> Any:
        """The database; soon after the password in its file has changed, of a new client."""
        database = self._database
        if database is None or self._clock.monotonic() > self._password_expires_at:
            with self._connecting:  # threads that begin together share a client
                password = self._server.password.read()
                if self._database is None or password != self._password:
                    self.close()
                    self._database, self._password = self._open(password), password
                database = self._database
                self._password_expires_at = self._clock.monotonic() + PASSWORD_TTL
        return database

    def _open(self, password: str) -> Any:
        POOL_MAX.labels("MongoDB").set(self._connections)
        client: MongoClient[Document] = MongoClient(
            to_url(self._server, password),
            maxPoolSize=self._connections,
            serverSelectionTimeoutMS=1500,
            connectTimeoutMS=1500,
            socketTimeoutMS=SOCKET_TIMEOUT,
            waitQueueTimeoutMS=2000,
            heartbeatFrequencyMS=5000,
            appname="eventcore",
        )
        return client.get_database(
            self._server.name,
            codec_options=EXACT,
            write_concern=WriteConcern(w="majority", wtimeout=WRITE_TIMEOUT),
        )
