"""A small HTTP server for probes and metrics, in a thread."""

import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from eventcore import jsontext
from eventcore.errors import Misconfigured
from eventcore.observe.metrics import render_metrics


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

    handler = _handler(missing, is_stuck)
    for listener in listeners:
        server = _ProbesServer(listener.getsockname()[:2], handler, bind_and_activate=False)
        server.socket.close()
        server.socket = listener
        threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    timeout = 5

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes are not worth a line."""


def _handler(
    missing: Callable[[], Mapping[str, str]], is_stuck: Callable[[], bool]
) -> type[BaseHTTPRequestHandler]:
    class Probes(_Handler):
        def do_GET(self) -> None:
            if self.path == "/metrics":
                self.answer(200, *render_metrics(self.headers.get("Accept", "")))
            elif self.path == "/healthz":
                self.answer(200, b'{"status":"alive"}')
            elif self.path == "/livez" and is_stuck():
                self.answer(503, b'{"status":"stuck"}')
            elif self.path == "/livez":
                self.answer(200, b'{"status":"alive"}')
            elif self.path == "/readyz":
                lacking = missing()
                answer = {"status": "waiting" if lacking else "ready", "missing": lacking}
                self.answer(503 if lacking else 200, jsontext.render(answer))
            else:
                self.answer(404, b'{"title":"Not found"}')

    return Probes
