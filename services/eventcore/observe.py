"""Log lines, metrics and probes of a process. The only file that imports prometheus-client.

A log line is a fact with ids as fields: one JSON object a line, or readable text on a terminal.
"""

import atexit
import errno
import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import TextIOWrapper
from logging.handlers import QueueHandler, QueueListener
from queue import Queue
from types import MappingProxyType
from typing import TextIO

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from eventcore import jsontext
from eventcore.errors import Misconfigured
from eventcore.settings import Settings

SECONDS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10,
)  # fmt: skip
"""Bounds of what takes milliseconds when all is well, and seconds when it is not."""

_store_gauge = partial(Gauge, labelnames=["store"])
_projection_gauge = partial(Gauge, labelnames=["projection"])

REQUESTS = Histogram(
    "http_request_duration_seconds", "Time from a request's headers to its answer, by route",
    ["method", "route", "status"], buckets=SECONDS,
)  # fmt: skip
APPENDED = Counter("eventstore_events_appended", "Events appended", ["event_type"])
APPENDS = Histogram(
    "eventstore_append_duration_seconds", "Time of an append, successful or not",
    ["aggregate_type"], buckets=SECONDS,
)  # fmt: skip
CONFLICTS = Counter(
    "eventstore_conflicts", "Appends refused because the stream had changed", ["aggregate_type"]
)
CONFLICTS_LOST = Counter(
    "eventstore_conflicts_lost", "Commands refused after all retries", ["aggregate_type"]
)
HEAD = _store_gauge("eventstore_head_position", "Position of the last event")
SETTLED = _store_gauge(
    "eventstore_settled_position", "Position up to which nothing can still appear"
)
UNSETTLED = _store_gauge(
    "eventstore_unsettled_seconds", "How long a writer holds the settled position back"
)
PUBLISHED = Counter("relay_events_confirmed", "Events confirmed by the broker", ["store"])
RETURNED = Counter("relay_events_returned", "Events that the broker could not route", ["store"])
CHECKPOINT = _store_gauge("relay_checkpoint_position", "Position up to which all is confirmed")
RELAY_LAG = _store_gauge("relay_lag_events", "Positions settled and not confirmed; gaps count")
RELAY_LAG_SECONDS = _store_gauge(
    "relay_lag_seconds", "Age of the oldest event not confirmed; 0: there is none"
)
RELAY_HALTED = _store_gauge(
    "relay_halted",
    "1: nothing is published, since the log lacks the checkpoint's event; 0: it goes on",
)
RELAY_ACTIVE = _store_gauge("relay_active", "1: it holds the lock and relays; 0: it stands by")
IN_FLIGHT = _store_gauge("relay_in_flight_events", "Events published and not confirmed yet")
WINDOW = _store_gauge("relay_window_events", "Maximum number of unconfirmed events")
CONFIRM_SECONDS = Histogram(
    "relay_confirm_duration_seconds",
    "Time from publishing a page to its last confirm",
    ["store"],
    buckets=SECONDS,
)
APPLIED = Counter("projection_events_applied", "Events folded into documents", ["projection"])
BATCHES = Histogram(
    "projection_batch_events", "Deliveries that were applied at once", ["projection"],
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)  # fmt: skip
BATCH_SECONDS = Histogram(
    "projection_batch_duration_seconds", "Time of an attempt to apply and acknowledge a batch",
    ["projection"], buckets=SECONDS,
)  # fmt: skip
READABLE = Histogram(
    "projection_append_to_readable_seconds",
    "Time from an event's append to the write of its document; two clocks, never below zero",
    ["projection"], buckets=(*SECONDS, 30, 60, 300, 1800),
)  # fmt: skip
DUPLICATES = Counter("projection_events_duplicate", "Deliveries seen before", ["projection"])
CAUGHT_UP = Counter(
    "projection_events_caught_up",
    "Events read from the feed because the broker had not delivered them",
    ["projection"],
)
DEAD_LETTERS = Counter("projection_dead_letters", "Messages that are not events", ["projection"])
PARKED = _projection_gauge("projection_parked_streams", "Parked streams")
POSITION = _projection_gauge(
    "projection_checkpoint_position", "Position up to which all is applied or parked"
)
GENERATION = _projection_gauge("projection_generation", "Number of the generation that serves")
HALTED = _projection_gauge(
    "projection_halted", "1: nothing is applied, since the log lacks folded events; 0: it goes on"
)
VERIFIED = _projection_gauge(
    "projection_verified_timestamp_seconds", "When it was last compared with the log"
)
WRONG = _projection_gauge(
    "projection_verified_wrong_streams", "Streams that the last comparison found wrong"
)
LAG = _projection_gauge(
    "projection_lag_events",
    "Positions from the oldest event neither applied nor parked to the settled one; gaps count",
)
LAG_SECONDS = _projection_gauge(
    "projection_lag_seconds", "Age of the oldest event neither applied nor parked; 0: there is none"
)
STALENESS = _projection_gauge(
    "projection_staleness_seconds",
    "Age of the moment up to which all is known to be applied or parked; some sweeps at best",
)
UP = Gauge("dependency_up", "1: its last use succeeded; 0: it failed", ["server"])
POOL_USED = Gauge("pool_connections_in_use", "Connections in use", ["server"])
POOL_MAX = Gauge("pool_connections_max", "Connections that the pool may have", ["server"])
BACKGROUND_ERRORS = Counter(
    "background_errors", "Unexpected errors of background threads, which went on", ["thread"]
)
BUILD = Gauge(
    "eventcore_build_info",
    "1 for each process",
    ["service", "process", "version", "revision"],
)

_fields: ContextVar[Mapping[str, str]] = ContextVar("log fields", default=MappingProxyType({}))
_STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"}
_NAMES = {"store": "Postgres", "broker": "RabbitMQ", "readmodel": "MongoDB", "feed": "feed"}
_SERVERS = {**_NAMES, "store": "PostgreSQL"}


@contextmanager
def log_fields(**fields: str) -> Iterator[None]:
    """Every line logged within carries these fields."""
    token = _fields.set({**_fields.get(), **fields})
    try:
        yield
    finally:
        _fields.reset(token)


def start(settings: Settings) -> None:
    """Show this process from now on: its log lines, and what it is."""
    start_logging(settings.service, settings.process, settings.log_format, settings.log_level)
    who = settings.service, settings.process, settings.version, settings.revision
    BUILD.labels(*who).set(1)


def start_logging(
    service: str, process: str, form: str, level: str, stream: TextIO | None = None
) -> None:
    """Logs to stdout, or `stream`; `form` is json, text, or auto: text on a terminal."""
    stream = stream or sys.stdout
    as_text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Text() if as_text else _Json(service, process))
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # in no line
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # broker.py logs the same in one line
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("pymongo").setLevel(logging.WARNING)  # below, it logs whole documents
    logging.captureWarnings(True)
    sys.excepthook = lambda _kind, error, _place: _log_uncaught(error)
    threading.excepthook = lambda ended: _log_uncaught(ended.exc_value)
    sys.unraisablehook = lambda ended: _log_uncaught(ended.exc_value)


WAITING_LINES = 10_000
"""Maximum lines that wait to be written; then a thread that logs waits, too."""


class _Queued(QueueHandler):
    """Formats a line in the thread that logs it, and hands it to the thread that writes."""

    def __init__(self, lines: Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self._lines = lines

    def enqueue(self, record: logging.LogRecord) -> None:
        """Waits while the queue is full."""
        self._lines.put(record)


def write_lines_in_background() -> None:
    """Has a thread of its own write the log lines from now on. Call it after any fork.

    A thread that writes releases the interpreter lock. Among many busy threads it then waits for
    the lock longer than the line takes.
    """
    root = logging.getLogger()
    [stream] = root.handlers
    lines = Queue[logging.LogRecord](WAITING_LINES)
    queued = _Queued(lines)
    queued.setFormatter(stream.formatter)
    stream.setFormatter(None)  # the record that it gets is a whole line
    root.addHandler(queued)
    root.removeHandler(stream)
    listener = QueueListener(lines, stream)
    listener.start()
    atexit.register(listener.stop)


def _log_uncaught(error: BaseException | None) -> None:
    """What nobody has caught is a line like any other."""
    if isinstance(error, KeyboardInterrupt):
        return
    logging.getLogger("eventcore").critical("Uncaught exception", exc_info=error)


def _told(error: BaseException | None) -> str:
    """Where an error was raised and what it says, after each that it came from.

    Each says one line: on further ones, and after "full error", drivers tell the row or the
    document that they failed with.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    parts = []
    for each in reversed(chain):
        said = str(each).strip().partition("\n")[0].partition(", full error")[0]
        parts += traceback.format_tb(each.__traceback__)
        parts.append(f"{type(each).__name__}: {said[:500].translate(_ONE_LINE)}\n")
    return "".join(parts)


class _Json(logging.Formatter):
    def __init__(self, service: str, process: str) -> None:
        super().__init__()
        self._always = {"service": service, "process": process}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **self._always,
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = _told(record.exc_info[1])
        text = jsontext.render_line(line)
        return text if text.isascii() else text.translate(_ONE_OBJECT)


_BEYOND_ASCII = (*range(0x80, 0xA0), 0x2028, 0x2029)
"""Line breaks and terminal controls that are none of ASCII's."""

_ONE_OBJECT = {code: f"\\u{code:04x}" for code in _BEYOND_ASCII}
_ONE_LINE = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | _ONE_OBJECT
"""A line break in a name does not begin a second log line, and no terminal obeys a name."""


class _Text(logging.Formatter):
    """For a terminal: a request is one short line; the ids of its request are in warnings alone."""

    def format(self, record: logging.LogRecord) -> str:
        if record.getMessage() == "Answered":
            said = "{method} {route} {status} {ms} ms".format_map(_own(record))
        else:
            shown = _own(record) if record.levelno < logging.WARNING else _extra(record)
            fields = " ".join(f"{name}={value}" for name, value in shown.items())
            said = f"{record.getMessage()}  {fields}".rstrip()
        text = f"{record.levelname:<7} {said}".translate(_ONE_LINE)
        return f"{text}\n{_told(record.exc_info[1])}".rstrip() if record.exc_info else text


def _own(record: logging.LogRecord) -> dict[str, object]:
    return {k: v for k, v in record.__dict__.items() if k not in _STANDARD}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {**_fields.get(), **_own(record)}


STUCK = 120.0
"""Seconds without a beat after which a process counts as stuck; no wait in it is that long."""


class Heart:
    """Whether a process's loop still turns, whatever servers are away: it beats at each turn."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at: float | None = None

    def beat(self) -> None:
        """Notes that the loop has come round."""
        self._beat_at = self._clock()

    def stuck(self) -> bool:
        """Whether the loop has begun, and has not come round for STUCK seconds."""
        return self._beat_at is not None and self._clock() - self._beat_at > STUCK


_UNKNOWN = "not connected yet"

HEART = Heart()
"""The heart of this process; one that serves HTTP has none, see serving.Liveness."""


class Health:
    """The parts that a process lacks; each change of a part's state is one log line."""

    def __init__(self, *parts: str) -> None:
        self._problems: dict[str, str | None] = dict.fromkeys(parts, _UNKNOWN)
        self._lock = threading.Lock()
        self._log = logging.getLogger("eventcore.health")
        for part in parts:
            UP.labels(_SERVERS.get(part, part)).set(0)

    def well(self, part: str) -> None:
        """Notes that `part` works."""
        if self._note(part, None) is not None:
            UP.labels(_SERVERS.get(part, part)).set(1)
            self._log.info(f"Connected to {_NAMES.get(part, part)}")

    def lacks(self, part: str, problem: str) -> None:
        """Notes that `part` does not work now, for the reason `problem`."""
        if self._note(part, problem) in (None, _UNKNOWN):
            UP.labels(_SERVERS.get(part, part)).set(0)
            self._log.warning(f"Waiting for {_NAMES.get(part, part)}", extra={"reason": problem})

    def _note(self, part: str, problem: str | None) -> str | None:
        """Returns the problem that was known before."""
        with self._lock:
            known, self._problems[part] = self._problems.get(part), problem
        return known

    def missing(self) -> dict[str, str]:
        """Each part that does not work, with the reason; empty when all is well."""
        with self._lock:
            return {part: problem for part, problem in self._problems.items() if problem}


def render_metrics() -> tuple[bytes, str]:
    """Renders all metrics of this process; the second item is their content type."""
    return generate_latest(), CONTENT_TYPE_LATEST


def listen(host: str, port: int) -> list[socket.socket]:
    """Opens TCP listeners on `host`; "" means all addresses, of IPv6 and IPv4; port 0 opens none.

    "localhost" is both loopback addresses. Raises Misconfigured.
    """
    listeners: list[socket.socket] = []
    hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
    for each in hosts if port else ():
        is_dual = not each and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if is_dual or ":" in each else socket.AF_INET
        try:
            opened = socket.create_server(
                (each, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
            )
        except OSError as error:
            if listeners and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # this machine has no IPv6
            where = f"{each or 'all addresses'}, port {port}"
            raise Misconfigured(f"cannot listen on {where}: {error.strerror}") from error
        listeners.append(opened)
    return listeners


BACKLOG = 2048
"""Connections that the kernel keeps for a listener until they are accepted."""


class _ProbesServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Logs an error, unless the client has gone before the answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            logging.getLogger("eventcore.probes").error("Unexpected error", exc_info=True)


def serve_probes(
    listeners: Iterable[socket.socket],
    missing: Callable[[], Mapping[str, str]],
    is_stuck: Callable[[], bool],
) -> None:
    """Serves /metrics and three probes on each listener, from a thread.

    /healthz: the process has begun. /livez: it is not stuck.
    /readyz: nothing is `missing` to its work.
    """

    class Probes(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, *render_metrics())
            elif self.path == "/healthz":
                self._answer(200, b'{"status":"alive"}')
            elif self.path == "/livez" and is_stuck():
                self._answer(503, b'{"status":"stuck"}')
            elif self.path == "/livez":
                self._answer(200, b'{"status":"alive"}')
            elif self.path == "/readyz":
                lacking = missing()
                answer = {"status": "waiting" if lacking else "ready", "missing": lacking}
                self._answer(503 if lacking else 200, jsontext.render(answer))
            else:
                self._answer(404, b'{"title":"Not found"}')

        def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are not worth a line."""

    for listener in listeners:
        server = _ProbesServer(listener.getsockname()[:2], Probes, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()
