"""Setup needs no superuser: to create databases and roles is enough, again and again."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from eventcore.errors import Misconfigured
from eventcore.model.event import NewEvent
from eventcore.model.service import STORE_LOGINS
from eventcore.operate.provision import provision_store, provision_store_monitor
from eventcore.settings import Secret, Server
from eventcore.store.connection import LIMITS, connect
from eventcore.store.migrate import migrate
from eventcore.store.port import Stream
from eventcore.store.postgres import Postgres
from local.servers import PostgreSQL, free_port

SCHEMA = Path(__file__).parents[2] / "init.sql"


@pytest.fixture
def superuser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of a server of its own, since roles are a whole server's."""
    server = PostgreSQL(tmp_path_factory.mktemp("rights") / "postgres", free_port())
    server.start()
    try:
        yield server.address
    finally:
        server.stop()


@pytest.fixture
def admin(superuser: Server) -> Server:
    """A login that may create databases and roles."""
    with connect(superuser).connect() as connection:
        connection.exec_driver_sql("create role shop_admin login password 'secret'")
        connection.exec_driver_sql("alter role shop_admin createdb createrole")
    return replace(superuser, user="shop_admin", password=Secret("secret"))


def test_an_account_with_createdb_and_createrole_sets_both_services_up(
    admin: Server,
) -> None:
    for turn in ("first", "second"):
        for service in ("user", "order"):
            passwords = {
                f"{service}_{purpose}": Secret(f"{turn}-{purpose}") for purpose in STORE_LOGINS
            }
            provision_store(admin, service, passwords)
            database = f"{service}_event_db"
            owner = f"{service}_owner"
            migrate(replace(admin, name=database, user=owner, password=passwords[owner]), SCHEMA)
            for login, password in passwords.items():
                server = replace(admin, name=database, user=login, password=password)
                with connect(server).connect() as connection:
                    assert connection.exec_driver_sql("select current_user").scalar() == login


def test_who_may_not_grant_pg_monitor_is_told_who_must_and_then_is_content(
    superuser: Server, admin: Server
) -> None:
    secret = Secret("secret")
    with pytest.raises(Misconfigured, match="`grant pg_monitor to monitor`"):
        provision_store_monitor(admin, secret)
    with connect(superuser).connect() as connection:
        connection.exec_driver_sql("grant pg_monitor to monitor")
    provision_store_monitor(admin, secret)
    with connect(replace(superuser, user="monitor", password=secret)).connect() as connection:
        assert connection.exec_driver_sql("select pg_database_size(current_database())").scalar()


def set_up(admin: Server, service: str, turn: str = "first") -> dict[str, Secret]:
    """Provision and migrate a service's event store; its logins' passwords."""
    passwords = {f"{service}_{purpose}": Secret(f"{turn}-{purpose}") for purpose in STORE_LOGINS}
    provision_store(admin, service, passwords)
    migrate(login(admin, service, "owner", passwords), SCHEMA)
    return passwords


def login(admin: Server, service: str, purpose: str, passwords: dict[str, Secret]) -> Server:
    user = f"{service}_{purpose}"
    return replace(admin, name=f"{service}_event_db", user=user, password=passwords[user])


@pytest.mark.parametrize(
    "before",
    [
        [],
        ["create table notes (id serial primary key, text text)", "create view v as table notes"],
        [SCHEMA.read_text()],
        ["alter schema public owner to postgres", "revoke all on schema public from public"],
    ],
    ids=["empty", "with tables", "with the schema of somebody else", "with an older schema public"],
)
def test_a_database_that_is_there_already_is_taken_over(
    superuser: Server, before: list[str]
) -> None:
    with connect(superuser).connect() as connection:
        for role in ("event_append", "event_relay", "event_read"):
            connection.exec_driver_sql(f"create role {role} nologin")
        connection.exec_driver_sql("create database user_event_db")
    with connect(replace(superuser, name="user_event_db")).connect() as connection:
        for statement in before:
            connection.execution_options(no_parameters=True).exec_driver_sql(statement)
    passwords = set_up(superuser, "user")
    store = Postgres(login(superuser, "user", "service", passwords), 1)
    store.append(Stream("user", uuid4()), 0, [NewEvent(uuid4(), "USER_CREATED", 1, {})], {})
    store.close()


def test_who_may_not_take_a_database_over_is_told_which_statement_to_run(
    superuser: Server, admin: Server
) -> None:
    with connect(superuser).connect() as connection:
        connection.exec_driver_sql("create database user_event_db")
    statement = 'alter database "user_event_db" owner to "user_owner"'
    with pytest.raises(Misconfigured, match=re.escape(f"run `{statement}`")):
        set_up(admin, "user")
    with connect(superuser).connect() as connection:
        connection.exec_driver_sql(statement)
    set_up(admin, "user")


def test_no_password_is_in_a_statement_and_only_one_that_differs_is_set(
    superuser: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with connect(superuser).connect() as connection:
        connection.exec_driver_sql("alter system set log_statement = 'all'")
        connection.exec_driver_sql("select pg_reload_conf()")

    def verifiers() -> dict[str, str]:
        with connect(superuser).connect() as connection:
            found = connection.exec_driver_sql(
                "select rolname, rolpassword from pg_authid where rolname like 'user%%'"
            )
            return {each.rolname: each.rolpassword for each in found}

    passwords = set_up(superuser, "user")
    first = verifiers()
    assert set(first) == set(passwords)
    set_up(superuser, "user")
    assert verifiers() == first
    set_up(superuser, "user", "second")
    assert not set(verifiers().values()) & set(first.values())
    logs = tmp_path_factory.getbasetemp().glob("rights*/postgres/log")
    text = "".join(each.read_text() for each in logs)
    assert 'alter role "user_owner"' in text
    assert "first-owner" not in text
    assert "second-relay" not in text


def test_who_cannot_read_verifiers_sets_only_a_password_that_differs(
    superuser: Server, admin: Server
) -> None:
    def verifier() -> str:
        with connect(superuser).connect() as connection:
            question = "select rolpassword from pg_authid where rolname = 'user_service'"
            return str(connection.exec_driver_sql(question).scalar_one())

    set_up(admin, "user")
    first = verifier()
    set_up(admin, "user")
    assert verifier() == first
    set_up(admin, "user", "second")
    assert verifier() != first


@pytest.mark.parametrize("secret", ["a\\b", "it's", '"quoted"', "100%", "$1 {} :name", "päss wörd"])
def test_any_printable_character_may_be_in_a_password(superuser: Server, secret: str) -> None:
    passwords = {f"user_{purpose}": Secret(secret) for purpose in STORE_LOGINS}
    for _ in range(2):
        provision_store(superuser, "user", passwords)
        with connect(login(superuser, "user", "service", passwords)).connect() as connection:
            assert connection.exec_driver_sql("select current_user").scalar() == "user_service"


def test_services_and_relays_have_session_limits_by_their_role(
    superuser: Server,
) -> None:
    set_up(superuser, "user")
    with connect(superuser).connect() as connection:
        told = connection.exec_driver_sql(
            "select rolname, rolconfig from pg_roles where rolname like 'user%%'"
        )
        limits = {each.rolname: each.rolconfig for each in told}
    wanted = {f"{name}={value}" for name, value in LIMITS.items()}
    assert set(limits["user_service"]) == set(limits["user_relay"]) == wanted
    assert limits["user_owner"] is None
