"""The store on the real PostgreSQL, held against plain lists: any acts, in any order.

A second writer may hold a transaction open meanwhile, so that positions appear late, or never.
The suite is tried on itself as well: with a safety of `init.sql` taken out it has to fail.
STORE_EXAMPLES sets how many sequences are tried; `make chaos` tries 2,000.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Engine

from eventcore.errors import Conflict, KeyReused
from eventcore.model.event import START, Event, Mark, NewEvent
from eventcore.store.connection import connect
from eventcore.store.port import Answer, Idempotency, Stream
from eventcore.store.postgres import Postgres
from eventcore.store.relay_session import RelaySession
from local.processes import prepare_stores, store_login
from local.servers import PostgreSQL
from tests.conftest import Databases

EXAMPLES = int(os.environ.get("STORE_EXAMPLES", "25"))
STEPS = 50
INIT_SQL = Path(__file__).parents[2] / "init.sql"


@dataclass(eq=False)
class Servers:
    """The store under test, and the owner, who can hold transactions open."""

    store: Postgres
    owner: Engine
    open_relay: Callable[[str], RelaySession]


@dataclass(eq=False)
class Writer:
    """A transaction that is open, with what it has appended."""

    connection: Connection
    stream: Stream
    ids: list[UUID]


@dataclass
class Follower:
    """Reads a feed page by page, and has each event once, in order."""

    settled: Callable[[], Mark]
    read_page: Callable[[Mark, Mark, int], list[Event]]
    at: Mark = START
    seen: list[Event] = field(default_factory=list)

    def follow(self, limit: int) -> None:
        """Read on, as far as it has settled."""
        until = self.settled()
        while page := self.read_page(self.at, until, limit):
            self.seen += page
            self.at = page[-1].mark


class StoreMachine(RuleBasedStateMachine):
    """What a store does, beside lists that say what it has to do."""

    streams = Bundle("streams")
    keys = Bundle("keys")
    writers = Bundle("writers")

    def __init__(self, servers: Servers) -> None:
        super().__init__()
        self.servers = servers
        self.store = servers.store
        self.relay = servers.open_relay(f"relay {uuid4()}")
        self.log: dict[Stream, list[UUID]] = {}
        self.answers: dict[Idempotency, Answer] = {}
        self.open: list[Writer] = []
        self.moved_to = START
        self.followers = [
            Follower(self._settled, self._read_feed),
            Follower(self.relay.settled_event, self.relay.read_page),
        ]

    @initialize()
    def begin(self) -> None:
        """Whatever other sequences have left is not looked at."""
        begins_at = self._settled()
        assert begins_at == self.relay.settled_event()
        for follower in self.followers:
            follower.at = begins_at

    @rule(target=streams)
    def another_stream(self) -> Stream:
        stream = Stream("user", uuid4())
        self.log[stream] = []
        return stream

    @rule(stream=streams, count=st.integers(1, 3), off=st.sampled_from([0, 0, 0, -1, 1]))
    def append(self, stream: Stream, count: int, off: int) -> None:
        if self._is_held(stream):
            return
        expected = len(self.log[stream]) + off
        if expected < 0:
            return
        events = new_events(count)
        if off:
            with pytest.raises(Conflict):
                self.store.append(stream, expected, events, {})
            return
        assert self.store.append(stream, expected, events, {}).version == expected + count
        self.log[stream] += [event.event_id for event in events]

    @rule(
        target=keys,
        stream=streams,
        count=st.integers(0, 2),
        off=st.sampled_from([0, 0, 1]),
    )
    def append_with_a_key(self, stream: Stream, count: int, off: int) -> Any:
        if self._is_held(stream):
            return multiple()
        expected = len(self.log[stream]) + off
        key = Idempotency(f"key {uuid4()}", "this body")
        answer = Answer(200, {"version": expected + count}, {})
        events = new_events(count)
        if off and count:
            with pytest.raises(Conflict):
                self.store.append(stream, expected, events, {}, key, answer)
            assert self.store.recorded_answer(key) is None
            return multiple()
        assert self.store.append(stream, expected, events, {}, key, answer).replayed is None
        self.log[stream] += [event.event_id for event in events]
        self.answers[key] = answer
        return key

    @rule(key=keys, stream=streams, right=st.booleans())
    def append_with_a_known_key(self, key: Idempotency, stream: Stream, right: bool) -> None:
        """Whatever it is for now: nothing is appended, and the first answer comes back."""
        expected = len(self.log[stream]) if right else 0
        again = self.store.append(
            stream, expected, new_events(1), {}, key, Answer(200, {"version": 77}, {})
        )
        assert again.replayed == self.answers[key]
        assert self.store.recorded_answer(key) == self.answers[key]

    @rule(key=keys, stream=streams)
    def use_a_key_for_another_body(self, key: Idempotency, stream: Stream) -> None:
        other = Idempotency(key.key, "another body")
        with pytest.raises(KeyReused):
            self.store.recorded_answer(other)
        with pytest.raises(KeyReused):
            self.store.append(
                stream, len(self.log[stream]), new_events(1), {}, other, Answer(200, {}, {})
            )

    @rule(stream=streams, after=st.integers(0, 6), limit=st.integers(1, 4))
    def read_a_stream(self, stream: Stream, after: int, limit: int) -> None:
        found = self.store.read_stream(stream, after, limit)
        assert [e.event_id for e in found] == self.log[stream][after : after + limit]
        assert [e.version for e in found] == list(range(after + 1, after + 1 + len(found)))
        assert [e.position for e in found] == sorted(e.position for e in found)

    # ── another writer ────────────────────────────────────────────────────────────────────

    @rule(target=writers, stream=streams, count=st.integers(1, 3))
    def begin_to_write(self, stream: Stream, count: int) -> Any:
        """Positions are drawn, and nothing is committed."""
        if self._is_held(stream) or len(self.open) >= 3:
            return multiple()
        isolated = self.servers.owner.execution_options(isolation_level="READ COMMITTED")
        connection = isolated.connect()
        ids = [event.event_id for event in new_events(count)]
        connection.exec_driver_sql(
            "select append_events('user', %s::uuid, %s, %s::uuid[],"
            " array_fill('USER_CREATED'::text, array[%s]), array_fill(1, array[%s]),"
            " array_fill('{}'::text, array[%s]), '{}')",
            (
                str(stream.aggregate_id),
                len(self.log[stream]),
                [str(each) for each in ids],
                count,
                count,
                count,
            ),
        )
        writer = Writer(connection, stream, ids)
        self.open.append(writer)
        return writer

    @rule(writer=consumes(writers))
    def commit(self, writer: Writer) -> None:
        writer.connection.commit()
        self._close(writer)
        self.log[writer.stream] += writer.ids

    @rule(writer=consumes(writers))
    def roll_back(self, writer: Writer) -> None:
        writer.connection.rollback()
        self._close(writer)

    # ── the feed ──────────────────────────────────────────────────────────────────────────

    @rule(which=st.integers(0, 1), limit=st.integers(1, 50))
    def follow(self, which: int, limit: int) -> None:
        self.followers[which].follow(limit)

    @rule(which=st.integers(0, 1))
    def follow_past_an_open_writer(self, which: int) -> None:
        """An event above the positions that the writer has drawn must not be read yet."""
        if self.open:
            stream = self.another_stream()
            self.append(stream, 1, 0)
            self.followers[which].follow(50)

    @rule(which=st.integers(0, 1))
    def compare_heads(self, which: int) -> None:
        """The heads of a settled range are the last versions of what the feed has there."""
        follower = self.followers[which]
        if not follower.seen:
            return
        begin, end = follower.seen[0].position - 1, follower.seen[-1].position
        found = self.store.read_changes("user", begin, end, START, ())
        assert found
        assert found.end == follower.seen[-1].mark
        assert found.heads == {str(event.aggregate_id): event.version for event in follower.seen}

    @rule(place=st.integers(0, 100))
    def move_the_relays_checkpoint(self, place: int) -> None:
        seen = self.followers[1].seen
        if not seen:
            return
        mark = seen[place % len(seen)].mark
        self.relay.move_checkpoint(mark)
        self.moved_to = max(self.moved_to, mark, key=lambda each: each.position)
        assert self.relay.checkpoint() == self.moved_to

    def _settled(self) -> Mark:
        self.store.settled()
        return self.store.progress("nobody").mark

    def _read_feed(self, after: Mark, until: Mark, limit: int) -> list[Event]:
        return self.store.read_feed(after.position, until.position, limit)

    @invariant()
    def each_follower_is_in_order(self) -> None:
        for follower in self.followers:
            positions = [event.position for event in follower.seen]
            assert positions == sorted(set(positions))

    def teardown(self) -> None:
        """No writer is left: then both followers have the whole log, each event once."""
        for writer in list(self.open):
            writer.connection.rollback()
            self._close(writer)
        try:
            for follower in self.followers:
                follower.follow(50)
                by_stream: dict[UUID, list[UUID]] = {}
                for event in follower.seen:
                    by_stream.setdefault(event.aggregate_id, []).append(event.event_id)
                assert by_stream == {s.aggregate_id: ids for s, ids in self.log.items() if ids}
            log = self.store.progress("nobody")
            assert log.settled == log.head
        finally:
            self.relay.close()

    def _is_held(self, stream: Stream) -> bool:
        return any(writer.stream == stream for writer in self.open)

    def _close(self, writer: Writer) -> None:
        writer.connection.close()
        self.open.remove(writer)


def new_events(count: int) -> list[NewEvent]:
    return [NewEvent(uuid4(), "USER_CREATED", 1, {}) for _ in range(count)]


def servers_of(databases: Databases, name: str) -> Servers:
    return Servers(
        Postgres(databases(name, "service"), connections=4, patience=0),
        connect(databases(name, "owner")),
        lambda relay: RelaySession(databases(name, "relay"), relay),
    )


def try_out(servers: Servers, examples: int, *phases: Phase) -> None:
    run_state_machine_as_test(
        lambda: StoreMachine(servers),  # type: ignore[arg-type] # whatever makes one will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            phases=phases or tuple(Phase),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            database=None,
        ),
    )


@pytest.mark.timeout(max(120, EXAMPLES * 3))
def test_a_store_does_what_lists_would_do(spare_databases: Databases) -> None:
    servers = servers_of(spare_databases, "spare")
    try:
        try_out(servers, EXAMPLES)
    finally:
        servers.store.close()


# ── with a safety of init.sql taken out ───────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mutant(postgres: PostgreSQL, data_folder: Path) -> Iterator[Servers]:
    """A store whose functions may be changed: nobody else uses it."""
    secrets = data_folder / "secrets"
    prepare_stores(postgres.address, secrets, ("mutant",))
    servers = servers_of(
        lambda service, purpose: store_login(postgres.address, service, purpose, secrets), "mutant"
    )
    yield servers
    servers.store.close()


MUTANTS = {
    "the expected version is ignored": [
        ("append_events", "and s.version = p_expected_version", ""),
        ("append_events", "e (event_id, event_type, schema_version, data, place);",
         "e (event_id, event_type, schema_version, data, place) on conflict do nothing;"),
    ],
    "a key is not bound to its request": [
        ("record_answer", "known.request_hash is distinct from p_request_hash", "false"),
    ],
    "a known key appends again": [
        ("append_events", "if replayed or added = 0 then", "if added = 0 then"),
    ],
    "writers are not waited for": [
        ("settle", "coalesce(array_agg(l.virtualtransaction), '{}')", "'{}'"),
    ],
    "writers of another table are waited for": [
        ("settle", "'public.events'::regclass", "'public.checkpoints'::regclass"),
    ],
    "the feed has no order": [
        ("read_feed", "order by position", "order by position desc"),
    ],
    "a page of a stream begins where the last one ended": [
        ("read_stream", "version > p_after", "version >= p_after"),
    ],
    "a head is the first version of its stream": [
        ("read_heads", "max(version)", "min(version)"),
    ],
    "the relay's checkpoint goes back": [
        ("move_checkpoint", "where c.position < excluded.position", ""),
    ],
}  # fmt: skip


@pytest.mark.timeout(360)
@pytest.mark.parametrize("says", MUTANTS)
def test_with_a_safety_taken_out_it_is_found_out(mutant: Servers, says: str) -> None:
    with mutant.owner.connect() as connection:
        for name, old, new in MUTANTS[says]:
            apply(connection, changed(definition(connection, name), old, new))
        try:
            with pytest.raises((Exception, pytest.fail.Exception)):  # whatever it stumbles on
                try_out(mutant, 400, Phase.generate)
        finally:
            plain = connection.execution_options(no_parameters=True)
            plain.exec_driver_sql(INIT_SQL.read_text())


def definition(connection: Connection, name: str) -> str:
    """The function as the database has it."""
    found = connection.exec_driver_sql(f"select pg_get_functiondef('public.{name}'::regproc)")
    return str(found.scalar_one())


def changed(text: str, old: str, new: str) -> str:
    assert old in text, re.sub(r"\s+", " ", text)
    return text.replace(old, new)


def apply(connection: Connection, text: str) -> None:
    connection.execution_options(no_parameters=True).exec_driver_sql(text)
