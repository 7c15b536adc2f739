"""Faults that make the running system log errors."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pika
from sqlalchemy import Connection, Engine

from eventcore.errors import Conflict
from eventcore.model.event import NewEvent
from eventcore.store.port import Stream, read_pages
from eventcore.store.postgres import Postgres
from local.servers import RabbitMQ
from tests.conftest import Databases


def append_what_no_code_knows(user_id: str, databases: Databases) -> None:
    """The user's stream is parked from then on, as a release that was taken back may leave it."""
    with closing(Postgres(databases("user", "service"), 1)) as store:
        event = NewEvent(uuid4(), "USER_MARRIED", 1, {})
        store.append(Stream("user", UUID(user_id)), 1, [event], {})


def outrun(user_id: str, databases: Databases, goes_on: Callable[[], bool]) -> None:
    """Change the user, past the service and faster than it can, so that its commands lose."""
    stream, version = Stream("user", UUID(user_id)), 1
    with closing(Postgres(databases("user", "service"), 1)) as store:
        while goes_on():
            event = NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": f"Eve {version}"})
            try:
                version = store.append(stream, version, [event], {}).version
            except Conflict:
                version = list(read_pages(store, stream, version))[-1][-1].version


def publish(rabbitmq: RabbitMQ, body: bytes) -> None:
    """Put a message where all queues of users get it."""
    address = rabbitmq.address
    credentials = pika.PlainCredentials(address.user, address.password.read())
    place = pika.ConnectionParameters(address.host, address.port, address.name, credentials)
    connection = pika.BlockingConnection(place)
    connection.channel().basic_publish("events", "user.made-up", body)
    connection.close()


@contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    """Stops processes, as a hanging machine does, for the length of the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def processes_of(engine: Engine) -> set[int]:
    """All processes of a PostgreSQL but those that serve this engine."""
    with engine.connect() as connection:
        file = connection.exec_driver_sql("show data_directory").scalar_one()
        postmaster = int(Path(file, "postmaster.pid").read_text().split()[0])
        pids = connection.exec_driver_sql(
            "select pid from pg_stat_activity where pid <> pg_backend_pid()"
        )
        return {postmaster, *(pid for (pid,) in pids)}


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction on an autocommit engine."""
    isolated = engine.execution_options(isolation_level="READ COMMITTED")
    with isolated.begin() as connection:
        yield connection
