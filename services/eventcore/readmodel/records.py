"""The records that a projector keeps beside its documents."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from eventcore.model.event import START, Data, Mark, to_timestamp
from eventcore.model.projection import Document
from eventcore.model.view import AnyProjection


@dataclass(frozen=True, slots=True)
class Write:
    """A document that replaces the one at version `replaces` (0: there is none yet)."""

    document: Document
    replaces: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One build of a projection: it has documents, a checkpoint and a parked list of its own.

    Other generations are folded beside the one that serves, and may take its place. That of a view
    has a checkpoint and a parked list for each store: it has a part for each `store`.
    """

    projection: str
    number: int
    collection: str
    store: str = ""

    @property
    def label(self) -> str:
        """The projection's name in metrics and commands, and the store's."""
        return f"{self.projection}/{self.store}" if self.store else self.projection

    @property
    def name(self) -> str:
        """The name under which its checkpoint and its parked list are kept."""
        return self.label if self.number == 1 else f"{self.label}.{self.number}"


def generation_of(projection: AnyProjection, number: int = 1, store: str = "") -> Generation:
    """A generation of a projection; the first has its collection's plain name."""
    collection = projection.collection if number == 1 else f"{projection.collection}.{number}"
    return Generation(projection.name, number, collection, store)


def parts_of(projection: AnyProjection, number: int) -> list[Generation]:
    """A generation, or the part for each store of a view's."""
    return [generation_of(projection, number, store) for store in projection.parts]


@dataclass(frozen=True, slots=True)
class Generations:
    """The numbers of a projection's generations; `previous` served before (0: none is kept)."""

    serving: int = 1
    previous: int = 0
    newest: int = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to `position`, where `event_id` is, every event is applied or parked.

    `covered_at`: the time at which this position was settled. `furthest`: the furthest event that
    was folded. `store_epoch`: the epoch of the log that the generation is folded from, or "" if it
    is not known yet. `halted`: why no event is applied, because the log is another one, or "".
    """

    position: int = 0
    covered_at: datetime | None = None
    store_epoch: str = ""
    halted: str = ""
    event_id: str = ""
    furthest: Mark = START

    @property
    def marks(self) -> tuple[Mark, Mark]:
        """The events that the log must have."""
        return Mark(self.position, self.event_id), self.furthest


@dataclass(frozen=True, slots=True)
class Lease(Checkpoint):
    """A generation's checkpoint, and the right to move it, until someone has a higher epoch."""

    generation: str = ""
    holder: str = ""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """A stream that one generation parked at `version`; `highest`: its highest known version."""

    generation: str
    stream: str
    version: int
    highest: int
    error: str
    when: datetime

    def as_json(self) -> Data:
        """The stream, and where, why and when it was parked; without the generation."""
        return {
            "stream": self.stream,
            "version": self.version,
            "highest": self.highest,
            "when": to_timestamp(self.when),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Skip:
    """The decision that a projection passes over one event, for good: by whom, why and when."""

    projection: str
    stream: str
    version: int
    event_id: str
    who: str
    why: str
    when: datetime


def skipped_versions(skips: Iterable[Skip], stream: str) -> list[int]:
    """The versions of a stream's events that are passed over."""
    return [skip.version for skip in skips if skip.stream == stream]


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a comparison of a projection with the log, in streams, and its time."""

    projection: str
    when: datetime
    checked: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Depth:
    """The messages that a projection's queue and its dead-letter queue had ready at a time."""

    projection: str
    when: datetime
    waiting: int
    dead_letters: int


Record = TypeVar("Record", Depth, Generations, Parked, Skip, Verification)
"""A record that is kept beside the documents, field by field."""
