"""The servers and processes that the rows are measured on, started at first use."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from pymongo import MongoClient

from eventcore.ids import new_id
from eventcore.model.event import NewEvent
from eventcore.settings import Server
from local.processes import Servers, prepare_stores, processes, store_login
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.services import SERVED, SERVICES
from local.shop import Shop


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done in one measurement; `seconds` where it lasts as long as it is told."""

    seconds: float
    relayed: int
    projected: int
    answered: int
    contended: int
    parked: int


FULL = Size(
    seconds=8, relayed=100_000, projected=100_000, answered=200, contended=400, parked=20_000
)  # fmt: skip
SHORT = Size(seconds=3, relayed=10_000, projected=3_000, answered=60, contended=100, parked=2_000)
QUICK = Size(seconds=2, relayed=500, projected=900, answered=10, contended=20, parked=200)


Started = TypeVar("Started", PostgreSQL, RabbitMQ, MongoDB)


class Bed:
    """Servers, stores, read models and processes. All of it ends with the stack."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        folder.chmod(0o711)  # PostgreSQL, which does not run as root, must pass
        self._folder = folder
        self._stack = stack
        self._prepared: set[str] = set()

    @cached_property
    def postgres(self) -> PostgreSQL:
        """A PostgreSQL that waits for its disk at each commit."""
        return self._started(PostgreSQL(self._folder / "postgres", free_port()))

    @cached_property
    def rabbitmq(self) -> RabbitMQ:
        """A RabbitMQ node."""
        return self._started(RabbitMQ(self._folder / "rabbitmq", free_port()))

    def new_broker(self) -> Server:
        """A virtual host without queues, in place of the one before.

        The shop uses another one: its projectors and these rows do not get each other's events.
        """
        ctl, name = self.rabbitmq.ctl, "bench"
        if name in ctl("list_vhosts").split():
            ctl("delete_vhost", name)
        ctl("add_vhost", name)
        ctl("set_permissions", "-p", name, self.rabbitmq.address.user, ".*", ".*", ".*")
        return replace(self.rabbitmq.address, name=name)

    @cached_property
    def mongodb(self) -> MongoDB:
        """A server that speaks MongoDB's protocol, and confirms what its journal has on disk."""
        return self._started(MongoDB(self._folder / "mongodb", free_port()))

    def store(self, service: str, purpose: str) -> Server:
        """A login of an event store, which is made if need be."""
        secrets = self._folder / "secrets"
        if service not in self._prepared:
            prepare_stores(self.postgres.address, secrets, (service,))
            self._prepared.add(service)
        return store_login(self.postgres.address, service, purpose, secrets)

    def readmodel(self, service: str) -> Server:
        """A read model's login."""
        return self.mongodb.login(f"{service}_read_model")

    @cached_property
    def shop(self) -> Shop:
        """The processes of the system; nothing runs yet."""
        for service in SERVICES:
            self.store(service, "owner")
        started = processes(
            Servers(
                self.postgres.address,
                self.rabbitmq.address,
                {name: self.readmodel(name) for name in SERVICES},
            ),
            self._folder / "secrets",
            ports={name: free_port() for name in SERVED},
            free_port=free_port,
            settings={"LOG_FORMAT": "json", "LOG_LEVEL": "INFO"},
        )
        shop = Shop(started, self._folder / "logs")
        self._stack.callback(shop.stop)
        return shop

    def durability(self) -> str:
        """The servers' own figures of waiting for their disks."""
        with self.sql(self.postgres.address) as cursor:
            names = ("fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
            said = []
            for name in names:
                cursor.execute(f"show {name}")  # nosec B608
                said.append(f"`{name}={cursor.fetchone()[0]}`")
        return (
            f"PostgreSQL {', '.join(said)}; RabbitMQ quorum queues, persistent messages, publisher"
            " confirms, manual acks; MongoDB `w: majority`, a stand-in that syncs its journal at"
            " each commit"
        )

    def sql(self, login: Server) -> "Sql":
        """A cursor of the bare driver, on a connection of its own that commits by itself."""
        return Sql(login)

    def bare_collection(self, name: str, service: str = "bench") -> Any:
        """pymongo's own collection in a service's read model, `w: majority`."""
        login = self.readmodel(service)
        client: MongoClient[dict[str, Any]] = MongoClient(
            login.host, login.port, username=login.user, password=login.password.read(),
            authSource="admin", retryWrites=False, w="majority", journal=True,
        )  # fmt: skip
        self._stack.callback(client.close)
        return client[login.name][name]

    def _started(self, server: Started) -> Started:
        self._stack.callback(server.stop)
        server.start()
        return server


class Sql:
    """A connection to PostgreSQL with one cursor, nothing of ours between."""

    def __init__(self, login: Server) -> None:
        self._connection = psycopg2.connect(
            host=login.host, port=login.port, dbname=login.name,
            user=login.user, password=login.password.read(),
        )  # fmt: skip
        self._connection.autocommit = True

    def __enter__(self) -> Any:
        return self._connection.cursor()

    def __exit__(self, *_: object) -> None:
        self._connection.close()


USER = new_id()

ORDER = {"userId": str(USER), "item": "Laptop", "price": 2500}
"""The item of each measured order."""


def new_event() -> NewEvent:
    """An order as the order service writes it."""
    return NewEvent(new_id(), "ORDER_PLACED", 1, ORDER)  # type: ignore[arg-type]


def metadata() -> dict[str, str]:
    """The metadata of an event."""
    request_id = str(new_id())
    return {"correlationId": request_id, "causationId": request_id}


def in_threads(count: int, act: Any) -> None:
    """Do it in so many threads at once; raises what any of them raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
