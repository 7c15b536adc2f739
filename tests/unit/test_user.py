"""Rules of a user: given events, when a command, then events."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import Invalid
from eventcore.model.event import Event
from user.events import (
    CATALOGUE,
    UserCreated,
    UserCreditLimitChanged,
    UserEmailChanged,
    UserEvent,
    UserNameChanged,
)
from user.user import (
    DECIDER,
    ChangeCreditLimit,
    ChangeUser,
    CreateUser,
    User,
    UserCommand,
    decide,
    evolve,
)

ADA = User("Ada", "ada@example.com")
names = st.text(min_size=1, max_size=5)
commands = st.lists(
    st.one_of(
        st.builds(CreateUser, names, names),
        st.builds(ChangeUser, st.none() | names, st.none() | names),
        st.builds(ChangeCreditLimit, st.none() | st.decimals(0, 2, places=2)),
    ),
    max_size=20,
)


def after(events: list[UserEvent]) -> User | None:
    user: User | None = None
    for event in events:
        user = evolve(user, event)
    return user


def test_creating_a_user_says_so() -> None:
    assert decide(CreateUser("Ada", "ada@example.com"), None) == [
        UserCreated("Ada", "ada@example.com")
    ]


def test_a_user_is_created_once() -> None:
    with pytest.raises(Invalid):
        decide(CreateUser("Ada", "ada@example.com"), ADA)


def test_each_thing_that_differs_is_an_event_of_its_own() -> None:
    assert decide(ChangeUser("Ada L.", "al@example.com"), ADA) == [
        UserNameChanged("Ada L."),
        UserEmailChanged("al@example.com"),
    ]


@pytest.mark.parametrize("command", [ChangeUser(), ChangeUser("Ada"), ChangeUser("Ada", ADA.email)])
def test_what_does_not_differ_is_no_event(command: ChangeUser) -> None:
    assert decide(command, ADA) == []


def test_nobody_cannot_be_changed() -> None:
    for command in (ChangeUser("Ada"), ChangeCreditLimit(None)):
        with pytest.raises(Invalid):
            decide(command, None)


@pytest.mark.parametrize("limit", [None, Decimal(0), Decimal("0.10")])
def test_a_limit_that_is_set_counts_and_the_default_does_not(limit: Decimal | None) -> None:
    assert ADA.credit_limit(Decimal(5)) == 5
    assert ADA.credit_limit(None) is None
    assert decide(ChangeCreditLimit(limit), ADA) == [UserCreditLimitChanged(limit)]
    limited = evolve(ADA, UserCreditLimitChanged(limit))
    assert limited
    assert limited.credit_limit(Decimal(5)) == limit
    assert decide(ChangeCreditLimit(limit), limited) == []


@pytest.mark.parametrize(
    ("data", "limit"),
    [({"limit": Decimal("0.10")}, Decimal("0.10")), ({"limit": 5}, 5), ({}, None)],
)
def test_a_recorded_limit_is_an_exact_decimal_or_none(
    data: dict[str, object], limit: Decimal | None
) -> None:
    now = datetime(2026, 1, 16, tzinfo=UTC)
    event = Event(
        1, uuid4(), "user", uuid4(), 2, "USER_CREDIT_LIMIT_CHANGED", 1, data, {}, now
    )  # fmt: skip
    found = CATALOGUE.to_domain_event(event).limit
    assert found == limit
    assert isinstance(found, Decimal | None)


@given(commands)
def test_after_any_commands_the_state_is_what_the_last_ones_asked_for(
    sequence: list[UserCommand],
) -> None:
    events: list[UserEvent] = []
    expected: User | None = None
    for command in sequence:
        try:
            events += decide(command, after(events))
        except Invalid:
            continue
        if isinstance(command, CreateUser):
            expected = User(command.name, command.email)
        elif expected and isinstance(command, ChangeCreditLimit):
            expected = replace(expected, limit=command.limit, has_limit_set=True)
        elif expected and isinstance(command, ChangeUser):
            name, email = command.name or expected.name, command.email or expected.email
            expected = replace(expected, name=name, email=email)
    assert after(events) == expected
    assert DECIDER.initial is None
