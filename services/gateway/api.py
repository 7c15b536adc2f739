"""The gateway: one door to both services. It forwards what is on its list, and nothing else."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from io import BytesIO
from socket import SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET
from struct import pack
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import urllib3
from flask import Flask, Response, request
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ReadTimeoutError
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

from eventcore import openapi
from eventcore.errors import Away
from eventcore.observe import log_fields
from eventcore.tracing import trace_wsgi
from eventcore.web import BODY_LIMIT, NOTHING_ELSE, ROUTE, Ids, note_answer, problem

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

Environ = dict[str, Any]

log = logging.getLogger(__name__)

IDLE = 1.0
"""Seconds after which a kept connection is not used again: a service that stops answers on
those it has for two seconds more, so a request never meets one that is just being closed."""

READ_TIME = 10
"""Seconds that a service has for the next part of an answer."""

_ONCE_SENT = urllib3.Retry(
    total=1, connect=1, read=0, status=0, redirect=0, other=0,
    allowed_methods=None, backoff_factor=0.05, respect_retry_after_header=False,
)  # fmt: skip
"""Tried again if it was certainly not sent: there was no connection."""

_TWICE = _ONCE_SENT.new(read=1)
"""Tried again in any case."""

ROUTES = {"users": "user", "orders": "order", "queries/orders": "order"}
"""The first part of a path, and the service that answers it."""

_PATH = re.compile(r"/(users|orders|queries/orders)((?:/[A-Za-z0-9-]{1,64}){0,3})")
_ACTS = {"cancel", "events"}
"""What may follow an id; for metrics alone, the services know what they have."""

_THERE = tuple(
    (name, f"HTTP_{name.upper().replace('-', '_')}")
    for name in (
        "Accept", "Authorization", "Idempotency-Key", "If-Match", "If-None-Match",
        "traceparent", "tracestate",
    )
)  # fmt: skip
"""The headers that go on to a service, and what WSGI calls them."""

_BACK = tuple(
    (name, name.lower())
    for name in (
        "Allow", "Cache-Control", "Content-Type", "ETag", "Idempotency-Replayed", "Retry-After",
        "WWW-Authenticate",
    )
)  # fmt: skip
"""The headers that come back from a service."""

ABOUT = """Users and orders, event-sourced.

Create a user (`POST /users`), place an order for that user (`POST /orders`), and read both
(`GET /users/{id}`, `GET /queries/orders/{id}`). Every change is an event: `/events` lists them, and
`?version=` or `?at=` shows the state as it was. An `Idempotency-Key` makes every command safe to
repeat; `If-Match` makes a change depend on the version that was read."""
"""Introduction of the OpenAPI document and its page."""

HEAD_LIMIT = 64 * 1024
"""Bytes of an answer's status and headers, about at most."""

_STATUS_LINE = re.compile(r"HTTP/1\.1 ([2-5][0-9]{2}) (.*)")
_NO_BODY = ("204", "304")


class UpstreamAway(Away):
    """The service behind the gateway cannot be reached; nothing was written."""

    code = "upstream-away"


@dataclass
class Forwarded:
    """A service's answer, whole; headers by their names in lower case."""

    status: int
    reason: str
    headers: Mapping[str, str]
    data: bytes

    # what urllib3's pool asks of an answer as well
    version = 11
    version_string = "HTTP/1.1"
    length_remaining = 0


class _Fresh(HTTPConnection):
    """A connection that counts as closed when it has been idle for too long.

    It sends a request in one piece, and reads an answer as gunicorn sends it: HTTP/1.1, with a
    length. urllib3's own reads each header three times over, for servers that do what they like.
    """

    used_at = 0.0
    _method = ""

    def connect(self) -> None:
        """Connect; from then on the kernel keeps the time, with no call for it at each turn.

        What is not done in time is BlockingIOError, which urllib3 takes as what it is.
        """
        super().connect()
        self.sock.settimeout(None)
        for limit in (SO_RCVTIMEO, SO_SNDTIMEO):
            self.sock.setsockopt(SOL_SOCKET, limit, pack("ll", READ_TIME, 0))

    def request(  # type: ignore[override]
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], **_: object
    ) -> None:
        """Send a request; it has all `headers` but for Host and Content-Length."""
        if self.sock is None:
            self.connect()
        self._method = method
        lines = [
            f"{method} {url} HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Length: {len(body or b'')}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        if head.count(b"\n") != len(lines) + 1:
            raise ValueError("a header must not have a line break in it")
        self.sock.sendall(head + (body or b""))

    def getresponse(self) -> Forwarded:  # type: ignore[override]
        """The answer to it; raises HTTPException for one that is none, and OSError."""
        self.used_at = monotonic()
        received = self._receive()
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > HEAD_LIMIT:
                raise HTTPException("the head of an answer does not end")
            received += self._receive()
        status, reason, headers = _read_head(received[:end].decode("latin-1"))
        data = received[end + 4 :]
        has_body = self._method != "HEAD" and str(status) not in _NO_BODY
        length = int(headers["content-length"]) if has_body else 0
        while len(data) < length:
            data += self._receive()
        if len(data) > length:
            raise HTTPException("an answer is longer than it says")
        if headers.get("connection") == "close":
            self.close()
        return Forwarded(status, reason, headers, data)

    def _receive(self) -> bytes:
        some: bytes = self.sock.recv(65536)
        if not some:
            raise RemoteDisconnected("the connection was closed before an answer was whole")
        return some

    @property
    def is_connected(self) -> bool:
        return monotonic() - self.used_at < IDLE and super().is_connected


def _read_head(head: str) -> tuple[int, str, dict[str, str]]:
    """Status, reason and headers; raises HTTPException."""
    first, *lines = head.split("\r\n")
    known = _STATUS_LINE.fullmatch(first)
    if known is None:
        raise BadStatusLine(first)
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if not headers.setdefault("content-length", "0" if known[1] in _NO_BODY else "").isdecimal():
        raise HTTPException("an answer must say how long it is")
    return int(known[1]), known[2], headers


class _FreshPool(HTTPConnectionPool):
    ConnectionCls = _Fresh  # type: ignore[assignment]


class Upstreams:
    """The services behind the gateway, over kept connections; every wait has a limit."""

    def __init__(self, urls: Mapping[str, str], connections: int) -> None:
        manager = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=1, read=READ_TIME), maxsize=connections, num_pools=4
        )
        manager.pool_classes_by_scheme = {"http": _FreshPool, "https": HTTPSConnectionPool}
        self._pools = {name: manager.connection_from_url(url) for name, url in urls.items()}

    def forward(
        self, service: str, method: str, target: str, body: bytes, headers: Mapping[str, str]
    ) -> Forwarded:
        """Send a request on; one that may be repeated is tried twice. Raises HTTPError."""
        repeatable = method in ("GET", "HEAD") or "Idempotency-Key" in headers
        answer: Any = self._pools[service].urlopen(
            method,
            target,
            body=body or None,
            headers=headers,
            retries=_TWICE if repeatable else _ONCE_SENT,
            redirect=False,
            preload_content=True,
        )
        return cast(Forwarded, answer)

    def close(self) -> None:
        """Let all connections go."""
        for pool in self._pools.values():
            pool.close()

    def document(self) -> bytes:
        """The OpenAPI documents of all services, as one; raises UpstreamAway."""
        texts = []
        for service in self._pools:
            try:
                texts.append(self.forward(service, "GET", "/openapi.json", b"", {}).data)
            except HTTPError as error:
                raise UpstreamAway("A service does not answer, try again.") from error
        return openapi.merge("Shop", ABOUT, texts, problems=(502, 504))


class Forwarder:
    """The gateway's WSGI application: what is on its list goes to its service from here.

    All else, and what could not be forwarded, is answered by the Flask application behind it.
    """

    def __init__(self, behind: "WSGIApplication", upstreams: Upstreams) -> None:
        self._behind = behind
        self._upstreams = upstreams
        self._forward_traced = trace_wsgi(self._forward)

    def __call__(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        path, _, query = str(environ.get("RAW_URI") or _raw_uri(environ)).partition("?")
        match = _PATH.fullmatch(path)
        if match is None:
            return self._behind(environ, start_response)
        environ["gateway.service"] = ROUTES[match[1]]
        environ["gateway.target"] = f"{path}?{query}" if query else path
        environ[ROUTE] = _template(match)
        answer: Iterable[bytes] = self._forward_traced(environ, start_response)
        return answer

    def _forward(self, environ: Environ, start_response: "StartResponse") -> Iterable[bytes]:
        began = perf_counter()
        ids = Ids.of(environ)
        with log_fields(**ids.fields()):
            try:
                answer = self._send(environ, ids)
            except Exception as error:  # noqa: BLE001 - the application behind answers it
                environ["gateway.failed"] = error
                environ["wsgi.input"] = BytesIO()  # nobody waits for the rest of the body
                environ.pop("CONTENT_LENGTH", None)
                ids.hand_on(environ)
                return self._behind(environ, start_response)
            given = answer.headers
            headers = [(name, given[lower]) for name, lower in _BACK if lower in given]
            headers += [
                ("X-Request-ID", ids.request_id),
                ("X-Correlation-ID", ids.correlation_id),
                ("X-Content-Type-Options", "nosniff"),
                ("Content-Security-Policy", NOTHING_ELSE),
            ]
            if answer.status not in (204, 304):
                headers.append(("Content-Length", str(len(answer.data))))
            start_response(f"{answer.status} {answer.reason or ''}", headers)
            note_answer(environ["REQUEST_METHOD"], environ[ROUTE], answer.status, began)
            return (answer.data,)

    def _send(self, environ: Environ, ids: Ids) -> Forwarded:
        headers = {name: environ[key] for name, key in _THERE if key in environ}
        if kind := environ.get("CONTENT_TYPE"):
            headers["Content-Type"] = kind
        headers["X-Request-ID"] = ids.request_id
        headers["X-Correlation-ID"] = ids.correlation_id
        return self._upstreams.forward(
            environ["gateway.service"],
            environ["REQUEST_METHOD"],
            environ["gateway.target"],
            _body(environ),
            headers,
        )


def _body(environ: Environ) -> bytes:
    """The request's body, whole; raises RequestEntityTooLarge, BadRequest."""
    declared = int(environ.get("CONTENT_LENGTH") or 0)
    if declared > BODY_LIMIT:
        raise RequestEntityTooLarge
    body: bytes = environ["wsgi.input"].read(BODY_LIMIT + 1)
    if len(body) > BODY_LIMIT:
        raise RequestEntityTooLarge
    if len(body) < declared:
        raise BadRequest("The body is shorter than its Content-Length.")
    return body


def _raw_uri(environ: Environ) -> str:
    """Path and query, where the server does not say how they were sent."""
    query = environ.get("QUERY_STRING", "")
    path = quote(environ.get("PATH_INFO", ""), safe="/-", encoding="latin-1")
    return f"{path}?{query}" if query else path


def add_forwarding(app: Flask, upstreams: Upstreams) -> None:
    """Forward the calls on the list, whatever the method; anything else is a 404 here."""
    app.url_map.add(app.url_rule_class("/<path:_path>", endpoint="unknown"))

    @app.before_request
    def failed() -> Response | None:
        error = request.environ.get("gateway.failed")
        if error is None:
            return None
        if isinstance(error, HTTPError):
            return _failed(error)
        raise error

    @app.endpoint("unknown")
    def unknown(_path: str) -> Response:
        request.environ[ROUTE] = "(no route)"
        return problem(404, "Not found", "There is no such call; see /docs.", "not-found")

    app.wsgi_app = Forwarder(app.wsgi_app, upstreams)  # type: ignore[method-assign]


def _template(match: re.Match[str]) -> str:
    """The route as a metric names it: without ids, and one for all that no service has."""
    _, *parts = match[2].split("/")
    if len(parts) > 2 or (len(parts) == 2 and parts[1] not in _ACTS):
        return "(no route)"
    return f"/{match[1]}" + "".join(f"/{part}" for part in ("{id}", *parts[1:])[: len(parts)])


def _failed(error: HTTPError) -> Response:
    """Says what is known: not reached, or reached and no answer."""
    log.warning("Upstream failed", extra={"reason": str(error)[:300]})
    reason = getattr(error, "reason", error)
    if isinstance(
        reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
    ):
        raise UpstreamAway(
            "The service does not answer. Nothing was written; try again."
        ) from error
    status = 504 if isinstance(reason, ReadTimeoutError) else 502
    detail = (
        "The service was reached but did not answer. Whether it was done is not known: look,"
        " or repeat it with an Idempotency-Key, which makes that safe."
    )
    return problem(status, "No answer", detail, "no-answer")
