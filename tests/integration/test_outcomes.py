"""A caller is told the truth about a write while PostgreSQL hangs or is read-only."""

import time
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from eventcore.store.connection import connect
from local.servers import PostgreSQL
from local.shop import Shop
from tests.conftest import Databases
from tests.integration.trouble import processes_of, stopped
from tests.integration.wire import Answer, Wire, new_user, user_body


@pytest.fixture
def administrator(postgres: PostgreSQL, databases: Databases) -> Engine:
    return connect(replace(postgres.address, name=databases("user", "service").name))


def post(wire: Wire, name: str, key: str = "") -> Answer:
    headers = {"Idempotency-Key": key} if key else {}
    return wire.send("POST", "/users", user_body(name), headers, at="user-service")


def users(engine: Engine, name: str) -> int:
    with engine.connect() as connection:
        question = "select count(*) from events where data->>'name' = %s"
        return int(connection.exec_driver_sql(question, (name,)).scalar_one())


def soon(what: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("key", ["", f"key-{uuid4()}"])
def test_nobody_is_told_that_nothing_was_written_while_it_may_be(
    shop: Shop, wire: Wire, administrator: Engine, key: str
) -> None:
    name = f"Ghost {uuid4()}"
    post(wire, "Warm")
    with stopped(processes_of(administrator)):
        told = post(wire, name, key)
    assert told.status in (503, 504)
    assert told.value("type") == "urn:problem:outcome-unknown"
    assert b"othing was written" not in told.body
    soon(lambda: users(administrator, name) == 1, 10)
    if key:
        soon(lambda: post(wire, name, key).status == 202, 10)
        again = post(wire, name, key)
        assert again.status == 202
        assert users(administrator, name) == 1
        assert wire.send("GET", f"/users/{again.value('userId')}").value("name") == name


def test_readiness_names_a_read_only_postgresql_and_writes_recover(
    shop: Shop, wire: Wire, administrator: Engine
) -> None:
    user = new_user(wire)
    name = administrator.url.database
    ends = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'user_service'"
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"alter database {name} set default_transaction_read_only = on")
        connection.exec_driver_sql(ends)
    try:
        first = post(wire, "Refused")  # its connection may have been lost with the command on it
        assert first.status in (503, 504)
        for _ in range(5):
            assert post(wire, "Refused").status == 503
            assert wire.send("GET", f"/users/{user}", at="user-service").status == 200
        soon(lambda: b"store" in wire.send("GET", "/readyz", at="user-service").body, 5)
        events = wire.send("GET", f"/users/{user}/events", at="user-service")
        assert events.status == 200
    finally:
        with administrator.connect() as connection:
            connection.exec_driver_sql("set default_transaction_read_only = off")
            connection.exec_driver_sql(f"alter database {name} reset default_transaction_read_only")
    soon(lambda: post(wire, "Back").status == 202, 5)
    soon(lambda: b"store" not in wire.send("GET", "/readyz", at="user-service").body, 5)
    assert users(administrator, "Refused") == 0
