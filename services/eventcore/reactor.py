"""A reactor: a projection whose write is a command to its own service's store. Pure.

It reads the events of one aggregate type, and for some of them carries out one command. The rest is
a projection's: queue, guard, gaps, sweep, checkpoint, parked list. Its documents hold no more than
how far each stream has come, `{_id, version, eventId}`.

    order     the command comes before the guarded write, once for each event, in the order of the
              stream; its idempotency key is made of the reactor's name and the event's id
    again     a process that dies between the two reacts again. Keys expire, so a reaction must be
              idempotent by the state too: a command that was carried out long ago changes nothing
    wait      while a server is unavailable, and after a conflict, it is tried again
    park      whatever else a reaction raises parks its stream alone, as any event that cannot be
              applied; `parked retry` and the next start try again
    skip      an event that is skipped is passed over together with its command
    rebuild   reacts to each event from the first one on, so that no step is lost
    verify    compares the documents with the log, and never reacts
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol, TypeAlias
from uuid import UUID

from eventcore.errors import Misconfigured
from eventcore.model.decider import Command, Decider, DomainEvent, State
from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection, Step
from eventcore.store.port import Append, Deadline, Due


class Commands(Protocol):
    """The port through which a reaction changes the store of its service.

    It has the ids and the idempotency key of the event, so a reaction calls `handle` once.
    """

    def handle(
        self,
        decider: Decider[Command, State, DomainEvent],
        aggregate_id: UUID,
        command: Command,
        *,
        also: Callable[[State, State], Sequence[Append]] | None = None,
        deadline: Callable[[State], Deadline] | None = None,
    ) -> None:
        """Carries out a command; begins the stream if there is none.

        `also` and `deadline` as for `eventcore.command.handle`; a deadline that is set where one is
        fired makes up for the lateness of that. Raises the refusals of `decide`, Conflict and
        StoreUnavailable; then nothing was written.
        """

    def amount(self, name: str) -> Decimal | None:
        """The amount that one of the reactor's `amounts` has; None: it is not set."""

    def append_of(
        self,
        decider: Decider[Command, State, DomainEvent],
        aggregate_id: UUID,
        command: Command,
        *,
        deadline: Callable[[State], Deadline] | None = None,
    ) -> Sequence[Append]:
        """The append that a command makes to its stream, for `also` of another command."""

    def read(
        self, decider: Decider[Command, State, DomainEvent], aggregate_id: UUID
    ) -> tuple[State, int]:
        """The state of a stream and its version; the initial state and 0 if there is none."""


Reaction: TypeAlias = Callable[[Commands, Event], None]
"""Carries out the command that follows from an event, which has today's schema version."""

Fire: TypeAlias = Callable[[Commands, Due], None]
"""Carries out the command that follows from a deadline, if the state still asks for it."""


def _moved_on(_: Document, __: Event) -> Document:
    return {}


@dataclass(frozen=True)
class Reactor(Projection):
    """A named set of reactions by event type; it passes over the other types of its catalogue.

    `amounts` names the environment variables that its reactions read, each an amount of money: a
    process whose variable is anything else does not start. `deadlines` is called for each stream of
    the aggregate type `deadline_type`, in the store of the reactor's own service, whose deadline
    has passed. An instance that fails is due again later.
    """

    collection: str = ""
    log_message: str = "Reactor read an event"
    steps: Mapping[str, Step] = field(default_factory=dict)
    on: Mapping[str, Reaction] = field(default_factory=dict)
    amounts: Collection[str] = ()
    deadlines: Fire | None = None
    deadline_type: str = ""

    def __post_init__(self) -> None:
        if self.steps or not self.on:
            raise Misconfigured(f"reactor {self.name} takes reactions in `on`, and no steps")
        if (self.deadlines is None) != (not self.deadline_type):
            raise Misconfigured(f"reactor {self.name} needs both or none: deadlines, deadline_type")
        known = self.catalogue.types.keys()
        given = {
            "collection": self.collection or self.name.replace("-", "_"),
            "steps": dict.fromkeys(self.on, _moved_on),
            "ignores": self.ignores | known - self.on.keys(),
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)
        super().__post_init__()
