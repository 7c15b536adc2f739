"""An event, and its message: one JSON object, the same schema for every event type. Pure.

JSON is camelCase, Python is snake_case. Numbers are Decimals, never binary floats: what was 0.10
in the request is 0.10 in every answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from eventcore.errors import NotAnEvent

Json: TypeAlias = (
    "str | int | Decimal | bool | datetime | list[Json] | tuple[Json, ...]"
    " | Mapping[str, Json] | None"
)

Data: TypeAlias = Mapping[str, Json]

SPEC = 1  # the version of the message schema, `specVersion` in each message


@dataclass(frozen=True, slots=True)
class Mark:
    """An event that a reader of the log stands on: its position and its id.

    Position 0 is the beginning of every log. A mark without an id was made by an older version:
    nothing can be said of it.
    """

    position: int = 0
    event_id: str = ""


START = Mark()  # the beginning of every log


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event that has been decided but has no place in a stream yet."""

    event_id: UUID
    event_type: str
    schema_version: int
    data: Data


@dataclass(frozen=True, slots=True)
class Event:
    """An immutable record that something has happened, at its place in its stream and its store.

    `data` holds JSON values; the reader knows their types by the event type. `previous` is the id
    of the event before it in its stream; None for the first one, and where the reader did not ask.
    """

    position: int
    event_id: UUID
    aggregate_type: str
    aggregate_id: UUID
    version: int
    event_type: str
    schema_version: int
    data: Mapping[str, Any]
    metadata: Data
    recorded_at: datetime
    previous: UUID | None = field(default=None, compare=False)

    @property
    def mark(self) -> Mark:
        """Its place in the log, and its id."""
        return Mark(self.position, str(self.event_id))

    @property
    def routing_key(self) -> str:
        """`user.created` for USER_CREATED: the aggregate type, then the rest in lower case."""
        return routing_key_of(self.aggregate_type, self.event_type)


def routing_key_of(aggregate_type: str, event_type: str) -> str:
    """The routing key of an event type: `user.created` for USER_CREATED."""
    return f"{aggregate_type}.{event_type.lower().removeprefix(f'{aggregate_type}_')}"


def tag_of(version: int, event_id: UUID | str) -> str:
    """The version of a stream in an ETag, `3.1a2b3c4d`, with the end of the id of its event.

    A restored log reaches the same version by another event.
    """
    return f"{version}.{str(event_id)[-8:]}" if event_id else str(version)


def ids_of(event: Event) -> dict[str, str]:
    """The fields of a log line about an event, beside its stream: its id and what began it."""
    ids = {"event_id": str(event.event_id)}
    correlation_id, traceparent = map(event.metadata.get, ("correlationId", "traceparent"))
    if isinstance(correlation_id, str):
        ids["correlation_id"] = correlation_id
    if isinstance(traceparent, str) and traceparent.count("-") == 3:
        ids["trace_id"] = traceparent.split("-")[1]
    return ids


def to_message(event: Event) -> dict[str, Json]:
    """The message's JSON object for an event; `from_message` is its inverse."""
    return {
        "specVersion": SPEC,
        "eventId": str(event.event_id),
        "eventType": event.event_type,
        "schemaVersion": event.schema_version,
        "aggregateType": event.aggregate_type,
        "aggregateId": str(event.aggregate_id),
        "version": event.version,
        "position": event.position,
        "previousId": str(event.previous) if event.previous else None,
        "recordedAt": to_timestamp(event.recorded_at),
        "data": event.data,
        "metadata": event.metadata,
    }


def from_message(message: object) -> Event:
    """The event that a parsed message is; raises NotAnEvent with the reason.

    A message with a newer `specVersion` is refused as well: its meaning is unknown.
    """
    if not isinstance(message, Mapping):
        raise NotAnEvent(f"a message must be a JSON object, not {type(message).__name__}")
    spec = message.get("specVersion")
    if spec != SPEC:
        found = spec if isinstance(spec, int) else type(spec).__name__
        raise NotAnEvent(f"specVersion must be {SPEC}, not {found}")
    return Event(
        position=_natural(message, "position"),
        event_id=_uuid(message, "eventId"),
        aggregate_type=_text(message, "aggregateType"),
        aggregate_id=_uuid(message, "aggregateId"),
        version=_natural(message, "version"),
        event_type=_text(message, "eventType"),
        schema_version=_natural(message, "schemaVersion"),
        data=_object(message, "data"),
        metadata=_object(message, "metadata"),
        recorded_at=_time(message, "recordedAt"),
        previous=_uuid(message, "previousId") if message.get("previousId") else None,
    )


def to_timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with six decimals, so that text order is time order."""
    in_utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{in_utc.isoformat(timespec='microseconds')}Z"


def _text(message: Mapping[str, object], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise NotAnEvent(f"{name} must be a text of 1 to 200 characters")
    return value


def _natural(message: Mapping[str, object], name: str) -> int:
    value = message.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
        raise NotAnEvent(f"{name} must be a whole number above 0")
    return value


def _uuid(message: Mapping[str, object], name: str) -> UUID:
    try:
        return UUID(_text(message, name))
    except ValueError as error:
        raise NotAnEvent(f"{name} must be a UUID") from error


def _object(message: Mapping[str, object], name: str) -> Data:
    value = message.get(name)
    if not isinstance(value, Mapping):
        raise NotAnEvent(f"{name} must be a JSON object")
    return value


def _time(message: Mapping[str, object], name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(message, name))
    except ValueError as error:
        raise NotAnEvent(f"{name} must be an RFC 3339 time") from error
    if moment.tzinfo is None:
        raise NotAnEvent(f"{name} must name its offset from UTC")
    return moment
