"""P1, P22, P24: the library's append beside bare statements on the same server."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from time import perf_counter
from typing import Any

from eventcore.command import Call, handle
from eventcore.errors import Conflict
from eventcore.ids import new_id
from eventcore.store.port import Answer, Append, Stream
from eventcore.store.postgres import Postgres
from tests.bench.bed import ORDER, Bed, Size, in_threads, metadata, new_event
from tests.bench.rows import Row, Values, require
from user.user import DECIDER, ChangeUser, CreateUser

WRITERS = 16

BATCH = 100
"""Events of one transaction."""

_SAME_FUNCTION = f"""
select replayed, answer, version from append_events('order', uuidv7(), 0, array[uuidv7()],
    array['ORDER_PLACED'], array[1], array['{json.dumps(ORDER)}'], '{json.dumps(metadata())}');
"""  # nosec B608

_BARE_ROW = f"insert into bare values (uuidv7(), '{json.dumps(ORDER)}');"  # nosec B608


class Appends:
    """Measures on an event store of its own."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._size = size

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        ours = "append of one event, 1 writer"
        return (
            Row(
                "P1", ours, self._append,
                beside="pgbench calling the same function",
                ceiling=lambda: self._pgbench(_SAME_FUNCTION),
            ),
            Row(
                "P1", ours, self._append,
                beside="pgbench inserting a bare row",
                ceiling=lambda: self._pgbench(_BARE_ROW),
            ),
            Row(
                "P22", f"commands on one stream, {WRITERS} writers; successes",
                lambda: self._contend(WRITERS), beside="1 writer", ceiling=lambda: self._contend(1),
            ),
            Row(
                "P24", f"{BATCH} streams with an event each, one transaction", self._append_many,
                beside=f"{BATCH} events of one stream", ceiling=self._append_batch,
            ),
        )  # fmt: skip

    # ── P1 ────────────────────────────────────────────────────────────────────────────────

    def _append(self) -> Values:
        with self._counted() as counted:
            until = perf_counter() + self._size.seconds
            while perf_counter() < until:
                self._store.append(Stream("order", new_id()), 0, [new_event()], metadata())
                counted.append(1)
        return (counted.rate,)

    def _pgbench(self, script: str) -> Values:
        assert self._store  # the tables are there
        login = self._bed.store("bench", "service")
        return (self._bed.postgres.bench(script, 1, self._size.seconds, login),)

    # ── P24 ───────────────────────────────────────────────────────────────────────────────

    def _append_many(self) -> Values:
        with self._counted() as counted:
            until = perf_counter() + self._size.seconds
            while perf_counter() < until:
                streams = [Stream("order", new_id()) for _ in range(BATCH)]
                appends = [Append(stream, 0, [new_event()]) for stream in streams]
                self._store.append_many(appends, metadata())
                counted.append(BATCH)
        return (counted.rate,)

    def _append_batch(self) -> Values:
        with self._counted() as counted:
            until = perf_counter() + self._size.seconds
            while perf_counter() < until:
                events = [new_event() for _ in range(BATCH)]
                self._store.append(Stream("order", new_id()), 0, events, metadata())
                counted.append(BATCH)
        return (counted.rate,)

    # ── P22 ───────────────────────────────────────────────────────────────────────────────

    def _contend(self, writers: int) -> Values:
        """Commands on one user's stream, each of which changes the name; none may be lost."""
        user = new_id()
        numbers = count(1)

        def say(_: Any, version: int) -> Answer:
            return Answer(200, {"version": version}, {})

        def run(command: Any, creates: bool = False) -> None:
            handle(self._store, DECIDER, user, command, Call(metadata()), say, creates=creates)

        run(CreateUser("Ada", "ada@example.com"), creates=True)
        each = self._size.contended // writers
        done: list[int] = []

        def write() -> None:
            for _ in range(each):
                try:
                    run(ChangeUser(f"Ada {next(numbers)}"))
                    done.append(1)
                except Conflict:
                    continue  # refused after all tries: it is no success, and must not be there

        began = perf_counter()
        in_threads(writers, write)
        took = perf_counter() - began
        events = self._store.read_stream(Stream("user", user), 0, self._size.contended + 2)
        names = {event.data.get("name") for event in events}
        require(len(events) == len(names) == len(done) + 1, "no change that was answered is lost")
        return (len(done) / took,)

    # ── shared ────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _owner(self) -> Any:
        owner = self._bed.store("bench", "owner")
        with self._bed.sql(owner) as cursor:
            cursor.execute("create table bare (id uuid primary key, data jsonb)")
            cursor.execute("grant insert on bare to event_append")
        return owner

    @cached_property
    def _store(self) -> Postgres:
        assert self._owner
        return Postgres(self._bed.store("bench", "service"), connections=WRITERS)

    @contextmanager
    def _counted(self) -> Iterator["_Counted"]:
        """Counts what is appended meanwhile, and requires that the log has as many more rows."""
        with self._bed.sql(self._owner) as cursor:
            cursor.execute("select coalesce(max(position), 0) from events")
            before = cursor.fetchone()[0]
            counted = _Counted()
            yield counted
            counted.took = perf_counter() - counted.began
            cursor.execute("select count(*) from events where position > %s", (before,))
            rows = cursor.fetchone()[0]
            require(rows == sum(counted), f"{sum(counted)} events were appended, {rows} are there")


class _Counted(list[int]):
    """How many were done, part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.took = perf_counter(), 0.0

    @property
    def rate(self) -> float:
        return sum(self) / self.took
