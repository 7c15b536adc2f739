"""One idempotent step that an administrator runs: database, roles and logins of a service.

    event_append ◀── user_service      event_relay ◀── user_relay      user_owner owns it all

The roles on the left hold the rights (`init.sql` grants them) and cannot log in; the
logins are members of one each, with passwords from outside. PUBLIC may not connect, so the
order service's logins cannot reach the user service's database.
"""

from collections.abc import Mapping

from eventcore.settings import Secret, Server
from eventcore.store import connect, translated

LOGINS = {"owner": None, "service": "event_append", "relay": "event_relay"}
"""What each service's logins are for, and the role each is a member of."""


def provision(admin: Server, service: str, passwords: Mapping[str, Secret]) -> None:
    """Make or mend `{service}_event_db` and its logins `{service}_owner`, `_service`, `_relay`.

    `admin` may create databases and roles; `passwords` has one for each login. Run again,
    it changes nothing but passwords that differ. Raises StoreAway, Misconfigured.
    """
    database = f"{service}_event_db"
    with translated(), connect(admin).connect() as live:
        connection = live.execution_options(no_parameters=True)

        def run(statement: str, **names: str) -> None:
            quoted = {key: _identifier(value) for key, value in names.items()}
            connection.exec_driver_sql(statement.format(**quoted))

        def lacks(catalog: str, name: str) -> bool:
            question = f"select from {catalog} = {_literal(name)}"
            return connection.exec_driver_sql(question).first() is None

        for role in ("event_append", "event_relay", "event_read"):
            if lacks("pg_roles where rolname", role):
                run("create role {role} nologin", role=role)
        for purpose, member_of in LOGINS.items():
            login = f"{service}_{purpose}"
            if lacks("pg_roles where rolname", login):
                run("create role {login} login nosuperuser nocreatedb nocreaterole", login=login)
            password = _literal(passwords[login].read())
            connection.exec_driver_sql(f"alter role {_identifier(login)} password {password}")
            if member_of:
                run("grant {role} to {login}", role=member_of, login=login)
        owner = f"{service}_owner"
        if lacks("pg_database where datname", database):
            # who creates a database for another must be its member, superusers aside
            run("grant {owner} to current_user", owner=owner)
            run("create database {database} owner {owner}", database=database, owner=owner)
        run("revoke all on database {database} from public", database=database)
        for purpose in LOGINS:
            login = f"{service}_{purpose}"
            run("grant connect on database {database} to {login}", database=database, login=login)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    if "\\" in text or "\0" in text:
        raise ValueError("a password must not contain a backslash or a NUL")
    return "'" + text.replace("'", "''") + "'"
