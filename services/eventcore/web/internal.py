"""The feeds that a service serves to projectors, under /internal. The gateway does not route them.

A service has a feed for each aggregate type in its store: the parameter `type` names one, and
without it the service's own is meant.
"""

import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from flask import Blueprint, Response, request
from pydantic import BeforeValidator, Field
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from eventcore.errors import NotFound
from eventcore.model.event import Data, Event, Json, Mark, to_message, to_timestamp
from eventcore.settings import Secret
from eventcore.store.feed import ANNOUNCEMENT, MANY, HeadsPage, StoreFeed
from eventcore.web.inputs import DIGITS, Id, QueryInput
from eventcore.web.request import query_values
from eventcore.web.routes import json_response

_Position = Annotated[int, Field(ge=0, lt=2**63), DIGITS]

_List = BeforeValidator(lambda text: tuple(text.split(",")) if text else ())


class _LogQuery(QueryInput):
    type: str = ""


class _StreamQuery(_LogQuery):
    stream: Id
    after: _Position = 0


class _StreamsQuery(_LogQuery):
    ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MANY), _List]
    after: Annotated[tuple[_Position, ...], _List] = ()


class _RangeQuery(_LogQuery):
    after: _Position = 0
    until: _Position = 0


class _HeadsQuery(_RangeQuery):
    marks: Annotated[
        tuple[Annotated[tuple[_Position, Id], BeforeValidator(lambda each: each.split(":"))], ...],
        Field(max_length=MANY),
        _List,
    ] = ()


def _messages(events: Iterable[Event]) -> Json:
    return tuple(to_message(event) for event in events)


FeedNamed = Callable[[str], StoreFeed]
"""The feed of an aggregate type; raises NotFound."""


def feed_routes(
    feeds: Sequence[StoreFeed], token: Secret, note: Callable[[str, str], None] | None = None
) -> Blueprint:
    """Builds the routes of the feeds, for callers that send their token; the first is the default.

    `note` takes the event versions that a consumer announces, and the aggregate type it reads.
    """
    routes = Blueprint("feed", __name__, url_prefix="/internal")
    by_type = {feed.aggregate_type: feed for feed in feeds}

    def named(aggregate_type: str) -> StoreFeed:
        if not aggregate_type:
            return feeds[0]
        if aggregate_type not in by_type:
            raise NotFound(
                f"This service has no streams of type {aggregate_type[:80]!r}, only of"
                f" {', '.join(by_type)}. Ask the service that owns them, or upgrade this one."
            )
        return by_type[aggregate_type]

    @routes.before_request
    def authorize() -> None:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {token.read()}".encode()):
            raise Unauthorized(
                "The feed is for projectors, which know its token.",
                www_authenticate=WWWAuthenticate("bearer", {"realm": "feed"}),
            )
        if note and (announced := request.headers.get(ANNOUNCEMENT)):
            note(announced, request.args.get("type") or feeds[0].aggregate_type)

    _add_events(routes, named)
    _add_progress(routes, named)
    return routes


def _add_events(routes: Blueprint, named: FeedNamed) -> None:
    @routes.get("/events")
    def events() -> Response:
        asked = _StreamQuery.model_validate(query_values())
        found = named(asked.type).stream(asked.stream, asked.after)
        return json_response({"events": _messages(found)})

    @routes.get("/streams")
    def streams() -> Response:
        asked = _StreamsQuery.model_validate(query_values())
        after = [*asked.after, *[0] * len(asked.ids)]
        found = named(asked.type).streams(dict(zip(asked.ids, after, strict=False)))
        return json_response({"streams": {each: _messages(found[each]) for each in found}})

    @routes.get("/feed")
    def between() -> Response:
        asked = _RangeQuery.model_validate(query_values())
        found = named(asked.type).between(asked.after, asked.until)
        return json_response({"events": _messages(found)})


def _add_progress(routes: Blueprint, named: FeedNamed) -> None:
    @routes.get("/heads")
    def heads() -> Response:
        asked = _HeadsQuery.model_validate(query_values())
        marks = [Mark(*each) for each in asked.marks]
        return json_response(_to_json(named(asked.type).heads(asked.after, asked.until, marks)))

    @routes.get("/log")
    def log() -> Response:
        feed = named(_LogQuery.model_validate(query_values()).type)
        log = feed.progress()
        return json_response(
            {
                "aggregateType": feed.aggregate_type,
                "head": log.head,
                "settled": log.settled,
                "relayed": log.relayed,
                "epoch": log.epoch,
                "eventId": log.event_id,
                "relayHalted": log.relay_halted,
            }
        )


def _to_json(page: HeadsPage) -> Data:
    return {
        "heads": tuple({"id": id, "version": version} for id, version in page.heads.items()),
        "until": page.end.position,
        "settled": page.settled.position,
        "head": page.head,
        "epoch": page.epoch,
        "at": to_timestamp(page.at) if page.at else None,
        "eventId": page.end.event_id,
        "settledEventId": page.settled.event_id,
        "same": page.same,
    }
