"""The system under test: real servers, all processes, and a proxy on each link between them.

postgres   services, relays ─▶ PostgreSQL        feed      projectors ─▶ services
rabbitmq   relays, projectors ─▶ RabbitMQ        gateway   gateway ─▶ services
mongodb    services, projectors ─▶ MongoDB
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pika
import psycopg2

from eventcore.model.view import AnyProjection
from eventcore.readmodel.mongo import Mongo
from eventcore.readmodel.records import generation_of
from local.processes import (
    Environment,
    Process,
    Servers,
    limit_all_queues,
    prepare_stores,
    processes,
)
from local.servers import MongoDB, PostgreSQL, RabbitMQ, free_port
from local.services import SERVED, SERVICES
from local.shop import Shop
from order import credit_saga
from order.projections import customers, known_users, orders
from tests.chaos.link import Link
from tests.chaos.proxy import Loop, Proxy
from user import credit_reactor
from user.projections import credit, users

PROJECTIONS: Sequence[tuple[AnyProjection, str, str]] = (
    (users.PROJECTION, "user", "user-projector"),
    (orders.PROJECTION, "order", "order-projector"),
    (known_users.PROJECTION, "order", "order-user-sync"),
    (customers.VIEW, "order", "order-customers"),
)
"""Each projection and view, the service of its read model, and the process that runs it."""

CREDIT: Sequence[tuple[AnyProjection, str, str]] = (
    (credit.PROJECTION, "user", "credit-projector"),
    (credit_reactor.REACTOR, "user", "user-credit"),
    (credit_saga.REACTOR, "order", "order-saga"),
)
"""The projection and reactors of limited credit. The load sets no limit, so they apply nothing;
but they can halt."""

LINKS = ("postgres", "rabbitmq", "mongodb", "feed", "gateway")


class System:
    """All of it, running; every part can be hurt and healed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.secrets = folder / "secrets"
        self.postgres = PostgreSQL(folder / "postgres", free_port())
        management = free_port()
        self.rabbitmq = RabbitMQ(folder / "rabbitmq", free_port(), management)
        self.mongodb = MongoDB(folder / "mongodb", free_port())
        self.servers = (self.rabbitmq, self.mongodb, self.postgres)
        for server in self.servers:
            stack.callback(server.stop)
            server.launch()
        for server in self.servers:
            server.await_ready()
        prepare_stores(self.postgres.address, self.secrets)
        limit_all_queues(replace(self.rabbitmq.address, port=management))
        self._loop = Loop()
        stack.callback(self._loop.stop)
        self.links, ports = self._lay_links()
        self.processes = self._processes(ports)
        self.shop = Shop(list(self.processes.values()), folder / "logs")
        stack.callback(self.shop.stop)
        self.shop.start()
        self.models = {
            service: Mongo(self.mongodb.login(f"{service}_read_model")) for service in SERVICES
        }
        for model in self.models.values():
            stack.callback(model.close)

    # ── what is hurt ──────────────────────────────────────────────────────────────────────

    def arm(self, name: str, point: str) -> Path:
        """Let a process die when it next reaches a failpoint; the file goes when it does."""
        file = Path(self.processes[name].env["FAILPOINTS"]) / point
        file.touch()
        return file

    @contextmanager
    def in_place_of(self, name: str, env: Environment, argv: Sequence[str] = ()) -> Iterator[Shop]:
        """Run a process with another environment in place of the usual one."""
        own = self.processes[name]
        other = replace(own, env={**own.env, **env}, argv=(*argv, *own.argv))
        self.shop.stop(name)
        shop = Shop([other], self.folder / "logs")
        try:
            shop.launch()
            yield shop
        finally:
            shop.kill()
            self.shop.launch(name)

    @contextmanager
    def beside(
        self, name: str, port: int = 0, settings: Environment | None = None
    ) -> Iterator[Shop]:
        """Run a second replica of a process, on ports of its own."""
        own = self.processes[name]
        metrics = free_port()
        env = {**own.env, **(settings or {}), "METRICS_PORT": str(metrics)}
        env |= {"PORT": str(port)} if port else {}
        at = port or metrics
        replica = Process(f"{name}-2", own.argv, env, at, f"http://127.0.0.1:{at}/readyz")
        shop = Shop([replica], self.folder / "logs")
        try:
            shop.start()
            yield shop
        finally:
            shop.stop()

    def require_links(self) -> None:
        """Raise AssertionError if nothing goes over a link: hurting it would change nothing."""
        unused = [
            link.name for link in self.links.values() if not all(p.carries for p in link.proxies)
        ]
        assert not unused, f"nothing goes over {unused}"

    def restore(self) -> None:
        """Whatever a fault has left: all links whole, all servers and processes up."""
        for link in self.links.values():
            link.heal()
        for server in self.servers:
            server.start()
        for name in self.shop.names:
            for file in Path(self.processes[name].env["FAILPOINTS"]).iterdir():
                file.unlink()
        self.shop.launch()
        self.shop.await_ready()

    def start_anew(self) -> None:
        """Kill all there is, and start it again on the same data."""
        self.shop.kill()
        for server in self.servers:
            server.kill()
        for server in self.servers:
            server.start()
        self.shop.start()

    # ── who knows the truth ───────────────────────────────────────────────────────────────

    def sql(self, database: str, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        """Ask PostgreSQL as its administrator, past every proxy."""
        with self.session(database) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    @contextmanager
    def session(self, database: str) -> Iterator[Any]:
        """A session of the administrator's; it commits each statement."""
        address = self.postgres.address
        connection = psycopg2.connect(
            host=address.host, port=address.port, dbname=database, user=address.user,
            password=address.password.read(), connect_timeout=5, application_name="chaos",
        )  # fmt: skip
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of the broker's administrator, past every proxy."""
        address = self.rabbitmq.address
        credentials = pika.PlainCredentials(address.user, address.password.read())
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(
                address.host, address.port, address.name, credentials,
                heartbeat=30, blocked_connection_timeout=30,
            )
        )  # fmt: skip
        try:
            yield connection.channel()
        finally:
            if connection.is_open:
                connection.close()

    def tool(self, process: str, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run one of the operator's tools where a process runs."""
        return subprocess.run(
            [sys.executable, "-m", "eventcore", *arguments],
            env={**self.processes[process].env, **env},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def serving(self, projection: AnyProjection, service: str) -> str:
        """The collection that serves a projection now."""
        number = self.models[service].generations(projection.name).serving
        return generation_of(projection, number).collection

    # ── how it is put together ────────────────────────────────────────────────────────────

    def _lay_links(self) -> tuple[dict[str, Link], Mapping[str, int]]:
        """The links, and the ports that the services themselves listen on."""
        ports = {name: free_port() for name in SERVED}

        def link(name: str, *targets: int) -> Link:
            return Link(name, [Proxy(self._loop, free_port(), target) for target in targets])

        services = ports["user-service"], ports["order-service"]
        links = [
            link("postgres", self.postgres.address.port),
            link("rabbitmq", self.rabbitmq.address.port),
            link("mongodb", self.mongodb.address.port),
            link("feed", *services),
            link("gateway", *services),
        ]
        return {each.name: each for each in links}, ports

    def _processes(self, ports: Mapping[str, int]) -> dict[str, Process]:
        def behind(link: str) -> int:
            return self.links[link].proxies[0].port

        logins = {s: self.mongodb.login(f"{s}_read_model") for s in SERVICES}
        direct = "&directConnection=true"  # or the driver goes where the server says it is
        servers = Servers(
            replace(self.postgres.address, port=behind("postgres")),
            replace(self.rabbitmq.address, port=behind("rabbitmq")),
            {
                service: replace(login, port=behind("mongodb"), options=login.options + direct)
                for service, login in logins.items()
            },
        )
        settings = {"LOG_FORMAT": "json", "LOG_LEVEL": "INFO", "SWEEP_INTERVAL": "1"}
        made = processes(servers, self.secrets, ports=ports, free_port=free_port, settings=settings)
        return {each.name: replace(each, env=self._told(each, ports)) for each in made}

    def _told(self, process: Process, ports: Mapping[str, int]) -> Environment:
        """Its environment with the proxies' ports in it, and a folder for its failpoints."""
        failpoints = self.folder / "failpoints" / process.name
        failpoints.mkdir(parents=True, exist_ok=True)
        env = {**process.env, "FAILPOINTS": str(failpoints)}
        for place, name in enumerate(("user-service", "order-service")):
            direct = f"http://127.0.0.1:{ports[name]}"
            for variable in env:
                link = "gateway" if variable == "UPSTREAMS" else "feed"
                if variable == "UPSTREAMS" or re.fullmatch("FEED(_[A-Z]+)?_URL", variable):
                    proxy = f"http://127.0.0.1:{self.links[link].proxies[place].port}"
                    env[variable] = env[variable].replace(direct, proxy)
        return env


@contextmanager
def running() -> Iterator[System]:
    """A system of one's own, in a temporary folder, gone afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        folder.chmod(0o711)
        (folder / "logs").mkdir()
        yield System(folder, stack)
