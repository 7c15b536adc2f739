"""One HTTP request: its body, query, ids and conditions."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from flask import request
from werkzeug.exceptions import (
    BadRequest,
    PreconditionFailed,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)

from eventcore import errors, jsontext
from eventcore.command import Call
from eventcore.model.token import SEEN_HEADER, Token
from eventcore.store.port import Idempotency
from eventcore.web.caller import ANYONE, Caller
from eventcore.web.correlation import REQUEST_CONTEXT, RequestContext
from eventcore.web.inputs import UUID_PATTERN, QueryInput
from eventcore.web.openapi import Operation

BODY_LIMIT = 64 * 1024
"""Largest request body, in bytes."""

Body = TypeVar("Body")

Query = TypeVar("Query")


@dataclass(frozen=True, slots=True)
class Incoming(Generic[Body, Query]):
    """A validated request.

    `seen` is what the caller has seen, `wait` the seconds that it is ready to wait for it; None
    leaves them to the service.
    """

    id: UUID
    body: Body
    query: Query
    call: Call
    seen: Token | None
    wait: float | None
    caller: Caller = ANYONE


def to_incoming(
    operation: Operation, path: Mapping[str, str], caller: Caller = ANYONE
) -> Incoming[Any, Any]:
    """Reads and validates Flask's current request as `operation` declares it."""
    text = read_body()
    query, body = operation.query or QueryInput, operation.body
    return Incoming(
        id=_path_id(path),
        query=query.model_validate(query_values()),
        body=body.model_validate(_parse_body(text, operation)) if body else None,
        call=_to_call(text, operation, caller) if operation.is_command else Call({}),
        seen=None if (given := request.headers.get(SEEN_HEADER)) is None else Token.parse(given),
        wait=_preferred_wait(),
        caller=caller,
    )


def read_body() -> bytes:
    """Reads the body; raises RequestEntityTooLarge."""
    text = request.get_data()
    if len(text) > BODY_LIMIT:
        raise RequestEntityTooLarge
    return text


def _path_id(path: Mapping[str, str]) -> UUID:
    for text in path.values():
        if not re.fullmatch(UUID_PATTERN, text):
            raise errors.NotFound(
                f"{text[:80]!r} is not an id. Ids are UUIDs, as returned by POST."
            )
        return UUID(text)
    return UUID(int=0)


def query_values() -> dict[str, str]:
    """The parameters of the query string; raises Invalid for one that is repeated."""
    for name, given in request.args.lists():
        if len(given) > 1:
            raise errors.Invalid(f"The parameter {name[:80]!r} was given more than once.")
    return request.args.to_dict()


def _parse_body(text: bytes, operation: Operation) -> object:
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


def _to_call(text: bytes, operation: Operation, caller: Caller) -> Call:
    if operation.has_id and request.headers.get("If-None-Match", "").strip() == "*":
        raise PreconditionFailed(
            "If-None-Match: * requires that the resource does not exist; this call changes an"
            " existing one. Nothing was written. Leave the header out, or send If-Match."
        )
    ids: RequestContext = request.environ[REQUEST_CONTEXT]
    metadata = {"correlationId": ids.correlation_id, "causationId": ids.request_id}
    if ids.traceparent:
        metadata["traceparent"] = ids.traceparent
    if caller.actor:
        metadata["actor"] = caller.actor
    return Call(metadata=metadata, idempotency=_idempotency(text, caller), if_match=_if_match())


def _idempotency(text: bytes, caller: Caller) -> Idempotency | None:
    """The key, bound to method, path, caller and body.

    A verified caller is its actor, whatever its token; any other is the header that it sends.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not re.fullmatch("[!-~]{1,255}", key):
        raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters.")
    actor = caller.actor or request.headers.get("Authorization", "")
    parts = (request.method, request.full_path, actor)
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape"))
    digest.update(b"\n" + text)
    return Idempotency(key, digest.hexdigest())


def _if_match() -> tuple[str, ...]:
    """The tags in If-Match; empty if any will do. Weak tags are accepted: they have the version."""
    given = request.headers.get("If-Match")
    if given is None or given.strip() == "*":
        return ()
    tags = [re.fullmatch(r'(?:W/)?"([^"]*)"', tag.strip()) for tag in given.split(",")]
    if not all(tags):
        raise BadRequest("If-Match must be an ETag as it was answered, in double quotes.")
    return tuple(tag[1].split("-")[0] for tag in tags if tag)


def _preferred_wait() -> float | None:
    """The seconds of `Prefer: wait=`; a preference of another form is ignored (RFC 7240)."""
    given = request.headers.get("Prefer")
    found = _WAIT.search(given) if given else None
    return float(found[1]) if found else None


_WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=[,;]|$)', re.IGNORECASE)
