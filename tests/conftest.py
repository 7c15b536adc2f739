"""Real servers and the real system, each started once, when the first test asks for it.

All on private ports, with data in a temporary folder. A test may stop or kill any of
it: what it leaves down is up again before the next test that asks for it.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from eventcore.settings import Server
from local.identity import identity_settings
from local.processes import (
    Environment,
    Process,
    Servers,
    prepare_stores,
    processes,
    store_login,
)
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.services import SERVED, SERVICES
from local.shop import Shop

Databases = Callable[[str, str], Server]
Thing = TypeVar("Thing", PostgreSQL, RabbitMQ, MongoDB, Shop)


SERVERS = ("postgres", "rabbitmq", "mongodb", "shop")
"""The fixtures that start a server or the whole system."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test that uses a server, so that `-m "not servers"` leaves it out."""
    for item in items:
        if isinstance(item, pytest.Function) and not set(SERVERS).isdisjoint(item.fixturenames):
            item.add_marker("servers")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Prints each failure in one line at once: a run that is ended early still tells them."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = crash.message.splitlines()[0] if crash else "see below"
        print(f"\n{report.nodeid} ({report.when}): {reason}", file=sys.__stderr__, flush=True)


@pytest.fixture(scope="session")
def data_folder() -> Iterator[Path]:
    """Where the servers of this run keep their data; passwords are in its `secrets`.

    Others may pass through it, for PostgreSQL does not run as root.
    """
    with tempfile.TemporaryDirectory(prefix="shop-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="session")
def postgres(data_folder: Path) -> Iterator[PostgreSQL]:
    """A PostgreSQL; `address` is the administrator's."""
    yield from _running(PostgreSQL(data_folder / "postgres", free_port()))


@pytest.fixture(scope="session")
def rabbitmq(data_folder: Path) -> Iterator[RabbitMQ]:
    """A RabbitMQ node; `ctl(...)` is its rabbitmqctl, `metrics_port` where its metrics are."""
    yield from _running(RabbitMQ(data_folder / "rabbitmq", free_port(), metrics_port=free_port()))


@pytest.fixture(scope="session")
def mongodb(data_folder: Path) -> Iterator[MongoDB]:
    """A server that speaks MongoDB's protocol; `login(database)` makes a database's own user."""
    yield from _running(MongoDB(data_folder / "mongodb", free_port()))


@pytest.fixture(scope="session")
def databases(postgres: PostgreSQL, data_folder: Path) -> Databases:
    """Both event stores, provisioned and migrated: `databases("user", "relay")` is a login.

    The purposes are owner, service and relay.
    """
    secrets = data_folder / "secrets"
    prepare_stores(postgres.address, secrets)
    return lambda service, purpose: store_login(postgres.address, service, purpose, secrets)


@pytest.fixture(scope="session")
def spare_databases(postgres: PostgreSQL, data_folder: Path) -> Databases:
    """An event store that no process uses, for tests that write into it whatever they like:
    `spare_databases("spare", "service")`. A second one, "other", is there for strangers.
    """
    secrets = data_folder / "secrets"
    prepare_stores(postgres.address, secrets, ("spare", "other"))
    return lambda service, purpose: store_login(postgres.address, service, purpose, secrets)


@pytest.fixture(scope="session")
def shop(
    databases: Databases,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    data_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """All processes, ready, on stores and read models of their own; `armed` makes one die."""
    readmodels = {service: mongodb.login(f"{service}_read_model") for service in SERVICES}
    servers = Servers(postgres.address, rabbitmq.address, readmodels)
    ports = {name: free_port() for name in SERVED}
    made = processes(
        servers,
        data_folder / "secrets",
        ports=ports,
        free_port=free_port,
        settings={"SWEEP_INTERVAL": "0.5"},
    )
    folder = tmp_path_factory.mktemp("failpoints")
    armable = [replace(each, env={**each.env, **_failpoints(folder, each)}) for each in made]
    yield from _running(Shop(armable, tmp_path_factory.mktemp("logs")))


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the keys of the issuer that `guarded_shop` believes."""
    return tmp_path_factory.mktemp("issuer")


@pytest.fixture(scope="module")
def guarded_shop(
    databases: Databases,
    postgres: PostgreSQL,
    rabbitmq: RabbitMQ,
    mongodb: MongoDB,
    data_folder: Path,
    issuer: Path,
) -> Iterator[Shop]:
    """All processes, which ask callers for an identity; beside those of `shop`, relays and
    projectors are further replicas.
    """
    readmodels = {service: mongodb.login(f"{service}_read_model") for service in SERVICES}
    every = processes(
        Servers(postgres.address, rabbitmq.address, readmodels),
        data_folder / "secrets",
        ports={name: free_port() for name in SERVED},
        free_port=free_port,
        identity=identity_settings(issuer),
    )
    yield from _running(Shop(every, issuer / "logs"))


def _failpoints(folder: Path, process: Process) -> Environment:
    """The setting by which a process has a folder of failpoints of its own."""
    (folder / process.name).mkdir()
    return {"FAILPOINTS": str(folder / process.name)}


def armed(shop: Shop, name: str, point: str) -> Path:
    """The file of a failpoint: there until the process reaches the point and dies by SIGKILL."""
    file = Path(shop.environment(name)["FAILPOINTS"], point)
    file.touch()
    return file


@pytest.fixture(autouse=True)
def _all_up(request: pytest.FixtureRequest) -> None:
    """Before each test, what it asks for runs, whatever the test before has done to it."""
    for name in SERVERS:
        if name in request.fixturenames:
            thing = request.getfixturevalue(name)
            if isinstance(thing, PostgreSQL | RabbitMQ | MongoDB | Shop):
                thing.start()


def _running(thing: Thing) -> Iterator[Thing]:
    try:
        thing.start()
        yield thing
    finally:
        thing.stop()
