"""P1, P2, P4, P19, P22: the library's append beside bare statements on the same server."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from time import perf_counter
from typing import Any

from eventcore.command import Call, handle, new_id
from eventcore.errors import Conflict
from eventcore.store import Answer, Postgres, Stream
from tests.bench.bed import ORDER, Bed, Size, in_threads, metadata, new_event
from tests.bench.machine import Spent
from tests.bench.rows import Figure, Row, Values, require
from user.user import DECIDER, ChangeUser, CreateUser

BATCH = 100
"""Events of one append in P4."""

WRITERS = 16

PAGE = 500
"""Events of a page of the feed."""

CHUNK = 100_000
"""Events that a large log is filled with at once."""

_SAME_FUNCTION = f"""
select replayed, answer, version from append_events('order', uuidv7(), 0, array[uuidv7()],
    array['ORDER_PLACED'], array[1], array['{json.dumps(ORDER)}'], '{json.dumps(metadata())}');
"""  # nosec B608

_BARE_ROW = f"insert into bare values (uuidv7(), '{json.dumps(ORDER)}');"  # nosec B608

_FILL = """
insert into events (event_id, aggregate_type, aggregate_id, version, event_type, schema_version,
                    data, metadata, recorded_at)
select uuidv7(), 'order', uuidv7(), 1, 'ORDER_PLACED', 1, %s, %s, clock_timestamp()
  from generate_series(1, %s)
"""

_FILL_STREAMS = """
insert into streams select aggregate_type, aggregate_id, version, recorded_at
  from events where position > %s
"""


class Appends:
    """Measures on event stores of their own: `bench`, and `small` and `large` for P19."""

    def __init__(self, bed: Bed, size: Size) -> None:
        self._bed = bed
        self._size = size
        self._spent = ""

    def rows(self) -> Sequence[Row]:
        """The rows of this family."""
        bench = self._pgbench
        return (
            Row(
                "P1", "library append, 1 writer, 1 event", lambda: self._append(1),
                (Figure(reach=0.7, stretch=0.8),),
                "pgbench calling the same function", lambda: bench(_SAME_FUNCTION, 1),
            ),
            Row(
                "P1", "library append, 1 writer, 1 event", lambda: self._append(1),
                (Figure(reach=0.5, stretch=0.6),),
                "pgbench inserting a bare row", lambda: bench(_BARE_ROW, 1),
            ),
            Row(
                "P2", f"library append, {WRITERS} threads of one process",
                lambda: self._append(WRITERS), (Figure(reach=0.7, stretch=1.0),),
                f"pgbench, {WRITERS} clients, one bare row a transaction",
                lambda: bench(_BARE_ROW, WRITERS), notes=lambda: (self._spent,),
            ),
            Row(
                "P4", f"library append, batches of {BATCH}; events", self._append_batches,
                (Figure(reach=0.7, stretch=0.8),),
                "bare `INSERT … SELECT unnest`, 1 client, a table like that of events; rows",
                self._insert_batches,
            ),
            Row(
                "P19", "feed page of 500 at the end of a large log",
                lambda: self._read_pages(self._large_end - 2 * PAGE),
                (Figure("ms", reach=1.1, stretch=1.05, at_most=True),),
                "the same at position 1,000", lambda: self._read_pages(1000),
                notes=self._said_large,
            ),
            Row(
                "P19", "append to a large log", lambda: self._time_appends(self._large),
                (Figure("ms", reach=1.3, stretch=1.15, at_most=True),),
                "the same at 10,000 rows", lambda: self._time_appends(self._small),
                notes=self._said_large,
            ),
            Row(
                "P22", f"{WRITERS} writers on one stream; successes",
                lambda: self._contend(WRITERS), (Figure(reach=0.8, stretch=1.0),),
                "one writer", lambda: self._contend(1),
            ),
        )  # fmt: skip

    # ── P1, P2, P4 ────────────────────────────────────────────────────────────────────────

    def _append(self, writers: int) -> Values:
        with self._counted() as counted:
            until, spent = perf_counter() + self._size.seconds, Spent()

            def write() -> None:
                while perf_counter() < until:
                    self._store.append(Stream("order", new_id()), 0, [new_event()], metadata())
                    counted.append(1)

            in_threads(writers, write)
            what = "an append, library and benchmark being one process"
            self._spent = spent.each(len(counted), what)
        return (counted.rate,)

    def _append_batches(self) -> Values:
        with self._counted() as counted:
            until = perf_counter() + self._size.seconds
            while perf_counter() < until:
                events = [new_event() for _ in range(BATCH)]
                self._store.append(Stream("order", new_id()), 0, events, metadata())
                counted.append(BATCH)
        return (counted.rate,)

    def _insert_batches(self) -> Values:
        data = [json.dumps(ORDER)] * BATCH
        meta = json.dumps(metadata())
        statement = (
            "insert into bare_events (event_id, aggregate_type, aggregate_id, version, event_type,"
            " schema_version, data, metadata, recorded_at)"
            " select id, 'order', %s, place, 'ORDER_PLACED', 1, data::jsonb, %s, clock_timestamp()"
            " from unnest(%s::uuid[], %s::text[]) with ordinality as each (id, data, place)"
        )
        done = 0
        with self._bed.sql(self._owner) as cursor:
            began = perf_counter()
            while (took := perf_counter() - began) < self._size.seconds:
                ids = [str(new_id()) for _ in range(BATCH)]
                cursor.execute(statement, (str(new_id()), meta, ids, data))
                done += cursor.rowcount
        return (done / took,)

    def _pgbench(self, script: str, clients: int) -> Values:
        assert self._store  # the tables are there
        login = self._bed.store("bench", "service")
        return (self._bed.postgres.bench(script, clients, self._size.seconds, login),)

    # ── P19 ───────────────────────────────────────────────────────────────────────────────

    def _read_pages(self, after: int) -> Values:
        pages = 50
        began = perf_counter()
        for _ in range(pages):
            page = self._large.read_feed(after, self._large_end, PAGE)
            require(len(page) == PAGE, f"{PAGE} events are read")
        return ((perf_counter() - began) / pages * 1e3,)

    def _time_appends(self, store: Postgres) -> Values:
        done = 0
        began = perf_counter()
        while (took := perf_counter() - began) < self._size.seconds / 2:
            store.append(Stream("order", new_id()), 0, [new_event()], metadata())
            done += 1
        return (took / done * 1e3,)

    def _said_large(self) -> Sequence[str]:
        return (f"The large log has {self._large_end:,} events; it was filled by SQL.",)

    @cached_property
    def _small(self) -> Postgres:
        self._fill("small", 10_000)
        return Postgres(self._bed.store("small", "service"), 1)

    @cached_property
    def _large(self) -> Postgres:
        self._fill("large", self._size.rows)
        return Postgres(self._bed.store("large", "service"), 1)

    @cached_property
    def _large_end(self) -> int:
        return self._large.progress("none").head

    def _fill(self, name: str, rows: int) -> None:
        """Fill a log up to so many rows, or for as long as this size allows."""
        deadline = perf_counter() + self._size.fill_seconds
        filled = 0
        with self._bed.sql(self._bed.store(name, "owner")) as cursor:
            while filled < rows and perf_counter() < deadline:
                some = min(CHUNK, rows - filled)
                cursor.execute(_FILL, (json.dumps(ORDER), json.dumps(metadata()), some))
                cursor.execute(_FILL_STREAMS, (filled,))
                filled += some
            cursor.execute("vacuum analyze events")
            cursor.execute("vacuum analyze streams")
        with self._bed.sql(self._bed.postgres.address) as cursor:
            cursor.execute("checkpoint")

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
            cursor.execute("create table bare_events (like events including all)")
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
