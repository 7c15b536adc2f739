"""One idempotent step that an administrator runs: databases, roles and logins of a service.

    PostgreSQL   {service}_event_db, and a login for its owner, the service and the relay:
                 event_append ◀── user_service   event_relay ◀── user_relay   user_owner owns it
    RabbitMQ     a login for the relay and each projector, with the rights to declare, publish
                 and read what it needs; `monitor`, which may list queues and read none;
                 policies that limit the queues of the projectors
    MongoDB      {service}_read_model, and a login for the service (reads) and each projector
    both         where asked for, `monitor` for an exporter of PostgreSQL or MongoDB: it may ask
                 for the server's numbers, and reads no data

The roles of PostgreSQL hold the rights (`init.sql` grants them) and cannot log in; the
logins are members of one each, with passwords from outside. PUBLIC may not connect, so the
order service's logins cannot reach the user service's database.

Sources: RabbitMQ's guides on access control (what declaring, binding and publishing need), on
policies, on quorum queues (delivery limit, length limit), and its management HTTP API.
"""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import urllib3
from urllib3.exceptions import HTTPError

from eventcore import jsontext
from eventcore.broker import DEAD_LETTERS, EXCHANGE
from eventcore.errors import BrokerAway, Misconfigured
from eventcore.projection import Projection
from eventcore.readmodel import make_login, make_monitor
from eventcore.settings import Secret, Server
from eventcore.store import connect, translated

LOGINS = {"owner": None, "service": "event_append", "relay": "event_relay"}
"""What each service's logins are for, and the role each is a member of."""

MONITOR = "monitor"
"""The login that looks at a server and at nothing in it."""

DEAD_LETTER_DELIVERY_LIMIT = 1_000_000
"""Deliveries of a dead letter until RabbitMQ drops it: listing them is a delivery of each.

High, and not "none": RabbitMQ before 4.0 has no value for that, and later ones default to 20.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a projector's queue; beyond them messages are dropped, and the sweep applies them.

    `queue_bytes` drops the oldest messages, `deliveries` one that was delivered that often.
    """

    queue_bytes: int = 256 * 1024 * 1024
    deliveries: int = 20


def provision_store(admin: Server, service: str, passwords: Mapping[str, Secret]) -> None:
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
            question = f"select from {catalog} = {_literal(name)}"  # nosec B608
            return connection.exec_driver_sql(question).first() is None

        # roles are the whole server's: two services that are provisioned at once take turns
        connection.exec_driver_sql("select pg_advisory_lock(hashtext('event store provisioning'))")
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
        definition = {
            "max-length-bytes": limits.queue_bytes,
            "overflow": "drop-head",
            "delivery-limit": deliveries,
        }
        policy = {
            "pattern": _exactly(*those),
            "definition": definition,
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
        password = passwords[login].read()
        make_login(admin, f"{service}_read_model", login, password, writes=login in projectors)


def provision_store_monitor(admin: Server, password: Secret) -> None:
    """Make or mend PostgreSQL's login `monitor`, a member of pg_monitor. It reads no database.

    Who made roles and databases may still not be allowed to grant pg_monitor: then Misconfigured
    says who must. Raises StoreAway.
    """
    with translated(), connect(admin).connect() as live:
        connection = live.execution_options(no_parameters=True)

        def ask(question: str) -> bool:
            return bool(connection.exec_driver_sql(f"select {question}").scalar())

        if not ask(f"exists (select from pg_roles where rolname = {_literal(MONITOR)})"):  # nosec B608
            connection.exec_driver_sql(
                f"create role {MONITOR} login nosuperuser nocreatedb nocreaterole"
            )
        connection.exec_driver_sql(f"alter role {MONITOR} password {_literal(password.read())}")
        if ask(f"pg_has_role({_literal(MONITOR)}, 'pg_monitor', 'member')"):
            return
        # before 16, who may create roles may grant any but a superuser's
        if not ask(
            "rolsuper or pg_has_role('pg_monitor', 'member with admin option')"
            " or rolcreaterole and current_setting('server_version_num')::int < 160000"
            " from pg_roles where rolname = current_user"
        ):
            raise Misconfigured(
                f"{admin.user} may not grant pg_monitor, which PostgreSQL's exporter needs: as a"
                f" superuser, `grant pg_monitor to {MONITOR}`"
            )
        connection.exec_driver_sql(f"grant pg_monitor to {MONITOR}")


def provision_readmodel_monitor(admin: Server, password: Secret) -> None:
    """Make or mend MongoDB's login `monitor`, which may ask the server for its numbers and reads
    no database. Raises ReadModelAway.
    """
    make_monitor(admin, MONITOR, password.read())


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


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    if "\\" in text or "\0" in text:
        raise ValueError("a password must not contain a backslash or a NUL")
    return "'" + text.replace("'", "''") + "'"
