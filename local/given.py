"""Servers that are given as URLs instead of started here: taken apart, and tried once.

    DATABASE_URL  postgresql://<administrator>:<password>@host:5432/postgres?sslmode=require
    RABBITMQ_URL  amqp://<user>:<password>@host:5672/vhost, or amqps://
    MONGODB_URL   mongodb://<user>:<password>@host:27017/?authSource=admin

Each function returns the server, or None where its URL is not set; it raises CannotStart
where the URL is malformed, or what it names does not let us in.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import pika
from pika.exceptions import AMQPError, ProbableAuthenticationError
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from sqlalchemy.exc import DBAPIError

from eventcore.settings import Secret, Server
from eventcore.store.connection import connect
from local.child import CannotStart


@dataclass(frozen=True, slots=True)
class Given:
    """A server that the user runs: it is neither started nor stopped here."""

    address: Server

    def launch(self) -> None:
        """Does nothing: the server runs already."""

    def await_ready(self) -> None:
        """Does nothing: a connection was tried before."""

    def stop(self) -> None:
        """Does nothing: the user stops it."""

    def login(self, database: str) -> Server:
        """The given user, with the address of `database`."""
        return replace(self.address, name=database)


def given_postgres(environ: Mapping[str, str]) -> Given | None:
    """PostgreSQL at DATABASE_URL, as its administrator."""
    parts = _split("DATABASE_URL", environ, "postgresql", "postgres", "postgresql+psycopg2")
    if parts is None:
        return None
    options = dict(parse_qsl(parts.query))
    server = _server(
        parts,
        5432,
        name=_path(parts) or "postgres",
        tls=options.get("sslmode", "") in ("require", "verify-ca", "verify-full"),
        ca_file=options.get("sslrootcert", ""),
    )
    try:
        connect(server).connect().close()
    except DBAPIError as error:
        raise _no_entry("DATABASE_URL", server, error.orig) from error
    return Given(server)


def given_rabbitmq(environ: Mapping[str, str]) -> Given | None:
    """The broker at RABBITMQ_URL."""
    parts = _split("RABBITMQ_URL", environ, "amqp", "amqps")
    if parts is None:
        return None
    tls = parts.scheme == "amqps"
    ca_file = dict(parse_qsl(parts.query)).get("cafile", "")
    server = _server(
        parts, 5671 if tls else 5672, name=_path(parts) or "/", tls=tls, ca_file=ca_file
    )
    context = ssl.create_default_context(cafile=ca_file or None) if tls else None
    parameters = pika.ConnectionParameters(
        server.host,
        server.port,
        server.name,
        pika.PlainCredentials(server.user, server.password.read()),
        ssl_options=pika.SSLOptions(context, server.host) if context else None,
        socket_timeout=5,
        stack_timeout=5,
        blocked_connection_timeout=5,
    )
    try:
        pika.BlockingConnection(parameters).close()
    except ProbableAuthenticationError as error:
        raise _no_entry("RABBITMQ_URL", server, "wrong user or password") from error
    except (AMQPError, OSError) as error:
        raise _no_entry("RABBITMQ_URL", server, error) from error
    return Given(server)


def given_mongodb(environ: Mapping[str, str]) -> Given | None:
    """The MongoDB at MONGODB_URL; the processes use its `user` for their own databases."""
    parts = _split("MONGODB_URL", environ, "mongodb")
    if parts is None:
        return None
    options = {"authSource": _path(parts) or "admin", **dict(parse_qsl(parts.query))}
    tls = options.pop("tls", options.pop("ssl", "false")) == "true"
    ca_file = options.pop("tlsCAFile", "")
    server = _server(
        parts, 27017, name="admin", options=urlencode(options), tls=tls, ca_file=ca_file
    )
    try:
        with MongoClient[dict[str, object]](
            environ["MONGODB_URL"], serverSelectionTimeoutMS=5000
        ) as client:
            client.get_database("order_read_model").command("count", "checkpoints")
    except PyMongoError as error:
        raise _no_entry("MONGODB_URL", server, error) from error
    return Given(server)


def _split(name: str, environ: Mapping[str, str], *schemes: str) -> SplitResult | None:
    url = environ.get(name, "").strip()
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in schemes:
        raise CannotStart(f"{name} must begin with {schemes[0]}://, not {parts.scheme or url!r}.")
    if "," in parts.netloc:
        raise CannotStart(f"{name} names several hosts; give one of them.")
    try:
        complete = parts.hostname and parts.username and parts.password and (parts.port or True)
    except ValueError:
        complete = None
    if not complete:
        form = f"{schemes[0]}://USER:PASSWORD@HOST:PORT/"  # pragma: allowlist secret
        raise CannotStart(f"{name} must have the form {form}.")
    return parts


def _server(
    parts: SplitResult, port: int, *, name: str, options: str = "", tls: bool, ca_file: str
) -> Server:
    return Server(
        host=parts.hostname or "",
        port=parts.port or port,
        name=name,
        user=unquote(parts.username or ""),
        password=Secret(unquote(parts.password or "")),
        options=options,
        tls=tls,
        ca_file=ca_file,
    )


def _path(parts: SplitResult) -> str:
    return unquote(parts.path.removeprefix("/"))


def _no_entry(name: str, server: Server, why: object) -> CannotStart:
    reason = " ".join(str(why).split())[:200] or type(why).__name__
    return CannotStart(f"{name} leads to {server.host}:{server.port}, but: {reason}.")
