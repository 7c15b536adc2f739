"""A store in memory: the Store and RelayStore ports, with the same promises and no server."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

from eventcore import jsontext
from eventcore.errors import Conflict, KeyReused, StoreRestored, StoreUnavailable
from eventcore.model.event import Data, Event, Json, Mark, NewEvent
from eventcore.store.port import (
    COUNTED_AT_MOST,
    PAGE,
    SPAN,
    Answer,
    Append,
    Appended,
    Changes,
    Due,
    Idempotency,
    Progress,
    RelayStore,
    Snapshot,
    Store,
    Stream,
    Waiting,
)
from eventcore.store.rows import relay_halted

_NEVER = datetime.max.replace(tzinfo=UTC)
"""When the deadline of a stuck stream is due."""


@dataclass
class FakeStore:
    """One log; `away` makes every call fail."""

    log: list[Event] = field(default_factory=list)
    answers: dict[str, tuple[str, Answer]] = field(default_factory=dict)
    checkpoints: dict[str, Mark] = field(default_factory=dict)
    away: bool = False
    now: datetime = datetime(2026, 1, 16, 10, tzinfo=UTC)
    drawn: int = 0
    """The position up to which all were drawn, whether there is an event or not."""
    epoch: str = "the first"
    deadlines: dict[Stream, tuple[int, datetime]] = field(default_factory=dict)
    """Of each stream: the version at which it was set, and when it is due, by `now`."""
    snapshots: dict[Stream, Snapshot] = field(default_factory=dict)
    relaying: bool = True

    def append(
        self,
        stream: Stream,
        expected_version: int,
        events: Sequence[NewEvent],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        """See Store."""
        self._check()
        if idempotency and (earlier := self.recorded_answer(idempotency)):
            return Appended(expected_version, earlier)
        if events and self._version(stream) != expected_version:
            raise Conflict(f"conflict: stream {stream} is not at version {expected_version}")
        if idempotency and answer:
            self.answers[idempotency.key] = (idempotency.request_hash, answer)
        for place, new in enumerate(events, 1):
            self.log.append(self._recorded(stream, expected_version + place, new, metadata))
        position = self.log[-1].position if events else 0
        return Appended(expected_version + len(events), None, position)

    def append_many(
        self,
        appends: Sequence[Append],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Answer | None:
        """See Store."""
        self._check()
        if idempotency and (earlier := self.recorded_answer(idempotency)):
            return earlier
        versions = {place: self._version(each.stream) for place, each in enumerate(appends)}
        if found := {n: v for n, v in versions.items() if v != appends[n].expected_version}:
            raise Conflict("conflict: streams are not at the expected versions", found)
        if idempotency and answer:
            self.answers[idempotency.key] = (idempotency.request_hash, answer)
        for each in appends:
            self.append(each.stream, each.expected_version, each.events, metadata)
            self._set_deadline(each)
        return None

    def _set_deadline(self, append: Append) -> None:
        if append.deadline:
            self.deadlines.pop(append.stream, None)
            if append.deadline.seconds is not None:
                due_at = _NEVER
                if append.deadline.seconds != math.inf:
                    due_at = self.now + timedelta(seconds=append.deadline.seconds)
                self.deadlines[append.stream] = (self._version(append.stream), due_at)

    def take_due(self, aggregate_type: str, limit: int, hold: float) -> list[Due]:
        """See Store; the time is `now`."""
        self._check()
        due = sorted(
            (due_at, str(stream.aggregate_id), stream, version)
            for stream, (version, due_at) in self.deadlines.items()
            if stream.aggregate_type == aggregate_type and due_at <= self.now
        )[:limit]
        for _, _, stream, version in due:
            self.deadlines[stream] = (version, self.now + timedelta(seconds=hold))
        return [
            Due(stream, version, (self.now - due_at).total_seconds())
            for due_at, _, stream, version in due
        ]

    def overdue(self, aggregate_types: Sequence[str]) -> dict[str, float]:
        """See Store; the time is `now`."""
        self._check()
        found = dict.fromkeys(aggregate_types, 0.0)
        for stream, (_, due_at) in self.deadlines.items():
            if (kind := stream.aggregate_type) in found:
                found[kind] = max(found[kind], (self.now - due_at).total_seconds())
        return found

    def read_waiting(
        self, aggregate_type: str, limit: int = PAGE, *, stuck: bool = False
    ) -> list[Waiting]:
        """See Store."""
        self._check()
        found = [
            Waiting(stream, version, None if due_at == _NEVER else due_at)
            for stream, (version, due_at) in sorted(
                self.deadlines.items(), key=lambda item: str(item[0].aggregate_id)
            )
            if stream.aggregate_type == aggregate_type and due_at >= (_NEVER if stuck else due_at)
        ]
        found.sort(key=lambda each: each.due_at or _NEVER, reverse=True)
        return found[:limit]

    def count_stuck(self, aggregate_types: Sequence[str]) -> dict[str, int]:
        """See Store."""
        return {
            kind: len(self.read_waiting(kind, COUNTED_AT_MOST, stuck=True))
            for kind in aggregate_types
        }

    def read_snapshot(self, stream: Stream) -> Snapshot | None:
        """See Store."""
        self._check()
        return self.snapshots.get(stream)

    def read_snapshots(
        self, aggregate_type: str, after: UUID | None = None, limit: int = PAGE
    ) -> list[tuple[Stream, Snapshot]]:
        """See Store."""
        self._check()
        above = [
            (stream, snapshot)
            for stream, snapshot in self.snapshots.items()
            if stream.aggregate_type == aggregate_type
            and (after is None or stream.aggregate_id > after)
        ]
        return sorted(above, key=lambda each: each[0].aggregate_id)[:limit]

    def write_snapshot(self, stream: Stream, snapshot: Snapshot) -> None:
        """See Store."""
        self._check()
        self.snapshots[stream] = snapshot

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        """See Store."""
        self._check()
        request_hash, answer = self.answers.get(idempotency.key, (idempotency.request_hash, None))
        if request_hash != idempotency.request_hash:
            raise KeyReused("this Idempotency-Key was used for another request")
        return answer

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        """See Store."""
        self._check()
        return [e for e in self.log if _stream_of(e) == stream and e.version > after][:limit]

    def clock(self) -> datetime:
        """See Store; the machine's."""
        self._check()
        return datetime.now(UTC)

    def settled(self) -> int:
        """See Store; what is in memory has settled."""
        self._check()
        return self.head

    @property
    def head(self) -> int:
        """The position of the last event."""
        return self.log[-1].position if self.log else 0

    def progress(self, relay: str) -> Progress:
        """See Store."""
        settled, checkpoint = self.settled_event(), self.checkpoint()
        halted = "" if self._has([checkpoint]) else relay_halted(checkpoint)
        return Progress(
            self.head, settled.position, checkpoint.position, self.epoch, settled.event_id, halted
        )

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        """See Store."""
        self._check()
        return [e for e in self.log if after < e.position <= until][:limit]

    def is_relayed(self, relay: str) -> bool:
        """See Store; `relaying` says so."""
        self._check()
        return self.relaying

    def read_event(self, event_id: UUID) -> Event | None:
        """See Store."""
        self._check()
        return next((each for each in self.log if each.event_id == event_id), None)

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        """See Store."""
        self._check()
        between = self.read_feed(after, until, len(self.log))
        return [e for e in between if correlation_id in _ids_in(e)]

    def read_changes(
        self, aggregate_type: str, after: int, until: int, settled: Mark, marks: Sequence[Mark]
    ) -> Changes | None:
        """See Store."""
        self._check()
        if not self._has(marks):
            return None
        above = self.read_feed(after, until, len(self.log))
        page = [e for e in above if e.position <= after + SPAN] or above[:1]
        heads = {str(e.aggregate_id): e.version for e in page if e.aggregate_type == aggregate_type}
        last = page or self.read_feed(0, after, len(self.log))
        return Changes(heads, last[-1].mark if last else Mark())

    def lock(self) -> bool:
        """See RelayStore."""
        return True

    def checkpoint(self) -> Mark:
        """See RelayStore."""
        self._check()
        return self.checkpoints.get("relay", Mark())

    def move_checkpoint(self, mark: Mark) -> None:
        """See RelayStore."""
        if not self._has([mark, self.checkpoint()]):
            raise StoreRestored("the log does not have the event of the checkpoint")
        self.checkpoints["relay"] = max(mark, self.checkpoint(), key=lambda each: each.position)

    def settled_event(self) -> Mark:
        """See RelayStore; what is in memory has settled."""
        self._check()
        return self.log[-1].mark if self.log else Mark()

    def read_page(self, after: Mark, until: Mark, limit: int = PAGE) -> list[Event]:
        """See RelayStore."""
        if not self._has([after, until]):
            raise StoreRestored(relay_halted(after))
        return self.read_feed(after.position, until.position, limit)

    def expire_idempotency_keys(self) -> int:
        """See RelayStore."""
        return 0

    def wait(self, timeout: float) -> None:
        """See RelayStore; nothing to wait for."""

    def close(self) -> None:
        """See RelayStore."""

    def _has(self, marks: Sequence[Mark]) -> bool:
        there = {event.mark for event in self.log}
        return all(mark in there for mark in marks if mark.event_id)

    def _version(self, stream: Stream) -> int:
        return max((e.version for e in self.log if _stream_of(e) == stream), default=0)

    def _recorded(self, stream: Stream, version: int, new: NewEvent, metadata: Data) -> Event:
        before = [e.event_id for e in self.log if _stream_of(e) == stream]
        return Event(
            position=max(self.head, self.drawn) + 1,
            event_id=new.event_id,
            aggregate_type=stream.aggregate_type,
            aggregate_id=stream.aggregate_id,
            version=version,
            event_type=new.event_type,
            schema_version=new.schema_version,
            data=jsontext.parse(jsontext.render(new.data)),
            metadata=jsontext.parse(jsontext.render(metadata)),
            recorded_at=self.now,
            previous=before[-1] if before else None,
        )

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("PostgreSQL cannot be reached: a test said so")


def _ids_in(event: Event) -> list[Json]:
    named = [value for name, value in event.data.items() if name.endswith("Id")]
    return [event.metadata.get("correlationId"), *named]


def _stream_of(event: Event) -> Stream:
    return Stream(event.aggregate_type, event.aggregate_id)


_is_a_store: Store = FakeStore()
_is_a_relay_store: RelayStore = FakeStore()
