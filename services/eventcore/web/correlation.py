"""Ids, metrics and one log line for each request."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

from eventcore.ids import new_id
from eventcore.observe.logs import log_fields
from eventcore.observe.metrics import REQUESTS
from eventcore.observe.tracing import (
    POLLED_ROUTES,
    TRACEPARENT,
    current_exemplar,
    current_traceparent,
    name_request,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication


log = logging.getLogger(__name__)

REQUEST_CONTEXT = "eventcore.request_context"
"""Key of the WSGI environment: the RequestContext of the request."""

_ID = re.compile("[0-9A-Za-z._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The ids of a request, in every line that is logged while it is answered."""

    request_id: str
    correlation_id: str
    traceparent: str | None

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> "RequestContext":
        """Takes well-formed ids from the request and makes the others.

        The trace context (W3C) is that of our span, else the caller's.
        """

        def given(name: str, form: re.Pattern[str]) -> str | None:
            text = environ.get(name, "")
            return text if form.fullmatch(text) else None

        request_id = given("HTTP_X_REQUEST_ID", _ID) or str(new_id())
        correlation_id = given("HTTP_X_CORRELATION_ID", _ID) or request_id
        traceparent = current_traceparent() or given("HTTP_TRACEPARENT", TRACEPARENT)
        return cls(request_id, correlation_id, traceparent)

    def fields(self) -> dict[str, str]:
        """The ids as fields of a log line."""
        ids = {"request_id": self.request_id, "correlation_id": self.correlation_id}
        if self.traceparent:
            _, ids["trace_id"], ids["span_id"], _ = self.traceparent.split("-")
        return ids


class Correlation:
    """WSGI middleware that gives each request its ids, and counts and logs its answer."""

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        """Answers a request; whoever answers it, the answer has the headers of every answer."""
        began = perf_counter()
        environ[REQUEST_CONTEXT] = ids = RequestContext.of(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            record_answer(environ["REQUEST_METHOD"], _route(environ), int(status[:3]), began)
            added = [
                ("X-Request-ID", ids.request_id),
                ("X-Correlation-ID", ids.correlation_id),
                ("X-Content-Type-Options", "nosniff"),
            ]
            if all(name != "Content-Security-Policy" for name, _ in headers):
                added.append(("Content-Security-Policy", "default-src 'none'"))
            return start_response(status, headers + added, exc_info)

        with log_fields(**ids.fields()):
            return self._application(environ, start)


def _route(environ: Mapping[str, Any]) -> str:
    """The route of a request, which never contains an id: that bounds the label's cardinality."""
    rule = environ["werkzeug.request"].url_rule if "werkzeug.request" in environ else None
    return _template(rule.rule) if rule else "(no route)"


@lru_cache
def _template(rule: str) -> str:
    return re.sub(r"<(?:\w+(?:\([^()]*\))?:)?(\w+)>", r"{\1}", rule)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
"""The methods of RFC 9110 and RFC 5789; all others are one value of the metric's label."""


def record_answer(method: str, route: str, status: int, began: float) -> None:
    """Counts an answer, and logs it unless its route is polled."""
    seconds = perf_counter() - began
    method = method if method in _METHODS else "(other)"
    REQUESTS.labels(method, route, status).observe(seconds, current_exemplar())
    name_request(method, route)
    if not route.startswith(POLLED_ROUTES):
        answered = {"method": method, "route": route, "status": status}
        log.info("Answered", extra={**answered, "ms": round(seconds * 1000, 1)})
