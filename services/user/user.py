"""A user: state, commands and the rules between them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TypeAlias, assert_never

from eventcore.errors import Invalid
from eventcore.model.decider import Decider
from user.events import (
    CATALOGUE,
    UserCreated,
    UserCreditLimitChanged,
    UserEmailChanged,
    UserEvent,
    UserNameChanged,
)


@dataclass(frozen=True, slots=True)
class User:
    """A user, as far as decisions need one. `limit` counts only if `has_limit_set`."""

    name: str
    email: str
    limit: Decimal | None = None
    has_limit_set: bool = False

    def credit_limit(self, default: Decimal | None) -> Decimal | None:
        """The limit of the user's credit, or `default` if none was ever set; None: unlimited."""
        return self.limit if self.has_limit_set else default


@dataclass(frozen=True, slots=True)
class CreateUser:
    """Creates a user."""

    name: str
    email: str


@dataclass(frozen=True, slots=True)
class ChangeUser:
    """Changes the fields of a user that are not None."""

    name: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeCreditLimit:
    """Limits the user's credit; None: unlimited."""

    limit: Decimal | None


UserCommand: TypeAlias = CreateUser | ChangeUser | ChangeCreditLimit


def decide(command: UserCommand, user: User | None) -> Sequence[UserEvent]:
    """The new events: one for each field that differs, none if none does."""
    match command:
        case CreateUser(name, email):
            if user is not None:
                raise Invalid("This user was created before.", "User exists")
            return [UserCreated(name, email)]
        case ChangeUser(name, email):
            if user is None:
                raise Invalid("This user was never created.", "User unknown")
            changes: list[UserEvent] = []
            if name not in (None, user.name):
                changes.append(UserNameChanged(name))
            if email not in (None, user.email):
                changes.append(UserEmailChanged(email))
            return changes
        case ChangeCreditLimit(limit):
            if user is None:
                raise Invalid("This user was never created.", "User unknown")
            is_same = user.has_limit_set and user.limit == limit
            return [] if is_same else [UserCreditLimitChanged(limit)]
        case _:
            assert_never(command)


def evolve(user: User | None, event: UserEvent) -> User | None:
    """The user after an event."""
    match event:
        case UserCreated(name, email):
            return User(name, email)
        case UserNameChanged(name):
            return replace(user, name=name) if user else None
        case UserEmailChanged(email):
            return replace(user, email=email) if user else None
        case UserCreditLimitChanged(limit):
            return replace(user, limit=limit, has_limit_set=True) if user else None
        case _:
            assert_never(event)


DECIDER: Decider[UserCommand, User | None, UserEvent] = Decider(
    catalogue=CATALOGUE, initial=None, decide=decide, evolve=evolve
)
