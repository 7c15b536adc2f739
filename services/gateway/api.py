"""The gateway: one door to both services. It forwards what is on its list, and nothing else."""

import logging
import re
from collections.abc import Mapping
from time import monotonic

import urllib3
from flask import Flask, Response, g, request
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ReadTimeoutError

from eventcore import openapi
from eventcore.errors import Away
from eventcore.web import problem

log = logging.getLogger(__name__)

IDLE = 1.0
"""Seconds after which a kept connection is not used again: a service that stops answers on
those it has for two seconds more, so a request never meets one that is just being closed."""

ROUTES = {"users": "user", "orders": "order", "queries/orders": "order"}
"""The first part of a path, and the service that answers it."""

_PATH = re.compile(r"/(users|orders|queries/orders)((?:/[A-Za-z0-9-]{1,64}){0,3})")
_ACTS = {"cancel", "events"}
"""What may follow an id; for metrics alone, the services know what they have."""

_THERE = (
    "Accept", "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match",
    "traceparent", "tracestate",
)  # fmt: skip
_BACK = (
    "Allow", "Cache-Control", "Content-Type", "ETag", "Idempotency-Replayed", "Retry-After",
    "WWW-Authenticate",
)  # fmt: skip


class UpstreamAway(Away):
    """The service behind the gateway cannot be reached; nothing was written."""

    code = "upstream-away"


class _Fresh(HTTPConnection):
    """A connection that counts as closed when it has been idle for too long."""

    used_at = 0.0

    def getresponse(self) -> urllib3.response.HTTPResponse:  # type: ignore[override]
        self.used_at = monotonic()
        return super().getresponse()

    @property
    def is_connected(self) -> bool:
        return monotonic() - self.used_at < IDLE and super().is_connected


class _FreshPool(HTTPConnectionPool):
    ConnectionCls = _Fresh


class Upstreams:
    """The services behind the gateway, over kept connections; every wait has a limit."""

    def __init__(self, urls: Mapping[str, str], connections: int) -> None:
        self._urls = {name: url.rstrip("/") for name, url in urls.items()}
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=1, read=10), maxsize=connections, num_pools=4
        )
        self._pool.pool_classes_by_scheme = {"http": _FreshPool, "https": HTTPSConnectionPool}

    def forward(self, service: str, path: str, repeatable: bool) -> urllib3.BaseHTTPResponse:
        """Send the current request on; one that may be repeated is tried twice."""
        headers = {name: request.headers[name] for name in _THERE if name in request.headers}
        headers["X-Request-ID"] = g.request_id
        headers["X-Correlation-ID"] = g.correlation_id
        again = urllib3.Retry(
            total=1, connect=1, read=1 if repeatable else 0, status=0, redirect=0, other=0,
            allowed_methods=None, backoff_factor=0.05,
            respect_retry_after_header=False,
        )  # fmt: skip
        return self._pool.request(
            request.method,
            f"{self._urls[service]}{path}",
            body=request.get_data(cache=True) or None,
            headers=headers,
            retries=again,
            preload_content=True,
        )

    def close(self) -> None:
        """Let all connections go."""
        self._pool.clear()

    def document(self) -> bytes:
        """The OpenAPI documents of all services, as one; raises UpstreamAway."""
        texts = []
        for url in self._urls.values():
            try:
                texts.append(self._pool.request("GET", f"{url}/openapi.json", retries=1).data)
            except HTTPError as error:
                raise UpstreamAway("A service does not answer, try again.") from error
        return openapi.merge("Shop", texts, problems=(502, 504))


def add_forwarding(app: Flask, upstreams: Upstreams) -> None:
    """Forward the calls on the list; anything else is a 404 here.

    Whatever the method: which ones there are for a path, the service knows.
    """

    @app.url_value_preprocessor
    def name_route(_endpoint: str | None, _values: object) -> None:
        """Before anything can refuse the request, so that it is counted under its route."""
        if _endpoint == "forward":
            g.route = _template(_PATH.fullmatch(_target()[0]))

    app.url_map.add(app.url_rule_class("/<path:_path>", endpoint="forward"))

    @app.endpoint("forward")
    def forward(_path: str) -> Response:
        path, query = _target()
        match = _PATH.fullmatch(path)
        if match is None:
            return problem(404, "Not found", "There is no such call; see /docs.", "not-found")
        repeatable = request.method in ("GET", "HEAD") or "Idempotency-Key" in request.headers
        target = f"{path}?{query}" if query else path
        try:
            answer = upstreams.forward(ROUTES[match[1]], target, repeatable)
        except HTTPError as error:
            return _failed(error)
        headers = {name: answer.headers[name] for name in _BACK if name in answer.headers}
        return Response(answer.data, answer.status, headers)


def _target() -> tuple[str, str]:
    """Path and query of the request, as they were sent."""
    path, _, query = str(request.environ.get("RAW_URI") or request.full_path).partition("?")
    return path, query


def _template(match: re.Match[str] | None) -> str:
    """The route as a metric names it: without ids, and one for all that no service has."""
    if match is None:
        return "(no route)"
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
