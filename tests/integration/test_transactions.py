"""Transactions over several streams, by many writers at once, on a real PostgreSQL."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from eventcore.command import Call, handle
from eventcore.errors import Conflict, Invalid
from eventcore.ids import new_id
from eventcore.model.event import Event, NewEvent
from eventcore.store.port import Answer, Append, Deadline, Stream
from eventcore.store.postgres import Postgres
from tests.conftest import Databases
from user.api import claims_of
from user.email_claim import stream_id
from user.user import DECIDER, CreateUser

WRITERS = 32

STREAMS = [Stream(kind, UUID(int=number)) for kind in ("order", "user") for number in range(75)]

SECONDS = 8.0

DEADLINES = (None, None, Deadline(0.0), Deadline(60.0), Deadline(None))


@pytest.fixture
def store(spare_databases: Databases) -> Iterator[Postgres]:
    postgres = Postgres(spare_databases("spare", "service"), connections=WRITERS)
    yield postgres
    postgres.close()


class Writer:
    """Appends to random sets of streams, from what it believes their versions to be."""

    def __init__(self, store: Postgres, number: int) -> None:
        self._store = store
        self._random = random.Random(number)
        self._versions: Counter[Stream] = Counter()
        self.appended: list[list[NewEvent]] = []
        self.conflicts = 0

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            chosen = self._random.sample(STREAMS, self._random.randint(1, 100))
            appends = [self._append(stream) for stream in chosen]
            if not any(each.events for each in appends):
                continue
            try:
                self._store.append_many(appends, {})
            except Conflict as conflict:
                self.conflicts += 1
                self._learn(appends, conflict)
                continue
            self.appended.append([event for each in appends for event in each.events])
            for each in appends:
                self._versions[each.stream] += len(each.events)

    def _append(self, stream: Stream) -> Append:
        version = self._versions[stream]
        count = self._random.choice((0, 1, 1, 2) if version else (1, 2))
        events = [NewEvent(uuid4(), "USER_CREATED", 1, {}) for _ in range(count)]
        return Append(stream, version, events, self._random.choice(DEADLINES))

    def _learn(self, appends: list[Append], conflict: Conflict) -> None:
        """Takes the versions from the conflict, which must be above those believed."""
        assert conflict.versions
        for place, version in conflict.versions.items():
            assert version > appends[place].expected_version
            self._versions[appends[place].stream] = version


def feed(store: Postgres, after: int) -> list[Event]:
    """The log above a position, as a reader of the feed sees it."""
    found: list[Event] = []
    while page := store.read_feed(found[-1].position if found else after, store.settled()):
        found += page
    return found


def test_random_transactions_neither_deadlock_nor_tear_nor_get_lost(store: Postgres) -> None:
    writers = [Writer(store, number) for number in range(WRITERS)]
    begun, until, seen = store.settled(), time.monotonic() + SECONDS, list[Event]()
    with ThreadPoolExecutor(WRITERS) as pool:
        runs = [pool.submit(writer.run, until) for writer in writers]
        while time.monotonic() < until:
            store.take_due("user", 50, 0.01)
            seen += store.read_feed(seen[-1].position if seen else begun, store.settled())
        for run in runs:
            run.result()  # a deadlock would be StoreSlow
    log = feed(store, begun)
    assert sum(writer.conflicts for writer in writers) > WRITERS
    assert seen == log[: len(seen)], "the feed has skipped an event"
    _assert_whole(log, [events for writer in writers for events in writer.appended])


def _assert_whole(log: list[Event], appended: list[list[NewEvent]]) -> None:
    ids = [event.event_id for event in log]
    assert sorted(ids) == sorted(event.event_id for events in appended for event in events)
    for stream in STREAMS:
        versions = [e.version for e in log if Stream(e.aggregate_type, e.aggregate_id) == stream]
        assert versions == list(range(1, len(versions) + 1))
    places = {event_id: place for place, event_id in enumerate(ids)}
    for events in appended:
        order = [places[event.event_id] for event in events]
        assert order == sorted(order), "positions are drawn in another order than given"


def test_a_compared_stream_does_not_change_before_the_commit(store: Postgres) -> None:
    """Two transactions that each compare the stream that the other changes: one of them wins."""
    for _ in range(100):
        one, other = Stream("user", uuid4()), Stream("user", uuid4())
        for stream in (one, other):
            store.append(stream, 0, [NewEvent(uuid4(), "USER_CREATED", 1, {})], {})

        def change(changed: Stream, compared: Stream) -> bool:
            events = [NewEvent(uuid4(), "USER_CREATED", 1, {})]
            try:
                store.append_many([Append(changed, 1, events), Append(compared, 1, [])], {})
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            won = [*pool.map(change, (one, other), (other, one))]
        assert sorted(won) == [False, True]


def test_of_many_users_who_want_one_address_at_once_exactly_one_gets_it(store: Postgres) -> None:
    def create(email: str) -> str:
        user_id = new_id()
        try:
            handle(
                store, DECIDER, user_id, CreateUser("Ada", email), Call({}),
                lambda _, __: Answer(202, {}, {}), creates=True, also=claims_of(store, user_id),
            )  # fmt: skip
        except Invalid as refused:
            return refused.code
        return str(user_id)

    before = store.settled()
    with ThreadPoolExecutor(WRITERS) as pool:
        for number in range(10):
            email = f"ada{number}@example.com"
            outcomes = [*pool.map(create, [email] * WRITERS)]
            assert outcomes.count("e-mail-taken") == WRITERS - 1
            [claim] = store.read_stream(Stream("email_claim", stream_id(email)))
            assert claim.data["userId"] in outcomes
    assert len(feed(store, before)) == 2 * 10
