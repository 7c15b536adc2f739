"""Setup needs no superuser: to create databases and roles is enough, again and again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eventcore.errors import Misconfigured
from eventcore.provision import LOGINS, provision_store, provision_store_monitor
from eventcore.settings import Secret, Server
from eventcore.store import connect, migrate
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


def test_who_may_create_databases_and_roles_can_set_both_services_up_and_change_passwords(
    admin: Server,
) -> None:
    for turn in ("first", "second"):
        for service in ("user", "order"):
            passwords = {f"{service}_{purpose}": Secret(f"{turn}-{purpose}") for purpose in LOGINS}
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
