"""A service under gunicorn: its listener, its limits, its metrics port."""

import importlib
import logging
import resource
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import errors
from gunicorn.workers.gthread import ThreadWorker

from eventcore.observe.logs import start, write_lines_in_background
from eventcore.observe.probes import listen, serve_probes
from eventcore.observe.tracing import start_tracing, stop_tracing
from eventcore.settings import SOCKET_THREADS, ServeSettings
from eventcore.web.correlation import Correlation
from eventcore.web.overload import Overload, Refusal
from eventcore.web.readiness import Liveness, is_answering
from eventcore.web.request import BODY_LIMIT
from eventcore.web.sockets import limit_sockets, tls_options

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


log = logging.getLogger(__name__)

CONNECTIONS = 2000
"""Connections that one process holds at most."""

LINGER = 2.0
"""Seconds that the peer of an ended connection has to read its answer and to close."""

GRACE = 20
"""Seconds that requests in progress get when the service is told to stop."""


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread worker, which says its own errors as problem details.

    It overrides two public methods; docs/decisions/0016 says why.
    """

    def handle(self, conn: Any) -> Any:
        """Handles a request; where the connection ends, waits here until the peer has closed.

        gunicorn waits in its main thread, which accepts and dispatches nothing during the wait.
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
        ssl.SSLError,
        Refusal(400, "unreadable", "The connection speaks no TLS, or its handshake failed."),
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
        self._tls = tls_options(settings)
        super().__init__()

    def load_config(self) -> None:
        """Called by gunicorn; see its settings reference."""
        config = {
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
            "limit_request_field_size": self._settings.header_size,
            "logger_class": _Logger,
            **self._tls,
            "post_worker_init": self._post_worker_init,
            "worker_exit": lambda _server, _worker: stop_tracing(),
        }
        for name, value in config.items():
            self.cfg.set(name, value)

    def load(self) -> "WSGIApplication":
        """The application, made in the worker."""
        write_lines_in_background()
        start_tracing(self._settings)
        app: Flask = self._module.create_app(self._settings)
        self._title = app.name
        self._overload = Overload(app, self._settings.permits)
        return self._overload

    def _post_worker_init(self, _worker: object) -> None:
        """Serves probes and metrics from the process that serves requests."""

        def is_reached() -> bool:
            return is_answering(*self._address, tls=bool(self._tls))

        def missing() -> dict[str, str]:
            return {} if is_reached() else {"serving": "/healthz is not answered"}

        serve_probes(
            self._probes, missing, Liveness(self._overload.makes_progress, is_reached).stuck
        )
        log.info(f"{self._title} on {self._settings.port}")


class _Logger(Logger):  # type: ignore[misc]
    """Sends gunicorn's own lines where ours go."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.error_log.addFilter(_is_no_timeout)
        self.access_log.disabled = True


def _is_no_timeout(record: logging.LogRecord) -> bool:
    """Leaves out the end of a connection by SOCKET_TIME, which gunicorn takes for an error."""
    return not (record.exc_info and isinstance(record.exc_info[1], BlockingIOError | TimeoutError))


def serve(settings: ServeSettings) -> None:
    """Serves until a signal says stop."""
    start(settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, min(hard, 2 * CONNECTIONS))  # each connection is an open file
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    Server(settings).run()
