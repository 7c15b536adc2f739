"""python -m eventcore COMMAND: every process of a service, and the operator's tools.

SERVICE names the service; `{SERVICE}.service` declares it, `{SERVICE}.main` serves it.
"""

import atexit
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event as Stop
from typing import Any, TextIO
from uuid import uuid4

import click

from eventcore import settings
from eventcore.broker.port import Queue
from eventcore.broker.rabbitmq import RabbitMQ
from eventcore.errors import Misconfigured, Refused, Unavailable
from eventcore.model.service import STORE_LOGINS
from eventcore.model.view import AnyProjection, View
from eventcore.observe.health import HEARTBEAT, Health
from eventcore.observe.logs import start, start_logging
from eventcore.observe.metrics import WINDOW
from eventcore.observe.probes import listen, serve_probes
from eventcore.observe.tracing import start_tracing, stop_tracing
from eventcore.operate import provision as provisioning
from eventcore.operate import provision_broker
from eventcore.operate.shared import (
    declared,
    open_applier,
    open_view,
    projection_named,
    service_module,
)
from eventcore.operate.tools import TOOLS
from eventcore.project.projector import Projector
from eventcore.project.reacting import ReactingApplier
from eventcore.project.reactor_projector import ReactorProjector
from eventcore.project.sweep import Sweep
from eventcore.project.view_projector import PartSweep, ViewProjector, ViewSweep
from eventcore.reactor import Reactor
from eventcore.relay import Relay
from eventcore.retry import retry
from eventcore.store import migrate as schema
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from eventcore.web import server

PROCESSES = ("serve", "relay", "project")
"""The commands that run until they are stopped."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """The processes and tools of an event-sourced service; SERVICE says which."""
    if context.invoked_subcommand not in PROCESSES:
        _start_logging("warning", sys.stderr, "text")  # stdout is for the tool's own answer


@main.command()
def serve() -> None:
    """Serve the service's HTTP calls."""
    server.serve(settings.read_settings(service_module("main").Settings, "serve"))


@main.command()
def relay() -> None:
    """Publish the service's events to the broker."""
    config = settings.read_settings(settings.RelaySettings, "relay")
    service = config.service
    health = Health("store", "broker")
    stop = _start(config, health.missing)
    published = [p for p in declared().projections if service in p.owners]
    queues = [Queue(projection.queue, projection.binding) for projection in published]

    def open_store() -> RelaySession:
        session = RelaySession(config.store, service)
        session.require_schema()
        return session

    broker = RabbitMQ(config.broker, name=f"{service}-relay")
    WINDOW.labels(service).set(config.window)
    Relay(service, open_store, lambda: broker.publisher(queues, config.window), health).run(stop)


@main.command()
@click.argument("name")
def project(name: str) -> None:
    """Run a projector for the projection NAME."""
    projection = projection_named(name)
    config = settings.read_settings(_settings_of(projection), f"project {name}")
    own = ("store",) if isinstance(projection, Reactor) else ()
    health = Health("broker", "readmodel", "feed", *own)
    stop = _start(config, health.missing)
    broker = RabbitMQ(config.broker, name=f"{projection.name}-projector")
    queue = Queue(projection.queue, projection.binding)
    loop = _loop(config, projection)(
        lambda: broker.consumer(queue, prefetch=config.batch),
        health,
        batch=config.batch,
        sweep_interval=config.sweep_interval,
    )
    loop.run(stop)


def _settings_of(projection: AnyProjection) -> type[settings.SweepSettings]:
    if isinstance(projection, View):
        return settings.ViewProjectorSettings
    if isinstance(projection, Reactor):
        return settings.with_amounts(settings.ReactorSettings, projection.amounts)
    return settings.ProjectorSettings


def _loop(config: settings.SweepSettings, projection: AnyProjection) -> Callable[..., Any]:
    """Returns the projector of a projection, a reactor or a view, but for what all take."""
    holder = str(uuid4())
    if isinstance(projection, View):
        assert isinstance(config, settings.ViewProjectorSettings)
        parts = open_view(config, projection, projection.announcements)
        sweeps = [PartSweep(part, holder, config.lease) for part in parts]
        return partial(ViewProjector, parts[0], ViewSweep(sweeps))
    assert isinstance(config, settings.ProjectionSettings)
    applier = open_applier(config, projection, projection.announcement)
    sweep = Sweep(applier, holder, config.lease)
    if isinstance(applier, ReactingApplier):
        assert isinstance(applier.own, Postgres)
        check = applier.own.require_schema
        return partial(ReactorProjector, applier, sweep, check_store=check)
    return partial(Projector, applier, sweep)


@main.command()
@click.option("--script", type=click.Path(path_type=Path), help="The schema; init.sql by default.")
@click.option("--wait", default=30.0, show_default=True, help="Seconds PostgreSQL may be away.")
def migrate(script: Path | None, wait: float) -> None:
    """Apply init.sql to the database that POSTGRES_* names.

    The login must own the database.
    """
    server = settings.read_settings(settings.StoreSettings, "migrate").store
    # beside this file in a wheel, at the top of the repository
    places = (Path(__file__).parents[n] / "init.sql" for n in (0, 2))
    version = schema.migrate(server, script or next(filter(Path.exists, places)), wait)
    click.echo(f"{server.name} is at schema version {version}.")


@main.command()
@click.argument("passwords", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--projector", "projectors", metavar="LOGIN=PROJECTION", multiple=True)
@click.option(
    "--monitor",
    "monitors",
    type=click.Choice(("postgres", "mongodb")),
    multiple=True,
    help="A server whose exporter gets the login `monitor`; one service's run will do.",
)
@click.option(
    "--counters",
    metavar="LOGIN",
    help="The login of MongoDB by which gateways count rate limits; one service's run will do.",
)
@click.option("--wait", default=30.0, show_default=True, help="Seconds a server may be away.")
def provision(
    passwords: Path,
    projectors: Sequence[str],
    monitors: Sequence[str],
    counters: str | None,
    wait: float,
) -> None:
    """Make the service's databases, roles and logins.

    It does so as the administrator of each server that POSTGRES_HOST, RABBITMQ_HOST and
    MONGODB_HOST name; the others are left alone.

    PASSWORDS is a folder with a folder for each server, `postgres`, `rabbitmq`, `mongodb`, in
    which each file is named for a login and holds its password. RABBITMQ_PORT is the
    management API's. Run again, it changes only what differs.
    """
    config = settings.read_settings(settings.ProvisionSettings, "provision")
    runs = dict(each.split("=", 1) for each in projectors)
    projections = {login: projection_named(name) for login, name in runs.items()}
    steps = _Provisioning(config, passwords, wait)
    if config.store:
        steps.provision_store(config.store, "postgres" in monitors)
    if config.broker:
        steps.provision_broker(config.broker, projections)
    if config.readmodel:
        steps.provision_readmodel(config.readmodel, list(projections), "mongodb" in monitors)
        if counters:
            steps.provision_counters(config.readmodel, counters)


@dataclass(frozen=True)
class _Provisioning:
    """The steps of `provision`, each repeated while its server is unavailable."""

    config: settings.ProvisionSettings
    passwords: Path
    wait: float

    def provision_store(self, admin: settings.Server, monitor: bool) -> None:
        """The database, its logins, and on demand the exporter's login."""
        service = self.config.service
        logins = self._read("postgres", *(f"{service}_{each}" for each in STORE_LOGINS))
        what = f"{service}_event_db and its logins"
        self._do(what, provisioning.provision_store, admin, service, logins)
        if monitor:
            [secret] = self._read("postgres", provisioning.MONITOR).values()
            what = "PostgreSQL's login for its exporter and its rights"
            self._do(what, provisioning.provision_store_monitor, admin, secret)

    def provision_broker(
        self, admin: settings.Server, projections: Mapping[str, AnyProjection]
    ) -> None:
        """The virtual host, its queues' limits, and the logins of relay and projectors."""
        service = self.config.service
        logins = self._read("rabbitmq", provisioning.MONITOR, f"{service}-relay", *projections)
        limits = provision_broker.Limits(self.config.queue_bytes, self.config.delivery_limit)
        given = admin, service, projections, logins, limits
        self._do(f"RabbitMQ's logins of {service}", provision_broker.provision_broker, *given)

    def provision_readmodel(
        self, admin: settings.Server, projectors: list[str], monitor: bool
    ) -> None:
        """The logins of service and projectors, and on demand the exporter's."""
        service = self.config.service
        logins = self._read("mongodb", f"{service}-service", *projectors)
        given = admin, service, projectors, logins
        self._do(f"MongoDB's logins of {service}", provisioning.provision_readmodel, *given)
        if monitor:
            [secret] = self._read("mongodb", provisioning.MONITOR).values()
            what = "MongoDB's login for its exporter and its rights"
            self._do(what, provisioning.provision_readmodel_monitor, admin, secret)

    def provision_counters(self, admin: settings.Server, login: str) -> None:
        """The login by which gateways count rate limits."""
        [secret] = self._read("mongodb", login).values()
        what = "MongoDB's login of the rate limits"
        self._do(what, provisioning.provision_counters, admin, login, secret)

    def _read(self, server: str, *logins: str) -> dict[str, settings.Secret]:
        return {each: settings.Secret(file=self.passwords / server / each) for each in logins}

    def _do(self, what: str, act: Callable[..., None], *arguments: object) -> None:
        retry(partial(act, *arguments), self.wait, on_wait=click.echo)
        click.echo(f"{what} are there.")


def _start(config: settings.Settings, missing: Callable[[], Any]) -> Stop:
    """Starts logs, traces and probes; returns an event that SIGTERM and SIGINT set."""
    start(config)
    start_tracing(config)
    atexit.register(stop_tracing)
    serve_probes(listen(config.host, config.metrics_port), missing, HEARTBEAT.stuck)
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _say(problem: str) -> None:
    """Logs why a process cannot start; prints why a tool cannot."""
    if sys.argv[1] not in PROCESSES:
        click.echo(f"eventcore: {problem}", err=True)
        return
    _start_logging("critical", sys.stdout, os.environ.get("LOG_FORMAT", "").lower() or "auto")
    logging.getLogger("eventcore").critical(problem)


def _start_logging(level: str, stream: TextIO, form: str) -> None:
    """Starts logging before settings are read, or without any."""
    process = " ".join(sys.argv[1:])
    start_logging(os.environ.get("SERVICE", ""), process, form, level, stream)


for tool in TOOLS:
    main.add_command(tool)


if __name__ == "__main__":
    try:
        main()
    except (Misconfigured, Unavailable, Refused) as problem:
        _say(str(problem))
        sys.exit(1)
