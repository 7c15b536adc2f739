"""The state of a service for its operators, read from its stores: /internal/status and others.

The gateway does not forward these routes; its page calls them. Where callers are asked for an
identity, they need the scope `admin`, since they show the streams of all users.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TypeVar

from flask import Blueprint, Response

from eventcore.errors import NotFound, Unavailable
from eventcore.model.event import Data, Event, Json, to_timestamp
from eventcore.model.projection import Projection
from eventcore.model.service import Projector, Service
from eventcore.model.view import AnyProjection, View
from eventcore.operate.history import as_uuid, find
from eventcore.operate.timeline import timeline
from eventcore.query import to_entry
from eventcore.reactor import Reactor
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Depth, Generation, Verification, generation_of
from eventcore.readmodel.serving import Serving
from eventcore.store.port import Progress, Store
from eventcore.web.caller import ADMIN
from eventcore.web.identity import caller_of, refuse
from eventcore.web.request import query_values
from eventcore.web.routes import json_response

RECENT, SPAN = 12, 200
"""Newest events that the status has at most, and positions among which they are looked for."""

LISTED = 20
"""Parked streams of a projection, waiting sagas of a type and documents that are listed at most."""

Part = TypeVar("Part")


def status_routes(
    service: Service, store: Store, readmodel: ReadModel, identity: Callable[[], str] | None
) -> Blueprint:
    """Builds the routes; with `identity` for callers with the scope `admin` alone."""
    routes = Blueprint("status", __name__, url_prefix="/internal")
    status = Status(service, store, readmodel)

    @routes.before_request
    def authorize() -> None:
        if caller_of(identity).is_limited:
            refuse(403, "This call needs the scope admin.", "insufficient_scope", ADMIN)

    @routes.get("/status")
    def whole() -> Response:
        return json_response(status.read())

    @routes.get("/newest")
    def newest() -> Response:
        """The newest documents of the service's own aggregate."""
        own = generation_of_own(service, readmodel)
        return json_response({"documents": tuple(readmodel.page(own, {}, None, LISTED))})

    _add_streams(routes, service, store, readmodel)
    return routes


def _add_streams(routes: Blueprint, service: Service, store: Store, readmodel: ReadModel) -> None:
    @routes.get("/trace")
    def trace() -> Response:
        wanted = query_values().get("id", "")
        types = [each.aggregate_type for each in service.catalogues]
        found = find(wanted, service.name, store, readmodel, service.projections, types=types)
        searched = found.searched and (
            found.searched.until < found.searched.settled
            or (found.is_empty and not found.searched.is_whole)
        )
        entries = () if found.is_empty else timeline(found, with_data=True)
        return json_response(
            {
                "entries": tuple(each.as_json() for each in entries),
                "searched": str(found.searched) if searched else None,
            }
        )

    @routes.get("/event/<event_id>")
    def event(event_id: str) -> Response:
        id = as_uuid(event_id)
        found = store.read_event(id) if id else None
        if not found:
            raise NotFound(f"There is no event {event_id[:80]!r}.")
        return json_response({**to_entry(found), **_stream(found)})


def generation_of_own(service: Service, readmodel: ReadModel) -> str:
    """The collection with the documents of the service's own aggregate."""
    own = next(
        each
        for each in service.projections
        if each.stores == (service.name,) and not isinstance(each, View | Reactor)
    )
    return Serving(own, readmodel).now().collection


class Status:
    """The log, the relay, the projections and the sagas of a service, as its stores have them."""

    def __init__(self, service: Service, store: Store, readmodel: ReadModel) -> None:
        self._service = service
        self._store = store
        self._readmodel = readmodel

    def read(self) -> Data:
        """The state now. A part whose server is away is null."""
        progress = self._try(partial(self._store.progress, self._service.name))
        recent = (self._try(partial(self._recent, progress.settled)) if progress else None) or ()
        return {
            "service": self._service.name,
            "log": self._try(partial(self._log, progress)) if progress else None,
            "recent": tuple(self._shown(each) for each in recent),
            "projections": tuple(
                part for each in self._service.projectors for part in self._parts(each, recent)
            ),
            "sagas": self._try(self._sagas),
        }

    @staticmethod
    def _try(read: Callable[[], Part]) -> Part | None:
        try:
            return read()
        except Unavailable:
            return None

    def _log(self, log: Progress) -> Data:
        return {
            "head": log.head,
            "settled": log.settled,
            "relayed": log.relayed,
            "relayHalted": log.relay_halted,
            "isRelayed": self._store.is_relayed(self._service.name),
        }

    def _recent(self, settled: int) -> Sequence[Event]:
        return self._store.read_feed(max(0, settled - SPAN), settled, SPAN)[-RECENT:]

    def _shown(self, event: Event) -> Data:
        return {
            **_stream(event),
            "eventType": event.event_type,
            "eventId": str(event.event_id),
            "version": event.version,
            "position": event.position,
            "recordedAt": to_timestamp(event.recorded_at),
            "correlationId": event.metadata.get("correlationId"),
        }

    def _parts(self, projector: Projector, recent: Sequence[Event]) -> list[Data]:
        projection = projector.projection
        numbers = self._try(lambda: self._readmodel.generations(projection.name))
        found = list[Data]()
        for store in projection.parts:
            serving = generation_of(projection, numbers.serving if numbers else 1, store)
            known: dict[str, Json] = {
                "projection": projection.name,
                "label": serving.label,
                "process": projector.name,
                "queue": projection.queue,
                "owner": projection.owner_of(store),
                "types": (store,) if store else projection.stores,
                "isReactor": isinstance(projection, Reactor),
                "generation": serving.number,
                "state": self._try(partial(self._generation, projection, serving, recent)),
                "rebuild": None,
            }
            if numbers and numbers.newest not in (numbers.serving, numbers.previous):
                begun = generation_of(projection, numbers.newest, store)
                known["rebuild"] = self._try(partial(self._rebuild, begun))
            found.append(known)
        return found

    def _generation(
        self, projection: AnyProjection, serving: Generation, recent: Sequence[Event]
    ) -> Data:
        checkpoint = self._readmodel.checkpoint(serving.name)
        parked = self._readmodel.count_parked(serving.name)
        listed = self._readmodel.parked(serving.name) if 0 < parked <= 1000 else {}
        verified = self._readmodel.verification(projection.name)
        depth = self._readmodel.depth(projection.name)
        return {
            "checkpoint": checkpoint.position,
            "coveredAt": to_timestamp(checkpoint.covered_at) if checkpoint.covered_at else None,
            "halted": checkpoint.halted,
            "parkedCount": parked,
            "parked": tuple(e.as_json() for e in islice(listed.values(), LISTED)),
            "versions": self._versions(projection, serving, recent),
            "verified": _verified(verified) if verified else None,
            "depth": _depth(depth) if depth else None,
        }

    def _versions(
        self, projection: AnyProjection, serving: Generation, recent: Sequence[Event]
    ) -> Data | None:
        """The versions of the documents of the newest events; None: they are of another log."""
        if not isinstance(projection, Projection) or projection.owners != (self._service.name,):
            return None
        kind = projection.aggregate_type
        ids = {str(each.aggregate_id) for each in recent if each.aggregate_type == kind}
        return {**self._readmodel.versions(serving.collection, ids)} if ids else {}

    def _rebuild(self, begun: Generation) -> Data | None:
        position = self._readmodel.checkpoint(begun.name).position
        return {"generation": begun.number, "position": position} if position else None

    def _sagas(self) -> Json:
        return tuple(
            {**_place(each.stream.aggregate_type, each.stream.aggregate_id),
             "dueAt": _time(each.due_at)}
            for saga in self._service.sagas
            for each in self._store.read_waiting(saga.catalogue.aggregate_type, LISTED)
        )  # fmt: skip


def _verified(found: Verification) -> Data:
    return {"when": to_timestamp(found.when), "checked": found.checked, "wrong": found.wrong}


def _depth(found: Depth) -> Data:
    when = to_timestamp(found.when)
    return {"when": when, "waiting": found.waiting, "deadLetters": found.dead_letters}


def _stream(event: Event) -> Data:
    return _place(event.aggregate_type, event.aggregate_id)


def _place(aggregate_type: str, stream: object) -> Data:
    return {"aggregateType": aggregate_type, "stream": str(stream)}


def _time(moment: datetime | None) -> str | None:
    return to_timestamp(moment) if moment else None
