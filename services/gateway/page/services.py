"""The page's calls to the services, made as the caller of the page itself."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from flask import g, request

from eventcore import jsontext
from eventcore.errors import Error, KeyReused
from eventcore.model.token import SEEN_HEADER
from eventcore.web.correlation import REQUEST_CONTEXT
from gateway.forward import Upstream
from gateway.identity import identity_headers

_NOTED = ("Answered-From", "ETag", SEEN_HEADER)

_REUSED = f"urn:problem:{KeyReused.code}"

_SENT_BEFORE = (
    "This form was sent before with other values. Nothing was done now: press again to send it"
    " as a new one."
)

AWAY = {
    "title": "Service away",
    "detail": "The service cannot be reached, or does not answer. Try again.",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one call; `body` is a problem (RFC 9457) unless it is `ok`."""

    status: int
    body: Any
    source: str = ""
    tag: str = ""
    """The ETag of a document."""
    seen: str = ""
    """The Consistency-Token of a command's answer, or of a refusal of its version."""
    is_replayed: bool = False
    """Whether the command had been done before, under the same Idempotency-Key."""

    @property
    def version(self) -> int:
        """Version of the stream, as the ETag of a document says."""
        found = re.match(r'"(\d+)[.-]', self.tag)
        return int(found[1]) if found else 0

    @property
    def ok(self) -> bool:
        """Whether it was done."""
        return 200 <= self.status < 300

    @property
    def problem(self) -> str:
        """The problem in a sentence; "" if there is none."""
        return "" if self.ok else f"{self.body.get('title', '')}. {self.body.get('detail', '')}"

    def errors(self, names: Mapping[str, object]) -> dict[str, str]:
        """The errors in a form by field; one that concerns none of `names` is under ""."""
        if not self.ok and self.body.get("type") == _REUSED:
            return {"": _SENT_BEFORE}
        found: dict[str, str] = {}
        for each in () if self.ok else self.body.get("errors", ()):
            name, reason = str(each.get("field", "")), str(each.get("reason", ""))
            place, says = (name, reason) if name in names else ("", f"{name}: {reason}")
            found.setdefault(place, says)
        return found or ({} if self.ok else {"": self.problem})


@dataclass(frozen=True, slots=True)
class Services:
    """The services behind the gateway; with `tokens` they are told the verified caller."""

    upstreams: Mapping[str, Upstream]
    tokens: Mapping[str, Callable[[], str]] = field(default_factory=dict)

    def get(self, service: str, path: str) -> Reply:
        """A query, that shows what the page's own address has seen; 503 while it is away."""
        seen = g.get("seen") or request.args.get("seen", "")
        reply = self._call(service, "GET", path, headers={SEEN_HEADER: seen} if seen else {})
        if seen and reply.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT):
            return self._call(service, "GET", path)  # an address that is broken, or of another log
        return reply

    def send(
        self, service: str, method: str, path: str, body: object, key: str, tag: str = ""
    ) -> Reply:
        """A command under an Idempotency-Key; with `tag` at the version that it names alone."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        if tag:
            headers["If-Match"] = tag
        return self._call(service, method, path, jsontext.render(body), headers)

    def _call(
        self, service: str, method: str, path: str, body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:  # fmt: skip
        ids = request.environ[REQUEST_CONTEXT]
        told = {"X-Request-ID": ids.request_id, "X-Correlation-ID": ids.correlation_id}
        if self.tokens:
            told |= identity_headers(self.tokens[service])
        try:
            answer = self.upstreams[service].call(method, path, body, {**told, **(headers or {})})
            parsed = jsontext.parse(answer.body or b"{}")
        except (Error, ValueError):
            return Reply(503, AWAY)
        source, tag, seen = (answer.headers.get(name) or "" for name in _NOTED)
        is_replayed = "Idempotency-Replayed" in answer.headers
        return Reply(answer.status, parsed, source, tag, seen, is_replayed)


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")
