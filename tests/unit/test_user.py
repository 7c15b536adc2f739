"""Rules of a user: given events, when a command, then events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import Invalid
from user.events import UserCreated, UserEmailChanged, UserEvent, UserNameChanged
from user.user import (
    DECIDER,
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
    with pytest.raises(Invalid):
        decide(ChangeUser("Ada"), None)


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
        elif expected:
            expected = User(command.name or expected.name, command.email or expected.email)
    assert after(events) == expected
    assert DECIDER.initial is None
