"""A store in memory: the Store and RelayStore ports, with the same promises and no server."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from eventcore import jsontext
from eventcore.errors import Conflict, KeyReused, StoreAway
from eventcore.event import Data, Event, NewEvent
from eventcore.store import PAGE, Answer, Appended, Head, Idempotency, Progress, Store, Stream


@dataclass
class FakeStore:
    """One log; `away` makes every call fail."""

    log: list[Event] = field(default_factory=list)
    answers: dict[str, tuple[str, Answer]] = field(default_factory=dict)
    checkpoints: dict[str, int] = field(default_factory=dict)
    away: bool = False
    now: datetime = datetime(2026, 1, 16, 10, tzinfo=UTC)
    head: int = 0
    epoch: str = "the first"

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
        version = max((e.version for e in self.log if _stream_of(e) == stream), default=0)
        if events and version != expected_version:
            raise Conflict(f"conflict: stream {stream} is not at version {expected_version}")
        if idempotency and answer:
            self.answers[idempotency.key] = (idempotency.request_hash, answer)
        for place, new in enumerate(events, 1):
            self.log.append(self._recorded(stream, expected_version + place, new, metadata))
        self.head = len(self.log)
        return Appended(expected_version + len(events))

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

    def progress(self, relay: str) -> Progress:
        """See Store."""
        return Progress(self.head, self.settled(), self.checkpoint(), self.epoch)

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        """See Store."""
        self._check()
        return self.log[after:until][:limit]

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        """See Store."""
        self._check()
        between = self.log[after:until]
        return [e for e in between if e.metadata.get("correlationId") == correlation_id]

    def read_heads(self, aggregate_type: str, after: int, until: int) -> list[Head]:
        """See Store."""
        heads = {}
        for event in self.log[after:until]:
            if event.aggregate_type == aggregate_type:
                heads[event.aggregate_id] = Head(event.aggregate_id, event.version)
        return list(heads.values())

    def lock(self) -> bool:
        """See RelayStore."""
        return True

    def checkpoint(self) -> int:
        """See RelayStore."""
        self._check()
        return self.checkpoints.get("relay", 0)

    def move_checkpoint(self, position: int) -> None:
        """See RelayStore."""
        self._check()
        self.checkpoints["relay"] = max(position, self.checkpoint())

    def expire_idempotency_keys(self) -> int:
        """See RelayStore."""
        return 0

    def wait(self, timeout: float) -> None:
        """See RelayStore; nothing to wait for."""

    def close(self) -> None:
        """See RelayStore."""

    def _recorded(self, stream: Stream, version: int, new: NewEvent, metadata: Data) -> Event:
        return Event(
            position=len(self.log) + 1,
            event_id=new.event_id,
            aggregate_type=stream.aggregate_type,
            aggregate_id=stream.aggregate_id,
            version=version,
            event_type=new.event_type,
            schema_version=new.schema_version,
            data=jsontext.parse(jsontext.render(new.data)),
            metadata=jsontext.parse(jsontext.render(metadata)),
            recorded_at=self.now,
        )

    def _check(self) -> None:
        if self.away:
            raise StoreAway("PostgreSQL cannot be reached: a test said so")


def _stream_of(event: Event) -> Stream:
    return Stream(event.aggregate_type, event.aggregate_id)


_is_a_store: Store = FakeStore()
