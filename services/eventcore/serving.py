"""A service under gunicorn: its listener, its limits, its readiness, its metrics port.

The only file that imports gunicorn.
"""

import importlib
import logging
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import errors
from gunicorn.workers.gthread import ThreadWorker

from eventcore import jsontext
from eventcore.errors import Away, Busy
from eventcore.observe import (
    STUCK,
    Health,
    listen,
    serve_probes,
    start,
    write_lines_in_background,
)
from eventcore.readmodel import Mongo
from eventcore.settings import SOCKET_THREADS, ServeSettings
from eventcore.store import Postgres
from eventcore.tracing import start_tracing, stop_tracing
from eventcore.web import BODY_LIMIT, IDS, Correlation

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = logging.getLogger(__name__)

CONNECTIONS = 2000
"""Connections that one process holds at most."""

SOCKET_TIME = 10
"""Seconds that one receive or send on a connection may take."""

SILENCE = 3600
"""Seconds that the kernel keeps a connection on which nothing has come, before it is accepted."""

PATIENCE = 1.0
"""Seconds that a request waits for a permit to be worked on."""

LINGER = 2.0
"""Seconds that the peer of an ended connection has to read its answer and to close."""

PROBES = ("/healthz", "/readyz")
"""Paths that need no permit: a busy service is a ready one."""

GRACE = 20
"""Seconds that requests in progress get when the service is told to stop."""


class Readiness:
    """Whether a service can do its work: its schema is there, and a server to answer from.

    Without PostgreSQL it still answers queries, without MongoDB it still takes commands; so
    it stays ready while it has one of them, and names the other as missing.
    """

    def __init__(self, store: Postgres, readmodel: Mongo) -> None:
        self._store = store
        self._readmodel = readmodel
        self._health = Health("store", "readmodel")
        self._schema_seen = False
        self._lock = threading.Lock()
        self._checked_at = 0.0

    def missing(self) -> Mapping[str, str]:
        """What does not work, with the reason; looks once a second at most."""
        with self._lock:
            if time.monotonic() - self._checked_at > 1:
                self._look()
                self._checked_at = time.monotonic()
        return self._health.missing()

    def is_ready(self) -> bool:
        """Whether requests may come."""
        missing = self.missing()
        return self._schema_seen and len(missing) < 2

    def _look(self) -> None:
        try:
            self._store.require_schema()
            self._schema_seen = True
            self._store.require_writable()
            self._health.well("store")
        except Away as away:
            self._health.lacks("store", str(away))
        try:
            self._readmodel.ping()
            self._health.well("readmodel")
        except Away as away:
            self._health.lacks("readmodel", str(away))


def limit_sockets(listener: socket.socket) -> socket.socket:
    """Bounds what one peer can hold; Linux hands the options on to each accepted connection.

    A connection on which nothing has come stays in the kernel; a receive or send that takes longer
    than SOCKET_TIME raises BlockingIOError. See socket(7) and tcp(7).
    """
    limit = struct.pack("ll", SOCKET_TIME, 0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        listener.setsockopt(socket.SOL_SOCKET, option, limit)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENCE)
    return listener


class Refusal(Exception):
    """An answer in place of the application's, and a WSGI application that gives it."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.code = code
        self.detail = detail

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        """Answers with problem details (RFC 9457)."""
        problem = {
            "type": f"urn:problem:{self.code}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "requestId": environ[IDS].request_id,
        }
        body = jsontext.render(problem)
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
        ]
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", str(Busy.retry_after)))
        start_response(f"{self.status.value} {self.status.phrase}", headers)
        return (body,)


def receive(environ: dict[str, Any]) -> None:
    """Reads the body of a request, whole. Raises Refusal for one that cannot be taken."""
    if "HTTP_HOST" not in environ and environ["SERVER_PROTOCOL"] != "HTTP/1.0":
        raise Refusal(400, "unreadable", "The request has no Host header.")
    coding = environ.pop("HTTP_TRANSFER_ENCODING", "")
    if coding.lower() not in ("", "chunked"):
        raise Refusal(501, "unsupported-coding", "Transfer-Encoding can only be chunked.")
    declared = int(environ.get("CONTENT_LENGTH") or 0)
    if not coding and not declared:
        return
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise Refusal(415, "unsupported-media-type", "A body cannot be compressed.")
    too_large = Refusal(413, "http-413", f"The body is over {BODY_LIMIT // 1024} KiB.")
    if declared > BODY_LIMIT:
        raise too_large
    try:
        body = environ["wsgi.input"].read(BODY_LIMIT + 1)
    except BlockingIOError as error:
        late = "The body did not come in time. Nothing was written; send it again."
        raise Refusal(408, "too-slow", late) from error
    except (errors.ParseException, errors.NoMoreData) as error:
        raise Refusal(400, "unreadable", "The chunks of the body are not valid.") from error
    if len(body) > BODY_LIMIT:
        raise too_large
    if len(body) < declared:
        raise Refusal(400, "unreadable", "The body is shorter than its Content-Length.")
    environ["wsgi.input"] = BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))


class Overload:
    """Bounds the requests in progress in a WSGI application.

    A request is read whole before it waits for a permit, and gives it back before its answer is
    sent: a slow peer holds a thread, which waits, and none of the permits.
    """

    def __init__(self, behind: "WSGIApplication", permits: int) -> None:
        self._behind = behind
        self._permits = threading.BoundedSemaphore(permits)
        self._finished = 0
        self._seen = 0

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        try:
            receive(environ)
            if environ["PATH_INFO"] in PROBES:
                return self._behind(environ, start_response)
            if not self._permits.acquire(timeout=PATIENCE):
                busy = "More is asked for than can be answered. Nothing was written; try again."
                raise Refusal(503, Busy.code, busy)
        except Refusal as refusal:
            return Correlation(refusal)(environ, start_response)
        try:
            return self._behind(environ, start_response)
        finally:
            self._finished += 1
            self._permits.release()

    def moves(self) -> bool:
        """Whether a permit is free, or has been given back since this was last asked."""
        before, self._seen = self._seen, self._finished
        if self._seen != before:
            return True
        if free := self._permits.acquire(blocking=False):
            self._permits.release()
        return free


class Liveness:
    """Says that a process is stuck when a check has failed each time for STUCK seconds."""

    def __init__(
        self, *checks: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._failing_since: float | None = None

    def stuck(self) -> bool:
        """Runs the checks."""
        if all(check() for check in self._checks):
            self._failing_since = None
            return False
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        return now - self._failing_since > STUCK


def answers(host: str, port: int) -> bool:
    """Whether the process that listens there answers /healthz within a second."""
    connection = HTTPConnection(host, port, timeout=1)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker, which says its own errors as problem details.

    It overrides two public methods; docs/decisions/0016 says why.
    """

    def handle(self, conn: Any) -> Any:
        """Handles a request; where the connection ends, waits here until the peer has closed.

        gunicorn waits in its main thread, which accepts and dispatches nothing meanwhile.
        """
        kept = super().handle(conn)
        if not kept:
            _await_close(conn.sock)
        return kept

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answers a request that gunicorn cannot read, or whose application failed."""
        refusal = next((each for kind, each in _UNREADABLE if isinstance(exc, kind)), _FAILED)
        if refusal is _FAILED:
            log.error("Unexpected error", exc_info=exc)
        lines = []

        def start(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
            lines.extend([f"HTTP/1.1 {status}", "Connection: close"])
            lines.extend(f"{name}: {value}" for name, value in headers)

        environ = {"REQUEST_METHOD": getattr(req, "method", "")}
        [body] = Correlation(refusal)(environ, start)  # type: ignore[arg-type]
        with suppress(OSError):  # it may have gone
            client.sendall("\r\n".join((*lines, "", "")).encode("latin-1") + body)


_FAILED = Refusal(
    500, "internal", "Something unexpected happened. The logs have it under this request's id."
)
_UNREADABLE: tuple[tuple[type[Exception], Refusal], ...] = (
    (errors.InvalidResponseHeader, _FAILED),
    (errors.InvalidResponseHeaderName, _FAILED),
    (errors.LimitRequestLine, Refusal(414, "unreadable", "The request line is too long.")),
    (errors.LimitRequestHeaders, Refusal(431, "unreadable", "The header fields are too large.")),
    (errors.ExpectationFailed, Refusal(417, "unreadable", "Expect can only be 100-continue.")),
    (
        errors.UnsupportedTransferCoding,
        Refusal(501, "unsupported-coding", "Transfer-Encoding can only be chunked."),
    ),
    (
        errors.ParseException,
        Refusal(400, "unreadable", "The request line or a header field is not valid HTTP/1.1."),
    ),
)
"""Answers to the requests that gunicorn refuses."""


def _await_close(sock: socket.socket) -> None:
    """Sends FIN and waits for the peer's, for a bounded time and size (RFC 9112, 9.6)."""
    ends, left = time.monotonic() + LINGER, BODY_LIMIT
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while left > 0 and (seconds := ends - time.monotonic()) > 0:
            sock.settimeout(seconds)
            if not (received := sock.recv(4096)):
                return
            left -= len(received)
    with suppress(OSError):
        if left <= 0:  # it goes on sending: reset it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RD)  # gunicorn's main thread finds nothing to wait for


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with our settings: one worker, its threads, a metrics port of its own."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._module: Any = importlib.import_module(f"{settings.service}.main")
        self._listeners = [limit_sockets(each) for each in listen(settings.host, settings.port)]
        self._address = self._listeners[0].getsockname()[:2]
        self._probes = listen(settings.host, settings.metrics_port)
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn; see its settings reference."""
        own = {
            "bind": [f"fd://{each.detach()}" for each in self._listeners],
            "workers": 1,
            "threads": SOCKET_THREADS,
            "worker_connections": CONNECTIONS,
            "worker_class": Worker,
            "keepalive": 75,  # longer than any client keeps a connection, the gateway's too
            "timeout": 30,
            "graceful_timeout": GRACE,
            "sendfile": False,  # Python's waits without a limit for a peer that does not read
            "worker_tmp_dir": "/dev/shm",  # nosec B108
            "control_socket_disable": True,
            "limit_request_line": 4094,
            "limit_request_fields": 50,
            "limit_request_field_size": 8190,
            "logger_class": _Logger,
            "post_worker_init": self._post_worker_init,
            "worker_exit": lambda _server, _worker: stop_tracing(),
        }
        for name, value in own.items():
            self.cfg.set(name, value)

    def load(self) -> "WSGIApplication":
        """The application, made in the worker."""
        write_lines_in_background()
        start_tracing(self._settings)
        app: Flask = self._module.create_app(self._settings)
        self._overload = Overload(app, self._settings.permits)
        return self._overload

    def _post_worker_init(self, _worker: object) -> None:
        """Serves probes and metrics from the process that serves requests."""

        def is_reached() -> bool:
            return answers(*self._address)

        def missing() -> dict[str, str]:
            return {} if is_reached() else {"serving": "/healthz is not answered"}

        serve_probes(self._probes, missing, Liveness(self._overload.moves, is_reached).stuck)
        log.info(f"{self._module.TITLE} on {self._settings.port}")


class _Logger(Logger):  # type: ignore[misc]
    """Sends gunicorn's own lines where ours go."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.error_log.addFilter(_is_no_timeout)
        self.access_log.disabled = True


def _is_no_timeout(record: logging.LogRecord) -> bool:
    """Leaves out the end of a connection by SOCKET_TIME, which gunicorn takes for an error."""
    return not (record.exc_info and isinstance(record.exc_info[1], BlockingIOError))


def serve(settings: ServeSettings) -> None:
    """Serves until a signal says stop."""
    start(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2 * CONNECTIONS))  # each connection is an open file
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    Server(settings).run()
