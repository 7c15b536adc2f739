"""The ports of the event store, and the values that go through them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from eventcore.model.event import Data, Event, Mark, NewEvent

PAGE = 500  # events in one page of a stream or of the feed

SPAN = 1000  # positions that one page of changed streams covers, unless there is a larger gap

COUNTED_AT_MOST = 10_000  # stuck streams of a type that are counted

EXPIRED_AT_ONCE = 1000  # expired idempotency keys that one statement deletes at most


@dataclass(frozen=True, slots=True)
class Stream:
    """All events of one aggregate."""

    aggregate_type: str
    aggregate_id: UUID

    def __str__(self) -> str:
        return f"{self.aggregate_type} {self.aggregate_id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a command, kept under its idempotency key."""

    status: int
    body: Data | str
    headers: Data


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key that a command came with, and the hash of the request it stands for."""

    key: str
    request_hash: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """The deadline of a stream: `seconds` from now by the database's clock; None: it has none.

    `math.inf`: the stream is stuck. It is never due, and counted and listed as one that waits.
    """

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Due:
    """A stream whose deadline, set at `version`, passed `late` seconds ago by its clock."""

    stream: Stream
    version: int
    late: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stream that has a deadline, set at `version`; `due_at` is None if it is stuck."""

    stream: Stream
    version: int
    due_at: datetime | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a stream at a version, as JSON text, and what tells whether it may be used.

    `event_id` is the id of that version's event, `digest` that of the code that folded it.
    """

    version: int
    event_id: str
    digest: str
    checksum: str
    state: str


@dataclass(frozen=True, slots=True)
class Append:
    """Events for a stream that must be at `expected_version` (0: new).

    Without events the stream is compared only. Its deadline is replaced by `deadline`; None: it is
    left as it is.
    """

    stream: Stream
    expected_version: int
    events: Sequence[NewEvent]
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """The stream's version after an append, or the answer an earlier one was given.

    `position` is that of the last event that was appended; 0: none was.
    """

    version: int
    replayed: Answer | None = None
    position: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a log goes: its last event, the settled one, and what the broker has confirmed.

    Positions; `event_id` is the id of the settled event, `epoch` the name of the log's life, which
    `begin_epoch` changes. `relay_halted` says why the relay must not go on from its checkpoint.
    """

    head: int
    settled: int
    relayed: int
    epoch: str
    event_id: str = ""
    relay_halted: str = ""

    @property
    def mark(self) -> Mark:
        """The settled event."""
        return Mark(self.settled, self.event_id)


@dataclass(frozen=True, slots=True)
class Changes:
    """The last version of each stream that changed within a page of the log, and its last event."""

    heads: dict[str, int]
    end: Mark


class Store(Protocol):
    """The port that services use; every method may raise StoreUnavailable."""

    def append(
        self,
        stream: Stream,
        expected_version: int,
        events: Sequence[NewEvent],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        """Append `events` to `stream`, which must be at `expected_version` (0: new).

        One transaction, one round trip, with the answer recorded under the key. A key that
        is known already appends nothing and brings its answer. Raises Conflict, KeyReused,
        StoreUnavailable, Overloaded: nothing was written. A commit whose answer was lost is found
        again by its event ids; raises OutcomeUnknown where that takes too long.
        """

    def append_many(
        self,
        appends: Sequence[Append],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Answer | None:
        """Append to several streams, all or none; returns the earlier answer under a known key.

        Each stream is given once. One without events must exist: it does not change before the
        commit. Raises as `append` does; a Conflict has the versions of all streams that are not
        as expected.
        """

    def take_due(self, aggregate_type: str, limit: int, hold: float) -> list[Due]:
        """Takes up to `limit` streams of a type that are due, longest due first.

        Each is due again `hold` seconds later, by the database's clock, unless an append replaces
        or removes its deadline before. No other caller gets it within that time.
        """

    def overdue(self, aggregate_types: Sequence[str]) -> dict[str, float]:
        """Seconds since the oldest deadline of each type passed; 0: none is due."""

    def read_waiting(
        self, aggregate_type: str, limit: int = PAGE, *, stuck: bool = False
    ) -> list[Waiting]:
        """Up to `limit` streams of a type with a deadline: stuck ones, then the latest deadline.

        `stuck`: no others.
        """

    def count_stuck(self, aggregate_types: Sequence[str]) -> dict[str, int]:
        """The number of stuck streams of each type, up to COUNTED_AT_MOST."""

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        """The answer under a key, if there is one; raises KeyReused for another request's."""

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        """Up to `limit` events with a version above `after`, oldest first."""

    def read_snapshot(self, stream: Stream) -> Snapshot | None:
        """The snapshot of a stream, if there is one."""

    def read_snapshots(
        self, aggregate_type: str, after: UUID | None = None, limit: int = PAGE
    ) -> list[tuple[Stream, Snapshot]]:
        """Up to `limit` snapshots of streams of a type, by their ids, above `after`."""

    def write_snapshot(self, stream: Stream, snapshot: Snapshot) -> None:
        """Replaces the snapshot of a stream."""

    def clock(self) -> datetime:
        """The time of the database's clock."""

    def settled(self) -> int:
        """The position up to which nothing can still appear."""

    def progress(self, relay: str) -> Progress:
        """How far the log goes now, and how far `relay` has come; does not wait for writers."""

    def is_relayed(self, relay: str) -> bool:
        """Whether a relay holds the lock of the store now."""

    def read_event(self, event_id: UUID) -> Event | None:
        """The event with an id, if the log has it."""

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        """Events of all streams by position, above `after`, up to the settled `until`."""

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        """The events with a correlation id, by position, above `after` and up to `until`.

        Also those that name this id in their data, under a name such as `orderId`. Each event
        between them is looked at, so they must not be far apart.
        """

    def read_changes(
        self, aggregate_type: str, after: int, until: int, settled: Mark, marks: Sequence[Mark]
    ) -> Changes | None:
        """The streams that changed above `after`, in a page of SPAN positions up to `until`.

        Returns None if the log lacks one of `marks`. One SQL statement checks the marks and reads
        the page, so both see the same log. `until` is at most `settled`; raises StoreUnavailable if
        the log lacks that event.
        """


class RelayStore(Protocol):
    """The port that a relay uses: one session, which holds the relay's lock while it lives."""

    @property
    def head(self) -> int:
        """The position of the last event, as `settled_event` saw it."""

    def lock(self) -> bool:
        """Whether this session is now the one relay of the store."""

    def checkpoint(self) -> Mark:
        """The event up to which everything is confirmed; position 0 at first."""

    def move_checkpoint(self, mark: Mark) -> None:
        """Record that everything up to an event is confirmed. Raises StoreRestored."""

    def settled_event(self) -> Mark:
        """The event up to which nothing can still appear; does not wait for more."""

    def read_page(self, after: Mark, until: Mark, limit: int = PAGE) -> list[Event]:
        """Events above `after`, up to the settled `until`, by position.

        Raises StoreRestored if the log does not have both events.
        """

    def expire_idempotency_keys(self) -> int:
        """Deletes up to EXPIRED_AT_ONCE keys that are older than 24 hours, and counts them."""

    def wait(self, timeout: float) -> None:
        """Return when something was appended, or after `timeout` seconds."""

    def close(self) -> None: ...


def read_pages(
    store: Store, stream: Stream, after: int = 0, until: int | None = None
) -> Iterator[list[Event]]:
    """Reads the events of a stream above version `after`, up to `until`, one page in memory."""
    while until is None or after < until:
        limit = PAGE if until is None else min(PAGE, until - after)
        page = store.read_stream(stream, after, limit)
        if page:
            yield page
            after = page[-1].version
        if len(page) < limit:
            return
