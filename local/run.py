"""`make run`: the whole system on one machine, until Ctrl-C.

Starts PostgreSQL, RabbitMQ and MongoDB, each unless its URL is given, or all in containers.
Prepares the event stores, starts the processes and keeps them running, waits until all are
ready and prints their addresses. Stops in the opposite order: processes, then servers. Data stays
for the next run.
"""

import itertools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread

import click

from eventcore.errors import Error
from eventcore.settings import Server
from local.announce import MakeCredentials, RemindingPrinter, announce, say
from local.child import CannotStart, Child, is_free
from local.compose import containers
from local.given import given_mongodb, given_postgres, given_rabbitmq
from local.identity import create_own_user, identity_settings
from local.inside import forget_environments, note_environments
from local.keeper import Keeper
from local.lock import sole_use
from local.processes import (
    Environment,
    Process,
    Servers,
    limit_all_queues,
    prepare_stores,
    processes,
)
from local.servers import MongoDB, OwnServer, PostgreSQL, RabbitMQ, free_port
from local.services import METRICS_PORT, SERVED, SERVICES

_POSTGRES, _RABBITMQ, _MANAGEMENT, _BROKER_METRICS, _MONGODB = 25432, 25672, 25673, 25692, 27117
"""Ports of the servers, outside the usual ones; a free one replaces one that is taken."""


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=".data", show_default=True)
@click.option("--port", default=3000, show_default=True, help="The gateway's; services' follow it.")
@click.option("--host", default="localhost", show_default=True, help="Where all processes listen.")
@click.option("--servers", type=click.Choice(["own", "compose"]), default="own", show_default=True)
@click.option("--observability", is_flag=True, help="Dashboards, with --servers compose.")
@click.option("--auth", is_flag=True, help="Ask callers for a token; one is printed.")
def main(data: Path, port: int, host: str, servers: str, observability: bool, auth: bool) -> None:
    """Run the whole system until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, _hang_up)
    data = data.absolute()
    try:
        if observability and servers != "compose":
            raise CannotStart("OBSERVABILITY=1 needs SERVERS=compose, or `make up` for a cluster.")
        with sole_use(data), ExitStack() as stack:
            if servers == "compose":
                os.environ.update(stack.enter_context(containers(data / "secrets", observability)))
            run(data, port, host, auth)
    except (CannotStart, Error) as problem:
        sys.exit(f"make run: {problem}")
    except KeyboardInterrupt:
        pass  # before the processes ran; afterwards the keeper handles it
    say("Stopped.")


def run(data: Path, port: int, host: str, auth: bool = False) -> None:
    """Runs on `data`, with the gateway on `port` of `host`, until Ctrl-C or SIGTERM.

    With `auth` callers are asked for a token.

    Raises CannotStart or one of eventcore's errors; leaves nothing running in any case.
    """
    ports = {name: port + place for place, name in enumerate(SERVED)}
    for name, number in ports.items():
        if not is_free(number):
            raise CannotStart(
                f"Port {number}, which {name} needs, is taken: stop what listens there "
                f"(`ss -ltnp 'sport = :{number}'` names it)."
            )
    log_format = os.environ.get("LOG_FORMAT") or ("text" if sys.stdout.isatty() else "json")
    with _servers(data, os.environ) as (servers, places, started):
        all_of_them = processes(
            servers,
            data / "secrets",
            ports=ports,
            free_port=_metrics_ports(),
            settings={"LOG_FORMAT": log_format, "HOST": host},
            identity=identity_settings(data / "secrets") if auth else None,
        )
        note_environments(all_of_them, data / "secrets")
        try:
            make_credentials = partial(
                create_own_user, f"http://localhost:{port}", data / "secrets"
            )
            _supervise(all_of_them, places, started, make_credentials if auth else None)
        finally:
            forget_environments(data / "secrets")


@contextmanager
def _servers(
    data: Path, environ: Environment
) -> Iterator[tuple[Servers, Environment, Sequence[Child]]]:
    """The three servers, ready and prepared; their addresses as text; and those started here.

    It stops the servers that it started.
    """
    secrets = data / "secrets"
    given = given_rabbitmq(environ), given_mongodb(environ), given_postgres(environ)
    management = free_port(_MANAGEMENT)
    rabbitmq = given[0] or RabbitMQ(
        data / "rabbitmq", free_port(_RABBITMQ), management, free_port(_BROKER_METRICS)
    )
    mongodb = given[1] or MongoDB(data / "mongodb", free_port(_MONGODB))
    postgres = given[2] or PostgreSQL(data / "postgres", free_port(_POSTGRES))
    all_three = (rabbitmq, mongodb, postgres)  # the slowest first
    try:
        for name, server in zip(("RabbitMQ", "MongoDB", "PostgreSQL"), all_three, strict=True):
            say(f"Starting {name} ..." if isinstance(server, OwnServer) else f"Using your {name}.")
            server.launch()
        postgres.await_ready()
        say("PostgreSQL answers; making the event stores, their logins and their schema ...")
        prepare_stores(postgres.address, secrets)
        mongodb.await_ready()
        readmodels = {service: mongodb.login(f"{service}_read_model") for service in SERVICES}
        say("MongoDB answers; waiting for RabbitMQ ...")
        rabbitmq.await_ready()
        say("RabbitMQ answers; starting the processes ...")
        places = {
            "PostgreSQL": _place(postgres.address),
            "RabbitMQ": _place(rabbitmq.address),
            "MongoDB": _place(mongodb.address),
        }
        if isinstance(rabbitmq, RabbitMQ):
            limit_all_queues(replace(rabbitmq.address, port=management))
            places["RabbitMQ's page"] = f"http://localhost:{management}"
        started = [each.child for each in all_three if isinstance(each, OwnServer)]
        yield Servers(postgres.address, rabbitmq.address, readmodels), places, started
    finally:
        say("Stopping the servers ...")
        with ThreadPoolExecutor() as at_once:
            list(at_once.map(lambda server: server.stop(), all_three))


def _place(server: Server) -> str:
    """The address of a server, its administrator, and the file with the password."""
    where = f"{server.host}:{server.port}, user {server.user}"
    return f"{where}, password in {server.password.file}" if server.password.file else where


def _supervise(
    processes: Sequence[Process],
    places: Environment,
    started: Sequence[Child],
    make_credentials: MakeCredentials | None,
) -> None:
    """Runs the processes until Ctrl-C or SIGTERM; then ends all.

    Raises CannotStart if one of them ends with an error at its first start.
    """
    gateway = f"http://localhost:{processes[0].port}"
    keeper = Keeper(
        RemindingPrinter(f"── {gateway} · beside it: make demo, make shell · Ctrl-C stops ──")
    )
    for each in processes:
        command = ["setpriv", "--pdeathsig", "SIGTERM", "--", *each.argv]
        keeper.add(each.name, f"exec {shlex.join(command)}", each.env)
    stop = Event()
    told = processes, places, started, make_credentials, stop
    Thread(target=announce, args=told, daemon=True).start()
    try:
        keeper.run()
    finally:
        stop.set()  # the servers end next, as they should


def _hang_up(_number: int, _frame: object) -> None:
    """Stops, with output to /dev/null: the terminal is gone."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.kill(os.getpid(), signal.SIGTERM)


def _metrics_ports() -> Callable[[], int]:
    numbers = itertools.count(METRICS_PORT)
    return lambda: free_port(next(numbers))


if __name__ == "__main__":
    main()
