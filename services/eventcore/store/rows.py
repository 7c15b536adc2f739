"""The SQL statements of the store, and their rows as values."""

import math
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from eventcore import jsontext
from eventcore.model.event import Data, Event, Mark, NewEvent
from eventcore.store.port import Answer, Append, Idempotency
from eventcore.store.settling import Settling

EVENT_COLUMNS = (
    "position, event_id, aggregate_type, aggregate_id, version, event_type,"
    " schema_version, data::text, metadata::text, recorded_at"
)

SETTLE = "select head, event_id::text, holders, same from settle(%s::bigint[], %s::uuid[])"

PROGRESS = (
    "select s.head, s.event_id::text, s.holders, s.same,"
    " coalesce(c.position, 0), c.event_id::text,"
    " c.name is null or log_has(array[c.position], array[c.event_id]),"
    " (select epoch::text from store_epochs order by number desc limit 1)"
    " from settle(%s::bigint[], %s::uuid[]) s left join checkpoints c on c.name = %s"
)

# `offset 0` keeps PostgreSQL from calling log_has again for each row.
CHANGES = (
    "select l.same, l.settled, e.ends_at, e.event_id::text, h.aggregate_id, h.version"
    " from (select log_has(%s::bigint[], %s::uuid[]) as same,"
    "              log_has(%s::bigint[], %s::uuid[]) as settled offset 0) l"
    " left join lateral page_end(%s, %s, %s) e on l.same and l.settled"
    " left join lateral read_heads(%s, %s, e.ends_at) h on true"
)

CORRELATED = (
    f"select {EVENT_COLUMNS} from events"  # nosec B608
    " where position > %s and position <= %s"
    " and (metadata->>'correlationId' = %s or jsonb_path_exists(data,"
    """ '$.keyvalue() ? (@.key like_regex "Id$" && @.value == $id)',"""
    " jsonb_build_object('id', %s::text), true)) order by position"
)

_PREVIOUS = (
    "(select p.event_id from events p where p.aggregate_type = f.aggregate_type"
    " and p.aggregate_id = f.aggregate_id and p.version = f.version - 1)"
)  # the id of the event before an event in its stream

STREAM = (
    f"select {EVENT_COLUMNS}, coalesce(lag(event_id) over (order by version), {_PREVIOUS})"  # nosec B608
    " from read_stream(%s, %s::uuid, %s, %s) f order by version"
)

READ_PAGE = (
    f"select l.same, {EVENT_COLUMNS}, {_PREVIOUS}"  # nosec B608
    " from (select log_has(%s::bigint[], %s::uuid[]) as same offset 0) l"
    " left join lateral read_feed(%s, %s, %s) f on l.same order by f.position"
)

RELAYED = (
    "select exists (select from pg_locks where locktype = 'advisory' and granted and objsubid = 2"
    " and classid = hashtext('relay')::oid and objid = hashtext(%s)::oid and database ="
    " (select oid from pg_database where datname = current_database()))"
)

EVENT = f"select {EVENT_COLUMNS} from events where event_id = %s::uuid"  # nosec B608

POSITION = "select position from events where event_id = %s::uuid"

APPEND = (
    "select replayed, answer, version, case when recorded_at is null then 0"
    " else currval('public.events_position_seq') end from append_events("
    "%s, %s::uuid, %s, %s::uuid[], %s::text[], %s::int[], %s::text[], %s::jsonb, %s, %s, %s::jsonb)"
)

APPEND_MANY = (
    "select replayed, answer from append_many(%s::text[], %s::uuid[], %s::bigint[],"
    " %s::int[], %s::uuid[], %s::text[], %s::int[], %s::text[], %s::jsonb, %s, %s, %s::jsonb,"
    " %s::float8[])"
)

OVERDUE = (
    "select t.type, coalesce(extract(epoch from clock_timestamp() - (select min(d.due_at)"
    " from deadlines d where d.aggregate_type = t.type and d.due_at < 'infinity')), 0)::float8"
    " from unnest(%s::text[]) t (type)"
)

WAITING = (
    "select aggregate_id, version, nullif(due_at, 'infinity') from deadlines"
    " where aggregate_type = %s and due_at >= %s::timestamptz"
    " order by due_at desc, aggregate_id limit %s"
)

STUCK = (
    "select t.type, (select count(*) from (select from deadlines d"
    " where d.aggregate_type = t.type and d.due_at = 'infinity' limit %s) s)"
    " from unnest(%s::text[]) t (type)"
)

_SNAPSHOT = (
    "select aggregate_id, version, event_id::text, digest, checksum, state from snapshots"
    " where aggregate_type = %s"
)

READ_SNAPSHOT = f"{_SNAPSHOT} and aggregate_id = %s::uuid"

READ_SNAPSHOTS = (
    f"{_SNAPSHOT} and (%s::uuid is null or aggregate_id > %s::uuid) order by aggregate_id limit %s"
)

WRITE_SNAPSHOT = "select write_snapshot(%s, %s::uuid, %s, %s::uuid, %s, %s, %s)"

TAKE_DUE = "select aggregate_id, version, late from take_due(%s, %s, %s)"


def to_columns(
    append: Append, metadata: Data, idempotency: Idempotency | None, answer: Answer | None
) -> tuple[Any, ...]:
    """The values of APPEND."""
    stream = append.stream
    return (
        stream.aggregate_type,
        str(stream.aggregate_id),
        append.expected_version,
        *_event_columns(append.events),
        *_common_columns(metadata, idempotency, answer),
    )


def to_columns_of_many(
    appends: Sequence[Append],
    metadata: Data,
    idempotency: Idempotency | None,
    answer: Answer | None,
) -> tuple[Any, ...]:
    """The values of APPEND_MANY."""
    return (
        [each.stream.aggregate_type for each in appends],
        [str(each.stream.aggregate_id) for each in appends],
        [each.expected_version for each in appends],
        [place for place, each in enumerate(appends, 1) for _ in each.events],
        *_event_columns([event for each in appends for event in each.events]),
        *_common_columns(metadata, idempotency, answer),
        _due_in(appends),
    )


def _due_in(appends: Sequence[Append]) -> list[float | None] | None:
    """The seconds of each deadline; -infinity: there is none any more; None: it is left."""
    deadlines = [each.deadline for each in appends]
    if not any(deadlines):
        return None
    return [
        (-math.inf if each.seconds is None else float(each.seconds)) if each else None
        for each in deadlines
    ]


def _event_columns(events: Sequence[NewEvent]) -> tuple[list[Any], ...]:
    return (
        [str(e.event_id) for e in events],
        [e.event_type for e in events],
        [e.schema_version for e in events],
        [jsontext.render(e.data).decode() for e in events],
    )


def _common_columns(
    metadata: Data, idempotency: Idempotency | None, answer: Answer | None
) -> tuple[str | None, ...]:
    return (
        jsontext.render(metadata).decode(),
        idempotency.key if idempotency else None,
        idempotency.request_hash if idempotency else None,
        jsontext.render(answer).decode() if idempotency and answer else None,
    )


def to_answer(text: str) -> Answer:
    return Answer(**jsontext.parse(text))


def to_event(row: Sequence[Any], previous: UUID | None = None) -> Event:
    *place, data, metadata, recorded_at = row
    parsed = jsontext.parse(data), jsontext.parse(metadata)
    return Event(*place, *parsed, recorded_at, previous)  # type: ignore[call-arg]


Rows = Callable[[str, tuple[object, ...]], list[Any]]


def observe_log(settling: Settling, rows: Rows, statement: str, *values: object) -> list[Any]:
    """Observes the log by a statement that begins with what `settle()` answers.

    Returns the head's position, then what else the statement answers.
    """
    known = mark_columns([settling.mark, settling.watched])
    head, event_id, holders, same, *more = rows(statement, (*known, *values))[0]
    settling.observe(Mark(head, event_id or ""), holders, same)
    return [head, *more]


def mark_columns(marks: Sequence[Mark]) -> tuple[list[int], list[str]]:
    """Marks as two arrays; those without an id are left out."""
    known = [mark for mark in marks if mark.event_id]
    return [mark.position for mark in known], [mark.event_id for mark in known]


def read_page(
    rows: Rows, marks: Sequence[Mark], after: int, until: int, limit: int
) -> list[Event] | None:
    """A page of the feed; None if the log does not have all of `marks`."""
    found = rows(READ_PAGE, (*mark_columns(marks), after, until, limit))
    if not found[0][0]:
        return None
    return [to_event(row, previous) for _, *row, previous in found if row[0]]


def relay_halted(checkpoint: Mark) -> str:
    """Why a relay publishes nothing, and what to do."""
    return (
        f"the relay's checkpoint is event {checkpoint.event_id} at position {checkpoint.position},"
        " which this log does not have there: it was restored to an earlier state, or is another"
        " log. Nothing is published until the right database is back, or until its owner states"
        " that this is the right one: select begin_epoch('why'); then the whole log is published"
        " again"
    )
