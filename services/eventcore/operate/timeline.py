"""The history of an id as a timeline, in text or JSON; pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from eventcore import jsontext
from eventcore.ids import made_at
from eventcore.model.event import Data, Event, Json, to_timestamp
from eventcore.operate.history import History, Standing, as_uuid
from eventcore.store.port import Progress


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: something that happened, or the present state if `at` is None.

    `gap` is the time since the entry before.
    """

    what: str
    at: datetime | None
    text: str
    fields: Data
    private: Data = field(default_factory=dict)
    gap: timedelta | None = None

    def as_json(self) -> dict[str, Json]:
        """As one JSON object; times as RFC 3339, the gap in seconds."""
        at = to_timestamp(self.at) if self.at else None
        gap = None if self.gap is None else Decimal(f"{self.gap.total_seconds():.6f}")
        return {"what": self.what, "at": at, "gapSeconds": gap, **self.fields, **self.private}


Placed = tuple[datetime, Entry]
"""An entry and the time by which it is sorted, which may be later than its own time."""


def timeline(history: History, *, with_data: bool = False) -> list[Entry]:
    """Everything that happened, in order, then the present state.

    An event's data, the text of an error, and who skipped an event and why are left out, unless
    `with_data`.
    """
    events, progress = history.events, history.progress
    placed = [
        *_requests(events),
        *((each.recorded_at, _appended(each, progress, with_data)) for each in events),
    ]
    now = []
    newest = max((each.recorded_at for each in events), default=None)
    for standing in history.standings:
        last = max((version for version, _ in standing.events), default=0)
        later = _is_of_later_events(standing, last, newest)
        placed += _projected(replace(standing, written_at=None) if later else standing, with_data)
        if later or standing.written_at is None or standing.version < last:
            now.append(_standing(standing, last))
    if events:
        now.append(_relay(history.service, progress))
    placed.sort(key=lambda each: each[0])  # stable: at one moment, in the order of above
    return [*_with_gaps(entry for _, entry in placed), *now]


def _requests(events: Sequence[Event]) -> list[Placed]:
    """The requests and reactions that caused these events; an id without a time is placed at its
    event.
    """
    first: dict[str, Event] = {}
    for event in events:
        if cause := event.metadata.get("causationId"):
            first.setdefault(str(cause), event)
    placed = []
    for request, event in first.items():
        correlation = str(event.metadata.get("correlationId"))
        made = made_at(as_uuid(request))
        text = f"request {request} {'began' if made else 'came'}, correlation id {correlation}"
        fields: dict[str, Json] = {"requestId": request, "correlationId": correlation}
        if reactor := event.metadata.get("reactor"):
            text = f"{reactor} reacted to event {request}, correlation id {correlation}"
            fields = {"reactor": reactor, "causationId": request, "correlationId": correlation}
        if actor := event.metadata.get("actor"):
            text += f", by {actor}"
            fields["actor"] = actor
        moment = min(made or event.recorded_at, event.recorded_at)
        what = "reaction" if reactor else "request"
        placed.append((moment, Entry(what, made, text, fields)))
    return placed


def _appended(event: Event, progress: Progress, with_data: bool) -> Entry:
    relayed = event.position <= progress.relayed
    text = (
        f"{event.aggregate_type} {event.aggregate_id}: {event.event_type} appended,"
        f" version {event.version}, position {event.position},"
        f" {'relayed' if relayed else 'not relayed yet'}"
    )
    fields: Data = {
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
    private = {"data": event.data} if with_data else {}
    return Entry("event", event.recorded_at, text, fields, private)


def _projected(standing: Standing, with_data: bool) -> list[Placed]:
    """The entries of a projection for a stream. Orders a document after its events, even if the
    clocks differ.
    """
    name, version, unit = standing.projection, standing.version, standing.unit
    place = _place(standing)
    made_of = [at for each, at in standing.events if each <= version]
    placed = []
    if version and (at := standing.written_at):
        text = f"{name} wrote {standing} at {unit} {version}"
        placed.append((max([at, *made_of]), Entry("document", at, text, place)))
    if parked := standing.parked:
        error = parked.error if with_data else parked.error.split(":")[0]
        text = (
            f"{name} parked {standing} at {unit} {parked.version}: {error};"
            f" it is known to go to {unit} {parked.highest}"
        )
        fields = {**place, unit: parked.version, "highest": parked.highest, "error": error}
        placed.append((max([parked.when, *made_of]), Entry("parked", parked.when, text, fields)))
    for skip in standing.skips:
        skipped = f"version {skip.version}" if unit == "version" else f"event {skip.event_id}"
        text = f"{name} was told to skip {skipped} of {standing}"
        private = {"who": skip.who, "why": skip.why} if with_data else {}
        fields = {**place, "version": skip.version, "eventId": skip.event_id}
        placed.append((skip.when, Entry("skipped", skip.when, text, fields, private)))
    return placed


def _place(standing: Standing) -> dict[str, Json]:
    return {
        "projection": standing.projection,
        "stream": standing.id,
        "aggregateType": standing.kind,
        standing.unit: standing.version,
    }


def _is_of_later_events(standing: Standing, last: int, newest: datetime | None) -> bool:
    """Whether the last write of a document came of events that the history does not have.

    A document shows its newest version alone: its earlier writes left no time.
    """
    if standing.written_at is None or newest is None:
        return False
    if standing.events:
        return standing.version > last
    return standing.version > 1 and standing.written_at > newest


def _standing(standing: Standing, last: int) -> Entry:
    """The state of a projection that is behind or further, or whose document has no write time."""
    if standing.version > last and (at := standing.written_at):
        text = f"{standing.projection} is at {standing.unit} {standing.version}: {standing};"
        if last:
            text += f" it had {standing.unit} {last} by {to_timestamp(at)} at the latest"
        else:
            text += f" written {to_timestamp(at)}"
        return Entry("standing", None, text, {**_place(standing), "writtenAt": to_timestamp(at)})
    has = f"is at {standing.unit} {standing.version}" if standing.version else "has no document"
    of = f" of {last}" if last > standing.version > 0 else ""
    text = f"{standing.projection} {has}{of}: {standing}"
    return Entry("standing", None, text, _place(standing))


def _relay(store: str, progress: Progress) -> Entry:
    text = (
        f"relay of {store}: confirmed up to position {progress.relayed};"
        f" the log has settled up to {progress.settled} and ends at {progress.head}"
    )
    position = {"relayed": progress.relayed, "settled": progress.settled, "head": progress.head}
    return Entry("relay", None, text, {"store": store, **position})


def _with_gaps(entries: Iterable[Entry]) -> list[Entry]:
    """Sets the time since the entry before. Negative differences count as 0."""
    told: list[Entry] = []
    before: datetime | None = None
    for entry in entries:
        gap = max(timedelta(), entry.at - before) if entry.at and before else None
        told.append(replace(entry, gap=gap))
        before = entry.at or before
    return told


def tell(entry: Entry) -> str:
    """One line: when, how long after the one before, and what."""
    at = to_timestamp(entry.at) if entry.at else ""
    more = f", {jsontext.render(entry.private).decode()}" if entry.private else ""
    return f"{at:27}  {_short(entry.gap):>10}  {entry.text}{more}"


def _short(gap: timedelta | None) -> str:
    if gap is None:
        return ""
    seconds = gap.total_seconds()
    if seconds < 1:
        return f"+{seconds * 1000:.1f} ms"
    return f"+{seconds:.2f} s" if seconds < 60 else f"+{str(gap).split('.')[0]}"
