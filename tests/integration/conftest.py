"""Fixtures of the tests of the services' interfaces: a wire to send on, somebody to send about, and
the proof that nothing came of it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine

from eventcore.model.event import Event
from eventcore.store.connection import connect
from eventcore.store.port import PAGE, Stream
from eventcore.store.postgres import Postgres
from local.processes import Servers, processes
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.services import SERVED, SERVICES
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.wire import Wire, credentials, new_user, order_body


@pytest.fixture
def store(spare_databases: Databases) -> Iterator[Postgres]:
    """A store on databases that nobody else uses."""
    postgres = Postgres(spare_databases("spare", "service"), connections=16)
    yield postgres
    postgres.close()


@pytest.fixture
def owner(spare_databases: Databases) -> Engine:
    """The owner of the same database, who may look behind the functions."""
    return connect(spare_databases("spare", "owner"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events each page has that is read of a stream."""
    pages: list[int] = []
    read = Postgres.read_stream

    def counted(self: Postgres, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        page = read(self, stream, after, limit)
        pages.append(len(page))
        return page

    monkeypatch.setattr(Postgres, "read_stream", counted)
    return pages


@pytest.fixture
def wire(shop: Shop) -> Wire:
    return Wire(shop)


@pytest.fixture(scope="module")
def user_id(shop: Shop) -> str:
    shop.start()  # whatever a test before has left down
    return new_user(Wire(shop))


@pytest.fixture(scope="module")
def order_id(shop: Shop, user_id: str) -> str:
    placed = Wire(shop).send("POST", "/orders", order_body(user_id, b"19.99"))
    assert placed.status == 200, placed
    return placed.value("orderId")


@pytest.fixture
def nothing_written(shop: Shop, wire: Wire) -> Iterator[None]:
    """The logs end where they ended before: not even a position was drawn."""
    before = {name: log_end(shop, wire, name) for name in ("user-service", "order-service")}
    yield
    after = {name: log_end(shop, wire, name) for name in before}
    assert after == before


def log_end(shop: Shop, wire: Wire, service: str) -> int:
    headers = credentials(shop, service)
    answer = wire.send("GET", "/internal/heads", headers=headers, at=service)
    assert answer.status == 200, answer
    return int(answer.value("settled"))


@pytest.fixture(scope="module")
def nothing_unexpected(shop: Shop) -> Iterator[None]:
    """In the end no process has logged an error: none was surprised, and nothing was parked."""
    heard = {name: len(shop.log(name)) for name in shop.names}
    yield
    for name in shop.names:
        said = shop.log(name)[heard[name] :]
        assert '"level": "error"' not in said
        assert "Traceback" not in said


AnotherShop = Callable[..., AbstractContextManager[Shop]]


@pytest.fixture(scope="module")
def another_shop(
    shop: Shop,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    data_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AnotherShop:
    """`with another_shop("user-service", THREADS="4") as shop`: processes with settings of their
    own, those named or all, on the stores of the usual ones, which are stopped meanwhile.
    """

    @contextmanager
    def run(*names: str, **settings: str) -> Iterator[Shop]:
        readmodels = {name: mongodb.login(f"{name}_read_model") for name in SERVICES}
        another = Shop(
            processes(
                Servers(postgres.address, rabbitmq.address, readmodels),
                data_folder / "secrets",
                ports={name: free_port() for name in SERVED},
                free_port=free_port,
                settings={"SWEEP_INTERVAL": "0.5", **settings},
            ),
            tmp_path_factory.mktemp("logs"),
        )
        shop.stop()
        try:
            another.start(*names)
            yield another
        finally:
            another.stop()

    return run
