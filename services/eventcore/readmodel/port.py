"""The ports of the read model: documents, and bookkeeping."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from eventcore.model.event import START, Json, Mark
from eventcore.model.projection import Document
from eventcore.readmodel.records import (
    Checkpoint,
    Depth,
    Generation,
    Generations,
    Lease,
    Parked,
    Skip,
    Verification,
    Write,
)

SCANNED = 500
"""Documents of one page, where all are looked at."""

SLOTS = 65536
"""A parked stream has one of so many slots, by which a part of the list can be read."""


class Documents(Protocol):
    """The port of documents; every method may raise ReadModelUnavailable."""

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist among `ids`."""

    def versions(self, collection: str, ids: Iterable[str]) -> dict[str, int]:
        """The versions of the documents that exist among `ids`; no failover takes them back."""

    def projected_at(self, collection: str, ids: Iterable[str]) -> dict[str, datetime]:
        """When the documents among `ids` were written, by their writer's clock; milliseconds.

        A document that an older version wrote is left out.
        """

    def page(
        self, collection: str, where: Mapping[str, str], before: str | None, limit: int
    ) -> list[Document]:
        """Up to `limit` documents by descending `_id`, below `before`, that match `where`.

        Removed ones are left out.
        """

    def ranked(
        self, collection: str, by: str, after: tuple[Json, str] | None, limit: int
    ) -> list[Document]:
        """Up to `limit` documents that have a field, by its descending value, then by ascending
        `_id`, after a value and an id.
        """

    def scan(self, collection: str, after: str, limit: int) -> list[Document]:
        """Up to `limit` documents, removed ones too, by ascending `_id`, above `after`."""

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        """Write each document if it still is at the version it replaces; False: some were not.

        Raises CannotApply if a document cannot be stored at all; then some may be.
        """


class Bookkeeping(Protocol):
    """The port of generations, checkpoints with their lease, parked streams, skips, verifications,
    and depths of queues.

    Every method may raise ReadModelUnavailable.
    """

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        """Make a collection's indexes; again at any time."""

    def generations(self, projection: str) -> Generations:
        """Which generations of a projection there are; at first there is one."""

    def begin_generation(self, projection: str) -> int:
        """The number of a new generation, which nobody else gets."""

    def switch(self, projection: str, serving: int, to: int) -> bool:
        """Let `to` serve in place of `serving`, which becomes the previous one; False: it did not
        serve any more.
        """

    def drop(self, generation: Generation) -> None:
        """Delete a generation that does not serve: documents, checkpoint and parked list."""

    def checkpoint(self, generation: str) -> Checkpoint:
        """How far a generation has come; position 0 at first."""

    def take_lease(
        self, generation: str, holder: str, seconds: float, furthest: Mark = START
    ) -> Lease | None:
        """Take or renew the lease; None while another holder has it. A new holder, a new epoch.

        In any case note `furthest`, an event that this replica has folded.
        """

    def release_lease(self, generation: str, holder: str) -> None:
        """Let another holder have the lease at once, if `holder` has it."""

    def halt(self, generation: str, reason: str) -> None:
        """Note why a generation must not go on, for all its projectors; "": it may."""

    def move_checkpoint(self, lease: Lease, mark: Mark, covered_at: datetime | None) -> bool:
        """Moves forwards to an event; returns False if the lease's epoch is no longer the newest.

        A checkpoint without an event id always moves. `covered_at` is the time at which `mark` was
        settled, and may decrease; None keeps the stored one. Stores the lease's `store_epoch` too.
        """

    def park(self, entries: Sequence[Parked]) -> list[str]:
        """Puts streams on the parked list, or renews their entries; returns those that are new.

        `highest` only grows.
        """

    def parked(self, generation: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        """The parked streams of a generation, all or those among `streams`."""

    def parked_in(self, generation: str, slots: range) -> dict[str, Parked]:
        """The parked streams of a generation that have these slots, of SLOTS."""

    def count_parked(self, generation: str) -> int:
        """The number of parked streams of a generation."""

    def release(self, generation: str, versions: Mapping[str, int]) -> int:
        """Takes off the list the streams whose version has reached `highest`; returns how many."""

    def skip(self, skip: Skip) -> None:
        """Record that an event is passed over; the first who said so is kept."""

    def skips(self, projection: str) -> list[Skip]:
        """All events that a projection passes over."""

    def note_verification(self, found: Verification) -> None:
        """Keep what a comparison found, in place of what the one before found."""

    def verification(self, projection: str) -> Verification | None:
        """The result of the last comparison; None: there was none."""

    def note_depth(self, found: Depth) -> None:
        """Keep how many messages wait for a projection, in place of what was kept before."""

    def depth(self, projection: str) -> Depth | None:
        """How many messages waited for a projection; None: no projector has noted it."""


class ReadModel(Documents, Bookkeeping, Protocol):
    """Both ports of one read model."""

    def ping(self) -> None:
        """Return if the server answers."""
