"""Faults of PostgreSQL: killed, stopped, its sessions ended, its connections and locks taken."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg2

from tests.chaos.fault import Scene, until
from tests.chaos.faults.disks import fill, small_disk


@contextmanager
def killed(scene: Scene) -> Iterator[str]:
    """kill -9 of the postmaster and all it has started."""
    scene.system.postgres.kill()
    yield "PostgreSQL killed"
    scene.system.postgres.start()


@contextmanager
def backend_killed(scene: Scene) -> Iterator[str]:
    """kill -9 of one backend, upon which PostgreSQL ends all of them and recovers."""
    service = scene.turn("user_service", "order_service")
    pids = _sessions(scene, service)
    os.kill(scene.chance.choice(pids), signal.SIGKILL)
    yield f"one backend of {service} killed"
    scene.system.postgres.await_ready()


def _sessions(scene: Scene, login: str) -> list[int]:
    statement = "select pid from pg_stat_activity where usename = %s"
    found: list[int] = []

    def some() -> bool:
        found[:] = [row[0] for row in scene.system.sql("postgres", statement, (login,))]
        return bool(found)

    until(some, 20, f"{login} has a session")
    return found


@contextmanager
def session_ended(scene: Scene) -> Iterator[str]:
    """pg_terminate_backend of a session: a service's, or a relay's, which has the lock."""
    login = scene.turn("order_service", "order_relay", "user_service", "user_relay")
    pid = scene.chance.choice(_sessions(scene, login))
    scene.system.sql("postgres", "select pg_terminate_backend(%s)", (pid,))
    yield f"a session of {login} ended"


@contextmanager
def stopped(scene: Scene) -> Iterator[str]:
    """An immediate stop; or all servers and processes down, then started in reverse order."""
    system = scene.system
    if scene.number % 2 == 0:
        os.kill(system.postgres.child.pid, signal.SIGQUIT)
        until(lambda: not system.postgres.child.is_running, 30, "PostgreSQL stops")
        yield "PostgreSQL stopped at once (immediate)"
        system.postgres.start()
        return
    system.shop.stop()
    for server in system.servers:
        server.stop()
    yield "all stopped; the processes start first, PostgreSQL last"
    system.shop.launch()
    for server in system.servers:
        server.start()
    system.shop.await_ready()


@contextmanager
def crowded(scene: Scene) -> Iterator[str]:
    """No connection is free; or the table of events is locked in one database."""
    system = scene.system
    with ExitStack() as stack:
        if scene.number % 2 == 0:
            for _ in range(250):
                try:
                    connection = _as_owner(scene)
                except psycopg2.OperationalError:
                    break  # there is none left, as intended
                stack.callback(connection.close)
            yield "no connection is free"
            return
        session = stack.enter_context(system.session("order_event_db"))
        session.autocommit = False
        session.cursor().execute("lock table events in share row exclusive mode")
        yield "the events of orders are locked by a transaction left open"


def _as_owner(scene: Scene) -> psycopg2.extensions.connection:
    address = scene.system.postgres.address
    password = (scene.system.secrets / "user_owner").read_text().strip()
    return psycopg2.connect(
        host=address.host, port=address.port, dbname="user_event_db", user="user_owner",
        password=password, connect_timeout=3,
    )  # fmt: skip


@contextmanager
def disk_full(scene: Scene) -> Iterator[str]:
    """pg_wal on a small file system that fills up, then has room again."""
    postgres = scene.system.postgres
    wal = scene.system.folder / "postgres" / "data" / "pg_wal"
    with small_disk(postgres, wal, room=48) as filler:
        fill(filler)
        try:
            for _ in range(6):
                scene.system.sql("postgres", "select pg_switch_wal()")
        except psycopg2.Error:
            pass  # it ends for want of room, as intended
        yield "pg_wal full"
