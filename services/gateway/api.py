"""The gateway's routes: each is forwarded to the service that has it; all else is a 404."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import quote

from flask import Flask, Response, request
from werkzeug.routing import BaseConverter

from eventcore.web import asyncapi, openapi
from eventcore.web.caller import SAFE
from eventcore.web.correlation import REQUEST_CONTEXT
from eventcore.web.problems import problem
from eventcore.web.request import read_body
from gateway.forward import Answer, Upstream, UpstreamUnavailable
from gateway.identity import FORWARDED, identity_headers, secured

log = logging.getLogger(__name__)

REQUEST_HEADERS = (
    "Accept",
    "Authorization",
    "Consistency-Token",
    "Content-Type",
    "Idempotency-Key",
    "If-Match",
    "If-None-Match",
    "Prefer",
    "traceparent",
    "tracestate",
)
"""Headers of a request that are forwarded to a service."""

RESPONSE_HEADERS = (
    "Allow",
    "Answered-From",
    "Cache-Control",
    "Consistency-Token",
    "Content-Type",
    "ETag",
    "Idempotency-Replayed",
    "Retry-After",
    "WWW-Authenticate",
)
"""Headers of an answer that are forwarded to the caller."""

ABOUT = """An event-sourced system behind one gateway.

Every change is an event. A path that ends with `/events` lists those of one resource, and
`?version=` or `?at=` shows the state as it was. An `Idempotency-Key` makes every command safe to
repeat; `If-Match` makes a change depend on the version that was read."""
"""Introduction of the OpenAPI document and its page; a line for each service follows."""

_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


class _Id(BaseConverter):
    """A path segment that may be an id; the service says whether it is one."""

    regex = "[A-Za-z0-9-]{1,64}"


COOKIE = "consistency"
"""Cookie that keeps the newest Consistency-Token of a browser, where the settings say so."""

_UNUSABLE = (b"urn:problem:invalid-token", b"urn:problem:other-log")


def to_rule(path: str) -> str:
    """A path of a service, with {id}, as Werkzeug's routing has it."""
    return path.replace("{id}", "<id:id>")


def add_forwarding(
    app: Flask,
    paths: Mapping[str, Sequence[str]],
    upstreams: Mapping[str, Upstream],
    cookie_seconds: int = 0,
    identity_tokens: Mapping[str, Callable[[], str]] | None = None,
) -> None:
    """Adds the `paths` of each service, with any method; the service refuses those it lacks.

    The newest Consistency-Token is a cookie for `cookie_seconds`; with 0 there is no cookie. With
    `identity_tokens` each service is told the verified caller, and never the caller's credential.
    """
    app.url_map.converters["id"] = _Id
    app.register_error_handler(UpstreamUnavailable, _unavailable)
    for service, upstream in upstreams.items():
        for path in paths[service]:  # without methods, a rule takes them all
            app.url_map.add(app.url_rule_class(to_rule(path), endpoint=f"{FORWARDED}{service}"))
        token = identity_tokens[service] if identity_tokens else None
        app.view_functions[f"{FORWARDED}{service}"] = _view(upstream, cookie_seconds, token)


def _view(
    upstream: Upstream, cookie_seconds: int, token: Callable[[], str] | None
) -> Callable[..., Response]:
    def forward(**_ids: str) -> Response:
        headers = {
            name: request.headers[name] for name in REQUEST_HEADERS if name in request.headers
        }
        if cookie_seconds and (kept := request.cookies.get(COOKIE)):
            headers.setdefault("Consistency-Token", kept)
        ids = request.environ[REQUEST_CONTEXT]
        headers |= {"X-Request-ID": ids.request_id, "X-Correlation-ID": ids.correlation_id}
        if token:
            headers.pop("Authorization", None)
            headers |= identity_headers(token)
        query = quote(request.query_string, safe=_VISIBLE)
        target = f"{request.path}?{query}" if query else request.path
        answer = upstream.call(request.method, target, read_body(), headers)
        if token and answer.status == HTTPStatus.UNAUTHORIZED:  # the caller was verified here
            raise UpstreamUnavailable("it does not accept the gateway's identity token")
        response = _response(answer)
        if cookie_seconds:
            _keep_token(response, cookie_seconds)
        return response

    return forward


def _keep_token(response: Response, seconds: int) -> None:
    """Sets the cookie to the token of an answer; deletes one that was refused."""
    if token := response.headers.get("Consistency-Token"):
        response.set_cookie(COOKIE, token, max_age=seconds, httponly=True, samesite="Lax")
    elif response.status_code in (400, 409) and any(
        each in response.get_data() for each in _UNUSABLE
    ):
        response.delete_cookie(COOKIE, httponly=True, samesite="Lax")


def _response(answer: Answer) -> Response:
    given = answer.headers
    headers = {name: given[name] for name in RESPONSE_HEADERS if name in given}
    response = Response(answer.body, answer.status, headers)
    if request.method == "HEAD" and "Content-Length" in given:
        response.headers["Content-Length"] = given["Content-Length"]
    return response


def _unavailable(error: UpstreamUnavailable) -> Response:
    """Says whether the request may have been done."""
    log.warning("Service away", extra={"code": error.code, "reason": str(error)[:300]})
    if error.status == 503:
        detail = "The service cannot be reached. Nothing was sent to it; try again."
    elif request.method in SAFE:
        detail = "The service did not answer. Try again: a query changes nothing."
    else:
        detail = (
            "The service did not answer. Whether the command was carried out is not known: read"
            " the resource, or repeat the command with the same Idempotency-Key, if it has one."
        )
    response = problem(error.status, HTTPStatus(error.status).phrase, detail, error.code)
    response.headers["Retry-After"] = str(error.retry_after)
    return response


@lru_cache(maxsize=1)
def merged_calls(*documents: bytes) -> bytes:
    """The OpenAPI document of several services."""
    return openapi.merge("Shop", ABOUT, documents, problems=(502, 504))


@lru_cache(maxsize=1)
def merged_secured_calls(*documents: bytes) -> bytes:
    """The OpenAPI document, with the credentials that each call needs."""
    return secured(openapi.merge("Shop", ABOUT, documents, problems=(401, 403, 404, 502, 504)))


@lru_cache(maxsize=1)
def merged_events(*documents: bytes) -> bytes:
    """The AsyncAPI document of several services."""
    return asyncapi.merge("Shop", documents)


class Description:
    """The documents of all services at one path as one, merged again when one of them changes."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        path: str = "/openapi.json",
        merge: Callable[..., bytes] = merged_calls,
    ) -> None:
        self._upstreams = upstreams
        self._path = path
        self._merge = merge
        self._known: dict[str, Answer] = {}

    def __call__(self) -> bytes:
        """The document; raises UpstreamUnavailable until every service has answered once."""
        for service in self._upstreams:
            self._refresh(service)
        return self._merge(*(self._known[service].body for service in self._upstreams))

    def _refresh(self, service: str) -> None:
        known = self._known.get(service)
        headers = (
            {"If-None-Match": known.headers["ETag"]} if known and "ETag" in known.headers else {}
        )
        try:
            answer = self._upstreams[service].call("GET", self._path, headers=headers)
        except UpstreamUnavailable:
            if known is None:
                raise
            return
        if answer.status == 200:
            self._known[service] = answer
        elif known is None:
            raise UpstreamUnavailable(f"{service} answered {answer.status} for its description")
