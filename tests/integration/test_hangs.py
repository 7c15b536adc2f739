"""A server that hangs, was read-only, or went away: what callers get, and when it works again."""

import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine

from eventcore.command import Call, handle
from eventcore.errors import OutcomeUnknown, Overloaded, ReadModelUnavailable, StoreUnavailable
from eventcore.model.event import NewEvent
from eventcore.readmodel.mongo import Mongo
from eventcore.retry import FAILURES
from eventcore.settings import Server
from eventcore.store.connection import connect
from eventcore.store.port import Answer, Idempotency, Stream
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from local.servers import MongoDB, PostgreSQL, free_port
from tests.conftest import Databases
from tests.integration.trouble import processes_of, stopped, transaction
from user.user import DECIDER, CreateUser


@pytest.fixture
def store(spare_databases: Databases, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    monkeypatch.setattr("eventcore.store.connection.CALL_TIME", 0.5)
    store = Postgres(spare_databases("spare", "service"), 1)
    yield store
    store.close()


@pytest.fixture
def administrator(postgres: PostgreSQL, spare_databases: Databases) -> Engine:
    """The superuser, connected to the database of `store`."""
    return connect(replace(postgres.address, name=spare_databases("spare", "service").name))


def backends(store: Postgres) -> set[int]:
    """The processes that serve the store's connections."""
    question = "select pg_backend_pid()"
    return {store._rows(question)[0][0], store._write(question)[0][0]}


def soon(what: Callable[[], Any], seconds: float) -> None:
    """Return once `what` raises nothing any more."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            what()
            return
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def begin(store: Postgres, key: Idempotency | None = None) -> UUID:
    """Append the first event of a stream."""
    made = uuid4()
    events = [NewEvent(uuid4(), "THING_MADE", 1, {})]
    store.append(Stream("thing", made), 0, events, {}, key, Answer(202, {"id": str(made)}, {}))
    return made


def create(store: Postgres, key: Idempotency | None) -> Answer:
    """Create a user, as the service does."""
    return handle(
        store,
        DECIDER,
        user := uuid4(),
        CreateUser("Ada", "ada@example.com"),
        Call({}, key),
        lambda _state, _version: Answer(202, {"userId": str(user)}, {}),
        creates=True,
    )


# ── a server that hangs ───────────────────────────────────────────────────────────────────


def test_a_read_on_a_hanging_connection_is_answered_over_a_new_one(
    postgres: PostgreSQL, store: Postgres
) -> None:
    stream = Stream("thing", begin(store))
    with stopped(backends(store)):
        began = time.monotonic()
        assert len(store.read_stream(stream)) == 1
        assert time.monotonic() - began < 5


def test_an_append_that_a_hanging_process_holds_is_done_once(
    postgres: PostgreSQL, store: Postgres
) -> None:
    begin(store)
    with stopped(backends(store)):
        made = begin(store)
    assert len(store.read_stream(Stream("thing", made))) == 1


def test_a_command_on_a_hanging_server_has_an_unknown_outcome(
    postgres: PostgreSQL, store: Postgres, administrator: Engine
) -> None:
    begin(store)
    backends(store)
    key = Idempotency(f"key {uuid4()}", "hash")
    hanging = processes_of(administrator)
    with stopped(hanging), pytest.raises(OutcomeUnknown, match="Idempotency-Key") as caught:
        create(store, key)
    lost = caught.value.aggregate_id

    again: list[Answer] = []
    soon(lambda: again.append(create(store, key)), 10)
    assert again[0].body == {"userId": str(lost)}
    assert again[0].headers["Idempotency-Replayed"] == "true"
    with administrator.connect() as connection:
        found = connection.exec_driver_sql(
            "select count(*) from events where aggregate_id = %s::uuid", (str(lost),)
        )
        assert found.scalar_one() == 1


def test_a_command_that_was_never_sent_is_known_to_have_written_nothing(
    spare_databases: Databases,
) -> None:
    nowhere = replace(spare_databases("spare", "service"), port=free_port())
    store = Postgres(nowhere, 1)
    for _ in range(FAILURES + 1):
        with pytest.raises(StoreUnavailable) as caught:
            create(store, None)
        assert caught.value.outcome_known
    store.close()


def test_a_call_within_its_time_is_left_alone(postgres: PostgreSQL, store: Postgres) -> None:
    for _ in range(3):
        assert store._rows("select pg_sleep(0.3)")


def test_a_relay_gives_up_a_server_that_hangs(
    postgres: PostgreSQL, spare_databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.store.connection.CALL_TIME", 0.5)
    session = RelaySession(spare_databases("spare", "relay"), f"hangs {uuid4()}")
    with stopped({session._rows("select pg_backend_pid()")[0][0]}), pytest.raises(StoreUnavailable):
        session.settled_event()
    session.close()


# ── a server that is read-only for a while ────────────────────────────────────────────────


def test_reads_go_on_while_the_server_is_read_only_and_writes_recover(
    postgres: PostgreSQL, store: Postgres, administrator: Engine
) -> None:
    stream = Stream("thing", begin(store))
    name = administrator.url.database
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"alter database {name} set default_transaction_read_only = on")
    try:
        store._writes.close()
        for _ in range(2 * FAILURES):
            with pytest.raises(StoreUnavailable) as caught:
                begin(store)
            assert caught.value.outcome_known
            assert len(store.read_stream(stream)) == 1
        with pytest.raises(StoreUnavailable, match="read-only"):
            store.require_writable()
    finally:
        with administrator.connect() as connection:
            connection.exec_driver_sql("set default_transaction_read_only = off")
            connection.exec_driver_sql(f"alter database {name} reset default_transaction_read_only")
    soon(lambda: begin(store), 5)
    store.require_writable()


def test_a_connection_to_a_server_that_became_read_only_is_given_up(
    postgres: PostgreSQL, store: Postgres, administrator: Engine
) -> None:
    """As after a failover behind an address that keeps its connections."""
    store._write("set default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="accepts no writes") as caught:
        begin(store)
    assert caught.value.outcome_known
    begin(store)
    store._write("set default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="read-only"):
        store.require_writable()
    store.require_writable()


# ── connections that are lost, and a pool that is full ────────────────────────────────────


def test_after_a_restart_of_postgresql_nobody_is_refused(
    postgres: PostgreSQL, spare_databases: Databases
) -> None:
    store = Postgres(spare_databases("spare", "service"), 16)
    stream = Stream("thing", begin(store))
    with ThreadPoolExecutor(16) as threads:

        def read(_: int) -> int:
            return len(store.read_stream(stream))

        def append(_: int) -> UUID:
            return begin(store)

        assert set(threads.map(read, range(64))) == {1}
        assert len(set(threads.map(append, range(64)))) == 64
        postgres.stop()
        postgres.start()
        assert set(threads.map(read, range(16))) == {1}
        assert len(set(threads.map(append, range(16)))) == 16
    store.close()


def test_a_caller_that_finds_all_connections_in_use_is_told_to_come_back(
    spare_databases: Databases, owner: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventcore.store.connection.ConnectionPool.PATIENCE", 0.1)
    store = Postgres(spare_databases("spare", "service"), 1)
    begin(store)
    with ThreadPoolExecutor(1) as threads, transaction(owner) as connection:
        connection.exec_driver_sql("lock table streams in exclusive mode")
        held = threads.submit(begin, store)
        waiting = "select count(*) from pg_locks where not granted"
        while not connection.exec_driver_sql(waiting).scalar_one():
            time.sleep(0.01)
        with pytest.raises(Overloaded, match="nothing was written"):
            begin(store)
        connection.exec_driver_sql("rollback")
        assert held.result()
    begin(store)
    store.close()


def test_a_thread_alone_uses_one_connection(store: Postgres) -> None:
    assert len({store._write("select pg_backend_pid()")[0][0] for _ in range(10)}) == 1


# ── a client that is gone ─────────────────────────────────────────────────────────────────


def deafen(number: int) -> None:
    """Let the kernel drop all that arrives at a socket, as if its machine were off the network."""
    with socket.socket(fileno=os.dup(number)) as heard:
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        heard.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


@pytest.mark.parametrize("notified", [False, True])
def test_the_lock_of_a_relay_whose_machine_is_gone_is_free_in_ten_seconds(
    spare_databases: Databases, store: Postgres, notified: bool
) -> None:
    login, name = spare_databases("spare", "relay"), f"ghost {uuid4()}"
    ghost = RelaySession(login, name)
    assert ghost.lock()
    deafen(ghost._driver.fileno())
    other = RelaySession(login, name)
    assert not other.lock()
    if notified:
        begin(store)  # the notification is never acknowledged
    deadline = time.monotonic() + 12
    while not other.lock():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    other.close()


def test_sessions_of_services_have_the_limits_of_their_role(store: Postgres) -> None:
    assert store._rows("show tcp_user_timeout") == [("8000",)]
    assert store._rows("show tcp_keepalives_idle") == [("5",)]
    assert store._rows("show statement_timeout") == [("5s",)]


# ── a server that is away ─────────────────────────────────────────────────────────────────


def test_while_postgresql_is_gone_callers_are_told_at_once(spare_databases: Databases) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(200)  # it accepts, and says nothing
        nowhere = replace(spare_databases("spare", "service"), port=silent.getsockname()[1])
        store = Postgres(nowhere, 4)
        for _ in range(FAILURES):
            with pytest.raises(StoreUnavailable):
                store.settled()
        began = time.monotonic()

        def ask(_: int) -> str:
            with pytest.raises(StoreUnavailable) as caught:
                store.read_stream(Stream("thing", uuid4()))
            return str(caught.value)

        with ThreadPoolExecutor(16) as pool:
            said = set(pool.map(ask, range(200)))
        # one of them may have been let through to try, which takes a connection's time limit
        assert time.monotonic() - began < 5
        assert all("PostgreSQL" in each for each in said)
        store.close()


def test_while_mongodb_is_gone_callers_are_told_at_once(mongodb: MongoDB) -> None:
    login: Server = replace(mongodb.login("hangs"), port=free_port())
    readmodel = Mongo(login)
    for _ in range(FAILURES):
        with pytest.raises(ReadModelUnavailable):
            readmodel.ping()
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(ReadModelUnavailable):
            readmodel.find("things", ["a"])
    assert time.monotonic() - began < 4  # two or three of them were let through to try
    readmodel.close()


def test_what_comes_back_is_used_within_a_moment(postgres: PostgreSQL, store: Postgres) -> None:
    postgres.stop()
    for _ in range(FAILURES + 2):
        with pytest.raises(StoreUnavailable):
            store.settled()
    postgres.start()
    soon(store.settled, 10)
