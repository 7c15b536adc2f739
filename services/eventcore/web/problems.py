"""Errors as problem details (RFC 9457)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Flask, Response, has_request_context, request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, InternalServerError

from eventcore import errors, jsontext
from eventcore.web.correlation import REQUEST_CONTEXT, RequestContext
from eventcore.web.inputs import problems_of
from eventcore.web.request import BODY_LIMIT

log = logging.getLogger(__name__)

_NOT_AVAILABLE = "Not available now"

_STATUS: Sequence[tuple[type[errors.Error], int, str, str]] = (
    (errors.NotFound, 404, "Not found", ""),
    (errors.Invalid, 422, "Invalid request", ""),
    (errors.Conflict, 409, "Conflict", ""),
    (errors.StaleVersion, 412, "Stale version", ""),
    (errors.InvalidToken, 400, "Invalid Consistency-Token", ""),
    (errors.OtherLog, 409, "Log was put back", ""),
    (errors.KeyReused, 422, "Idempotency-Key reused", "This Idempotency-Key was used for another "
     "request. Send a new request with a new key; repeat one with the same path, body and caller."),
    (errors.OutcomeUnknown, 504, "Outcome unknown", "The event store did not confirm this in time: "
     "it is not known whether it was done. The id is {error.aggregate_id}; read it to find out. "
     "You can safely retry with the same Idempotency-Key; without a key it may be done twice."),
    (errors.NotYet, 503, _NOT_AVAILABLE, ""),
    (errors.Overloaded, 503, _NOT_AVAILABLE, ""),
    (errors.StoreUnavailable, 503, _NOT_AVAILABLE, "The event store is not available. {then}"),
    (errors.ReadModelUnavailable, 503, _NOT_AVAILABLE, "The read model is not available. {then}"),
    (errors.Unavailable, 503, _NOT_AVAILABLE, "A server is not available. {then}"),
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


def add_error_handlers(app: Flask) -> None:
    app.register_error_handler(errors.Error, _known)
    app.register_error_handler(ValidationError, _invalid)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(InternalServerError, _failed)
    app.register_error_handler(Exception, _unknown)


def _known(error: errors.Error) -> Response:
    found = next((row for row in _STATUS if isinstance(error, row[0])), None)
    if found is None:
        return _unknown(error)
    _, status, title, detail = found
    then = "Try again." if request.method in ("GET", "HEAD") else "Nothing was written; try again."
    detail = detail.format(error=error, then=then) or str(error)
    fields = error.fields if isinstance(error, errors.Invalid) else {}
    listed = [{"field": name, "reason": reason} for name, reason in fields.items()]
    more = {"errors": listed} if listed else {}
    response = problem(status, getattr(error, "title", title), detail, error.code, **more)
    if status > 500:
        log.warning(title, extra={"code": error.code, "reason": str(error)})
    if status == 503:
        response.headers["Retry-After"] = str(getattr(error, "retry_after", 30))
    if isinstance(error, errors.StaleVersion):
        response.headers["ETag"] = f'"{error.tag}"'
        response.headers["Consistency-Token"] = error.token
    return response


def _invalid(error: ValidationError) -> Response:
    found = problems_of(error)
    fields = "1 field" if len(found) == 1 else f"{len(found)} fields"
    detail = f"The request has {fields} that cannot be accepted. See errors."
    return problem(422, "Invalid request", detail, "invalid", errors=found)


def _http(error: HTTPException) -> Response:
    code = error.code or 500
    is_ours = error.description != type(error).description  # given to abort()
    detail = error.description if is_ours else _HTTP.get(code, f"{error.name}.")
    response = problem(code, error.name, detail or error.name, f"http-{code}")
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response


def _failed(error: InternalServerError) -> Response:
    return _unknown(error.original_exception or error)


def _unknown(error: BaseException) -> Response:
    log.error("Unexpected error", exc_info=error)
    detail = "Something unexpected happened. The logs have it under this request's id."
    return problem(500, "Internal error", detail, "internal")


def problem(status: int, title: str, detail: str, code: str, **more: Any) -> Response:
    """Makes a problem details answer (RFC 9457)."""
    environ = request.environ if has_request_context() else {}
    ids: RequestContext | None = environ.get(REQUEST_CONTEXT)
    body = to_body(status, title, detail, code, ids.request_id if ids else "", **more)
    return Response(body, status, mimetype="application/problem+json")


def to_body(status: int, title: str, detail: str, code: str, request_id: str, **more: Any) -> bytes:
    """Makes the body of a problem details answer."""
    body = {
        "type": f"urn:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "requestId": request_id,
        **more,
    }
    return jsontext.render(body)
