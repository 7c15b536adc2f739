"""Setup needs no superuser: to create databases and roles is enough, again and again."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eventcore.provision import LOGINS, provision_store
from eventcore.settings import Secret, Server
from eventcore.store import connect, migrate
from local.servers import PostgreSQL, free_port

SCHEMA = Path(__file__).parents[2] / "init.sql"


@pytest.fixture
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A login that may create databases and roles; roles are a whole server's, so on its own."""
    server = PostgreSQL(tmp_path_factory.mktemp("rights") / "postgres", free_port())
    server.start()
    try:
        with connect(server.address).connect() as connection:
            connection.exec_driver_sql("create role shop_admin login password 'secret'")
            connection.exec_driver_sql("alter role shop_admin createdb createrole")
        yield replace(server.address, user="shop_admin", password=Secret("secret"))
    finally:
        server.stop()


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
