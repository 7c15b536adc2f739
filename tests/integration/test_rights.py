"""The rights of each login of an event store, which the database enforces."""

from dataclasses import replace

import pytest
from sqlalchemy.exc import DBAPIError

from eventcore.settings import Server
from eventcore.store.connection import connect
from tests.conftest import Databases

READ = "read events"
APPEND = "append"
DUE = "take a deadline that is due"
SNAPSHOT = "write a snapshot"
ACTS = {
    READ: "select * from events limit 1",
    "read how far the relay is": "select * from checkpoints limit 1",
    "read recorded answers": "select * from idempotency_keys limit 1",
    APPEND: "select append_events('user', gen_random_uuid(), 0, array[gen_random_uuid()],"
    " '{USER_CREATED}', '{1}', '{\"{}\"}', '{}')",
    DUE: "select take_due('user', 1, 1)",
    "read deadlines": "select * from deadlines limit 1",
    "change a deadline": "update deadlines set due_at = now()",
    "delete a deadline": "delete from deadlines",
    SNAPSHOT: "select write_snapshot('user', gen_random_uuid(), 1, gen_random_uuid(), '', '', '')",
    "read snapshots": "select * from snapshots limit 1",
    "change a snapshot": "update snapshots set state = ''",
    "delete a snapshot": "delete from snapshots",
    "write an event by hand": "insert into events (event_id, aggregate_type, aggregate_id, version,"
    " event_type, schema_version, data, metadata, recorded_at) values (gen_random_uuid(), 'user',"
    " gen_random_uuid(), 1, 'USER_CREATED', 1, '{}', '{}', now())",
    "draw a position": "select nextval('events_position_seq')",
    "set the positions back": "select setval('events_position_seq', 1)",
    "change an event": "update events set data = '{}'",
    "delete an event": "delete from events",
    "empty the log": "truncate events",
    "write a stream's version": "update streams set version = 1",
    "make a stream": "insert into streams values ('user', gen_random_uuid(), 1, now())",
    "delete a stream": "delete from streams",
    "move the relay's checkpoint": "select move_checkpoint('nobody', 1)",
    "delete a checkpoint": "delete from checkpoints",
    "forge an answer": "insert into idempotency_keys (key, request_hash, answer)"
    " values ('forged', '', '{}')",
    "change an answer": "update idempotency_keys set answer = '{}'",
    "forget what has expired": "select expire_idempotency_keys(1)",
    "begin another epoch": "insert into store_epochs (reason) values ('forged')",
    "begin another epoch by its function": "select begin_epoch('forged')",
    "say another schema": "insert into schema_versions (version) values (99)",
    "take the guard off": "drop trigger events_are_immutable on events",
    "put the guard to sleep": "alter table events disable trigger all",
    "pass by the guard": "set session_replication_role = replica",
    "change the table": "alter table events add column mine int",
    "drop the table": "drop table events",
    "change a function": "alter function settle security definer",
    "make a table": "create table mine (n int)",
    "make a temporary table": "create temporary table mine (n int)",
    "make a schema": "create schema mine",
    "make a function": "create function mine() returns int language sql as 'select 1'",
    "give its place to another": "grant spare_owner to spare_relay",
    "make a login": "create role mine login",
    "become who owns it": "set role spare_owner",
    "become the relay": "set role event_relay",
    "become the superuser": "set role postgres",
    "be more than it is": "alter role current_user superuser",
    "make a database": "create database mine",
    "load code": "load 'dblink'",
    "read a file": "select pg_read_file('/etc/passwd')",
    "read a file by copying": "copy streams from '/etc/passwd'",
    "run a program": "copy events to program 'cat'",
    "read passwords": "select * from pg_authid",
    "end another's session": "select pg_terminate_backend(pid) from pg_stat_activity"
    " where usename = 'postgres'",
    "change the server": "alter system set work_mem = '4MB'",
}  # fmt: skip

MAY = {
    "service": {
        READ,
        "read how far the relay is",
        "read recorded answers",
        APPEND,
        DUE,
        "read deadlines",
        SNAPSHOT,
        "read snapshots",
    },
    "relay": {
        READ,
        "read how far the relay is",
        "read recorded answers",
        "move the relay's checkpoint",
        "forget what has expired",
        "become the relay",
    },
}
ALONE = {"make a database", "change the server"}
"""Statements that PostgreSQL refuses in a transaction."""

NOT_FOR_OWNERS = [
    "pass by the guard", "make a login", "become the superuser", "be more than it is",
    "make a database", "read a file", "read a file by copying", "run a program",
    "read passwords", "change the server", "become the relay of others",
]  # fmt: skip
ACTS["become the relay of others"] = "set role other_relay"
REFUSED = "42501"
"""The SQLSTATE of insufficient privilege."""


def tried(server: Server, act: str) -> str:
    """The SQLSTATE that comes of it, none if it was done; then it is taken back."""
    with connect(server).connect() as live:
        connection = live.execution_options(no_parameters=True)
        if act not in ALONE:
            connection.exec_driver_sql("begin")
        try:
            connection.exec_driver_sql(ACTS[act])
        except DBAPIError as error:
            return str(error.orig.pgcode)  # type: ignore[union-attr]
        finally:
            connection.exec_driver_sql("rollback")
    return ""


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("login", MAY)
def test_a_login_of_an_event_store_may_do_what_its_process_does(
    spare_databases: Databases, login: str, act: str
) -> None:
    assert tried(spare_databases("spare", login), act) == ("" if act in MAY[login] else REFUSED)


@pytest.mark.parametrize("act", NOT_FOR_OWNERS)
def test_who_owns_an_event_store_owns_no_more_than_that(
    spare_databases: Databases, act: str
) -> None:
    spare_databases("other", "owner")
    assert tried(spare_databases("spare", "owner"), act) == REFUSED


@pytest.mark.parametrize("login", ["owner", "service", "relay"])
@pytest.mark.parametrize(("service", "database"), [("spare", "other"), ("other", "spare")])
def test_no_login_of_one_event_store_reaches_another(
    spare_databases: Databases, service: str, database: str, login: str
) -> None:
    name = spare_databases(database, login).name
    with pytest.raises(DBAPIError, match="permission denied for database"):
        connect(replace(spare_databases(service, login), name=name)).connect()
