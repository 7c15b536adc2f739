"""What happened to one id, from its command to its read models, as the stores themselves tell it.

    find      asks the store and the read model for all that is known of an id
    timeline  puts that in order; pure
    tell      one entry as a line for people; pure

Nothing is asked but what is there anyway: the ids of requests say when they began (they are UUIDs
of version 7), events when they were appended, the relay's checkpoint whether they are confirmed,
and documents when they were written.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from eventcore import jsontext
from eventcore.command import made_at, read_pages
from eventcore.event import Data, Event, Json, to_timestamp
from eventcore.projection import Projection
from eventcore.query import Serving
from eventcore.readmodel import Parked, ReadModel, Skip
from eventcore.store import Progress, Store, Stream

REACH = 1_000_000
"""Positions that a search for a correlation id looks through: there is no index of them, since
every append would pay for it.
"""

STEP = 50_000
"""Positions that one statement looks through."""

SLACK = timedelta(minutes=1)
"""How much earlier than its id's time an event may have been recorded, as clocks differ."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a projection is with a stream; version 0: it has no document of it."""

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
    """All that is known of an id."""

    events: Sequence[Event]
    standings: Sequence[Standing]
    progress: Progress
    searched: Searched | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it."""
        return not self.events and not any(each.is_known for each in self.standings)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened, or is so now (`at` is None); `gap` is since the one before."""

    what: str
    at: datetime | None
    says: str
    fields: Data
    gap: timedelta | None = None

    def as_json(self) -> dict[str, Json]:
        """As one JSON object; times as RFC 3339, the gap in seconds."""
        at = to_timestamp(self.at) if self.at else None
        gap = None if self.gap is None else _exact(self.gap.total_seconds())
        return {"what": self.what, "at": at, "gapSeconds": gap, **self.fields}


# ── find ──────────────────────────────────────────────────────────────────────────────────


def find(
    wanted: str,
    service: str,
    store: Store,
    readmodel: ReadModel,
    projections: Iterable[Projection],
    since: datetime | None = None,
) -> History:
    """What is known of an aggregate's id, or else of a correlation id, in one service's stores.

    A correlation id is looked for from `since` on, or from the time that it tells itself, or
    among the newest events; in REACH positions at most. Raises StoreAway, ReadModelAway.
    """
    progress = store.progress(service)
    projections = tuple(projections)
    if stream_id := _uuid(wanted):
        pages = read_pages(store, Stream(service, stream_id))
        events = [event for page in pages for event in page]
        kinds = (each.aggregate_type for each in projections)
        others = {Stream(kind, stream_id) for kind in kinds if kind != service}
        own = {Stream(service, stream_id)} if events else set()
        standings = _standings(readmodel, projections, own | others, events)
        standings = [each for each in standings if each.is_known or each.stream not in others]
        history = History(events, standings, progress)
        if not history.is_empty:
            return history
    events, searched = _search(store, wanted, since)
    streams = {Stream(event.aggregate_type, event.aggregate_id) for event in events}
    standings = _standings(readmodel, projections, streams, events)
    return History(events, standings, store.progress(service), searched)


def _search(
    store: Store, correlation_id: str, since: datetime | None
) -> tuple[list[Event], Searched]:
    settled = store.settled()
    if since is None and (made := made_at(_uuid(correlation_id))):
        since = made - SLACK
    after = _position_at(store, since, settled) if since else max(0, settled - REACH)
    searched = Searched(after, min(settled, after + REACH), settled)
    found: list[Event] = []
    while after < searched.until:
        until = min(after + STEP, searched.until)
        found += store.read_correlated(correlation_id, after, until)
        after = until
    return found, searched


def _position_at(store: Store, moment: datetime, settled: int) -> int:
    """The position after which events were recorded from `moment` on: recorded_at grows with it,
    but for the few seconds that an append may take.
    """
    before, after = 0, settled
    while before < after:
        middle = (before + after) // 2
        page = store.read_feed(middle, settled, 1)
        if page and page[0].recorded_at < moment:
            before = page[0].position
        else:
            after = middle
    return before


def _standings(
    readmodel: ReadModel,
    projections: Iterable[Projection],
    streams: set[Stream],
    events: Sequence[Event],
) -> list[Standing]:
    """Where each projection is with these streams, and with those that the events point to."""
    found = []
    for projection in projections:
        kind = projection.aggregate_type
        own = {str(each.aggregate_id) for each in streams if each.aggregate_type == kind}
        ids = sorted(own | _pointed_to(events, kind))
        generation = Serving(projection, readmodel).now()
        versions = readmodel.versions(generation.collection, ids)
        written = readmodel.projected_at(generation.collection, ids)
        parked = readmodel.parked(generation.name, ids)
        skips = readmodel.skips(projection.name)
        for each in ids:
            skipped = tuple(skip for skip in skips if skip.stream == each)
            found.append(
                Standing(
                    projection.name,
                    Stream(kind, UUID(each)),
                    versions.get(each, 0),
                    written.get(each),
                    parked.get(each),
                    skipped,
                )
            )
    return found


def _pointed_to(events: Iterable[Event], aggregate_type: str) -> set[str]:
    """The ids of aggregates of a type that events name in their data, as `userId` does a user."""
    named = (event.data.get(f"{aggregate_type}Id") for event in events)
    return {str(found) for each in named if (found := _uuid(each))}


# ── timeline ──────────────────────────────────────────────────────────────────────────────

Placed = tuple[datetime, Entry]
"""An entry and the moment it stands at, which may be a little later than its own clock said."""


def timeline(history: History, *, with_data: bool = False) -> list[Entry]:
    """Everything that happened, in order, then what is so now.

    Neither an event's data nor the text of an error is in it, unless asked for.
    """
    placed = [
        *_requests(history.events),
        *((e.recorded_at, _appended(e, history.progress, with_data)) for e in history.events),
        *(each for s in history.standings for each in _projected(s, history.events, with_data)),
    ]
    placed.sort(key=lambda each: each[0])  # stable: at one moment, in the order of above
    kinds = sorted({event.aggregate_type for event in history.events})
    return [
        *_with_gaps(entry for _, entry in placed),
        *(_missing(each, history.events) for each in history.standings if _lacks(each, history)),
        *(_relay(kind, history.progress) for kind in kinds),
    ]


def _requests(events: Sequence[Event]) -> list[Placed]:
    """The requests that caused these events; one whose id tells no time stands at its event."""
    first: dict[str, Event] = {}
    for event in events:
        if cause := event.metadata.get("causationId"):
            first.setdefault(str(cause), event)
    placed = []
    for request, event in first.items():
        correlation = str(event.metadata.get("correlationId"))
        made = made_at(_uuid(request))
        fields = {"requestId": request, "correlationId": correlation}
        began = "began" if made else "came"
        says = f"request {request} {began}, correlation id {correlation}"
        moment = min(made, event.recorded_at) if made else event.recorded_at
        placed.append((moment, Entry("request", made, says, fields)))
    return placed


def _appended(event: Event, progress: Progress, with_data: bool) -> Entry:
    relayed = event.position <= progress.relayed
    stream = Stream(event.aggregate_type, event.aggregate_id)
    fields: dict[str, Json] = {
        "stream": str(event.aggregate_id),
        "aggregateType": event.aggregate_type,
        "eventType": event.event_type,
        "eventId": str(event.event_id),
        "version": event.version,
        "position": event.position,
        "correlationId": event.metadata.get("correlationId"),
        "causationId": event.metadata.get("causationId"),
        "relayed": relayed,
    }
    says = (
        f"{stream}: {event.event_type} appended, version {event.version},"
        f" position {event.position}, {'relayed' if relayed else 'not relayed yet'}"
    )
    if with_data:
        fields["data"] = event.data
        says += f", {jsontext.render(event.data).decode()}"
    return Entry("event", event.recorded_at, says, fields)


def _projected(standing: Standing, events: Sequence[Event], with_data: bool) -> list[Placed]:
    """What a projection did with a stream and when. MongoDB keeps milliseconds, and clocks
    differ: a document does not stand before the event that it was made of.
    """
    made_of = [
        event.recorded_at
        for event in events
        if event.aggregate_id == standing.stream.aggregate_id and event.version <= standing.version
    ]
    placed = []
    if standing.version and (at := standing.written_at):
        placed.append((max([at, *made_of]), _document(standing, at)))
    if parked := standing.parked:
        placed.append((max([parked.when, *made_of]), _parked(standing, parked, with_data)))
    return placed + [(skip.when, _skipped(standing, skip, with_data)) for skip in standing.skips]


def _document(standing: Standing, at: datetime | None) -> Entry:
    says = f"{standing.projection} wrote {standing.stream} at version {standing.version}"
    return Entry("document", at, says, {**_place(standing), "version": standing.version})


def _parked(standing: Standing, parked: Parked, with_data: bool) -> Entry:
    error = parked.error if with_data else parked.error.split(":")[0]
    fields: Data = {"version": parked.version, "highest": parked.highest, "error": error}
    says = (
        f"{standing.projection} parked {standing.stream} at version {parked.version}: {error};"
        f" it is known to go to version {parked.highest}"
    )
    return Entry("parked", parked.when, says, {**_place(standing), **fields})


def _skipped(standing: Standing, skip: Skip, with_data: bool) -> Entry:
    why = {"who": skip.who, "why": skip.why} if with_data else {}
    says = f"{standing.projection} was told to skip version {skip.version} of {standing.stream}"
    if with_data:
        says += f" by {skip.who}: {skip.why}"
    return Entry("skipped", skip.when, says, {**_place(standing), "version": skip.version, **why})


def _lacks(standing: Standing, history: History) -> bool:
    return standing.written_at is None or standing.version < _last(standing, history.events)


def _missing(standing: Standing, events: Sequence[Event]) -> Entry:
    """A projection that has not come to the end of a stream, or not said when it did."""
    last = _last(standing, events)
    has = f"is at version {standing.version}" if standing.version else "has no document"
    of = f" of {last}" if last > standing.version > 0 else ""
    says = f"{standing.projection} {has}{of}: {standing.stream}"
    return Entry("standing", None, says, {**_place(standing), "version": standing.version})


def _last(standing: Standing, events: Sequence[Event]) -> int:
    """The last version that is known of its stream."""
    own = (e.version for e in events if e.aggregate_id == standing.stream.aggregate_id)
    return max(own, default=0)


def _place(standing: Standing) -> dict[str, Json]:
    return {
        "projection": standing.projection,
        "stream": str(standing.stream.aggregate_id),
        "aggregateType": standing.stream.aggregate_type,
    }


def _relay(store: str, progress: Progress) -> Entry:
    fields: Data = {
        "store": store,
        "relayed": progress.relayed,
        "settled": progress.settled,
        "head": progress.head,
    }
    says = (
        f"relay of {store}: confirmed up to position {progress.relayed};"
        f" the log has settled up to {progress.settled} and ends at {progress.head}"
    )
    return Entry("relay", None, says, fields)


def _with_gaps(entries: Iterable[Entry]) -> list[Entry]:
    """Each with the time since the one before; a clock that is behind makes none below zero."""
    told: list[Entry] = []
    before: datetime | None = None
    for entry in entries:
        gap = max(timedelta(), entry.at - before) if entry.at and before else None
        told.append(replace(entry, gap=gap))
        before = entry.at or before
    return told


# ── tell ──────────────────────────────────────────────────────────────────────────────────


def tell(entry: Entry) -> str:
    """One line: when, how long after the one before, and what."""
    at = to_timestamp(entry.at) if entry.at else ""
    return f"{at:27}  {_short(entry.gap):>10}  {entry.says}"


def _short(gap: timedelta | None) -> str:
    if gap is None:
        return ""
    seconds = gap.total_seconds()
    if seconds < 1:
        return f"+{seconds * 1000:.1f} ms"
    return f"+{seconds:.2f} s" if seconds < 60 else f"+{str(gap).split('.')[0]}"


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _exact(seconds: float) -> Decimal:
    """Seconds to the microsecond."""
    return Decimal(f"{seconds:.6f}")
