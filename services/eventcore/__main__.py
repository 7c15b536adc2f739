"""python -m eventcore COMMAND: every process of a service, and the operator's tools.

SERVICE names the service; its module `{SERVICE}.main` says what there is to project and to
serve. Imports wait until a command is known: `serve` must set up metrics before any of them.
"""

import atexit
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Stop
from typing import Any
from uuid import uuid4

import click

from eventcore.errors import Away, Misconfigured
from eventcore.projection import Projection
from eventcore.settings import SERVERS, Secret, Settings, read_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The processes and tools of an event-sourced service; SERVICE says which."""


@main.command()
def serve() -> None:
    """Serve the service's HTTP calls."""
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="metrics-"))
    settings = read_settings(process="serve", needs=_service().NEEDS)
    from eventcore.serving import serve as run

    run(settings)


@main.command()
def relay() -> None:
    """Relay the service's events to the broker."""
    settings = read_settings(process="relay", needs=("store", "broker"))
    from eventcore.broker import Queue, RabbitMQ
    from eventcore.observe import WINDOW, Health
    from eventcore.relay import Relay
    from eventcore.store import RelaySession, require_schema

    health = Health("store", "broker")
    stop = _start(settings, health.missing)
    assert settings.store
    assert settings.broker
    server, broker_server = settings.store, settings.broker
    own = [p for p in _service().PROJECTIONS if p.aggregate_type == settings.service]
    queues = [Queue(projection.queue, projection.binding) for projection in own]

    def open_store() -> RelaySession:
        session = RelaySession(server, settings.service)
        require_schema(session.schema_version())
        return session

    broker = RabbitMQ(
        broker_server,
        name=f"{settings.service}-relay",
        delivery_limit=settings.delivery_limit,
        queue_bytes=settings.queue_bytes,
    )
    WINDOW.labels(settings.service).set(settings.window)
    Relay(
        settings.service,
        open_store,
        lambda: broker.publisher(queues, settings.window),
        health,
    ).run(stop)


@main.command()
@click.argument("name")
def project(name: str) -> None:
    """Run a projector for the projection NAME."""
    settings = read_settings(process=f"project {name}", needs=("broker", "readmodel", "feed"))
    projection = _projection(name)
    from eventcore.broker import Queue, RabbitMQ
    from eventcore.observe import Health
    from eventcore.projector import Projector, Sweep

    health = Health("broker", "readmodel", "feed")
    stop = _start(settings, health.missing)
    assert settings.broker
    readmodel, feed, folder = _folder(settings, projection)
    broker = RabbitMQ(
        settings.broker,
        name=f"{projection.name}-projector",
        delivery_limit=settings.delivery_limit,
        queue_bytes=settings.queue_bytes,
    )
    queue = Queue(projection.queue, projection.binding)
    Projector(
        projection,
        readmodel,
        folder,
        Sweep(folder, projection, readmodel, feed, str(uuid4()), settings.lease),
        lambda: broker.consumer(queue, prefetch=settings.batch),
        health,
        batch=settings.batch,
        sweep_interval=settings.sweep_interval,
    ).run(stop)


@main.command()
@click.option("--script", type=click.Path(path_type=Path), help="The schema; init.sql by default.")
@click.option("--wait", default=30.0, show_default=True, help="Seconds PostgreSQL may be away.")
def migrate(script: Path | None, wait: float) -> None:
    """Apply init.sql, as the owner of the database that POSTGRES_* names."""
    settings = read_settings(process="migrate", needs=("store",))
    from eventcore.store import migrate as run

    assert settings.store
    version = run(settings.store, script or Path(__file__).parents[2] / "init.sql", wait)
    click.echo(f"{settings.store.name} is at schema version {version}.")


@main.command()
@click.argument("passwords", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--projector", "projectors", metavar="LOGIN=PROJECTION", multiple=True)
@click.option("--wait", default=30.0, show_default=True, help="Seconds a server may be away.")
def provision(passwords: Path, projectors: Sequence[str], wait: float) -> None:
    """Make the service's databases, roles and logins, as the administrator of each server
    that is named by POSTGRES_HOST, RABBITMQ_HOST and MONGODB_HOST; the others are left alone.

    PASSWORDS is a folder with a folder for each server, `postgres`, `rabbitmq`, `mongodb`, in
    which each file is named for a login and holds its password. RABBITMQ_PORT is the
    management API's. Run again, it changes only what differs.
    """
    given = [role for role, prefix in SERVERS.items() if os.environ.get(f"{prefix}_HOST")]
    settings = read_settings(process="provision", needs=given)
    import eventcore.provision as run
    from eventcore.store import patiently

    service = settings.service
    runs = dict(each.split("=", 1) for each in projectors)
    projections = {login: _projection(name) for login, name in runs.items()}

    def read(server: str, *logins: str) -> dict[str, Secret]:
        return {each: Secret(file=passwords / server / each) for each in logins}

    def do(what: str, act: Callable[[], None]) -> None:
        patiently(act, wait, click.echo)
        click.echo(f"{what} are there.")

    if store := settings.store:
        logins = read("postgres", *(f"{service}_{purpose}" for purpose in run.LOGINS))
        do(
            f"{service}_event_db and its logins",
            lambda: run.provision_store(store, service, logins),
        )
    if broker := settings.broker:
        rabbits = read("rabbitmq", "monitor", f"{service}-relay", *projections)
        do(
            f"RabbitMQ's logins of {service}",
            lambda: run.provision_broker(broker, service, projections, rabbits),
        )
    if readmodel := settings.readmodel:
        mongos = read("mongodb", f"{service}-service", *projections)
        do(
            f"MongoDB's logins of {service}",
            lambda: run.provision_readmodel(readmodel, service, list(projections), mongos),
        )


@main.command()
@click.argument("beginnings", metavar="[BEGINNING]...", nargs=-1)
def metrics(beginnings: Sequence[str]) -> None:
    """Print the metrics of the process whose METRICS_PORT this is, all or those that begin so."""
    settings = read_settings(process="metrics", needs=())
    import urllib.request

    try:
        url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError as error:
        raise Away(f"nothing serves metrics at METRICS_PORT: {error}") from error
    for line in lines:
        if not line.startswith("#") and (not beginnings or line.startswith(beginnings)):
            click.echo(line)


@main.group()
def parked() -> None:
    """Streams that a projection has set aside."""


@parked.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def parked_list(as_json: bool) -> None:
    """List them: projection, stream, where it stopped, and why."""
    settings = read_settings(process="parked list", needs=("readmodel",))
    from eventcore.readmodel import Mongo

    assert settings.readmodel
    readmodel = Mongo(settings.readmodel)
    for projection in _service().PROJECTIONS:
        for each in readmodel.parked(projection.name).values():
            line = {
                "projection": each.projection,
                "stream": each.stream,
                "version": each.version,
                "highest": each.highest,
                "when": each.when.isoformat(),
                "error": each.error,
            }
            click.echo(json.dumps(line) if as_json else "  ".join(map(str, line.values())))


@parked.command(name="retry")
@click.argument("projection_name", metavar="PROJECTION")
@click.argument("streams", metavar="[STREAM]...", nargs=-1)
def parked_retry(projection_name: str, streams: Sequence[str]) -> None:
    """Try the parked streams of PROJECTION again, all or those named.

    A stream goes on where it stopped; one that still cannot be applied stays parked. Ends
    with status 1 if any does.
    """
    settings = read_settings(process="parked retry", needs=("readmodel", "feed"))
    readmodel, _, folder = _folder(settings, _projection(projection_name))
    still = 0
    for stream in streams or readmodel.parked(projection_name):
        released = folder.retry(stream)
        still += not released
        click.echo(f"{stream}: {'released' if released else 'still parked'}")
    sys.exit(1 if still else 0)


def _service() -> Any:
    """The module that puts the service together: TITLE, NEEDS, PROJECTIONS, create_app."""
    name = os.environ.get("SERVICE", "")
    try:
        return importlib.import_module(f"{name or 'SERVICE'}.main")
    except ModuleNotFoundError as error:
        raise Misconfigured(f"SERVICE must name a service, not {name!r}") from error


def _projection(name: str) -> Projection:
    known: dict[str, Projection] = {each.name: each for each in _service().PROJECTIONS}
    if name not in known:
        raise Misconfigured(f"there is no projection {name!r}, only {', '.join(known) or 'none'}")
    return known[name]


def _folder(settings: Settings, projection: Projection) -> tuple[Any, Any, Any]:
    from eventcore.feed import HttpFeed
    from eventcore.projector import Folder
    from eventcore.readmodel import Mongo

    assert settings.readmodel
    readmodel = Mongo(settings.readmodel)
    feed = HttpFeed(settings.feed_url, settings.feed_token)
    return readmodel, feed, Folder(projection, readmodel, feed)


def _start(settings: Settings, missing: Callable[[], Any]) -> Stop:
    """Logs, probes, and an event that SIGTERM and SIGINT set."""
    from eventcore.observe import serve_probes, start
    from eventcore.tracing import start_tracing, stop_tracing

    start(settings)
    start_tracing(settings)
    atexit.register(stop_tracing)
    serve_probes(settings.metrics_port, missing)
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


if __name__ == "__main__":
    try:
        main()
    except (Misconfigured, Away) as problem:
        click.echo(f"eventcore: {problem}", err=True)
        sys.exit(1)
