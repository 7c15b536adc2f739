"""Deadlines on a real PostgreSQL: many takers, crashes, wrong clocks, an older version."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, Engine

from eventcore.errors import Conflict
from eventcore.model.event import NewEvent
from eventcore.store.connection import connect
from eventcore.store.migrate import SCHEMA_VERSION, migrate
from eventcore.store.port import Append, Deadline, Due, Stream
from eventcore.store.postgres import Postgres
from tests.conftest import Databases

ROOT = Path(__file__).parents[2]
TAKERS = 8
HOUR = 3600.0


@pytest.fixture
def kind() -> str:
    """An aggregate type that no other test uses."""
    return f"saga_{uuid4().hex}"


def new_event() -> NewEvent:
    return NewEvent(uuid4(), "STEP_REQUESTED", 1, {})


def begin(store: Postgres, kind: str, count: int, seconds: float) -> list[Stream]:
    """Streams with one event and a deadline each."""
    streams = [Stream(kind, uuid4()) for _ in range(count)]
    for first in range(0, count, 500):
        some = streams[first : first + 500]
        deadline = Deadline(seconds)
        store.append_many([Append(each, 0, [new_event()], deadline) for each in some], {})
    return streams


def test_ten_thousand_due_at_once_are_taken_in_batches_each_by_one_taker(
    store: Postgres, kind: str
) -> None:
    streams = begin(store, kind, 10_000, 0.0)

    def take(_: int) -> list[list[Due]]:
        batches = []
        while batch := store.take_due(kind, 100, HOUR):
            batches.append(batch)
        return batches

    with ThreadPoolExecutor(TAKERS) as pool:
        batches = [batch for taken in pool.map(take, range(TAKERS)) for batch in taken]
    assert max(map(len, batches)) == 100
    assert Counter(each.stream for batch in batches for each in batch) == Counter(streams)


def test_each_deadline_leads_to_one_step_while_takers_race_and_steps_move_it(
    store: Postgres, kind: str
) -> None:
    """A hold so short that deadlines are taken again while their steps are being appended."""
    streams = begin(store, kind, 200, 0.0)
    steps = 3
    until = time.monotonic() + 60

    def fire(_: int) -> None:
        while time.monotonic() < until:
            batch = store.take_due(kind, 10, 0.05)
            for due in batch:
                left = due.version < 1 + steps
                deadline = Deadline(0.0 if left else None)
                append = Append(due.stream, due.version, [new_event()] if left else [], deadline)
                try:
                    store.append_many([append], {})
                except Conflict:
                    continue  # another taker was faster, after the hold
            if not batch and not left_in(store, kind):
                return

    with ThreadPoolExecutor(TAKERS) as pool:
        for each in [pool.submit(fire, number) for number in range(TAKERS)]:
            each.result()
    assert [len(store.read_stream(stream)) for stream in streams] == [1 + steps] * len(streams)
    assert left_in(store, kind) == 0


@contextmanager
def rolled_back(engine: Engine) -> Iterator[Connection]:
    """A transaction that comes to nothing."""
    with engine.connect() as connection:
        connection.exec_driver_sql("begin")
        yield connection
        connection.exec_driver_sql("rollback")


def left_in(store: Postgres, kind: str) -> int:
    statement = "select count(*) from deadlines where aggregate_type = %s"
    return int(store._rows(statement, (kind,))[0][0])


def test_a_deadline_whose_taker_dies_is_due_again_after_its_hold(
    store: Postgres, kind: str
) -> None:
    [stream] = begin(store, kind, 1, 0.0)
    before = store.clock()
    assert store.take_due(kind, 1, 1.0) == [Due(stream, 1)]
    while not (again := store.take_due(kind, 1, HOUR)):
        assert store.clock() < before + timedelta(seconds=30)
    assert again == [Due(stream, 1)]
    assert store.clock() >= before + timedelta(seconds=1)


def test_a_taker_skips_what_another_transaction_holds_and_gets_it_if_that_is_rolled_back(
    store: Postgres, owner: Engine, kind: str
) -> None:
    held, free = begin(store, kind, 2, 0.0)
    with rolled_back(owner) as other:
        statement = "select version from deadlines where aggregate_id = %s::uuid for update"
        assert other.exec_driver_sql(statement, (str(held.aggregate_id),)).all() == [(1,)]
        assert store.take_due(kind, 10, HOUR) == [Due(free, 1)]
    assert store.take_due(kind, 10, HOUR) == [Due(held, 1)]


def test_a_rolled_back_step_leaves_its_deadline_and_a_committed_one_replaces_it(
    store: Postgres, owner: Engine, kind: str
) -> None:
    [stream] = begin(store, kind, 1, 0.0)
    step = (
        f"select append_many('{{{kind}}}', '{{{stream.aggregate_id}}}', '{{1}}', '{{1}}',"
        " array[gen_random_uuid()], '{STEP_DONE}', '{1}', array['{}'], '{}',"
        " p_due_in => '{-infinity}')"
    )
    with rolled_back(owner) as writer:
        writer.execution_options(no_parameters=True).exec_driver_sql(step)
        assert store.take_due(kind, 10, HOUR) == [], "the step may still commit"
    assert store.take_due(kind, 10, 0.0) == [Due(stream, 1)]
    with owner.connect() as writer:
        writer.execution_options(no_parameters=True).exec_driver_sql(step)
    assert store.take_due(kind, 10, 0.0) == []


WRONG_CLOCK = """
import sys
from uuid import UUID, uuid4
from eventcore.model.event import NewEvent
from eventcore.settings import Secret, Server
from eventcore.store.port import Append, Deadline, Stream
from eventcore.store.postgres import Postgres
from datetime import UTC, datetime

host, port, name, user, password, kind = sys.argv[1:]
store = Postgres(Server(host, int(port), name, user, Secret(password)), 1)
assert abs((store.clock() - datetime.now(UTC)).total_seconds()) > 3000, "the clock is right"
for seconds in (0.0, 60.0):
    event = NewEvent(uuid4(), "STEP_REQUESTED", 1, {})
    store.append_many([Append(Stream(kind, uuid4()), 0, [event], Deadline(seconds))], {})
print(len(store.take_due(kind, 10, 30.0)), len(store.take_due(kind, 10, 30.0)))
"""


@pytest.mark.parametrize("shift", ["3600", "-3600"])
def test_a_wrong_clock_of_a_client_moves_no_deadline(
    spare_databases: Databases, store: Postgres, kind: str, tmp_path: Path, shift: str
) -> None:
    library, source = tmp_path / "clock.so", ROOT / "tests/chaos/clock.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    server = spare_databases("spare", "service")
    place = (server.host, str(server.port), server.name, server.user, server.password.read())
    done = subprocess.run(
        [sys.executable, "-c", WRONG_CLOCK, *place, kind],
        env={"PYTHONPATH": f"{ROOT}/services", "LD_PRELOAD": str(library), "CLOCK_SHIFT": shift},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["1", "0"], done.stderr
    statement = (
        "select extract(epoch from due_at - clock_timestamp()) from deadlines"
        " where aggregate_type = %s order by due_at"
    )
    [(held,), (later,)] = store._rows(statement, (kind,))
    assert 0 < held < 30 < later < 60


# ── processes and databases of schema version 5 ───────────────────────────────────────────

FIVE = (
    "select replayed, answer from append_many(%s::text[], %s::uuid[], %s::bigint[],"
    " %s::int[], %s::uuid[], %s::text[], %s::int[], %s::text[], %s::jsonb, %s, %s, %s::jsonb)"
)
"""The statement of a process of schema version 5."""

UNDO = """
begin;
drop table deadlines, snapshots;
drop function append_many;
drop function take_due;
drop function write_snapshot;
create function append_many(
    text[], uuid[], bigint[], int[], uuid[], text[], int[], text[], jsonb,
    text default null, text default null, jsonb default null, out replayed boolean, out answer text)
    language sql as 'select true, ''version 5''';
comment on function append_many is 'of version 5';
grant execute on function append_many to event_append;
delete from schema_versions where version > 5;
commit;
"""
"""The schema as version 5 left it; only the signature of `append_many` counts."""


@pytest.fixture
def back_to_five(spare_databases: Databases) -> Iterator[Callable[[], None]]:
    """Turns the database "other" into one of schema version 5."""

    def undo() -> None:
        with connect(spare_databases("other", "owner")).connect() as connection:
            connection.execution_options(no_parameters=True).exec_driver_sql(UNDO)

    yield undo
    migrate(spare_databases("other", "owner"), ROOT / "init.sql")


def append_as_five(store: Postgres, kind: str, stream: UUID) -> tuple[bool, str | None]:
    values = ([kind], [str(stream)], [0], [1], [str(uuid4())], ["STEP_REQUESTED"], [1], ["{}"])
    rows = store._write(FIVE, (*values, "{}", None, None, None))
    return rows[0][0], rows[0][1]


def test_a_process_of_version_five_appends_before_and_after_the_migration(
    spare_databases: Databases, back_to_five: Callable[[], None], kind: str
) -> None:
    store, stream = Postgres(spare_databases("other", "service"), 2), Stream(kind, uuid4())
    back_to_five()
    assert append_as_five(store, kind, stream.aggregate_id) == (True, "version 5")
    assert migrate(spare_databases("other", "owner"), ROOT / "init.sql", 0) == SCHEMA_VERSION
    assert append_as_five(store, kind, stream.aggregate_id) == (False, None)
    assert [event.version for event in store.read_stream(stream)] == [1]
    store.append_many([Append(stream, 1, [new_event()], Deadline(0.0))], {})
    assert store.take_due(kind, 10, HOUR) == [Due(stream, 2)]
    store.close()


def test_tables_of_a_later_log_go_where_an_older_dump_was_restored(
    spare_databases: Databases, back_to_five: Callable[[], None], kind: str
) -> None:
    """`pg_restore --clean` leaves alone what its dump does not have."""
    owner = spare_databases("other", "owner")
    back_to_five()
    with connect(owner).connect() as connection:
        connection.exec_driver_sql("create table deadlines (of_a_later_log int)")
    assert migrate(owner, ROOT / "init.sql", 0) == SCHEMA_VERSION
    store = Postgres(spare_databases("other", "service"), 1)
    [stream] = begin(store, kind, 1, 0.0)
    assert store.take_due(kind, 10, HOUR) == [Due(stream, 1)]
    store.close()
