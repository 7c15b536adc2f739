"""The history of one id, from its request to its read models, as the stores have recorded it.

`find` reads the store and the read model; `timeline` and `tell` are pure. The stores record
nothing extra for it: ids of version 7 tell when a request began.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from eventcore.errors import Unavailable
from eventcore.ids import made_at
from eventcore.model.event import Event
from eventcore.model.projection import Projection
from eventcore.model.view import AnyProjection, View, positions_of
from eventcore.reactor import Reactor
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Generation, Parked, Skip
from eventcore.readmodel.serving import Serving
from eventcore.store.port import Progress, Store, Stream, read_pages

SEARCHED_AT_MOST = 1_000_000
"""Maximum positions that a search for a correlation id reads: an index would slow each append."""

SEARCHED_AT_ONCE = 50_000
"""Positions that one statement reads."""

CLOCK_DIFFERENCE = timedelta(minutes=1)
"""How much earlier than its id's time an event may have been recorded, as clocks differ."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a stream in a projection; version 0 if it has no document.

    Or of a document of a view, `kind` then being the view's name, and versions positions of the
    store of its part. `events` are the versions and times of the history's events of it.
    """

    projection: str
    kind: str
    id: str
    version: int
    written_at: datetime | None
    parked: Parked | None
    skips: tuple[Skip, ...]
    events: Sequence[tuple[int, datetime]] = ()
    unit: str = "version"

    @property
    def is_known(self) -> bool:
        """Whether the projection has met the stream."""
        return bool(self.version or self.parked)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True)
class Searched:
    """Between which positions a correlation id was looked for, in a log settled up to `settled`."""

    after: int
    until: int
    settled: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing was left out."""
        return self.after == 0 and self.until == self.settled

    def __str__(self) -> str:
        return (
            f"looked for the correlation id above position {self.after} and up to {self.until}"
            f" alone, of {self.settled}; --since says from when on to look"
        )


@dataclass(frozen=True, slots=True)
class History:
    """All that is known of an id in one service."""

    service: str
    events: Sequence[Event]
    standings: Sequence[Standing]
    progress: Progress
    searched: Searched | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it."""
        return not self.events and not any(each.is_known for each in self.standings)


def find(
    wanted: str,
    service: str,
    store: Store,
    readmodel: ReadModel,
    projections: Iterable[AnyProjection],
    since: datetime | None = None,
    types: Sequence[str] = (),
) -> History:
    """Finds what one service's stores know of an aggregate's id, or else of a correlation id.

    An id that no stream has here, and no projection but a reactor, is looked for as a correlation
    id, and in the data of events: those of credit name an order. `types` are the aggregate types in
    its store, by default the one of its own name; all of them may have a stream of the id. A
    correlation id is looked for from `since` on, or from the time that it tells itself, or among
    the newest events; in SEARCHED_AT_MOST positions at most. Raises StoreUnavailable and
    ReadModelUnavailable.
    """
    projections, met = tuple(projections), list[Standing]()
    own = tuple(each for each in projections if isinstance(each, Projection))
    views = tuple(each for each in projections if isinstance(each, View))
    if stream_id := as_uuid(wanted):
        progress = store.progress(service)
        events = _read_all(store, [Stream(each, stream_id) for each in types or (service,)])
        streams = {Stream(event.aggregate_type, stream_id) for event in events}
        others = {Stream(each.aggregate_type, stream_id) for each in own} - streams
        standings = _standings(readmodel, own, streams | others, events)
        names = set(map(str, others))
        standings = [each for each in standings if each.is_known or str(each) not in names]
        standings += _in_views(readmodel, views, events, store, str(stream_id))
        met = [each for each in standings if each.is_known]
        reactors = {each.name for each in own if isinstance(each, Reactor)}
        if events or any(each.projection not in reactors for each in met):
            return History(service, events, standings, progress)
    events, searched = _search(store, wanted, since)
    streams = {Stream(event.aggregate_type, event.aggregate_id) for event in events}
    standings = [*met, *_standings(readmodel, own, streams, events)]
    standings += _in_views(readmodel, views, events, store)
    return History(service, events, standings, store.progress(service), searched)


def _read_all(store: Store, streams: Iterable[Stream]) -> list[Event]:
    """The events of several streams, by position."""
    pages = (page for stream in streams for page in read_pages(store, stream))
    return sorted((event for page in pages for event in page), key=lambda each: each.position)


def _search(
    store: Store, correlation_id: str, since: datetime | None
) -> tuple[list[Event], Searched]:
    settled = store.settled()
    if since is None and (made := made_at(as_uuid(correlation_id))):
        since = made - CLOCK_DIFFERENCE
    after = _position_at(store, since, settled) if since else max(0, settled - SEARCHED_AT_MOST)
    searched = Searched(after, min(settled, after + SEARCHED_AT_MOST), settled)
    found: list[Event] = []
    for begin in range(after, searched.until, SEARCHED_AT_ONCE):
        end = min(begin + SEARCHED_AT_ONCE, searched.until)
        found += store.read_correlated(correlation_id, begin, end)
    return found, searched


def _position_at(store: Store, moment: datetime, settled: int) -> int:
    """The position after which events were recorded from `moment` on.

    `recorded_at` increases with position, within a few seconds.
    """

    def recorded_after(position: int) -> datetime:
        page = store.read_feed(position, settled, 1)
        return page[0].recorded_at if page else datetime.max.replace(tzinfo=UTC)

    return bisect_left(range(settled), moment, key=recorded_after)


def _standings(
    readmodel: ReadModel,
    projections: Iterable[Projection],
    streams: set[Stream],
    events: Sequence[Event],
) -> list[Standing]:
    """Where each projection is with these streams, and with those that the events name, such as
    the user in an order's `userId`.
    """
    found = []
    for projection in projections:
        kind = projection.aggregate_type
        named = (as_uuid(event.data.get(f"{kind}Id")) for event in events)
        ids_of_kind = {each.aggregate_id for each in streams if each.aggregate_type == kind}
        ids = sorted(str(each) for each in ids_of_kind.union(named) if each)
        its = {
            id: [
                (each.version, each.recorded_at)
                for each in events
                if (each.aggregate_type, str(each.aggregate_id)) == (kind, id)
            ]
            for id in ids
        }
        generation = Serving(projection, readmodel).now()
        versions = readmodel.versions(generation.collection, ids)
        skips = readmodel.skips(projection.name)
        found += _read(readmodel, generation, kind, versions, its, skips)
    return found


def _in_views(
    readmodel: ReadModel, views: Iterable[View], events: Sequence[Event], store: Store,
    wanted: str = "",
) -> list[Standing]:  # fmt: skip
    """Where each view is with the documents that the events concern, and with the one `wanted`."""
    found, ids = list[Standing](), {str(event.event_id) for event in events}
    for view in views:
        skips = [each for each in readmodel.skips(view.name) if each.event_id in ids]
        for part in Serving(view, readmodel).parts():
            its: dict[str, list[tuple[int, datetime]]] = {wanted: []} if wanted else {}
            for event in (each for each in events if each.aggregate_type == part.store):
                for id in _documents_of(view, event, store):
                    its.setdefault(id, []).append((event.position, event.recorded_at))
            documents = readmodel.find(part.collection, its)
            reached = {id: positions_of(each).get(part.store, 0) for id, each in documents.items()}
            standings = _read(readmodel, part, view.name, reached, its, skips, "position")
            found += [each for each in standings if each.is_known or each.events]
    return found


def _read(
    readmodel: ReadModel, generation: Generation, kind: str, reached: Mapping[str, int],
    events: Mapping[str, Sequence[tuple[int, datetime]]], skips: Iterable[Skip],
    unit: str = "version",
) -> list[Standing]:  # fmt: skip
    """The state of each of the documents that `events` names."""
    written = readmodel.projected_at(generation.collection, events)
    parked = readmodel.parked(generation.name, events)
    of = {id: tuple(skip for skip in skips if skip.stream == id) for id in events}
    return [
        Standing(
            generation.label, kind, id, reached.get(id, 0), written.get(id), parked.get(id), of[id],
            concerned, unit,
        )
        for id, concerned in events.items()
    ]  # fmt: skip


def _documents_of(view: View, event: Event, store: Store) -> Sequence[str]:
    """The ids of the documents that an event concerns; if they cannot be named, its stream."""
    on, stream = view.reads(event), Stream(event.aggregate_type, event.aggregate_id)
    try:
        if on and on.with_first:
            event = view.on_first(event, store.read_stream(stream, 0, 1)[0])
        return view.keys(event)
    except Unavailable:
        raise
    except Exception:  # noqa: BLE001 - whatever a function raises parks the stream
        return [str(stream)]


def as_uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
