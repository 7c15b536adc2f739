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
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import urllib3
from psycopg2 import OperationalError
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import encrypt_password
from psycopg2.sql import SQL, Composable, Identifier, Literal
from urllib3.exceptions import HTTPError

from eventcore import jsontext
from eventcore.broker import DEAD_LETTERS, EXCHANGE
from eventcore.errors import BrokerAway, Misconfigured
from eventcore.projection import Projection
from eventcore.readmodel import make_login
from eventcore.settings import Secret, Server
from eventcore.store import LIMITS, connect, translated

MONITOR = "monitor"  # the login that looks at a server and at nothing in it
LOGINS = {"owner": None, "service": "event_append", "relay": "event_relay"}
"""Purposes of a service's logins, and the role that each is a member of."""

DEAD_LETTER_DELIVERY_LIMIT = 1_000_000
"""Deliveries of a dead letter until RabbitMQ drops it: listing them is a delivery of each.

RabbitMQ before 4.0 has no value for "none", and later versions default to 20.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a projector's queue; beyond them messages are dropped, and the sweep applies them.

    `queue_bytes` drops the oldest messages, `deliveries` one that was delivered that often.
    """

    queue_bytes: int = 256 * 1024 * 1024
    deliveries: int = 20


def provision_store(admin: Server, service: str, passwords: Mapping[str, Secret]) -> None:
    """Makes or mends `{service}_event_db` and its logins `{service}_owner`, `_service`, `_relay`.

    `admin` may create databases and roles; `passwords` has one for each login. A database that is
    there already becomes the owner's, with all that is in its schema public. Run again, it changes
    only what differs. Raises StoreAway, Misconfigured.
    """
    database, owner = f"{service}_event_db", f"{service}_owner"
    with _administering(admin) as server:
        # roles are the whole server's: two services that are provisioned at once take turns
        server.ask("select pg_advisory_lock(hashtext('event store provisioning'))")
        for role in ("event_append", "event_relay", "event_read"):
            if not server.has_role(role):
                server.run("create role {} nologin", role)
        for purpose, member_of in LOGINS.items():
            login = f"{service}_{purpose}"
            server.make_login(login, passwords[login].read())
            if member_of:
                server.run("grant {} to {}", member_of, login)
                server.limit(login)
        # to make a database another's one must be a member of that role, superusers aside
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
        for purpose in LOGINS:
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


def provision_broker(
    admin: Server,
    service: str,
    projections: Mapping[str, Projection],
    passwords: Mapping[str, Secret],
    limits: Limits,
) -> None:
    """Makes or mends the logins of a service's relay, `{service}-relay`, and of its projectors,
    and the policies of the projectors' queues.

    `admin` is an administrator of the management API, `admin.port` that API's port, `admin.name`
    the virtual host, which is made if it does not exist. `projections` has the projection of each
    projector's login. Raises BrokerAway, Misconfigured.
    """
    queues = [p.queue for p in projections.values() if p.aggregate_type == service]
    rights = {f"{service}-relay": _may(queues, publish=(EXCHANGE,), read=())}
    for login, projection in projections.items():
        read = (projection.queue, f"{projection.queue}.dead-letters")
        rights[login] = _may((projection.queue,), publish=(DEAD_LETTERS,), read=read)
    api = _Management(admin)
    vhost = quote(admin.name, safe="")
    if not api.has(f"vhosts/{vhost}"):
        api.put(f"vhosts/{vhost}", {})
    rights[MONITOR] = {"configure": "", "write": "", "read": ""}
    for login, may in rights.items():
        user = quote(login, safe="")
        tags = "monitoring" if login == MONITOR else ""
        api.put(f"users/{user}", {"password": passwords[login].read(), "tags": tags})
        api.put(f"permissions/{vhost}/{user}", may)
    limit_queues(admin, service, [p.queue for p in projections.values()], limits)


def limit_queues(admin: Server, service: str, queues: Sequence[str], limits: Limits) -> None:
    """Sets the policies of these queues and of their dead-letter queues. They take effect at once,
    also on queues that exist. `admin` as for `provision_broker`; raises BrokerAway.

    Their priority is 0, so that an operator's own policy with a higher one comes before them.
    """
    letters = [f"{queue}.dead-letters" for queue in queues]
    api = _Management(admin)
    for name, those, deliveries in (
        (f"{service}-queues", queues, limits.deliveries),
        (f"{service}-dead-letters", letters, DEAD_LETTER_DELIVERY_LIMIT),
    ):
        policy = {
            "pattern": _exactly(*those),
            "definition": {
                "max-length-bytes": limits.queue_bytes,
                "overflow": "drop-head",
                "delivery-limit": deliveries,
            },
            "priority": 0,
            "apply-to": "queues",
        }
        api.put(f"policies/{quote(admin.name, safe='')}/{quote(name, safe='')}", policy)


def provision_readmodel(
    admin: Server, service: str, projectors: Sequence[str], passwords: Mapping[str, Secret]
) -> None:
    """Make or mend the logins of `{service}_read_model`: `{service}-service` may read it, the
    `projectors` may write it. Raises ReadModelAway, Misconfigured.
    """
    for login in (f"{service}-service", *projectors):
        role = "readWrite" if login in projectors else "read"
        make_login(admin, f"{service}_read_model", login, passwords[login].read(), role)


def provision_store_monitor(admin: Server, password: Secret) -> None:
    """Makes or mends PostgreSQL's login `monitor`, a member of pg_monitor, which reads no database.

    Who made roles and databases may still not be allowed to grant pg_monitor: then Misconfigured
    says who must. Raises StoreAway.
    """
    with _administering(admin) as server:
        server.make_login(MONITOR, password.read())
        if server.ask("select pg_has_role(%s, 'pg_monitor', 'member')", MONITOR):
            return
        # before 16, who may create roles may grant any but a superuser's
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
    no database. Raises ReadModelAway.
    """
    make_login(admin, "admin", MONITOR, password.read(), "clusterMonitor")


def _may(queues: Sequence[str], publish: Sequence[str], read: Sequence[str]) -> dict[str, str]:
    """The rights to declare and bind these queues, and beyond that to publish to and read.

    Binding a queue is writing to it and reading the exchange; nothing but an exchange can be
    published to.
    """
    own = [name for queue in queues for name in (queue, f"{queue}.dead-letters")]
    return {
        "configure": _exactly(EXCHANGE, DEAD_LETTERS, *own),
        "write": _exactly(*publish, *own),
        "read": _exactly(EXCHANGE, DEAD_LETTERS, *read),
    }


def _exactly(*names: str) -> str:
    return "^(" + "|".join(re.escape(name) for name in names) + ")$"


class _Management:
    """RabbitMQ's management API, as one of its administrators."""

    def __init__(self, admin: Server) -> None:
        self._url = f"{'https' if admin.tls else 'http'}://{admin.host}:{admin.port}/api"
        login = f"{admin.user}:{admin.password.read()}"  # urllib3's own helper takes Latin-1 alone
        self._headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=3, read=10),
            retries=False,
            ca_certs=admin.ca_file or None,
        )

    def has(self, what: str) -> bool:
        return self._ask("GET", what) != 404

    def put(self, what: str, body: Mapping[str, object]) -> None:
        status = self._ask("PUT", what, jsontext.render(body))
        if status == 404:
            raise BrokerAway(f"RabbitMQ's management API knows no {what}")

    def _ask(self, method: str, what: str, body: bytes | None = None) -> int:
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            answer = self._pool.request(method, f"{self._url}/{what}", body=body, headers=headers)
        except HTTPError as error:
            raise BrokerAway(f"RabbitMQ's management API cannot be reached: {error}") from error
        if answer.status >= 400 and answer.status != 404:
            reason = answer.data[:200].decode(errors="replace")
            raise BrokerAway(f"RabbitMQ's management API answered {answer.status}: {reason}")
        return answer.status


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
