"""Routes of a service: validated request in, answer out."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from flask import Response, request
from pydantic import BaseModel

from eventcore import errors, jsontext
from eventcore.command import answered_before
from eventcore.consistency import Epoch
from eventcore.model.event import Data
from eventcore.model.token import SEEN_HEADER
from eventcore.store.port import Answer, Store
from eventcore.web.caller import ADMIN
from eventcore.web.identity import caller_of, refuse
from eventcore.web.openapi import Operation
from eventcore.web.request import Incoming, to_incoming

Handler = Callable[[Incoming[Any, Any]], Answer]

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


def to_view(
    operation: Operation,
    handler: Handler,
    store: Store | None,
    epoch: Epoch | None,
    token: Callable[[], str] | None = None,
) -> Callable[..., Response]:
    """Wraps a handler: validates the request, answers it, and repeats an earlier answer.

    With a `token` callers are verified by the gateway, and see what is theirs.
    """

    def view(**path: str) -> Response:
        incoming = to_incoming(operation, path, caller_of(token))
        try:
            _guard(operation, incoming)
            if epoch and (operation.is_command or incoming.seen):
                epoch.require(incoming.seen)
            given = handler(incoming)
        except (errors.StoreUnavailable, errors.OutcomeUnknown):
            raise
        except errors.Error as error:  # the same request may have been carried out before
            earlier = answered_before(store, incoming.call) if store else None
            if not earlier:
                if epoch and isinstance(error, errors.StaleVersion):
                    error.token = epoch.answered(error.token, incoming.seen)
                raise
            given = earlier
        if not operation.is_command:
            return _to_query_response(given)
        return _to_command_response(given, epoch, incoming)

    return view


def _guard(operation: Operation, incoming: Incoming[Any, Any]) -> None:
    """Raises NotFound for what belongs to others; answers 403 to a call that admins alone make."""
    if not incoming.caller.is_limited:
        return
    if operation.guard is None:
        refuse(403, "This call needs the scope admin.", error="insufficient_scope", scope=ADMIN)
    operation.guard(incoming)


def in_handler(_incoming: Incoming[Any, Any]) -> None:
    """The guard of a call whose handler shows the caller's own alone."""


def _to_response(given: Answer) -> Response:
    text = given.body if isinstance(given.body, str) else jsontext.render(given.body)
    response = Response(text, given.status, mimetype="application/json")
    response.headers.update({name: str(value) for name, value in given.headers.items()})
    return response


def _to_command_response(
    given: Answer, epoch: Epoch | None, incoming: Incoming[Any, Any]
) -> Response:
    response = _to_response(given)
    if epoch and (own := given.headers.get(SEEN_HEADER)):  # an older version recorded none
        response.headers[SEEN_HEADER] = epoch.answered(own, incoming.seen)
    return response


def _to_query_response(given: Answer) -> Response:
    """Adds a hash of the content to the ETag; answers 304 where the caller has the same."""
    response = _to_response(given)
    version = response.headers.get("ETag", "").strip('"')
    content = hashlib.sha256(response.get_data()).hexdigest()[:16]
    response.set_etag(f"{version}-{content}" if version else content)
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request)
    return response


def json_response(body: Data) -> Response:
    """Answers a query with an ETag of its content."""
    return _to_query_response(Answer(200, body, {}))
