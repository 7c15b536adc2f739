"""Routes of a service: validated request in, answer out."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from flask import Response, request
from pydantic import BaseModel

from eventcore import errors, jsontext
from eventcore.command import Call, Handled, answered_before
from eventcore.model.event import Data
from eventcore.store.port import Answer, Store
from eventcore.web.inputs import QueryInput
from eventcore.web.openapi import Operation
from eventcore.web.request import parse_body, path_id, query_values, read_body, to_call

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


def to_view(operation: Operation, handler: Handler, store: Store | None) -> Callable[..., Response]:
    """Wraps a handler: validates the request, answers it, and repeats an earlier answer."""

    def view(**path: str) -> Response:
        text = read_body()
        incoming = Incoming(
            id=path_id(path),
            query=(operation.query or QueryInput).model_validate(query_values()),
            body=operation.body.model_validate(parse_body(text, operation))
            if operation.body
            else None,
            call=to_call(text, operation) if operation.is_command else Call({}),
        )
        try:
            return _response(handler(incoming))
        except (errors.StoreUnavailable, errors.OutcomeUnknown):
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
