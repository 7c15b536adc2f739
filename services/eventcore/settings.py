"""Reads the environment once, into one object for each kind of process.

A server is given in parts (`POSTGRES_HOST`, …), so that a password needs no quoting. A password or
token may be in a file (`POSTGRES_PASSWORD_FILE`), read at every connect. None has a default.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from eventcore.errors import Misconfigured


@dataclass(frozen=True, slots=True)
class Secret:
    """A password or token. It does not appear in a `repr`, a log or a trace."""

    value: str = field(default="", repr=False)
    file: Path | None = None

    def read(self) -> str:
        """Returns the current value; raises Misconfigured if the file cannot be read."""
        if self.file is None:
            return self.value
        try:
            return self.file.read_text().rstrip("\r\n")
        except OSError as error:
            raise Misconfigured(f"{self.file} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server and a login; `name` is a database or a virtual host."""

    host: str
    port: int
    name: Annotated[str, Field(validation_alias=AliasChoices("database", "vhost"))]
    user: str
    password: Secret
    options: str = ""
    tls: bool = False
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class ServiceToken:
    """A token by which a service knows that another process of the system calls."""

    token: Secret


@dataclass(frozen=True, slots=True)
class Feed(ServiceToken):
    """The URL of the service that owns the events, and the token of its feed."""

    url: str


SERVERS = {"store": "POSTGRES", "broker": "RABBITMQ", "readmodel": "MONGODB"}  # prefixes


def _group(**defaults: object) -> BeforeValidator:
    """Adds defaults, and secrets from a value or a file, to the variables of one prefix."""

    def complete(given: object) -> object:
        if not isinstance(given, dict):
            return given
        secrets = {
            name: Secret(file=Path(given[f"{name}_file"]))
            if f"{name}_file" in given
            else Secret(given[name])
            for name in ("password", "token")
            if name in given or f"{name}_file" in given
        }
        return defaults | given | secrets

    return BeforeValidator(complete)


def _by_owner(given: object) -> object:
    """Turns what follows FEED_ into an entry for each owner: `user` for USER_URL, "" for URL."""
    if not isinstance(given, dict) or "url" in given:
        return {"": given} if isinstance(given, dict) else given
    found = defaultdict[str, dict[str, object]](dict)
    for name, value in given.items():
        store, _, field_name = name.partition("_")
        found[store][field_name] = value
    return found


def _anonymous(given: object) -> object:
    """Takes an empty MONGODB_USER as it is: the server has no logins."""
    if isinstance(given, dict) and os.environ.get("MONGODB_USER") == "":
        return {"user": "", "password": Secret()} | given
    return given


def _variables(prefix: str) -> Any:
    """Reads the variables that begin with `prefix`, and names each one that is missing."""
    return Field(validation_alias=prefix, default_factory=dict)


_Postgres = Annotated[Server, _group(port=5432)]
_RabbitMQ = Annotated[Server, _group(port=5672, vhost="/")]
_MongoDB = Annotated[Server, BeforeValidator(_anonymous), _group(port=27017)]
IdentityTokens = Annotated[dict[str, Annotated[ServiceToken, _group()]], BeforeValidator(_by_owner)]
"""The identity token of each service: IDENTITY_USER_TOKEN is that of `user`."""
AnyMongoDB = _MongoDB | None
"""A server of MongoDB's, or none where no variable is set."""

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(gt=0)]
Amount = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]  # as a price
Seconds = Annotated[float, Field(gt=0, lt=1e6)]
_AnyCase = BeforeValidator(str.lower)
Words = BeforeValidator(
    lambda given: tuple(given.replace(",", " ").split()) if isinstance(given, str) else given
)


class Settings(BaseSettings):
    """The settings of every process and tool."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_ignore_empty=True,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        enable_decoding=False,
        extra="ignore",
    )

    process: str
    """The name of the process in logs and traces; not a variable."""
    service: str
    version: str = "unknown"
    revision: str = "unknown"
    host: str = ""
    """The address that ports are opened on; "" means all addresses."""
    metrics_port: Port = 0
    log_format: Annotated[Literal["auto", "json", "text"], _AnyCase] = "auto"
    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], _AnyCase] = (
        "info"
    )
    trace_endpoint: str = Field("", validation_alias="otel_exporter_otlp_endpoint")
    trace_ratio: float = Field(1.0, ge=0, le=1, validation_alias="otel_traces_sampler_arg")


SOCKET_THREADS = 256
"""Threads that receive requests and send answers. Most wait for a socket; THREADS of them work."""


class ServeSettings(Settings):
    """The settings of a process that serves HTTP."""

    port: Port
    cors_origins: Annotated[tuple[str, ...], Words] = ()
    threads: Count = 16
    auth: bool = False
    """Whether a caller must be known; otherwise whoever reaches the process may do everything."""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    """The certificate chain and the key of the port for calls, as PEM; without them it is HTTP."""

    @property
    def permits(self) -> int:
        """Requests that the process works on at once."""
        return self.threads

    @property
    def header_size(self) -> int:
        """Bytes that a header has at most."""
        return 8190


class StoreSettings(Settings):
    """The settings of the tools that need the event store alone."""

    store: Annotated[_Postgres, _variables("postgres")]


class BrokerSettings(Settings):
    """The settings of the tools that need the broker alone."""

    broker: Annotated[_RabbitMQ, _variables("rabbitmq")]


class ReadModelSettings(Settings):
    """The settings of the tools that need the read model alone."""

    readmodel: Annotated[_MongoDB, _variables("mongodb")]


class ServiceSettings(ServeSettings, StoreSettings, ReadModelSettings):
    """The settings of a service with an event store and read models."""

    feed: Annotated[ServiceToken, _group(), _variables("feed")]
    identity: Annotated[ServiceToken, _group()] | None = Field(None, validation_alias="identity")

    @model_validator(mode="after")
    def _require_token(self) -> Self:
        if self.auth and not self.identity:
            raise PydanticCustomError("auth", "IDENTITY_TOKEN or IDENTITY_TOKEN_FILE is not set")
        return self


class RelaySettings(StoreSettings, BrokerSettings):
    """The settings of a relay."""

    window: Count = 500


class ProjectionSettings(ReadModelSettings):
    """The settings of the tools that work on a projection."""

    feed: Annotated[Feed, _group(), _variables("feed")]


class ReactionSettings(ProjectionSettings, StoreSettings):
    """The settings of the tools that work on a reactor, which has commands for its store."""


class ViewSettings(ReadModelSettings):
    """The settings of the tools that work on a view, with the feed of each owner of its events."""

    feeds: Annotated[
        dict[str, Annotated[Feed, _group()]], BeforeValidator(_by_owner), _variables("feed")
    ]


class SweepSettings(BrokerSettings):
    """The settings of a process that sweeps and is woken by the broker."""

    sweep_interval: Seconds = 2.0
    lease: Seconds = 6.0
    batch: Count = 300


class ProjectorSettings(ProjectionSettings, SweepSettings):
    """The settings of a projector."""


class ReactorSettings(ReactionSettings, SweepSettings):
    """The settings of a reactor."""


class ViewProjectorSettings(ViewSettings, SweepSettings):
    """The settings of a view's projector."""


class ProvisionSettings(Settings):
    """The administrators' logins and queues' limits; a server without variables is left alone."""

    store: _Postgres | None = Field(None, validation_alias="postgres")
    broker: _RabbitMQ | None = Field(None, validation_alias="rabbitmq")
    readmodel: AnyMongoDB = Field(None, validation_alias="mongodb")
    queue_bytes: Count = 256 * 1024 * 1024
    delivery_limit: Count = 20


Kind = TypeVar("Kind", bound=Settings)


def with_amounts(kind: type[Kind], names: Iterable[str]) -> type[Kind]:
    """The settings of `kind`, and an amount of money for each of these variables; None: not set."""
    fields: dict[str, Any] = {name.lower(): (Amount | None, None) for name in names}
    return pydantic.create_model(kind.__name__, __base__=kind, **fields)


def read_settings(kind: type[Kind], process: str) -> Kind:
    """Returns the settings of one process; raises Misconfigured with all that is wrong."""
    told: dict[str, Any] = {"process": process}
    try:
        return kind(**told)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise Misconfigured(f"{process} cannot start: {problems}") from None


def _problem(error: ErrorDetails) -> str:
    if not error["loc"]:  # of several variables together
        return error["msg"]
    first, *rest = map(str, error["loc"])
    name = "_".join((SERVERS.get(first, first), *rest)).upper()
    if error["type"] == "missing":
        choice = f" or {name}_FILE" if name.endswith(("_PASSWORD", "_TOKEN")) else ""
        return f"{name}{choice} is not set"
    return f"{name} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
