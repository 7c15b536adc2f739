"""A server that is there and does not answer holds nobody for long."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from uuid import uuid4

import pytest

from eventcore.errors import ReadModelAway, StoreAway
from eventcore.event import NewEvent
from eventcore.readmodel import Mongo
from eventcore.retry import FAILURES
from eventcore.store import Hangs, Postgres, Stream
from local.servers import MongoDB, PostgreSQL, free_port
from tests.conftest import Databases


@contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def store(spare_databases: Databases) -> Iterator[Postgres]:
    store = Postgres(spare_databases("spare", "service"), 1)
    store._hangs = Hangs(limit=0.5)
    yield store
    store.close()


def backends(store: Postgres) -> set[int]:
    """The processes that serve the store's connections, which take turns."""
    return {store._rows("select pg_backend_pid()")[0][0] for _ in range(6)}


def test_a_call_that_postgresql_holds_is_ended_and_the_next_one_has_a_new_connection(
    postgres: PostgreSQL, store: Postgres
) -> None:
    stream = Stream("thing", uuid4())
    store.append(stream, 0, [NewEvent(uuid4(), "THING_MADE", 1, {})], {})
    with stopped(backends(store)):
        began = time.monotonic()
        with pytest.raises(StoreAway):
            store._rows("select 1")
        assert time.monotonic() - began < 5
        assert len(store.read_stream(stream)) == 1


def test_a_call_within_its_time_is_left_alone(postgres: PostgreSQL, store: Postgres) -> None:
    for _ in range(3):
        assert store._rows("select pg_sleep(0.3)")
    store._hangs = Hangs(limit=5)
    assert store._rows("select pg_sleep(1)")


def test_while_postgresql_is_gone_callers_are_told_at_once(spare_databases: Databases) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(200)  # it accepts, and says nothing
        nowhere = replace(spare_databases("spare", "service"), port=silent.getsockname()[1])
        store = Postgres(nowhere, 4)
        for _ in range(FAILURES):
            with pytest.raises(StoreAway):
                store.settled()
        began = time.monotonic()

        def ask(_: int) -> str:
            with pytest.raises(StoreAway) as caught:
                store.read_stream(Stream("thing", uuid4()))
            return str(caught.value)

        with ThreadPoolExecutor(16) as pool:
            said = set(pool.map(ask, range(200)))
        # one of them may have been let through to try, which takes a connection's time limit
        assert time.monotonic() - began < 5
        assert all("PostgreSQL" in each for each in said)
        store.close()


def test_while_mongodb_is_gone_callers_are_told_at_once(mongodb: MongoDB) -> None:
    login = replace(mongodb.login("hangs"), port=free_port())
    readmodel = Mongo(login)
    for _ in range(FAILURES):
        with pytest.raises(ReadModelAway):
            readmodel.ping()
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(ReadModelAway):
            readmodel.find("things", ["a"])
    assert time.monotonic() - began < 4  # two or three of them were let through to try
    readmodel.close()


def test_what_comes_back_is_used_within_a_moment(postgres: PostgreSQL, store: Postgres) -> None:
    postgres.stop()
    for _ in range(FAILURES + 2):
        with pytest.raises(StoreAway):
            store.settled()
    postgres.start()
    deadline = time.monotonic() + 10
    while True:
        try:
            store.settled()
            break
        except StoreAway:
            assert time.monotonic() < deadline
            time.sleep(0.05)
