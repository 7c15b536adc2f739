"""A catalogue: the events of one aggregate type, in every version that its log may hold. Pure.

An event in Python is a frozen dataclass. Its class name gives the event type (`UserCreated`
is USER_CREATED), its fields give the data (`user_id` is `userId`), and its class variable
`schema_version`, 1 where there is none, says which shape this is. An upcaster turns the data of
one schema version into the data of the next one.

The service that appends the events owns the catalogue, in its `events.py`. Its decider and every
projection of these events, those of other services too, take it from there.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from decimal import Decimal
from functools import cache, cached_property
from typing import Any, TypeAlias, get_args, get_type_hints
from uuid import UUID

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.event import Data, Event, Json, NewEvent

Upcaster: TypeAlias = Callable[[Data], Data]
"""Data of one schema version in, data of the next one out."""

_DECIMALS = (Decimal, Decimal | None)
"""Types of a field whose numbers are decimals; one that is None is not in the data."""

REQUIRED = MISSING
"""The default of a field that has none."""


@dataclass(frozen=True)
class Catalogue:
    """The events of one aggregate type. `events` is the union of their classes.

    `owner` is the service whose store has the streams; by default the one named as the type.
    The first class begins a stream. `upcasters` holds, for a type at version 3, the steps from 1
    and from 2: `("USER_CREATED", 1)`, `("USER_CREATED", 2)`. A missing or a surplus step raises
    Misconfigured, at start, not at the first old event.
    """

    aggregate_type: str
    events: Any
    upcasters: Mapping[tuple[str, int], Upcaster] = field(default_factory=dict)
    owner: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "owner", self.owner or self.aggregate_type)
        needed = {(kind, at) for kind, now in self.versions.items() for at in range(1, now)}
        if missing := sorted(needed - self.upcasters.keys()):
            raise Misconfigured(f"upcasters are missing from {_list(missing)}")
        if surplus := sorted(self.upcasters.keys() - needed):
            raise Misconfigured(f"upcasters lead nowhere from {_list(surplus)}")

    @cached_property
    def types(self) -> Mapping[str, type[Any]]:
        """The event classes by event type."""
        return {event_type_of(kind): kind for kind in get_args(self.events) or (self.events,)}

    @cached_property
    def versions(self) -> Mapping[str, int]:
        """The schema version of each event type."""
        return {name: schema_version_of(kind) for name, kind in self.types.items()}

    def fields_of(self, event_type: str) -> list[tuple[str, Any, Any]]:
        """The name in JSON, the type and the default (or REQUIRED) of each field of a class."""
        kind = self.types[event_type]
        hints = get_type_hints(kind)
        return [(camel(each.name), hints[each.name], _default_of(each)) for each in fields(kind)]

    def upcast(self, event: Event) -> Event:
        """The event in the schema version that this code knows; raises CannotApply."""
        current = self.versions.get(event.event_type)
        if current is None:
            raise CannotApply(f"event type {event.event_type} is unknown to this code")
        if event.schema_version > current:
            raise CannotApply(
                f"{event.event_type} has schema version {event.schema_version},"
                f" this code knows {current}"
            )
        if event.schema_version == current:
            return event
        data = event.data
        for version in range(event.schema_version, current):
            data = self.upcasters[event.event_type, version](data)
        return replace(event, data=data, schema_version=current)

    def to_domain_event(self, event: Event) -> Any:
        """The event as its class, upcast where it is old; raises CannotApply."""
        event = self.upcast(event)
        kind = self.types[event.event_type]
        known = {camel(each.name): each for each in fields(kind)}
        return kind(
            **{
                known[name].name: Decimal(value) if known[name].type in _DECIMALS else value
                for name, value in event.data.items()
                if name in known
            }
        )


def announcement(name: str, takes: Mapping[str, int | str]) -> str:
    """The highest schema version of each event type that a consumer takes.

    `known-users; USER_CREATED=1; USER_NAME_CHANGED=*`: "*" is any version, or any other type.
    """
    return "; ".join((name, *(f"{each}={takes[each]}" for each in sorted(takes))))


def to_new_event(event: Any, event_id: UUID) -> NewEvent:
    """A decided event in the form that is appended; a field that is None is left out."""
    data: dict[str, Json] = {}
    for each in fields(event):
        value = getattr(event, each.name)
        if value is not None:
            data[camel(each.name)] = value
    kind: type[Any] = type(event)
    return NewEvent(event_id, event_type_of(kind), schema_version_of(kind), data)  # type: ignore[arg-type]


@cache
def event_type_of(kind: type[Any]) -> str:
    """USER_CREATED for the class UserCreated."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).upper()


def schema_version_of(kind: type[Any]) -> int:
    """The schema version of an event class; 1 unless it says otherwise."""
    return int(getattr(kind, "schema_version", 1))


@cache
def camel(name: str) -> str:
    """`userId` for `user_id`."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def _default_of(each: Any) -> Any:
    return each.default_factory() if each.default_factory is not MISSING else each.default


def _list(steps: list[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} version {version}" for kind, version in steps)
