"""The environment, read once, or a refusal to start that names all that is missing.

Every server is given in parts (`POSTGRES_HOST`, `POSTGRES_PORT`, …), never as a URL, so
that a password needs no quoting. A password may come from a file instead
(`POSTGRES_PASSWORD_FILE`): it is read again at every connect, so a rotated one is taken
up without a restart. No password has a default.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eventcore.errors import Misconfigured


@dataclass(frozen=True, slots=True)
class Secret:
    """A password or token that never shows in a `repr`, a log or a trace."""

    value: str = field(default="", repr=False)
    file: Path | None = None

    def read(self) -> str:
        """The secret as it is now; raises Misconfigured if its file cannot be read."""
        if self.file is None:
            return self.value
        try:
            return self.file.read_text().rstrip("\r\n")
        except OSError as error:
            raise Misconfigured(f"{self.file} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Server:
    """Where one server is and who we are there; `name` is a database or a virtual host."""

    host: str
    port: int
    name: str
    user: str
    password: Secret
    options: str = ""
    tls: bool = False
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a process is told from outside. Times are seconds."""

    service: str
    process: str
    version: str
    revision: str
    port: int
    metrics_port: int
    store: Server | None
    broker: Server | None
    readmodel: Server | None
    feed_url: str
    feed_token: Secret
    upstreams: Mapping[str, str]
    workers: int
    threads: int
    log_format: str
    log_level: str
    trace_endpoint: str
    trace_ratio: float
    trace_mode: str
    known_user_wait: float
    cache_margin: float
    sweep_interval: float
    lease: float
    batch: int
    window: int
    delivery_limit: int
    queue_bytes: int


SERVERS = {"store": "POSTGRES", "broker": "RABBITMQ", "readmodel": "MONGODB"}
_PORTS = {"POSTGRES": 5432, "RABBITMQ": 5672, "MONGODB": 27017}
_NAMES = {"POSTGRES": "DATABASE", "RABBITMQ": "VHOST", "MONGODB": "DATABASE"}


def read_settings(
    environ: Mapping[str, str] = os.environ, *, process: str, needs: Iterable[str] = ()
) -> Settings:
    """Read the environment for `process`; `needs` lists what it cannot do without:
    "store", "broker", "readmodel", "feed", "token", "upstreams".

    Raises Misconfigured with everything that is missing or malformed in one message.
    """
    wanted = set(needs)
    reader = _Reader(environ)
    service = reader.text("SERVICE")
    servers = {
        role: reader.server(prefix) if role in wanted else None for role, prefix in SERVERS.items()
    }
    settings = Settings(
        service=service,
        process=process,
        version=reader.text("VERSION", "unknown"),
        revision=reader.text("REVISION", "unknown"),
        port=reader.integer("PORT", {"gateway": 3000, "user": 3001, "order": 3002}.get(service, 0)),
        metrics_port=reader.integer("METRICS_PORT", 0),
        store=servers["store"],
        broker=servers["broker"],
        readmodel=servers["readmodel"],
        feed_url=reader.text("FEED_URL") if "feed" in wanted else "",
        feed_token=reader.secret("FEED_TOKEN") if wanted & {"feed", "token"} else Secret(),
        upstreams={
            name: reader.text(f"{name.upper()}_SERVICE_URL")
            for name in (("user", "order") if "upstreams" in wanted else ())
        },
        workers=reader.integer("WORKERS", 1),
        threads=reader.integer("THREADS", 16),
        log_format=reader.choice("LOG_FORMAT", ("auto", "json", "text")),
        log_level=reader.choice("LOG_LEVEL", ("info", "debug", "warning", "error", "critical")),
        trace_endpoint=reader.text("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        trace_ratio=reader.ratio("OTEL_TRACES_SAMPLER_ARG", 1.0),
        trace_mode=reader.choice("TRACE_MODE", ("child", "link")),
        known_user_wait=reader.number("KNOWN_USER_WAIT", 1.0),
        cache_margin=reader.number("CACHE_MARGIN", 10.0),
        sweep_interval=reader.number("SWEEP_INTERVAL", 2.0),
        lease=reader.number("LEASE", 6.0),
        batch=reader.integer("BATCH", 300),
        window=reader.integer("WINDOW", 500),
        delivery_limit=reader.integer("DELIVERY_LIMIT", 20),
        queue_bytes=reader.integer("QUEUE_BYTES", 256 * 1024 * 1024),
    )
    reader.refuse_if_wrong(process)
    return settings


class _Reader:
    """Reads variables and collects what is wrong, so that it can all be said at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._wrong: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environ.get(name, "") or default
        if value is None:
            self._wrong.append(f"{name} is not set")
            return ""
        return value

    def integer(self, name: str, default: int) -> int:
        value = self._environ.get(name, "")
        if value and not value.isdigit():
            self._wrong.append(f"{name} must be a whole number, not {value!r}")
            return default
        return int(value) if value else default

    def number(self, name: str, default: float) -> float:
        value = self._environ.get(name, "")
        try:
            result = float(value) if value else default
        except ValueError:
            result = -1.0
        if not 0 < result < 1e6:
            self._wrong.append(f"{name} must be a number of seconds above 0, not {value!r}")
            return default
        return result

    def ratio(self, name: str, default: float) -> float:
        value = self._environ.get(name, "")
        try:
            result = float(value) if value else default
        except ValueError:
            result = -1.0
        if not 0 <= result <= 1:
            self._wrong.append(f"{name} must be a number from 0 to 1, not {value!r}")
        return result

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of `choices`, in whatever case; the first by default."""
        value = (self._environ.get(name, "") or choices[0]).lower()
        if value not in choices:
            self._wrong.append(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def secret(self, name: str) -> Secret:
        file = self._environ.get(f"{name}_FILE", "")
        if file:
            return Secret(file=Path(file))
        if name not in self._environ:
            self._wrong.append(f"{name} or {name}_FILE is not set")
        return Secret(self._environ.get(name, ""))

    def server(self, prefix: str) -> Server:
        return Server(
            host=self.text(f"{prefix}_HOST"),
            port=self.integer(f"{prefix}_PORT", _PORTS[prefix]),
            name=self.text(f"{prefix}_{_NAMES[prefix]}", "/" if prefix == "RABBITMQ" else None),
            user=self.text(f"{prefix}_USER", "" if f"{prefix}_USER" in self._environ else None),
            password=self.secret(f"{prefix}_PASSWORD"),
            options=self.text(f"{prefix}_OPTIONS", ""),
            tls=self.choice(f"{prefix}_TLS", ("off", "on")) == "on",
            ca_file=self.text(f"{prefix}_CA_FILE", ""),
        )

    def refuse_if_wrong(self, process: str) -> None:
        if self._wrong:
            raise Misconfigured(f"{process} cannot start: " + "; ".join(self._wrong))
