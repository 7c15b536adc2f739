"""An aggregate: its events, its state, and two pure functions. Pure.

    decide   a command and the state in, new events out; an empty list where there is
             nothing new to say; raises Refused where a rule forbids it
    evolve   the state and one event in, the next state out

An event in Python is a frozen dataclass. Its class name gives the event type (`UserCreated`
is USER_CREATED), its fields give the data (`user_id` is `userId`), and its class variable
`schema_version`, 1 where there is none, says which shape this is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import cache, cached_property
from typing import Any, Generic, TypeVar, get_args
from uuid import UUID

from eventcore.model.event import Event, Json, NewEvent
from eventcore.model.upcast import Upcaster, Upcasters

State = TypeVar("State")

Command = TypeVar("Command")

DomainEvent = TypeVar("DomainEvent")
"""A typed event: one of the dataclasses of an aggregate's union of events."""


@dataclass(frozen=True)
class Decider(Generic[Command, State, DomainEvent]):
    """One kind of aggregate; `events` is its union of event dataclasses."""

    aggregate_type: str
    events: Any
    initial: State
    decide: Callable[[Command, State], Sequence[DomainEvent]]
    evolve: Callable[[State, DomainEvent], State]
    upcasters: Mapping[tuple[str, int], Upcaster] | None = None

    def __post_init__(self) -> None:
        assert self._upcast  # a broken chain of upcasters must not start

    def fold(self, state: State, events: Iterable[Event]) -> State:
        """The state after recorded events, upcast where they are old; raises CannotApply."""
        for event in events:
            state = self.evolve(state, self._to_domain_event(self._upcast(event)))
        return state

    def to_new_event(self, event: DomainEvent, event_id: UUID) -> NewEvent:
        """The decided event in the form that is appended."""
        data: dict[str, Json] = {}
        for each in fields(event):  # type: ignore[arg-type]
            value = getattr(event, each.name)
            if value is not None:
                data[camel(each.name)] = value
        kind: type[Any] = type(event)
        return NewEvent(event_id, event_type_of(kind), schema_version_of(kind), data)  # type: ignore[arg-type]

    @cached_property
    def _types(self) -> dict[str, type[Any]]:
        kinds = get_args(self.events) or (self.events,)
        return {event_type_of(kind): kind for kind in kinds}

    @cached_property
    def _upcast(self) -> Upcasters:
        versions = {name: schema_version_of(kind) for name, kind in self._types.items()}
        return Upcasters(versions, self.upcasters)

    def _to_domain_event(self, event: Event) -> DomainEvent:
        kind = self._types[event.event_type]
        known = {camel(each.name): each for each in fields(kind)}
        decided: DomainEvent = kind(
            **{
                known[name].name: Decimal(value) if known[name].type is Decimal else value
                for name, value in event.data.items()
                if name in known
            }
        )
        return decided


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
