"""Admission control: requests are read whole, then wait for a permit."""

import threading
from collections.abc import Iterable
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any

from gunicorn.http import errors

from eventcore.errors import Overloaded
from eventcore.web.correlation import REQUEST_CONTEXT, Correlation
from eventcore.web.problems import to_body
from eventcore.web.request import BODY_LIMIT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication


PATIENCE = 1.0
"""Seconds that a request waits for a permit to be worked on."""

PROBES = ("/healthz", "/readyz")
"""Paths that need no permit: a busy service is a ready one."""


class Refusal(Exception):
    """An answer in place of the application's, and a WSGI application that gives it."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = HTTPStatus(status)
        self.code = code
        self.detail = detail

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        """Answers with problem details (RFC 9457)."""
        request_id = environ[REQUEST_CONTEXT].request_id
        body = to_body(self.status, self.status.phrase, self.detail, self.code, request_id)
        headers = [
            ("Content-Type", "application/problem+json"),
            ("Content-Length", str(len(body))),
        ]
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append(("Retry-After", str(Overloaded.retry_after)))
        start_response(f"{self.status.value} {self.status.phrase}", headers)
        return (body,)


def receive(environ: dict[str, Any]) -> None:
    """Reads the body of a request, whole. Raises Refusal for one that cannot be taken."""
    if "HTTP_HOST" not in environ and environ["SERVER_PROTOCOL"] != "HTTP/1.0":
        raise Refusal(400, "unreadable", "The request has no Host header.")
    coding = environ.pop("HTTP_TRANSFER_ENCODING", "")
    if coding.lower() not in ("", "chunked"):
        raise Refusal(501, "unsupported-coding", "Transfer-Encoding can only be chunked.")
    declared = int(environ.get("CONTENT_LENGTH") or 0)
    if not coding and not declared:
        return
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise Refusal(415, "unsupported-media-type", "A body cannot be compressed.")
    too_large = Refusal(413, "http-413", f"The body is over {BODY_LIMIT // 1024} KiB.")
    if declared > BODY_LIMIT:
        raise too_large
    try:
        body = environ["wsgi.input"].read(BODY_LIMIT + 1)
    except BlockingIOError as error:
        late = "The body did not come in time. Nothing was written; send it again."
        raise Refusal(408, "too-slow", late) from error
    except (errors.ParseException, errors.NoMoreData) as error:
        raise Refusal(400, "unreadable", "The chunks of the body are not valid.") from error
    if len(body) > BODY_LIMIT:
        raise too_large
    if len(body) < declared:
        raise Refusal(400, "unreadable", "The body is shorter than its Content-Length.")
    environ["wsgi.input"] = BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))


class Overload:
    """Bounds the requests in progress in a WSGI application.

    A request is read whole before it waits for a permit, and gives it back before its answer is
    sent: a slow peer holds a thread, which waits, and none of the permits.
    """

    def __init__(self, app: "WSGIApplication", permits: int) -> None:
        self._app = app
        self._permits = threading.BoundedSemaphore(permits)
        self._finished = 0
        self._seen = 0

    def __call__(self, environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        try:
            receive(environ)
            if environ["PATH_INFO"] in PROBES:
                return self._app(environ, start_response)
            if not self._permits.acquire(timeout=PATIENCE):
                busy = "The service is overloaded. Nothing was written; retry."
                raise Refusal(503, Overloaded.code, busy)
        except Refusal as refusal:
            return Correlation(refusal)(environ, start_response)
        try:
            return self._app(environ, start_response)
        finally:
            self._finished += 1
            self._permits.release()

    def makes_progress(self) -> bool:
        """Whether a permit is free, or has been given back since this was last asked."""
        before, self._seen = self._seen, self._finished
        if self._seen != before:
            return True
        if free := self._permits.acquire(blocking=False):
            self._permits.release()
        return free
