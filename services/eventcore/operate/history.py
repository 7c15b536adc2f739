"""The history of one id, from its request to its read models, as the stores have recorded it.

`find` reads the store and the read model; `timeline` and `tell` are pure. The stores record
nothing extra for it: ids of version 7 tell when a request began.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from eventcore.ids import made_at
from eventcore.model.event import Event
from eventcore.model.projection import Projection
from eventcore.model.view import AnyProjection
from eventcore.query import Serving
from eventcore.readmodel.port import ReadModel
from eventcore.readmodel.records import Parked, Skip
from eventcore.store.port import Progress, Store, Stream, read_pages

SEARCHED_AT_MOST = 1_000_000
"""Maximum positions that a search for a correlation id reads: an index would slow each append."""

SEARCHED_AT_ONCE = 50_000
"""Positions that one statement reads."""

CLOCK_DIFFERENCE = timedelta(minutes=1)
"""How much earlier than its id's time an event may have been recorded, as clocks differ."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a stream in a projection; version 0 if it has no document."""

    projection: str
    stream: Stream
    version: int
    written_at: datetime | None
    parked: Parked | None
    skips: tuple[Skip, ...]

    @property
    def is_known(self) -> bool:
        """Whether the projection has met the stream."""
        return bool(self.version or self.parked)


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
) -> History:
    """Finds what one service's stores know of an aggregate's id, or else of a correlation id.

    A correlation id is looked for from `since` on, or from the time that it tells itself, or
    among the newest events; in SEARCHED_AT_MOST positions at most. Raises StoreUnavailable and
    ReadModelUnavailable.
    """
    own = tuple(each for each in projections if isinstance(each, Projection))
    if stream_id := as_uuid(wanted):
        stream = Stream(service, stream_id)
        progress = store.progress(service)
        events = [event for page in read_pages(store, stream) for event in page]
        others = {Stream(each.aggregate_type, stream_id) for each in own} - {stream}
        streams = others | {stream} if events else others
        standings = _standings(readmodel, own, streams, events)
        standings = [each for each in standings if each.is_known or each.stream not in others]
        history = History(service, events, standings, progress)
        if not history.is_empty:
            return history
    events, searched = _search(store, wanted, since)
    streams = {Stream(event.aggregate_type, event.aggregate_id) for event in events}
    standings = _standings(readmodel, own, streams, events)
    return History(service, events, standings, store.progress(service), searched)


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
        generation = Serving(projection, readmodel).now()
        versions = readmodel.versions(generation.collection, ids)
        written = readmodel.projected_at(generation.collection, ids)
        parked = readmodel.parked(generation.name, ids)
        skips = readmodel.skips(projection.name)
        found += [
            Standing(
                projection.name,
                Stream(kind, UUID(each)),
                versions.get(each, 0),
                written.get(each),
                parked.get(each),
                tuple(skip for skip in skips if skip.stream == each),
            )
            for each in ids
        ]
    return found


def as_uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
