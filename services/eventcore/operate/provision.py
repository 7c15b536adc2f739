"""One idempotent step that an administrator runs: databases, roles and logins of a service.

    PostgreSQL   {service}_event_db, and a login for its owner, the service and the relay:
                 event_append ◀── user_service   event_relay ◀── user_relay   user_owner owns it
    RabbitMQ     a login for the relay and each projector, with the rights to declare, publish
                 and read what it needs; `monitor`, which may list queues and read none;
                 policies that limit the queues of the projectors
    MongoDB      {service}_read_model, and a login for the service (reads) and each projector
    both         where asked for, `monitor` for an exporter of PostgreSQL or MongoDB: it may ask
                 for the server's numbers, and reads no data

The roles of PostgreSQL hold the rights (`init.sql` grants them) and cannot log in; the logins are
members of one each. PUBLIC may not connect, so a service's logins cannot reach another's database.
Sources: RabbitMQ's guides on access control, policies and quorum queues; its management HTTP API.
"""

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from psycopg2 import OperationalError
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import encrypt_password
from psycopg2.sql import SQL, Composable, Identifier, Literal

from eventcore.errors import Misconfigured
from eventcore.model.service import STORE_LOGINS
from eventcore.readmodel.client import make_login
from eventcore.settings import Secret, Server
from eventcore.store.connection import LIMITS, connect
from eventcore.store.sqlstates import translated

COUNTERS = "rate_limits"  # the database of MongoDB with the counters of rate limits

MONITOR = "monitor"  # the login that looks at a server and at nothing in it


def provision_store(admin: Server, service: str, passwords: Mapping[str, Secret]) -> None:
    """Makes or mends `{service}_event_db` and its logins `{service}_owner`, `_service`, `_relay`.

    `admin` may create databases and roles; `passwords` has one for each login. A database that is
    there already becomes the owner's, with all that is in its schema public. Run again, it changes
    only what differs. Raises StoreUnavailable, Misconfigured.
    """
    database, owner = f"{service}_event_db", f"{service}_owner"
    with _administering(admin) as server:
        # roles are the whole server's: two services that are provisioned at once take turns
        server.ask("select pg_advisory_lock(hashtext('event store provisioning'))")
        for role in ("event_append", "event_relay", "event_read"):
            if not server.has_role(role):
                server.run("create role {} nologin", role)
        for purpose, member_of in STORE_LOGINS.items():
            login = f"{service}_{purpose}"
            server.make_login(login, passwords[login].read())
            if member_of:
                server.run("grant {} to {}", member_of, login)
                server.limit(login)
        # only a superuser or a member of a role can create a database owned by that role
        server.run("grant {} to current_user", owner)
        found = server.ask(
            "select pg_get_userbyid(datdba) from pg_database where datname = %s", database
        )
        if found is None:
            server.run("create database {} owner {}", database, owner)
        else:
            if found != owner:
                server.hand_over(SQL("alter database {} owner to {}"), database, owner)
            with _administering(replace(admin, name=database)) as inside:
                for statement in inside.column(_OF_OTHERS, owner):
                    inside.hand_over(SQL(statement))
        server.run("revoke all on database {} from public", database)
        for purpose in STORE_LOGINS:
            server.run("grant connect on database {} to {}", database, f"{service}_{purpose}")


_OF_OTHERS = """
    with other as (select %s::name as owner)
    select format('alter schema public owner to %%I', owner) from other, pg_namespace
     where nspname = 'public' and pg_get_userbyid(nspowner) not in (owner, 'pg_database_owner')
    union all
    select format('alter %%s %%s owner to %%I', case relkind when 'v' then 'view'
                  when 'm' then 'materialized view' when 'S' then 'sequence' else 'table' end,
                  c.oid::regclass, owner)
      from other, pg_class c
     where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'S')
       and pg_get_userbyid(relowner) <> owner
       and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid
                       and (deptype = 'e' or relkind = 'S' and deptype in ('a', 'i')))
    union all
    select format('alter routine %%s owner to %%I', p.oid::regprocedure, owner)
      from other, pg_proc p
     where pronamespace = 'public'::regnamespace and pg_get_userbyid(proowner) <> owner
       and not exists (select from pg_depend
                       where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')
"""
"""Statements that give the owner what others own in the schema public, extensions aside."""


def provision_readmodel(
    admin: Server, service: str, projectors: Sequence[str], passwords: Mapping[str, Secret]
) -> None:
    """Make or mend the logins of `{service}_read_model`: `{service}-service` may read it, the
    `projectors` may write it. Raises ReadModelUnavailable, Misconfigured.
    """
    for login in (f"{service}-service", *projectors):
        role = "readWrite" if login in projectors else "read"
        make_login(admin, f"{service}_read_model", login, passwords[login].read(), role)


def provision_store_monitor(admin: Server, password: Secret) -> None:
    """Makes or mends PostgreSQL's login `monitor`, a member of pg_monitor, which reads no database.

    The administrator may create roles and databases but not grant pg_monitor: raises Misconfigured,
    which names the role that must grant it. Raises StoreUnavailable.
    """
    with _administering(admin) as server:
        server.make_login(MONITOR, password.read())
        if server.ask("select pg_has_role(%s, 'pg_monitor', 'member')", MONITOR):
            return
        # before version 16, CREATEROLE allows granting every role except a superuser's
        if not server.ask(
            "select rolsuper or pg_has_role('pg_monitor', 'member with admin option')"
            " or rolcreaterole and current_setting('server_version_num')::int < 160000"
            " from pg_roles where rolname = current_user"
        ):
            raise Misconfigured(
                f"{admin.user} may not grant pg_monitor, which PostgreSQL's exporter needs: as a"
                f" superuser, `grant pg_monitor to {MONITOR}`"
            )
        server.run("grant pg_monitor to {}", MONITOR)


def provision_readmodel_monitor(admin: Server, password: Secret) -> None:
    """Make or mend MongoDB's login `monitor`, which may ask the server for its numbers and reads
    no database. Raises ReadModelUnavailable.
    """
    make_login(admin, "admin", MONITOR, password.read(), "clusterMonitor")


def provision_counters(admin: Server, login: str, password: Secret) -> None:
    """Makes or mends the login by which gateways count rate limits in COUNTERS, and nothing else.

    Raises ReadModelUnavailable.
    """
    make_login(admin, COUNTERS, login, password.read(), "readWrite")


class _Administrator:
    """PostgreSQL as an administrator sees it. No password leaves the process in clear."""

    def __init__(self, login: Server, driver: Any) -> None:
        self._login = login
        self._driver = driver

    def run(self, statement: str, *names: str) -> None:
        """Executes a statement whose {} are names."""
        self._execute(SQL(statement).format(*map(Identifier, names)))

    def ask(self, question: str, *values: str) -> Any:
        """The first column of the first row; None without any."""
        return next(iter(self.column(question, *values)), None)

    def column(self, question: str, *values: str) -> list[Any]:
        """The first column of all rows."""
        return [row[0] for row in self._execute(SQL(question), values or None)]

    def has_role(self, name: str) -> bool:
        """Whether there is such a role."""
        return self.ask("select 1 from pg_roles where rolname = %s", name) is not None

    def make_login(self, login: str, password: str) -> None:
        """Makes the login if it is missing, and sets its password if that differs."""
        if not self.has_role(login):
            self.run("create role {} login nosuperuser nocreatedb nocreaterole", login)
        elif self._has_password(login, password):
            return
        verifier = encrypt_password(password, login, self._driver, "scram-sha-256")
        statement = SQL("alter role {} password {}")
        self._execute(statement.format(Identifier(login), Literal(verifier)))

    def limit(self, login: str) -> None:
        """Gives all sessions of a login the LIMITS of the store."""
        told = self.ask("select rolconfig from pg_roles where rolname = %s", login) or []
        for name, value in LIMITS.items():
            if f"{name}={value}" not in told:
                statement = SQL("alter role {} set {} = {}")
                names = map(Identifier, (login, name))
                self._execute(statement.format(*names, Literal(value)))

    def hand_over(self, statement: SQL, *names: str) -> None:
        """Executes a change of owner. Raises Misconfigured if somebody else must."""
        composed = statement.format(*map(Identifier, names))
        try:
            self._execute(composed)
        except InsufficientPrivilege as error:
            raise Misconfigured(
                f"{self._login.user} may not give the event store's owner what it needs: as a"
                f" superuser, run `{composed.as_string(self._driver)}` in the database"
                f" {self._login.name}, then provision again"
            ) from error

    def _has_password(self, login: str, password: str) -> bool:
        if self.ask("select has_table_privilege('pg_authid', 'select')"):
            kept = self.ask("select rolpassword from pg_authid where rolname = %s", login)
            return _is_of(kept or "", password)
        try:
            engine = connect(replace(self._login, user=login, password=Secret(password)))
            engine.raw_connection().close()
        except OperationalError:
            return False
        return True

    def _execute(self, statement: Composable, values: Sequence[str] | None = None) -> list[Any]:
        with self._driver.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def _administering(admin: Server) -> Iterator[_Administrator]:
    with translated(), connect(admin).connect() as connection:
        yield _Administrator(admin, connection.connection.driver_connection)


def _is_of(verifier: str, password: str) -> bool:
    """Whether a SCRAM-SHA-256 verifier is that of a password (RFC 5803)."""
    parts = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):.+", verifier)
    if parts is None:
        return False
    iterations, salt, stored = parts.groups()
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b64decode(salt), int(iterations))
    key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    return hmac.compare_digest(b64encode(key).decode(), stored)
