"""Deadlines that commands set, with their events and with those of other streams."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from eventcore.command import Call, append_of, begin_many, handle
from eventcore.errors import Conflict
from eventcore.model.token import SEEN_HEADER, Token
from eventcore.store.port import Answer, Append, Deadline, Due, Idempotency, Stream
from tests.fakes.store import FakeStore
from user.email_claim import DECIDER as CLAIM
from user.email_claim import Claim
from user.user import DECIDER, ChangeUser, CreateUser, User

ADA = CreateUser("Ada", "ada@example.com")


def answer(_: object, version: int) -> Answer:
    return Answer(200, {"version": version}, {})


def by_name(user: User | None) -> Deadline:
    """A minute for Ada, none for anybody else."""
    assert user
    return Deadline(60.0 if user.name == "Ada" else None)


def due(store: FakeStore, kind: str = "user") -> list[Due]:
    return store.take_due(kind, 100, 0.0)


def test_a_deadline_follows_from_the_state_after_the_command() -> None:
    store, user = FakeStore(), uuid4()
    handle(store, DECIDER, user, ADA, Call({}), answer, creates=True, deadline=by_name)
    assert due(store) == []
    store.now += timedelta(seconds=60)
    assert due(store) == [Due(Stream("user", user), 1)]
    done = handle(store, DECIDER, user, ChangeUser("Eve"), Call({}), answer, deadline=by_name)
    assert done.body == {"version": 2}
    assert due(store) == []


def test_a_command_without_events_does_not_postpone_the_deadline() -> None:
    store, user = FakeStore(), uuid4()
    handle(store, DECIDER, user, ADA, Call({}), answer, creates=True, deadline=by_name)
    store.now += timedelta(seconds=60)
    key = Idempotency("again", "hash")
    handle(store, DECIDER, user, ChangeUser("Ada"), Call({}, key), answer, deadline=by_name)
    assert due(store) == [Due(Stream("user", user), 1)]
    assert store.recorded_answer(key)


def test_a_command_of_another_stream_brings_its_deadline_along() -> None:
    store, user, claim = FakeStore(), uuid4(), uuid4()

    def also(_: object, __: object) -> Sequence[Append]:
        command = Claim(str(user))
        return append_of(store, CLAIM, claim, command, deadline=lambda _: Deadline(0.0))

    handle(store, DECIDER, user, ADA, Call({}), answer, creates=True, also=also)
    assert due(store, "email_claim") == [Due(Stream("email_claim", claim), 1)]
    assert due(store) == []


def test_streams_that_begin_bring_others_with_deadlines_all_or_none() -> None:
    store, users = FakeStore(), [uuid4(), uuid4()]
    taken = uuid4()

    def claim_of(user: UUID) -> Sequence[Append]:
        [append] = append_of(store, CLAIM, user, Claim(str(user)), deadline=lambda _: Deadline(0.0))
        return [append]

    def begin(*ids: UUID) -> Answer:
        commands = dict.fromkeys(ids, ADA)
        return begin_many(store, DECIDER, commands, Call({}), Answer(200, {}, {}), also=claim_of)

    done = begin(*users)
    assert [(event.aggregate_type, event.aggregate_id) for event in store.log] == [
        (kind, user) for kind in ("user", "email_claim") for user in users
    ]
    assert {each.stream.aggregate_id for each in due(store, "email_claim")} == set(users)
    token = Token.parse(str(done.headers[SEEN_HEADER]))
    assert token.streams == {("user", str(user)): 1 for user in users}
    handle(store, DECIDER, taken, ADA, Call({}), answer, creates=True)
    before = len(store.log)
    with pytest.raises(Conflict) as conflict:
        begin(uuid4(), taken)
    assert conflict.value.versions == {1: 1}
    assert len(store.log) == before
    assert len(due(store, "email_claim")) == 2
