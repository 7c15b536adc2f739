"""An aggregate: its events, its state, and two pure functions. Pure.

decide   a command and the state in, new events out; an empty list where there is
         nothing new to say; raises Refused where a rule forbids it
evolve   the state and one event in, the next state out
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from eventcore.errors import Misconfigured
from eventcore.model.catalogue import Catalogue, to_new_event
from eventcore.model.event import Event, Json, NewEvent, tag_of

State = TypeVar("State")

Command = TypeVar("Command")

DomainEvent = TypeVar("DomainEvent")
"""A typed event: one of the dataclasses of an aggregate's union of events."""


@dataclass(frozen=True, slots=True)
class StreamState(Generic[State]):
    """The state of a stream at a version, with the position and the id of that version's event.

    At version 0 there is no event. `folded` is the number of events that were folded to get it.
    """

    state: State
    version: int = 0
    position: int = 0
    event_id: UUID | None = None
    folded: int = 0

    @property
    def tag(self) -> str:
        """The version in an ETag; "" at version 0."""
        return tag_of(self.version, self.event_id) if self.event_id else ""


@dataclass(frozen=True)
class Decider(Generic[Command, State, DomainEvent]):
    """One kind of aggregate; `catalogue` has its events.

    With `snapshot_every`, a snapshot of a stream is written after so many events; 0: none. The two
    functions then turn a state into JSON and back into an equal state. They and `evolve` are
    functions of a module: a change of its code makes all snapshots void.
    """

    catalogue: Catalogue
    initial: State
    decide: Callable[[Command, State], Sequence[DomainEvent]]
    evolve: Callable[[State, DomainEvent], State]
    snapshot_every: int = 0
    state_to_json: Callable[[State], Json] | None = None
    state_from_json: Callable[[Any], State] | None = None

    def __post_init__(self) -> None:
        if self.snapshot_every and not (self.state_to_json and self.state_from_json):
            raise Misconfigured(
                f"snapshots of {self.aggregate_type} need state_to_json and state_from_json"
            )

    @property
    def aggregate_type(self) -> str:
        """The aggregate type of its streams."""
        return self.catalogue.aggregate_type

    def fold(self, state: State, events: Iterable[Event]) -> State:
        """The state after recorded events, upcast where they are old; raises CannotApply."""
        for event in events:
            state = self.evolve(state, self.catalogue.to_domain_event(event))
        return state

    def to_new_event(self, event: DomainEvent, event_id: UUID) -> NewEvent:
        """The decided event in the form that is appended."""
        return to_new_event(event, event_id)
