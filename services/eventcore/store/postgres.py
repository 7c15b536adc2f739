"""The event store on PostgreSQL: append, read a stream, read the feed.

The schema and its functions are `init.sql`; this file calls them. Connections are in
`connection`, statements in `rows`, errors in `sqlstates`.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import Conflict, KeyReused, OutcomeUnknown, StoreUnavailable, Unavailable
from eventcore.failpoints import failpoint
from eventcore.model.event import Data, Event, Mark, NewEvent
from eventcore.retry import backoff
from eventcore.settings import Server
from eventcore.store.connection import ConnectionPool
from eventcore.store.migrate import require_schema
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
    Snapshot,
    Stream,
    Waiting,
)
from eventcore.store.rows import (
    APPEND,
    APPEND_MANY,
    CHANGES,
    CORRELATED,
    EVENT,
    OVERDUE,
    POSITION,
    PROGRESS,
    READ_SNAPSHOT,
    READ_SNAPSHOTS,
    RELAYED,
    SETTLE,
    STREAM,
    STUCK,
    TAKE_DUE,
    WAITING,
    WRITE_SNAPSHOT,
    mark_columns,
    observe_log,
    read_page,
    relay_halted,
    to_answer,
    to_columns,
    to_columns_of_many,
    to_event,
)
from eventcore.store.settling import Settling
from eventcore.store.wakeup import Wakeup

RETRY_FOR = 3.0  # seconds after which an append whose answer was lost is not tried again

Values: TypeAlias = tuple[Any, ...]

Once: TypeAlias = Callable[[Values], Appended]
"""Sends an append with these values, once."""


class Postgres:
    """A Store on one database, over at most `connections` + 1 connections.

    Reads and writes have a connection pool and a circuit breaker each, so that reads go on while
    the server accepts no writes. Nothing is opened before the first call. `settled` waits up to
    `patience` seconds for the writers it sees, then answers with what is known.
    """

    def __init__(
        self,
        server: Server,
        connections: int,
        patience: float = 0.25,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        for_reads = max(1, connections // 3)
        for_writes = connections + 1 - for_reads  # one of them sends the wake-up
        self._reads = ConnectionPool("reads", server, for_reads, "any", attempts=2)
        self._writes = ConnectionPool("writes", server, for_writes, "read-write", attempts=1)
        self._settling = Settling()
        self._settling_lock = threading.Lock()
        self._patience = patience
        self._clock = clock
        self._wakeup = Wakeup(lambda: self._write("notify events"))

    def append(
        self,
        stream: Stream,
        expected_version: int,
        events: Sequence[NewEvent],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Appended:
        if not events and idempotency is None:
            return Appended(expected_version)
        append = Append(stream, expected_version, events)
        values = to_columns(append, metadata, idempotency, answer)

        return self._append_until_known([append], values, self._append_one)

    def append_many(
        self,
        appends: Sequence[Append],
        metadata: Data,
        idempotency: Idempotency | None = None,
        answer: Answer | None = None,
    ) -> Answer | None:
        values = to_columns_of_many(appends, metadata, idempotency, answer)
        return self._append_until_known(appends, values, self._append_all).replayed

    def take_due(self, aggregate_type: str, limit: int, hold: float) -> list[Due]:
        rows = self._write(TAKE_DUE, (aggregate_type, limit, hold))
        return [Due(Stream(aggregate_type, stream), *row) for stream, *row in rows]

    def overdue(self, aggregate_types: Sequence[str]) -> dict[str, float]:
        rows = self._rows(OVERDUE, (list(aggregate_types),))
        return {kind: max(0.0, seconds) for kind, seconds in rows}

    def read_waiting(
        self, aggregate_type: str, limit: int = PAGE, *, stuck: bool = False
    ) -> list[Waiting]:
        rows = self._rows(WAITING, (aggregate_type, "infinity" if stuck else "-infinity", limit))
        return [Waiting(Stream(aggregate_type, stream), *row) for stream, *row in rows]

    def count_stuck(self, aggregate_types: Sequence[str]) -> dict[str, int]:
        return dict(self._rows(STUCK, (COUNTED_AT_MOST, list(aggregate_types))))

    def _append_one(self, values: Values) -> Appended:
        replayed, recorded, version, position = self._write(APPEND, values)[0]
        return Appended(version, to_answer(recorded) if replayed else None, position)

    def _append_all(self, values: Values) -> Appended:
        replayed, recorded = self._write(APPEND_MANY, values)[0]
        return Appended(0, to_answer(recorded) if replayed else None)

    def _append_until_known(
        self, appends: Sequence[Append], values: Values, once: Once
    ) -> Appended:
        """Appends again after a lost answer; raises OutcomeUnknown after RETRY_FOR seconds."""
        deadline, losses = self._clock.monotonic() + RETRY_FOR, 0
        while True:
            try:
                appended = self._append(appends, values, once, bool(losses))
            except Unavailable as error:
                if error.outcome_known and not losses:
                    raise
                if losses and self._clock.monotonic() > deadline:
                    raise _outcome_unknown(appends[0].stream) from error
            else:
                if not appended.replayed:
                    self._wakeup.schedule()
                return appended
            self._clock.sleep(backoff(losses, self._clock))
            losses += 1

    def _append(
        self, appends: Sequence[Append], values: Values, once: Once, outcome_unknown: bool
    ) -> Appended:
        """Appends once; `outcome_unknown`: an earlier attempt may have been committed."""
        failpoint("append:begin")
        try:
            appended = once(values)
        except Conflict:
            ids = [str(event.event_id) for each in appends for event in each.events]
            if outcome_unknown and ids and (found := self._rows(POSITION, (ids[-1],))):
                last = appends[-1]
                return Appended(last.expected_version + len(last.events), None, found[0][0])
            raise
        failpoint("append:committed")
        return appended

    def recorded_answer(self, idempotency: Idempotency) -> Answer | None:
        rows = self._rows(
            "select request_hash, answer::text from idempotency_keys"
            " where key = %s and recorded_at > clock_timestamp() - interval '24 hours'",
            (idempotency.key,),
        )
        if not rows:
            return None
        request_hash, recorded = rows[0]
        if request_hash != idempotency.request_hash:
            raise KeyReused("this Idempotency-Key was used for another request")
        return to_answer(recorded)

    def read_stream(self, stream: Stream, after: int = 0, limit: int = PAGE) -> list[Event]:
        values = (stream.aggregate_type, str(stream.aggregate_id), after, limit)
        return [to_event(row, previous) for *row, previous in self._rows(STREAM, values)]

    def read_snapshot(self, stream: Stream) -> Snapshot | None:
        rows = self._rows(READ_SNAPSHOT, (stream.aggregate_type, str(stream.aggregate_id)))
        return Snapshot(*rows[0][1:]) if rows else None

    def read_snapshots(
        self, aggregate_type: str, after: UUID | None = None, limit: int = PAGE
    ) -> list[tuple[Stream, Snapshot]]:
        above = str(after) if after else None
        rows = self._rows(READ_SNAPSHOTS, (aggregate_type, above, above, limit))
        return [(Stream(aggregate_type, stream), Snapshot(*row)) for stream, *row in rows]

    def write_snapshot(self, stream: Stream, snapshot: Snapshot) -> None:
        place = (stream.aggregate_type, str(stream.aggregate_id))
        self._write(WRITE_SNAPSHOT, (*place, *astuple(snapshot)))

    def clock(self) -> datetime:
        now: datetime = self._rows("select clock_timestamp()", ())[0][0]
        return now

    def settled(self) -> int:
        deadline = self._clock.monotonic() + self._patience
        wanted = 0
        while True:
            with self._settling_lock:  # observations must come in the order they were made
                [head] = observe_log(self._settling, self._rows, SETTLE)
                position = self._settling.mark.position
            wanted = min(wanted, head) if wanted else head
            if position >= wanted or self._clock.monotonic() > deadline:
                return position
            self._clock.sleep(0.005)

    def progress(self, relay: str) -> Progress:
        with self._settling_lock:
            found = observe_log(self._settling, self._rows, PROGRESS, relay)
            settled = self._settling.mark
        head, position, event_id, is_there, epoch = found
        halted = "" if is_there else relay_halted(Mark(position, event_id))
        return Progress(head, settled.position, position, epoch, settled.event_id, halted)

    def is_relayed(self, relay: str) -> bool:
        return bool(self._rows(RELAYED, (relay,))[0][0])

    def read_event(self, event_id: UUID) -> Event | None:
        rows = self._rows(EVENT, (str(event_id),))
        return to_event(rows[0]) if rows else None

    def read_feed(self, after: int, until: int, limit: int = PAGE) -> list[Event]:
        return read_page(self._rows, (), after, until, limit) or []

    def read_correlated(self, correlation_id: str, after: int, until: int) -> list[Event]:
        values = (after, until, correlation_id, correlation_id)
        return [to_event(row) for row in self._rows(CORRELATED, values)]

    def read_changes(
        self, aggregate_type: str, after: int, until: int, settled: Mark, marks: Sequence[Mark]
    ) -> Changes | None:
        looked_at = (*mark_columns(marks), *mark_columns([settled]))
        rows = self._rows(CHANGES, (*looked_at, after, until, SPAN, aggregate_type, after))
        same, is_settled, position, event_id, *_ = rows[0]
        if not is_settled:
            raise StoreUnavailable(
                "the log was restored to an earlier state while it was read; try again"
            )
        if not same:
            return None
        heads = {str(stream): version for *_, stream, version in rows if version}
        return Changes(heads, Mark(position or 0, event_id or ""))

    def require_schema(self) -> None:
        """Raises StoreUnavailable while the schema does not fit; see `migrate.require_schema`."""
        require_schema(self._rows)

    def require_writable(self) -> None:
        """Raises StoreUnavailable while the server accepts no writes."""
        if self._write("show transaction_read_only")[0][0] == "on":
            self._writes.close()
            raise StoreUnavailable("PostgreSQL accepts no writes: it is read-only")

    def close(self) -> None:
        """Closes all idle connections; the next call opens new ones."""
        self._reads.close()
        self._writes.close()

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        return self._reads.run(statement, values)

    def _write(self, statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        return self._writes.run(statement, values)


def _outcome_unknown(stream: Stream) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"PostgreSQL's answer was lost: {stream} may have been written, or may still be. Repeat the"
        " request with the same Idempotency-Key, or look whether it is there before you repeat it"
        " without one.",
        stream.aggregate_id,
    )
