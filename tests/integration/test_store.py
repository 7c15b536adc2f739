"""Properties of the real PostgreSQL: races, order, immutability, rights."""

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from eventcore.errors import Conflict, StoreUnavailable
from eventcore.model.event import Mark, NewEvent
from eventcore.model.message import Message
from eventcore.relay import Forwarder
from eventcore.store.connection import connect
from eventcore.store.migrate import SCHEMA_VERSION, migrate
from eventcore.store.port import Answer, Idempotency, Stream
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from tests.conftest import Databases
from tests.integration.trouble import transaction

INIT_SQL = Path(__file__).parents[2] / "init.sql"


def new_event(number: int = 0) -> NewEvent:
    return NewEvent(uuid4(), "USER_CREATED", 1, {"number": number})


# ── three readers, side by side ───────────────────────────────────────────────────────────


@dataclass
class Reader:
    """The events that one way of reading has returned."""

    seen: list[tuple[int, UUID, int]] = field(default_factory=list)

    def skipped(self, log: set[int]) -> int:
        return len(log - {position for position, _, _ in self.seen})

    def breaks(self) -> int:
        """How often a version came after a later one of its stream, or twice."""
        last: dict[UUID, int] = {}
        broken = 0
        for _, stream, version in self.seen:
            broken += version != last.get(stream, 0) + 1
            last[stream] = max(version, last.get(stream, 0))
        return broken


def test_of_three_readers_only_the_settled_feed_is_complete_and_in_order(
    spare_databases: Databases, owner: Engine
) -> None:
    """Writers commit late, roll back and overtake each other, while three readers follow.

    Reading above the last position skips what commits late. Reading what is below every
    running transaction skips nothing but breaks the order of streams. The feed does neither.
    """
    with owner.connect() as connection:
        connection.exec_driver_sql(
            "create table xids (position bigint, xid xid8 default pg_current_xact_id())"
        )
    session = RelaySession(spare_databases("spare", "relay"), f"readers {uuid4()}")
    begin = session.settled_event()
    stop = threading.Event()
    streams = [uuid4() for _ in range(3)]
    naive = Reader()
    with ThreadPoolExecutor(10) as pool:
        following = pool.submit(read_naively, naive, owner, begin.position, stop)
        readers = [
            pool.submit(read_by_xid, owner, stop),
            pool.submit(read_settled, session, begin, stop),
        ]
        writers = [pool.submit(write_out_of_order, owner, streams, seed) for seed in range(6)]
        try:
            for writer in writers:
                writer.result()
            commit_late(owner, naive)
            overtake(owner)
        finally:
            stop.set()
        following.result()
        by_xid, settled = [reader.result() for reader in readers]
    with owner.connect() as connection:
        log = connection.exec_driver_sql(
            "select position from events where position > %s", (begin.position,)
        )
        written = {position for (position,) in log}
        connection.exec_driver_sql("drop table xids")
    assert len(written) > 200
    assert naive.skipped(written) > 0
    assert by_xid.skipped(written) == 0
    assert by_xid.breaks() > 0
    assert settled.skipped(written) == 0
    assert settled.breaks() == 0
    assert len(settled.seen) == len(written)


def write_out_of_order(owner: Engine, streams: list[UUID], seed: int) -> None:
    """Appends to streams that others append to as well, with pauses in the transactions."""
    chance = random.Random(seed)
    isolated = owner.execution_options(isolation_level="READ COMMITTED")
    for _ in range(70):
        stream = str(chance.choice(streams))
        with isolated.connect() as connection, connection.begin() as begun:
            if chance.random() < 0.5:  # an early transaction id, a late position
                connection.exec_driver_sql("select pg_current_xact_id()")
                time.sleep(chance.random() * 0.03)
            try:
                for _ in range(chance.randint(1, 3)):
                    append_to_end(connection, stream)
            except DBAPIError:
                begun.rollback()  # a conflict: somebody else was faster
                continue
            time.sleep(chance.random() * 0.005)
            if chance.random() < 0.2:
                begun.rollback()


def commit_late(owner: Engine, naive: Reader) -> None:
    """Draws a position and commits it when the reader has seen the position above it."""
    deadline = time.monotonic() + 30
    with transaction(owner) as slow:
        append_to_end(slow, str(uuid4()))
        other = uuid4()
        with transaction(owner) as fast:
            append_to_end(fast, str(other))
        while naive.seen[-1:] == [] or naive.seen[-1][1] != other:
            assert time.monotonic() < deadline, "the reader has not seen a committed event"
            time.sleep(0.005)


def overtake(owner: Engine) -> None:
    """The transaction that has the lower id writes the later version of a stream."""
    stream = str(uuid4())
    with transaction(owner) as early:
        early.exec_driver_sql("select pg_current_xact_id()")
        with transaction(owner) as late:
            append_to_end(late, stream)
        append_to_end(early, stream)


def append_to_end(connection: Any, stream: str) -> None:
    """One event on top of the version that is there now."""
    version = "select max(version) from streams where aggregate_id = %s::uuid"
    current = connection.exec_driver_sql(version, (stream,)).scalar_one() or 0
    connection.exec_driver_sql(
        "with e as (select * from append_events('user', %s::uuid, %s, array[%s::uuid],"
        " array['USER_CREATED'], array[1], array['{}'], '{}'))"
        " insert into xids (position) select currval('events_position_seq') from e",
        (stream, current, str(uuid4())),
    )


def read_naively(reader: Reader, owner: Engine, begin: int, stop: threading.Event) -> None:
    last = begin
    with owner.connect() as connection:
        while True:
            finished = stop.is_set()
            rows = connection.exec_driver_sql(
                "select position, aggregate_id, version from events"
                " where position > %s order by position",
                (last,),
            ).all()
            reader.seen += [tuple(row) for row in rows]
            last = rows[-1][0] if rows else last
            if finished:
                return


def read_by_xid(owner: Engine, stop: threading.Event) -> Reader:
    reader, last = Reader(), "0"
    with owner.connect() as connection:
        while True:
            finished = stop.is_set()
            rows = connection.exec_driver_sql(
                "select x.xid::text, position, aggregate_id, version from events join xids x"
                " using (position) where x.xid > %s::xid8"
                " and x.xid < pg_snapshot_xmin(pg_current_snapshot()) order by x.xid, position",
                (last,),
            ).all()
            reader.seen += [tuple(row[1:]) for row in rows]
            last = rows[-1][0] if rows else last
            if finished and not rows:
                return reader


def read_settled(session: RelaySession, begin: Mark, stop: threading.Event) -> Reader:
    reader, last = Reader(), begin
    while True:
        finished = stop.is_set()
        settled = session.settled_event()
        page = session.read_page(last, settled)
        for event in page:
            reader.seen.append((event.position, event.aggregate_id, event.version))
        last = page[-1].mark if page else last
        if finished and not page and last.position >= settled.position == session.head:
            return reader


def test_an_unrelated_open_transaction_does_not_hold_the_feed_back(
    store: Postgres, owner: Engine
) -> None:
    with transaction(owner) as elsewhere:
        elsewhere.exec_driver_sql("select pg_current_xact_id()")
        elsewhere.exec_driver_sql("create temp table unrelated (n int)")
        stream = Stream("user", uuid4())
        store.append(stream, 0, [new_event()], {})
        [event] = store.read_stream(stream)
        assert store.settled() >= event.position


def test_a_writer_that_has_drawn_a_position_holds_the_feed_back(
    store: Postgres, owner: Engine
) -> None:
    before = store.settled()
    with transaction(owner) as slow:
        append_by_hand(slow, uuid4())
        store.append(Stream("user", uuid4()), 0, [new_event()], {})
        assert store.settled() == before
    assert store.settled() >= before + 2


def append_by_hand(connection: Any, stream: UUID) -> None:
    connection.exec_driver_sql(
        "select append_events('user', %s::uuid, 0, array[%s::uuid],"
        " array['USER_CREATED'], array[1], array['{}'], '{}')",
        (str(stream), str(uuid4())),
    )


def test_a_fresh_log_has_settled_at_0(spare_databases: Databases) -> None:
    with connect(spare_databases("other", "owner")).connect() as connection:
        if connection.exec_driver_sql("select count(*) from events").scalar_one() == 0:
            assert Postgres(spare_databases("other", "service"), 1).settled() == 0


# ── races ─────────────────────────────────────────────────────────────────────────────────


def test_two_writers_race_200_times_without_a_gap_or_a_lost_success(
    store: Postgres,
) -> None:
    stream = Stream("user", uuid4())
    successes: list[UUID] = []

    def race(_: int) -> None:
        while len(successes) < 200:
            version = len(store.read_stream(stream))
            event = new_event()
            try:
                store.append(stream, version, [event], {})
            except Conflict:
                continue
            successes.append(event.event_id)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(race, range(2)))
    events = store.read_stream(stream)
    assert [event.version for event in events] == list(range(1, len(events) + 1))
    assert {event.event_id for event in events} == set(successes)
    times = [event.recorded_at for event in events]
    assert times == sorted(times)


def test_the_same_key_at_the_same_time_waits_then_replays(store: Postgres) -> None:
    key = Idempotency(f"key {uuid4()}", "hash")
    streams = [Stream("user", uuid4()) for _ in range(8)]
    start = threading.Barrier(8)

    def append(stream: Stream) -> Answer | None:
        start.wait()
        answer = Answer(202, {"userId": str(stream.aggregate_id)}, {})
        return store.append(stream, 0, [new_event()], {}, key, answer).replayed

    with ThreadPoolExecutor(8) as pool:
        replayed = list(pool.map(append, streams))
    assert replayed.count(None) == 1
    winner = str(streams[replayed.index(None)].aggregate_id)
    assert all(answer.body == {"userId": winner} for answer in replayed if answer)
    assert sum(len(store.read_stream(stream)) for stream in streams) == 1


def test_a_key_expires_after_24_hours_and_the_relay_deletes_its_row(
    store: Postgres, owner: Engine, spare_databases: Databases
) -> None:
    old, expired = Idempotency(f"key {uuid4()}", "h"), Idempotency(f"key {uuid4()}", "h")
    for key in (old, expired):
        store.append(Stream("user", uuid4()), 0, [new_event()], {}, key, Answer(202, {}, {}))
    with owner.connect() as connection:
        connection.exec_driver_sql(
            "update idempotency_keys set recorded_at = now() - interval '25 hours'"
            " where key in (%s, %s)",
            (old.key, expired.key),
        )
    assert store.recorded_answer(old) is None
    again = store.append(Stream("user", uuid4()), 0, [new_event()], {}, old, Answer(200, {}, {}))
    assert again.replayed is None
    session = RelaySession(spare_databases("spare", "relay"), "expiry")
    assert session.expire_idempotency_keys() == 1
    session.close()


@pytest.mark.timeout(400)
def test_200_000_expired_keys_are_gone_within_minutes_while_commands_go_on(
    store: Postgres, owner: Engine, spare_databases: Databases
) -> None:
    with owner.connect() as connection:
        for begin in range(0, 200_000, 10_000):
            connection.exec_driver_sql(
                "insert into idempotency_keys select 'old ' || n, 'hash', '{}',"
                " clock_timestamp() - interval '25 hours' from generate_series(%s, %s) n",
                (begin + 1, begin + 10_000),
            )
    session = RelaySession(spare_databases("spare", "relay"), "expiry under load")
    forwarder = Forwarder("expiry under load", session, SilentPublisher())
    stop, done = threading.Event(), 0

    def expired() -> int:
        with owner.connect() as connection:
            question = "select count(*) from idempotency_keys where key like 'old %%'"
            return int(connection.exec_driver_sql(question).scalar_one())

    with ThreadPoolExecutor(1) as threads:
        forwarding = threads.submit(forwarder.run, stop)
        try:
            deadline = time.monotonic() + 250
            while expired():
                assert time.monotonic() < deadline
                for _ in range(20):
                    key = Idempotency(f"key {uuid4()}", "h")
                    answer = Answer(202, {}, {})
                    store.append(Stream("user", uuid4()), 0, [new_event()], {}, key, answer)
                    done += 1
        finally:
            stop.set()
            forwarding.result()
            session.close()
    assert done > 200


class SilentPublisher:
    """Confirms everything at once."""

    returned = 0
    count = 0

    def publish(self, messages: Sequence[Message]) -> None:
        self.count += len(messages)

    def confirmed(self) -> int:
        return self.count

    def wait(self, confirmed: int, timeout: float) -> int:
        return self.count

    def close(self) -> None: ...


def test_a_commit_whose_answer_was_lost_is_found_again(
    store: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, event = Stream("user", uuid4()), new_event()
    write = store._write
    lost: list[str] = []

    def loses_the_first_answer(statement: str, values: tuple[object, ...] = ()) -> list[Any]:
        result = write(statement, values)
        if not lost:
            lost.append(statement)
            away = StoreUnavailable("the connection broke after the commit")
            away.outcome_known = False
            raise away
        return result

    monkeypatch.setattr(store, "_write", loses_the_first_answer)
    assert store.append(stream, 0, [event], {}).version == 1
    assert lost
    assert [e.event_id for e in store.read_stream(stream)] == [event.event_id]


# ── what the database itself refuses ──────────────────────────────────────────────────────

FORBIDDEN = {
    "update": "update events set version = version",
    "delete": "delete from events",
    "truncate": "truncate events",
    "truncate cascade": "truncate events, streams cascade",
    "disable": "alter table events disable trigger all",
}


@pytest.mark.parametrize("login", ["service", "relay"])
@pytest.mark.parametrize("act", FORBIDDEN)
def test_no_login_of_a_process_can_change_events(
    spare_databases: Databases, store: Postgres, login: str, act: str
) -> None:
    store.append(Stream("user", uuid4()), 0, [new_event()], {})
    with connect(spare_databases("spare", login)).connect() as connection:
        with pytest.raises(DBAPIError) as refused:
            connection.exec_driver_sql(FORBIDDEN[act])
        assert refused.value.orig.pgcode == "42501"  # type: ignore[union-attr]


@pytest.mark.parametrize("act", ["update", "delete", "truncate"])
def test_the_owner_cannot_either(owner: Engine, store: Postgres, act: str) -> None:
    store.append(Stream("user", uuid4()), 0, [new_event()], {})
    with owner.connect() as connection, pytest.raises(DBAPIError) as refused:
        connection.exec_driver_sql(FORBIDDEN[act])
    assert refused.value.orig.pgcode == "ES003"  # type: ignore[union-attr]


# ── init.sql ──────────────────────────────────────────────────────────────────────────────


def test_init_sql_can_be_applied_again_under_a_running_writer(
    spare_databases: Databases, owner: Engine
) -> None:
    with transaction(owner) as writer:
        append_by_hand(writer, uuid4())
        assert migrate(spare_databases("spare", "owner"), INIT_SQL, wait=0) == SCHEMA_VERSION


def test_a_newer_schema_is_left_alone_and_welcome(spare_databases: Databases) -> None:
    database = spare_databases("other", "owner")
    engine = connect(database)
    with engine.connect() as connection:
        connection.exec_driver_sql("insert into schema_versions (version) values (99)")
        try:
            connection.exec_driver_sql("comment on function settle is 'of a newer version'")
            assert migrate(database, INIT_SQL, wait=0) == 99
            comment = "select obj_description('settle'::regproc)"
            assert connection.exec_driver_sql(comment).scalar_one() == "of a newer version"
            Postgres(spare_databases("other", "service"), 1).require_schema()
        finally:
            connection.exec_driver_sql("delete from schema_versions where version = 99")
    migrate(database, INIT_SQL)


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (
            "update schema_versions set version = version - 10",
            "update schema_versions set version = version + 10",
        ),
        (
            "alter table schema_versions rename to not_yet",
            "alter table not_yet rename to schema_versions",
        ),
    ],
)
def test_an_older_schema_is_refused_until_init_sql_is_applied(
    spare_databases: Databases, change: str, undo: str
) -> None:
    store = Postgres(spare_databases("other", "service"), 1)
    store.require_schema()
    with connect(spare_databases("other", "owner")).connect() as connection:
        connection.exec_driver_sql(change)
        try:
            with pytest.raises(StoreUnavailable, match=r"apply init\.sql"):
                store.require_schema()
        finally:
            connection.exec_driver_sql(undo)
    store.require_schema()
    store.close()


def test_a_function_that_is_no_longer_needed_is_dropped(
    spare_databases: Databases, owner: Engine
) -> None:
    with owner.connect() as connection:
        connection.exec_driver_sql(
            "create function begin_streams(text[]) returns int language sql as 'select 1'"
        )
        migrate(spare_databases("spare", "owner"), INIT_SQL)
        there = "select to_regproc('begin_streams')"
        assert connection.exec_driver_sql(there).scalar_one() is None


def test_every_object_of_the_schema_has_a_comment(owner: Engine) -> None:
    with owner.connect() as connection:
        bare = connection.exec_driver_sql(UNCOMMENTED).all()
    assert bare == []


UNCOMMENTED = """
    select 'table ' || relname from pg_class c
     where relnamespace = 'public'::regnamespace and relkind = 'r' and relname <> 'xids'
       and obj_description(c.oid, 'pg_class') is null
    union all
    select 'column ' || c.relname || '.' || attname
      from pg_attribute a join pg_class c on c.oid = attrelid
     where relnamespace = 'public'::regnamespace and relkind = 'r' and attnum > 0
       and not attisdropped and col_description(c.oid, attnum) is null and c.relname <> 'xids'
    union all
    select 'function ' || proname from pg_proc p
     where pronamespace = 'public'::regnamespace and obj_description(p.oid, 'pg_proc') is null
    union all
    select 'trigger ' || tgname from pg_trigger t
     where not tgisinternal and obj_description(t.oid, 'pg_trigger') is null
    union all
    select 'index ' || relname from pg_class c join pg_index i on i.indexrelid = c.oid
     where relnamespace = 'public'::regnamespace and obj_description(c.oid, 'pg_class') is null
       and not exists (select from pg_constraint where conindid = c.oid)
    union all
    select 'sequence ' || relname from pg_class c
     where relnamespace = 'public'::regnamespace and relkind = 'S'
       and obj_description(c.oid, 'pg_class') is null
"""


def test_a_store_tells_whether_a_relay_holds_its_lock(
    store: Postgres, spare_databases: Databases
) -> None:
    name, login = f"relay {uuid4()}", spare_databases("spare", "relay")
    session, standby = RelaySession(login, name), RelaySession(login, name)
    assert not store.is_relayed(name)
    assert session.lock()
    assert not standby.lock()
    assert store.is_relayed(name)
    assert not store.is_relayed("another")
    session.close()
    until = time.monotonic() + 10
    while store.is_relayed(name):  # the server notices that the connection is closed
        assert time.monotonic() < until
    standby.close()
