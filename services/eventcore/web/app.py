"""The HTTP side of a service: create_app() builds the Flask application of its routes.

A route declares its input and its answers once; the declaration validates requests and makes the
OpenAPI document. Views, error handlers, hooks and extensions are Flask's own.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from flask import Flask, Response, request
from flask_cors import CORS

from eventcore import jsontext
from eventcore.consistency import Epoch
from eventcore.observe.metrics import render_metrics
from eventcore.observe.tracing import trace_wsgi
from eventcore.store.port import Store
from eventcore.web import openapi
from eventcore.web.correlation import Correlation
from eventcore.web.description import description_pages
from eventcore.web.problems import add_error_handlers
from eventcore.web.request import BODY_LIMIT
from eventcore.web.routes import Route, to_view


def create_app(
    title: str,
    routes: Sequence[Route],
    *,
    missing: Callable[[], Mapping[str, str]],
    is_ready: Callable[[], bool],
    store: Store | None = None,
    epoch: Epoch | None = None,
    about: str = "",
    cors_origins: Sequence[str] = (),
    document: Callable[[], bytes] | None = None,
    events: Callable[[], bytes] | None = None,
    identity: Callable[[], str] | None = None,
    front: str = "docs",
) -> Flask:
    """Builds a Flask application that serves `routes`, probes, metrics and its own description.

    `store` is asked for answers under an Idempotency-Key; `epoch` is that of its log. `document`
    makes the OpenAPI document; without one it is built here from the routes. `events` makes the
    AsyncAPI document, if there are events. Browser applications of `cors_origins` may call every
    route. With `identity`, a token, the gateway says who calls. Browsers are led from / to `front`.
    Nothing connects before the first request.
    """
    app = Flask(title, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT + 1  # one more byte than a view accepts
    app.url_map.merge_slashes = False
    _add_routes(app, routes, store, epoch, identity)
    if document is None:
        built = openapi.build(title, "1.0", about, [operation for operation, _ in routes])
        document = lambda: built  # noqa: E731
    app.register_blueprint(description_pages(title, document, events, front))
    _add_probes(app, missing, is_ready)
    add_error_handlers(app)
    if cors_origins:
        CORS(app, origins=list(cors_origins), expose_headers=_EXPOSED, max_age=600)
    app.wsgi_app = trace_wsgi(Correlation(app.wsgi_app))  # type: ignore[method-assign]
    return app


_EXPOSED = [
    "Answered-From", "Consistency-Token", "ETag", "Idempotency-Replayed", "RateLimit",
    "RateLimit-Policy", "Retry-After", "X-Correlation-ID", "X-Request-ID",
]  # fmt: skip
"""The headers of an answer that a browser application of another origin may read."""


def _add_routes(
    app: Flask,
    routes: Sequence[Route],
    store: Store | None,
    epoch: Epoch | None,
    identity: Callable[[], str] | None,
) -> None:
    for operation, handler in routes:
        app.add_url_rule(
            re.sub(r"{(\w+)}", r"<\1>", operation.path),
            endpoint=f"{operation.method} {operation.path}",
            view_func=to_view(operation, handler, store, epoch, identity),
            methods=[operation.method],
        )


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
        text, kind = render_metrics(request.headers.get("Accept", ""))
        return Response(text, content_type=kind)
