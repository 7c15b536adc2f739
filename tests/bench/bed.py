"""What the rows are measured on: servers and processes of the run's own, begun when asked for."""

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import psycopg2

from eventcore.command import new_id
from eventcore.event import NewEvent
from eventcore.readmodel import Mongo
from eventcore.settings import Server
from local.processes import ROOT, Process, Servers, prepare_stores, processes, store_login
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.shop import Shop
from tests.otlp import elsewhere

VARIANTS: dict[str, dict[str, str]] = {
    "echo": {"SERVICE": "echo"},
    "unmetered": {"SERVICE": "unmetered"},
    "unlogged": {"LOG_LEVEL": "ERROR"},
    "two-workers": {"WORKERS": "2"},
    "traced": {"OTEL_TRACES_SAMPLER_ARG": "0.1"},
}
"""The order service once more, with something changed, for rows that compare; and the echo."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done in one measurement; `seconds` where it lasts as long as it is told."""

    seconds: float
    relayed: int
    projected: int
    rebuilt: int
    rows: int
    fill_seconds: float
    answered: int
    contended: int


FULL = Size(
    seconds=8, relayed=100_000, projected=100_000, rebuilt=40_000, rows=10_000_000,
    fill_seconds=300, answered=200, contended=400,
)  # fmt: skip
SHORT = Size(
    seconds=3, relayed=10_000, projected=3_000, rebuilt=4_000, rows=300_000,
    fill_seconds=40, answered=60, contended=100,
)  # fmt: skip
QUICK = Size(
    seconds=2, relayed=500, projected=900, rebuilt=400, rows=12_000,
    fill_seconds=10, answered=10, contended=20,
)  # fmt: skip


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
        """The eight processes, and the variants of the order service; nothing runs yet."""
        eight = self._eight_told({})
        order_service = next(each for each in eight if each.name == "order-service")
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": self._stack.enter_context(elsewhere())}
        variants = [
            _variant(order_service, name, told | (traces if name == "traced" else {}))
            for name, told in VARIANTS.items()
        ]
        shop = Shop([*eight, *variants], self._folder / "logs")
        self._stack.callback(shop.stop)
        return shop

    def shop_told(self, settings: Mapping[str, str]) -> Shop:
        """Eight processes more, on the same stores, with settings of their own."""
        shop = Shop(self._eight_told(settings), self._folder / "logs-told")
        self._stack.callback(shop.stop)
        return shop

    def _eight_told(self, settings: Mapping[str, str]) -> list[Process]:
        for service in ("user", "order"):
            self.store(service, "owner")
        return processes(
            Servers(
                self.postgres.address,
                self.rabbitmq.address,
                {name: self.readmodel(name) for name in ("user", "order")},
            ),
            self._folder / "secrets",
            ports={name: free_port() for name in ("gateway", "user-service", "order-service")},
            free_port=free_port,
            settings={"LOG_FORMAT": "json", "LOG_LEVEL": "INFO", **settings},
        )

    @property
    def eight(self) -> list[str]:
        """The names of the system's own processes."""
        return [name for name in self.shop.names if name not in VARIANTS]

    def durability(self) -> str:
        """What the servers themselves say about waiting for their disks."""
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

    def bare_collection(self, name: str) -> Any:
        """pymongo's own collection, `w: majority`, in a database of the benchmark's own."""
        return self.mongo._of(name)

    @cached_property
    def mongo(self) -> Mongo:
        """A read model for rows that need no service."""
        mongo = Mongo(self.readmodel("bench"))
        self._stack.callback(mongo.close)
        return mongo

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


def _variant(base: Process, name: str, told: Mapping[str, str]) -> Process:
    port = free_port()
    env = {
        **base.env, **told, "PORT": str(port), "METRICS_PORT": str(free_port()),
        "PYTHONPATH": f"{ROOT / 'services'}:{ROOT / 'tests' / 'bench'}:{ROOT}",
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}/readyz"
    return replace(base, name=name, env=env, port=port, ready_url=url)


USER = new_id()

ORDER = {"userId": str(USER), "item": "Laptop", "price": 2500}
"""What each measured order is about."""


def new_event() -> NewEvent:
    """An order as the order service writes it."""
    return NewEvent(new_id(), "ORDER_PLACED", 1, ORDER)  # type: ignore[arg-type]


def metadata() -> dict[str, str]:
    """What stands beside an event's data."""
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
