"""The HTTP side of a service: create_app() builds the Flask application of its routes.

A route declares its input and its answers once; the declaration validates requests and makes the
OpenAPI document. Views, error handlers, hooks and extensions are Flask's own.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

from flask import (
    Blueprint,
    Flask,
    Response,
    has_request_context,
    redirect,
    render_template,
    request,
)
from flask_cors import CORS
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    PreconditionFailed,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)
from werkzeug.wrappers import Response as AnyResponse

from eventcore import errors, jsontext, openapi
from eventcore.command import Call, Handled, answered_before, new_id
from eventcore.event import Data
from eventcore.inputs import UUID_PATTERN, QueryInput, problems_of
from eventcore.observe import REQUESTS, log_fields, render_metrics
from eventcore.openapi import Operation
from eventcore.store import Answer, Idempotency, Store
from eventcore.tracing import REGULAR, TRACEPARENT, current_traceparent, name_request, trace_wsgi

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

BODY_LIMIT = 64 * 1024
"""Largest request body, in bytes."""

log = logging.getLogger(__name__)

Body = TypeVar("Body")
Query = TypeVar("Query")


@dataclass(frozen=True, slots=True)
class Incoming(Generic[Body, Query]):
    """A validated request."""

    id: UUID
    body: Body
    query: Query
    call: Call


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a query; its ETag begins with `version` where it has one."""

    body: Data
    version: str = ""


Handler = Callable[[Incoming[Any, Any]], Reply | Handled]


Route = tuple[Operation, Handler]
"""An operation and the function that carries it out."""


class Routes:
    """Collects the routes of a service from its `api.py`."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self.all: list[Route] = []

    def __call__(
        self,
        method: str,
        path: str,
        summary: str,
        answers: Mapping[int, type[BaseModel]],
        **more: Any,
    ) -> Callable[[Handler], Handler]:
        """Registers the decorated function; `more` are further fields of Operation."""

        def register(handler: Handler) -> Handler:
            operation = Operation(method, path, summary, answers, tag=self._tag, **more)
            self.all.append((operation, handler))
            return handler

        return register


def answer(body: Data, status: int = 200) -> Answer:
    """Makes the answer to a command; its bytes are stored under the Idempotency-Key."""
    return Answer(status, jsontext.render(body).decode(), {})


def create_app(
    title: str,
    routes: Sequence[Route],
    *,
    missing: Callable[[], Mapping[str, str]],
    is_ready: Callable[[], bool],
    store: Store | None = None,
    about: str = "",
    cors_origins: Sequence[str] = (),
    document: Callable[[], bytes] | None = None,
) -> Flask:
    """Builds a Flask application that serves `routes`, probes, metrics and its own description.

    `store` is asked for answers under an Idempotency-Key. `document` makes the OpenAPI document;
    without one it is built here from the routes. Browser applications of `cors_origins` may call
    every route. Nothing connects before the first request.
    """
    app = Flask(title, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT + 1  # one more byte than a view accepts
    app.url_map.merge_slashes = False
    for operation, handler in routes:
        app.add_url_rule(
            re.sub(r"{(\w+)}", r"<\1>", operation.path),
            endpoint=f"{operation.method} {operation.path}",
            view_func=_view(operation, handler, store),
            methods=[operation.method],
        )
    if document is None:
        built = openapi.build(title, "1.0", about, [operation for operation, _ in routes])
        document = lambda: built  # noqa: E731
    app.register_blueprint(_description(title, document))
    _add_probes(app, missing, is_ready)
    _add_errors(app)
    if cors_origins:
        CORS(app, origins=list(cors_origins), expose_headers=_EXPOSED, max_age=600)
    app.wsgi_app = trace_wsgi(Correlation(app.wsgi_app))  # type: ignore[method-assign]
    return app


_EXPOSED = ["ETag", "Idempotency-Replayed", "Retry-After", "X-Correlation-ID", "X-Request-ID"]
"""The headers of an answer that a browser application of another origin may read."""


def _view(operation: Operation, handler: Handler, store: Store | None) -> Callable[..., Response]:
    """Wraps a handler: validates the request, answers it, and repeats an earlier answer."""

    def view(**path: str) -> Response:
        text = read_body()
        incoming = Incoming(
            id=_path_id(path),
            query=(operation.query or QueryInput).model_validate(query_values()),
            body=operation.body.model_validate(_parse(text, operation)) if operation.body else None,
            call=_call(text, operation) if operation.is_command else Call({}),
        )
        try:
            return _response(handler(incoming))
        except (errors.StoreAway, errors.OutcomeUnknown):
            raise
        except errors.Error:  # the same request may have been carried out before
            earlier = answered_before(store, incoming.call) if store else None
            if not earlier:
                raise
            return _response(earlier)

    return view


def _response(result: Reply | Handled) -> Response:
    if isinstance(result, Handled):
        given = result.answer
        text = given.body if isinstance(given.body, str) else jsontext.render(given.body)
        response = Response(text, given.status, mimetype="application/json")
        response.headers.update({name: str(value) for name, value in given.headers.items()})
        if result.replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response
    return json_response(result.body, version=result.version)


def json_response(body: Data, version: str = "") -> Response:
    """Answers a query: 200 with an ETag of version and content, or 304 where the caller has it."""
    text = jsontext.render(body)
    response = Response(text, mimetype="application/json")
    content = hashlib.sha256(text).hexdigest()[:16]
    response.set_etag(f"{version}-{content}" if version else content)
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request)
    return response


def read_body() -> bytes:
    """Reads the body; raises RequestEntityTooLarge."""
    text = request.get_data()
    if len(text) > BODY_LIMIT:
        raise RequestEntityTooLarge
    return text


def _path_id(path: Mapping[str, str]) -> UUID:
    for text in path.values():
        if not re.fullmatch(UUID_PATTERN, text):
            raise errors.NotFound(f"{text[:80]!r} is not an id. Ids are UUIDs, as POST gave them.")
        return UUID(text)
    return UUID(int=0)


def query_values() -> dict[str, str]:
    """The parameters of the query string; raises Invalid for one that is repeated."""
    for name, given in request.args.lists():
        if len(given) > 1:
            raise errors.Invalid(f"The parameter {name[:80]!r} was given more than once.")
    return request.args.to_dict()


def _parse(text: bytes, operation: Operation) -> object:
    if not text and not operation.body_required:
        return {}
    if not text.strip():
        raise BadRequest("The body is empty. Send a JSON object.")
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("The body must be JSON, with Content-Type: application/json.")
    try:
        return jsontext.parse(text, unique_keys=True)
    except ValueError as error:
        raise BadRequest(f"The body cannot be read: {error}.") from error


def _call(text: bytes, operation: Operation) -> Call:
    if operation.has_id and request.headers.get("If-None-Match", "").strip() == "*":
        raise PreconditionFailed(
            "If-None-Match: * asks that there is nothing yet; this call changes what exists."
            " Nothing was written. Leave the header out, or send If-Match."
        )
    ids: Ids = request.environ[IDS]
    metadata = {"correlationId": ids.correlation_id, "causationId": ids.request_id}
    if ids.traceparent:
        metadata["traceparent"] = ids.traceparent
    return Call(metadata=metadata, idempotency=_idempotency(text), if_match=_if_match())


def _idempotency(text: bytes) -> Idempotency | None:
    """The key, bound to method, path, caller and body."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not re.fullmatch("[!-~]{1,255}", key):
        raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    caller = request.headers.get("Authorization", "")
    parts = (request.method, request.full_path, caller)
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape"))
    digest.update(b"\n" + text)
    return Idempotency(key, digest.hexdigest())


def _if_match() -> tuple[str, ...]:
    """The versions that If-Match allows; none: any. Weak tags count: the version is in them."""
    given = request.headers.get("If-Match")
    if given is None or given.strip() == "*":
        return ()
    tags = [re.fullmatch(r'(?:W/)?"([^"]*)"', tag.strip()) for tag in given.split(",")]
    if not all(tags):
        raise BadRequest("If-Match must be an ETag as it was answered, in double quotes.")
    return tuple(tag[1].split("-")[0] for tag in tags if tag)


IDS = "eventcore.ids"
"""Key of the WSGI environment: the Ids of the request."""

_ID = re.compile("[0-9A-Za-z._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Ids:
    """The ids of a request, in every line that is logged while it is answered."""

    request_id: str
    correlation_id: str
    traceparent: str | None

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> "Ids":
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
        environ[IDS] = ids = Ids.of(environ)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            note_answer(environ["REQUEST_METHOD"], _route(environ), int(status[:3]), began)
            own = [
                ("X-Request-ID", ids.request_id),
                ("X-Correlation-ID", ids.correlation_id),
                ("X-Content-Type-Options", "nosniff"),
            ]
            if all(name != "Content-Security-Policy" for name, _ in headers):
                own.append(("Content-Security-Policy", "default-src 'none'"))
            return start_response(status, headers + own, exc_info)

        with log_fields(**ids.fields()):
            return self._application(environ, start)


def _route(environ: Mapping[str, Any]) -> str:
    """The route of a request, which never contains an id: that bounds the label's cardinality."""
    rule = environ["werkzeug.request"].url_rule if "werkzeug.request" in environ else None
    return _template(rule.rule) if rule else "(no route)"


@lru_cache
def _template(rule: str) -> str:
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
"""The methods of RFC 9110 and RFC 5789; all others are one value of the metric's label."""


def note_answer(method: str, route: str, status: int, began: float) -> None:
    """Counts an answer, and logs it unless its route is polled."""
    seconds = perf_counter() - began
    method = method if method in _METHODS else "(other)"
    REQUESTS.labels(method, route, status).observe(seconds)
    name_request(method, route)
    if route not in REGULAR:
        answered = {"method": method, "route": route, "status": status}
        log.info("Answered", extra={**answered, "ms": round(seconds * 1000, 1)})


_AWAY = "Not available now"
_STATUS: Sequence[tuple[type[errors.Error], int, str, str]] = (
    (errors.NotFound, 404, "Not found", ""),
    (errors.Invalid, 422, "Invalid request", ""),
    (errors.Conflict, 409, "Conflict", ""),
    (errors.StaleVersion, 412, "Stale version", ""),
    (errors.KeyReused, 422, "Idempotency-Key reused", "This Idempotency-Key was used for another "
     "request. Send a new request with a new key; repeat one with the same path, body and caller."),
    (errors.OutcomeUnknown, 504, "Outcome unknown", "The event store did not confirm this in time: "
     "it is not known whether it was done. The id is {error.aggregate_id}; read it to find out. To "
     "repeat this is safe with the same Idempotency-Key; without a key it may be done twice."),
    (errors.NotYet, 503, _AWAY, ""),
    (errors.Busy, 503, _AWAY, ""),
    (errors.StoreAway, 503, _AWAY, "The event store is not available. {then}"),
    (errors.ReadModelAway, 503, _AWAY, "The read model is not available. {then}"),
    (errors.Away, 503, _AWAY, "A server is not available. {then}"),
    (errors.CannotApply, 503, "Cannot be read yet", "The stream has an event that this version of "
     "the service cannot read. Nothing was lost, and its history can be read. Try again when the "
     "service has been updated."),
)  # fmt: skip
"""The one table that turns errors into HTTP: class, status, title, and a detail where the error's
own text may name servers. That text is in the log, under the request's id."""

_HTTP: Mapping[int, str] = {
    400: "The request cannot be read.",
    404: "There is no such call. /docs lists all calls.",
    405: "This path does not take this method. The header Allow names those that it takes.",
    413: f"The body is over {BODY_LIMIT // 1024} KiB.",
}
"""Details of Werkzeug's exceptions."""


def _add_errors(app: Flask) -> None:
    @app.errorhandler(errors.Error)
    def known(error: errors.Error) -> Response:
        found = next((row for row in _STATUS if isinstance(error, row[0])), None)
        if found is None:
            return unknown(error)
        _, status, title, detail = found
        is_query = request.method in ("GET", "HEAD")
        then = "Try again." if is_query else "Nothing was written; try again."
        detail = detail.format(error=error, then=then) or str(error)
        response = problem(status, getattr(error, "title", title), detail, error.code)
        if status > 500:
            log.warning(title, extra={"code": error.code, "reason": str(error)})
        if status == 503:
            response.headers["Retry-After"] = str(getattr(error, "retry_after", 30))
        if isinstance(error, errors.StaleVersion):
            response.headers["ETag"] = f'"{error.tag}"'
        return response

    @app.errorhandler(ValidationError)
    def invalid(error: ValidationError) -> Response:
        found = problems_of(error)
        fields = "1 field" if len(found) == 1 else f"{len(found)} fields"
        detail = f"The request has {fields} that cannot be accepted. See errors."
        return problem(422, "Invalid request", detail, "invalid", errors=found)

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        code = error.code or 500
        is_ours = error.description != type(error).description  # given to abort()
        detail = error.description if is_ours else _HTTP.get(code, f"{error.name}.")
        response = problem(code, error.name, detail or error.name, f"http-{code}")
        for name, value in error.get_headers():
            if name not in ("Content-Type", "Content-Length"):
                response.headers[name] = value
        return response

    @app.errorhandler(InternalServerError)
    def failed(error: InternalServerError) -> Response:
        return unknown(error.original_exception or error)

    @app.errorhandler(Exception)
    def unknown(error: BaseException) -> Response:
        log.error("Unexpected error", exc_info=error)
        detail = "Something unexpected happened. The logs have it under this request's id."
        return problem(500, "Internal error", detail, "internal")


def problem(status: int, title: str, detail: str, code: str, **more: Any) -> Response:
    """Makes a problem details answer (RFC 9457)."""
    ids: Ids | None = request.environ.get(IDS) if has_request_context() else None
    body = {
        "type": f"urn:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "requestId": ids.request_id if ids else "",
        **more,
    }
    return Response(jsontext.render(body), status, mimetype="application/problem+json")


def _add_probes(
    app: Flask, missing: Callable[[], Mapping[str, str]], is_ready: Callable[[], bool]
) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return Response('{"status":"alive"}', mimetype="application/json")

    @app.get("/readyz")
    def readyz() -> Response:
        """Names what is missing; the reasons are for the operator, in the log."""
        ready = is_ready()
        lacking = dict.fromkeys(missing(), "not available")
        status = "ready" if ready else "waiting"
        text = jsontext.render({"status": status, "missing": lacking})
        return Response(text, 200 if ready else 503, mimetype="application/json")

    @app.get("/metrics")
    def metrics() -> Response:
        text, kind = render_metrics()
        return Response(text, content_type=kind)


_PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'"
)


def _description(title: str, document: Callable[[], bytes]) -> Blueprint:
    """/openapi.json, and /docs: a page to try the calls, which loads nothing from elsewhere."""
    pages = Blueprint(
        "docs", __name__, static_folder="docs", static_url_path="/docs", template_folder="docs"
    )

    @pages.get("/openapi.json")
    def openapi_json() -> Response:
        response = Response(document(), mimetype="application/json")
        response.headers["Cache-Control"] = "no-cache"
        response.add_etag()
        response.make_conditional(request)
        return response

    @pages.get("/docs")
    def docs() -> Response:
        response = Response(render_template("page.html", title=title), mimetype="text/html")
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    @pages.get("/")
    def home() -> AnyResponse:
        return redirect("docs")

    @pages.get("/docs/")
    def docs_with_slash() -> AnyResponse:
        return redirect("../docs")

    return pages
