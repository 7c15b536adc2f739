"""/openapi.json, /asyncapi.json and /docs."""

from collections.abc import Callable

from flask import Blueprint, Response, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

_PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'"
)


def description_pages(
    title: str,
    document: Callable[[], bytes],
    events: Callable[[], bytes] | None = None,
    front: str = "docs",
) -> Blueprint:
    """/openapi.json, and /docs: a page to try the calls, which loads nothing from elsewhere.

    With `events` also /asyncapi.json, to which the page has a link. / leads to /docs, and a browser
    to `front`.
    """
    pages = Blueprint(
        "docs", __name__, static_folder="docs", static_url_path="/docs", template_folder="docs"
    )

    @pages.get("/openapi.json")
    def openapi_json() -> Response:
        return _json(document())

    if events:
        pages.add_url_rule("/asyncapi.json", "asyncapi_json", lambda: _json(events()))

    @pages.get("/docs")
    def docs() -> Response:
        page = render_template("page.html", title=title, has_events=bool(events))
        response = Response(page, mimetype="text/html")
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        return response

    _add_redirects(pages, front)
    return pages


def _add_redirects(pages: Blueprint, front: str) -> None:
    @pages.get("/")
    def home() -> AnyResponse:
        best = request.accept_mimetypes.best_match(["application/json", "text/html"])
        answer = redirect(front if best == "text/html" else "docs")
        answer.vary.add("Accept")
        return answer

    @pages.get("/docs/")
    def docs_with_slash() -> AnyResponse:
        return redirect("../docs")


def _json(document: bytes) -> Response:
    response = Response(document, mimetype="application/json")
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response
