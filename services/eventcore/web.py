"""A service's HTTP side: create_app() with routes, errors, ids, limits and probes.

The only file of eventcore that imports Flask. A route says once what it takes and answers;
that validates requests and makes the OpenAPI document.
"""

import hashlib
import hmac
import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar
from uuid import UUID

from flask import Flask, Request, Response, g, request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from eventcore import jsontext, openapi
from eventcore.command import Call, Handled, answered_before, new_id
from eventcore.errors import (
    Away,
    CannotApply,
    Conflict,
    Error,
    Invalid,
    KeyReused,
    NotFound,
    StaleVersion,
    StoreAway,
)
from eventcore.event import Data, Json, to_message, to_timestamp
from eventcore.feed import MANY, StoreFeed
from eventcore.observe import REQUESTS, log_fields, render_metrics
from eventcore.openapi import Operation
from eventcore.projection import Document, version_of
from eventcore.query import Views
from eventcore.settings import Secret
from eventcore.store import Answer, Idempotency, Store
from eventcore.tracing import REGULAR, TRACEPARENT, current_traceparent, name_request, trace_wsgi

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

BODY_LIMIT = 64 * 1024
"""Bytes of a request's body, at most."""

log = logging.getLogger(__name__)


class Input(BaseModel):
    """What a caller sends: nothing unknown, nothing of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class QueryInput(BaseModel):
    """What a caller asks for in the query string, where everything is text at first."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _canonical(text: str) -> str:
    return str(UUID(text))


UUID_PATTERN = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
Id = Annotated[
    str,
    Field(pattern=UUID_PATTERN, json_schema_extra={"format": "uuid"}),
    AfterValidator(_canonical),
]
"""A UUID as text, in lower case from here on."""


def _written(pattern: str, form: str) -> BeforeValidator:
    """Text in a query must have this form: pydantic alone would take "1_0" and "0" as a time."""

    def check(value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            raise PydanticCustomError("form", "Input should be {form}", {"form": form})
        return value

    return BeforeValidator(check)


_MOST = 2**53
"""What every reader of JSON can count to, so the document can say it as well."""

DIGITS = _written("-?[0-9]{1,20}", "a whole number")
_TIME = _written(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})",
    "a time with its offset from UTC, such as 2026-01-16T10:00:00Z",
)

Body = TypeVar("Body")
Query = TypeVar("Query")


@dataclass(frozen=True, slots=True)
class Incoming(Generic[Body, Query]):
    """A request that has been validated, as a handler gets it."""

    id: UUID
    body: Body
    query: Query
    call: Call


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers; `version` becomes the ETag, without one a query's content does."""

    body: Data
    status: int = 200
    version: int | None = None
    headers: Data | None = None


Handler = Callable[[Incoming[Any, Any]], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """An operation and the function that carries it out."""

    operation: Operation
    handler: Handler


class Routes:
    """A service's routes, as its `api.py` lists them."""

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
        """Register the decorated function; `more` is what Operation takes beside these."""

        def register(handler: Handler) -> Handler:
            operation = Operation(method, path, summary, answers, tag=self._tag, **more)
            self.all.append(Route(operation, handler))
            return handler

        return register


def reply(handled: Handled) -> Reply:
    """The reply to a command: what was answered, now or, for a known key, earlier."""
    headers = dict(handled.answer.headers)
    if handled.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Reply(handled.answer.body, handled.answer.status, headers=headers)


def etag(version: int) -> str:
    """The ETag of a version."""
    return f'"{version}"'


def create_app(
    title: str,
    routes: Sequence[Route],
    *,
    missing: Callable[[], Mapping[str, str]],
    is_ready: Callable[[], bool],
    store: Store | None = None,
    feed: StoreFeed | None = None,
    feed_token: Secret | None = None,
    document: Callable[[], bytes] | None = None,
) -> Flask:
    """A Flask application that serves `routes`, probes, metrics and its own description.

    `store` is asked for answers under an Idempotency-Key; `feed` is served to projectors
    that know the token. Nothing connects before the first request.
    """
    app = Flask(title, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT + 1  # so that one byte too many is seen
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    for route in routes:
        _add(app, route, store)
    if feed is not None and feed_token is not None:
        _add_feed(app, feed, feed_token)
    operations = [route.operation for route in routes]
    _add_description(app, document or (lambda: openapi.build(title, "1.0", operations)))
    _add_probes(app, missing, is_ready)
    _add_ids(app)
    _add_direct(app, routes, store)
    _add_limit(app)
    _add_errors(app)
    app.wsgi_app = trace_wsgi(app.wsgi_app)  # type: ignore[method-assign]
    return app


# ── one request ───────────────────────────────────────────────────────────────────────────


def _answer(
    route: Route, store: Store | None, asked: Request, ids: "Ids", aggregate_id: UUID
) -> Response:
    """What a route answers; raises Error, ValidationError."""
    operation = route.operation
    incoming = Incoming(
        id=aggregate_id,
        query=_validated(operation.query or QueryInput, _query_values(asked)),
        body=_validated(operation.body, _body(operation, asked)) if operation.body else None,
        call=_call(operation, asked, ids),
    )
    try:
        return _response(route.handler(incoming), asked)
    except StoreAway:
        raise
    except Error:
        earlier = answered_before(store, incoming.call) if store else None
        if not earlier:
            raise
        return _response(reply(earlier), asked)


def _add(app: Flask, route: Route, store: Store | None) -> None:
    operation = route.operation

    def view(**path: str) -> Response:
        return _answer(route, store, request, g.ids, _path_id(path, operation))

    rule = re.sub(r"{(\w+)}", r"<string:\1>", operation.path)
    app.add_url_rule(
        rule,
        endpoint=f"{operation.method} {operation.path}",
        view_func=view,
        methods=[operation.method],
        provide_automatic_options=False,
    )


class Direct:
    """A WSGI application before Flask's: it answers what is plainly a call of one of the routes.

    Flask's contexts, hooks and routing cost about as much as a command does. All else, and what
    raised an error, is answered by the application behind.
    """

    def __init__(
        self, behind: "WSGIApplication", routes: Sequence[Route], store: Store | None
    ) -> None:
        self._behind = behind
        self._store = store
        self._routes = [(_pattern(route.operation), route) for route in routes]

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        wanted = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        for pattern, route in self._routes:
            if found := pattern.fullmatch(wanted):
                aggregate_id = UUID(found[1]) if found.re.groups else _NO_ID
                return self._answer(environ, start_response, route, aggregate_id)
        return self._behind(environ, start_response)

    def _answer(
        self,
        environ: dict[str, Any],
        start_response: "StartResponse",
        route: Route,
        aggregate_id: UUID,
    ) -> Iterable[bytes]:
        began = perf_counter()
        ids = Ids.of(environ)
        asked = Request(environ)
        asked.max_content_length = BODY_LIMIT + 1
        with log_fields(**ids.fields()):
            try:
                _read_body(asked)
                response = _answer(route, self._store, asked, ids, aggregate_id)
            except Exception as error:  # noqa: BLE001 - the application behind answers it
                environ["direct.failed"] = error
                environ["direct.began"] = began
                ids.hand_on(environ)
                return self._behind(environ, start_response)
            _add_own_headers(response, ids)
            note_answer(asked.method, route.operation.path, response.status_code, began)
            return response(environ, start_response)


def _pattern(operation: Operation) -> re.Pattern[str]:
    """Of an operation's method and path, with an id where the path has one."""
    path = re.sub(r"{\w+}", f"({UUID_PATTERN[1:-1].replace('(', '(?:')})", operation.path)
    return re.compile(f"{operation.method} {path}")


def _add_direct(app: Flask, routes: Sequence[Route], store: Store | None) -> None:
    @app.before_request
    def raise_what_failed() -> None:
        error = request.environ.get("direct.failed")
        if error is not None:
            raise error

    app.wsgi_app = Direct(app.wsgi_app, routes, store)  # type: ignore[method-assign]


def _respond(answer: Reply) -> Response:
    return _response(answer, request)


def _response(answer: Reply, asked: Request) -> Response:
    response = Response(jsontext.render(answer.body), answer.status, mimetype="application/json")
    for name, value in (answer.headers or {}).items():
        response.headers[name] = str(value)
    if answer.version is not None:
        response.headers["ETag"] = etag(answer.version)
    if asked.method in ("GET", "HEAD") and answer.status == 200:
        response.add_etag(weak=True)  # of the content, where a version does not say it all
        response.headers["Cache-Control"] = "no-cache"
        if not _CONDITIONS.isdisjoint(asked.environ):
            response.make_conditional(asked)
    return response


_CONDITIONS = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"}
"""Where a request says on which version its answer depends."""

_NO_ID = UUID(int=0)


def _path_id(path: Mapping[str, str], operation: Operation) -> UUID:
    for text in path.values():
        if not re.fullmatch(UUID_PATTERN, text):
            raise NotFound(f"{text[:80]!r} is no id: ids are UUIDs, as POST answered them.")
        return UUID(text)
    return _NO_ID


def _validated(model: type[BaseModel] | None, value: object) -> Any:
    assert model
    return model.model_validate(value)


def _query_values(asked: Request) -> dict[str, str]:
    values = {}
    for name, given in asked.args.lists():
        if len(given) > 1:
            raise Invalid(f"The parameter {name[:80]!r} was given more than once.")
        values[name] = given[0]
    return values


def _body(operation: Operation, asked: Request) -> object:
    text = asked.get_data(cache=True)
    if not text and not operation.body_required:
        return {}
    if asked.mimetype != "application/json":
        raise _Unsupported("The body must be JSON, with Content-Type: application/json.")
    try:
        return jsontext.parse(text, unique_keys=True)
    except ValueError as error:
        raise _Unreadable(f"The body cannot be read: {error}.") from error


def _call(operation: Operation, asked: Request, ids: "Ids") -> Call:
    metadata: dict[str, Any] = {
        "correlationId": ids.correlation_id,
        "causationId": ids.request_id,
    }
    if ids.traceparent:
        metadata["traceparent"] = ids.traceparent
    return Call(
        metadata=metadata,
        idempotency=_idempotency(asked) if "Idempotency-Key" in operation.headers else None,
        if_match=_if_match(asked) if "If-Match" in operation.headers else (),
    )


def _idempotency(asked: Request) -> Idempotency | None:
    """The key, bound to method, path, caller and body."""
    key = asked.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not re.fullmatch("[!-~]{1,255}", key):
        raise _Unreadable("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    caller = asked.headers.get("Authorization", "")
    parts = (asked.method, asked.full_path, caller)
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape"))
    digest.update(b"\n" + asked.get_data(cache=True))
    return Idempotency(key, digest.hexdigest())


def _if_match(asked: Request) -> tuple[int, ...]:
    """The versions that If-Match allows; none: any."""
    given = asked.headers.get("If-Match")
    if given is None or given.strip() == "*":
        return ()
    tags = [tag.strip() for tag in given.split(",")]
    if not all(re.fullmatch(r'(W/)?"[^"]*"', tag) for tag in tags):
        raise _Unreadable('If-Match must be an ETag as it was answered, such as "3".')
    versions = tuple(int(tag[1:-1]) for tag in tags if re.fullmatch('"[1-9][0-9]{0,17}"', tag))
    return versions or (-1,)  # tags that are none of ours match nothing


# ── ids ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ids:
    """What a request is known by, in every line that is logged while it is answered."""

    request_id: str
    correlation_id: str
    traceparent: str | None

    @classmethod
    def of(cls, environ: Mapping[str, Any]) -> "Ids":
        """Those that the caller gave, where they are well-formed, else new ones."""
        request_id = _id_from(environ, "HTTP_X_REQUEST_ID") or str(new_id())
        correlation_id = _id_from(environ, "HTTP_X_CORRELATION_ID") or request_id
        return cls(request_id, correlation_id, _traceparent(environ))

    def hand_on(self, environ: dict[str, Any]) -> None:
        """Have an application behind this one find the same ids in the request."""
        environ["HTTP_X_REQUEST_ID"] = self.request_id
        environ["HTTP_X_CORRELATION_ID"] = self.correlation_id

    def fields(self) -> dict[str, str]:
        """As log lines have them."""
        ids = {"request_id": self.request_id, "correlation_id": self.correlation_id}
        if self.traceparent:
            _, ids["trace_id"], ids["span_id"], _ = self.traceparent.split("-")
        return ids


def _traceparent(environ: Mapping[str, Any]) -> str | None:
    """The trace context (W3C): that of our span, else the caller's, if it is well-formed."""
    if ours := current_traceparent():
        return ours
    given = environ.get("HTTP_TRACEPARENT", "")
    return given if TRACEPARENT.fullmatch(given) else None


_ID = re.compile("[0-9A-Za-z._:-]{1,128}")


def _id_from(environ: Mapping[str, Any], header: str) -> str | None:
    given = environ.get(header, "")
    return given if _ID.fullmatch(given) else None


def note_answer(method: str, route: str, status: int, began: float) -> None:
    """Count an answer, and log it unless it is one of those that are asked for all the time."""
    seconds = perf_counter() - began
    method = method if method in _METHODS else "(other)"
    REQUESTS.labels(method, route, status).observe(seconds)
    name_request(method, route)
    if route not in REGULAR:
        answered = {"method": method, "route": route, "status": status}
        log.info("Answered", extra={**answered, "ms": round(seconds * 1000, 1)})


def _add_ids(app: Flask) -> None:
    @app.before_request
    def take_ids() -> None:
        about = g._get_current_object()
        about.began = request.environ.get("direct.began") or perf_counter()
        about.ids = ids = Ids.of(request.environ)
        about.log_fields = log_fields(**ids.fields())
        about.log_fields.__enter__()

    @app.after_request
    def return_ids(response: Response) -> Response:
        about = g._get_current_object()
        _add_own_headers(response, about.ids)
        if not about.get("is_forwarded"):
            note_answer(request.method, _route(), response.status_code, about.began)
        return response

    @app.teardown_request
    def drop_ids(_error: BaseException | None) -> None:
        if "log_fields" in g:
            g.log_fields.__exit__(None, None, None)


def _add_own_headers(response: Response, ids: Ids) -> None:
    headers = response.headers
    headers["X-Request-ID"] = ids.request_id
    headers["X-Correlation-ID"] = ids.correlation_id
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Content-Security-Policy", NOTHING_ELSE)


NOTHING_ELSE = "default-src 'none'"
"""The Content-Security-Policy of an answer that is no page."""


def _route() -> str:
    """The route as it is described, `/users/{id}`: never what stands in its place."""
    rule = request.url_rule.rule if request.url_rule else "(no route)"
    if rule not in _templates:
        _templates[rule] = re.sub("<(?:string:)?([a-z]+)>", r"{\1}", rule)
    return _templates[rule]


_templates = {"/<path:_path>": "(no route)"}
"""The routes of rules; a rule that takes whatever there is is none."""

_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
"""Those of RFC 9110 and RFC 5789; a metric must not have as many labels as callers can think of."""


def _add_limit(app: Flask) -> None:
    @app.before_request
    def read_body() -> None:
        _read_body(request)


def _read_body(asked: Request) -> None:
    """Read the body here, once: of one without a length, Werkzeug drops what is too much."""
    if len(asked.get_data(cache=True)) > BODY_LIMIT:
        raise RequestEntityTooLarge


# ── errors ────────────────────────────────────────────────────────────────────────────────


class _Unreadable(Error):
    code = "unreadable"


class _Unsupported(Error):
    code = "unsupported-media-type"


class _Unauthorized(Error):
    code = "unauthorized"


_STATUS: Sequence[tuple[type[Error], int, str]] = (
    (NotFound, 404, "Not found"),
    (Invalid, 422, "Invalid request"),
    (Conflict, 409, "Conflict"),
    (StaleVersion, 412, "Stale version"),
    (KeyReused, 422, "Idempotency-Key reused"),
    (Away, 503, "Not available now"),
    (CannotApply, 503, "Cannot be read yet"),
    (_Unreadable, 400, "Unreadable request"),
    (_Unsupported, 415, "Unsupported media type"),
    (_Unauthorized, 401, "Unauthorized"),
)
"""The one table that turns errors into HTTP."""


def _add_errors(app: Flask) -> None:
    @app.errorhandler(Error)
    def known(error: Error) -> Response:
        found = next((row for row in _STATUS if isinstance(error, row[0])), None)
        if found is None:
            return unknown(error)
        _, status, title = found
        response = problem(status, getattr(error, "title", title), str(error), error.code)
        if isinstance(error, Away):
            response.headers["Retry-After"] = str(error.retry_after)
            log.warning("Not available now", extra={"code": error.code, "reason": str(error)})
        if isinstance(error, StaleVersion):
            response.headers["ETag"] = etag(error.actual)
        if isinstance(error, _Unauthorized):
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(ValidationError)
    def invalid(error: ValidationError) -> Response:
        errors = [
            {"field": ".".join(map(str, each["loc"])) or "body", "reason": each["msg"]}
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        detail = "; ".join(f"{each['field']}: {each['reason']}" for each in errors[:5])
        return problem(422, "Invalid request", detail[:1000], "invalid", errors=errors[:20])

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        detail = error.description or ""
        if isinstance(error, RequestEntityTooLarge):
            detail = f"The body is over {BODY_LIMIT // 1024} KiB."
        response = problem(error.code or 500, error.name, detail, f"http-{error.code}")
        for name, value in error.get_headers():
            if name in ("Allow", "Location"):
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def unknown(error: Exception) -> Response:
        log.error("Unexpected error", exc_info=error)
        detail = "Something unexpected happened. The logs have it under this request's id."
        return problem(500, "Internal error", detail, "internal")


def unreadable(error: Exception) -> Response:
    """The answer to a body whose bytes the server cannot put together."""
    return problem(400, "Unreadable request", f"The body cannot be read: {error}.", "unreadable")


def too_slow(_error: Exception) -> Response:
    """The answer to a body that has not come within its time."""
    detail = "The body did not come in time. Nothing was written; send it again."
    return problem(408, "Request timeout", detail, "too-slow")


def problem(status: int, title: str, detail: str, code: str, **more: Any) -> Response:
    """A problem details answer (RFC 9457)."""
    body = {
        "type": f"urn:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "requestId": g.ids.request_id if "ids" in g else "",
        **more,
    }
    return Response(jsontext.render(body), status, mimetype="application/problem+json")


# ── beside the routes ─────────────────────────────────────────────────────────────────────


def _add_feed(app: Flask, feed: StoreFeed, token: Secret) -> None:
    """The feed, for projectors alone: the gateway does not route it."""

    def authorize() -> None:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token.read()}".encode()):
            raise _Unauthorized("The feed is for projectors, which know its token.")

    @app.get("/internal/events")
    def events() -> Response:
        authorize()
        asked = _StreamQuery.model_validate(_query_values(request))
        found = feed.stream(asked.stream, asked.after)
        return _respond(Reply({"events": tuple(to_message(event) for event in found)}))

    @app.get("/internal/streams")
    def streams() -> Response:
        authorize()
        asked = _StreamsQuery.model_validate(_query_values(request))
        after = [*asked.after, *[0] * len(asked.ids)]
        found = feed.streams(dict(zip(asked.ids, after, strict=False)))
        messages: dict[str, Json] = {
            stream: tuple(to_message(event) for event in events) for stream, events in found.items()
        }
        return _respond(Reply({"streams": messages}))

    @app.get("/internal/feed")
    def between() -> Response:
        authorize()
        asked = _RangeQuery.model_validate(_query_values(request))
        found = feed.between(asked.after, asked.until)
        return _respond(Reply({"events": tuple(to_message(event) for event in found)}))

    @app.get("/internal/heads")
    def heads() -> Response:
        authorize()
        asked = _RangeQuery.model_validate(_query_values(request))
        page = feed.heads(asked.after, asked.until)
        changed: Json = tuple({"id": str(h.aggregate_id), "version": h.version} for h in page.heads)
        return _respond(
            Reply(
                {
                    "heads": changed,
                    "until": page.until,
                    "settled": page.settled,
                    "head": page.head,
                    "epoch": page.epoch,
                    "at": to_timestamp(page.at) if page.at else None,
                }
            )
        )

    @app.get("/internal/log")
    def log() -> Response:
        authorize()
        return _respond(Reply({"aggregateType": feed.aggregate_type, **asdict(feed.progress())}))


_Position = Annotated[int, Field(ge=0, lt=2**63), DIGITS]


class _StreamQuery(QueryInput):
    stream: Id
    after: _Position = 0


class _StreamsQuery(QueryInput):
    ids: Annotated[
        tuple[Id, ...],
        Field(min_length=1, max_length=MANY),
        BeforeValidator(lambda text: tuple(text.split(","))),
    ]
    after: Annotated[
        tuple[_Position, ...], BeforeValidator(lambda text: tuple(text.split(",")))
    ] = ()


class _RangeQuery(QueryInput):
    after: _Position = 0
    until: _Position = 0


def _add_probes(
    app: Flask, missing: Callable[[], Mapping[str, str]], is_ready: Callable[[], bool]
) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        return _respond(Reply({"status": "alive"}))

    @app.get("/readyz")
    def readyz() -> Response:
        ready = is_ready()
        body = {"status": "ready" if ready else "waiting", "missing": dict(missing())}
        return _respond(Reply(body, 200 if ready else 503))

    @app.get("/metrics")
    def metrics() -> Response:
        text, kind = render_metrics()
        return Response(text, content_type=kind)


_DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>API</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
_DOCS_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", tryItOutEnabled: true})'
_DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'"
)


def _add_description(app: Flask, document: Callable[[], bytes]) -> None:
    """/openapi.json, and /docs: a page to try it, which loads nothing from elsewhere."""

    @app.get("/openapi.json")
    def openapi_json() -> Response:
        return Response(document(), mimetype="application/json")

    @app.get("/docs")
    def docs() -> Response:
        response = Response(_DOCS_PAGE, mimetype="text/html")
        response.headers["Content-Security-Policy"] = _DOCS_POLICY
        return response

    @app.get("/docs/<string:name>")
    def asset(name: str) -> Response:
        if name == "start.js":
            return Response(_DOCS_START, mimetype="text/javascript")
        kind = {"swagger-ui.css": "css", "swagger-ui-bundle.js": "js"}.get(name)
        if kind is None:
            raise NotFound(f"There is no {name[:80]!r} here.")
        mimetype = "text/css" if kind == "css" else "text/javascript"
        response = Response((_swagger() / kind / name).read_bytes(), mimetype=mimetype)
        response.headers["Cache-Control"] = "max-age=86400"
        return response


def _swagger() -> Path:
    spec = importlib.util.find_spec("flask_openapi3_swagger")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "templates" / "swagger"


class AsOf(QueryInput):
    """Asks for the state as it was: after a version, or at a moment."""

    version: Annotated[int, Field(ge=1, lt=_MOST), DIGITS] | None = Field(
        None, description="The state after this event."
    )
    at: Annotated[datetime, _TIME] | None = Field(
        None, description="The state at this moment (RFC 3339, with an offset from UTC)."
    )

    def is_past(self) -> bool:
        """Whether the past is asked for; raises Invalid for a question with two answers."""
        if self.version is not None and self.at is not None:
            raise Invalid("Ask for a version or for a moment, not for both.")
        return self.version is not None or self.at is not None


class Page(QueryInput):
    """A page of a stream's history."""

    after: Annotated[int, Field(ge=0, lt=_MOST), DIGITS] = Field(
        0, description="Events above this version."
    )
    limit: Annotated[int, Field(ge=1, le=500), DIGITS] = Field(
        100, description="How many events at most."
    )


class HistoryEntry(BaseModel):
    """One event of a stream."""

    eventId: str
    eventType: str
    version: int
    recordedAt: str
    correlationId: str | None
    causationId: str | None
    data: dict[str, Any]


class History(BaseModel):
    """A page of the events of one stream, oldest first."""

    events: list[HistoryEntry]
    next: int | None = Field(description="The `after` of the next page; null: there is none.")


def add_queries(
    route: Routes,
    path: str,
    history_path: str,
    views: Views,
    shown: Callable[[Document], Data],
    model: type[BaseModel],
) -> None:
    """The two questions every read model answers: what is it (or was it), and how so."""

    @route(
        "GET",
        path,
        f"The {views.projection.aggregate_type}, now or as it was",
        {200: model},
        query=AsOf,
        headers=("If-None-Match",),
        problems=(422,),
    )
    def get(incoming: Incoming[None, AsOf]) -> Reply:
        asked = incoming.query
        if asked.is_past():
            document = views.as_it_was(incoming.id, asked.version, asked.at)
        else:
            document = views.current(incoming.id)
        return Reply(shown(document), version=version_of(document))

    @route(
        "GET",
        history_path,
        f"The {views.projection.aggregate_type}'s events, oldest first",
        {200: History},
        query=Page,
        headers=("If-None-Match",),
        problems=(422,),
    )
    def history(incoming: Incoming[None, Page]) -> Reply:
        page = views.history(incoming.id, incoming.query.after, incoming.query.limit)
        return Reply(page)


def answer(body: Data, version: int, status: int = 200) -> Answer:
    """What a command answers, in the form that is kept under its Idempotency-Key."""
    return Answer(status, body, {"ETag": etag(version)})
