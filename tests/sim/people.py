"""The simulated aggregate: users who may marry, an event that older projectors do not know.

The service knows USER_MARRIED, and an e-mail address that is a number too large for MongoDB; the
projector learns of both when it is deployed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider
from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection
from user.events import UserCreated, UserCreditLimitChanged, UserEmailChanged, UserNameChanged
from user.projections import users
from user.user import (
    ChangeUser,
    CreateUser,
    User,
    decide,
    evolve,
)

TOO_LARGE = 2**70
"""A number that MongoDB cannot store."""


@dataclass(frozen=True, slots=True)
class UserMarried:
    """Something that only new code knows."""


@dataclass(frozen=True, slots=True)
class Marry:
    """Have it recorded, again and again if need be."""


@dataclass(frozen=True, slots=True)
class NumberEmail:
    """Give an e-mail address that no document can hold."""


Fact: TypeAlias = (
    UserCreated | UserNameChanged | UserEmailChanged | UserCreditLimitChanged | UserMarried
)
Command: TypeAlias = CreateUser | ChangeUser | Marry | NumberEmail


def _decide(command: Command, user: User | None) -> Sequence[Fact]:
    if isinstance(command, Marry):
        return [UserMarried()]
    if isinstance(command, NumberEmail):
        return [UserEmailChanged(TOO_LARGE)]  # type: ignore[arg-type]
    return decide(command, user)


def _evolve(user: User | None, fact: Fact) -> User | None:
    return user if isinstance(fact, UserMarried) else evolve(user, fact)


DECIDER: Decider[Command, User | None, Fact] = Decider(
    catalogue=Catalogue("user", Fact), initial=None, decide=_decide, evolve=_evolve
)


def _email(_: Document, event: Event) -> Document:
    return {"email": str(event.data["email"])}


OLD = users.PROJECTION
"""The projector's code before the fix: both poisons park their streams."""

FIXED: Projection = replace(
    OLD,
    ignores=frozenset({"USER_MARRIED"}),
    steps={**OLD.steps, "USER_EMAIL_CHANGED": _email},
)
"""The code after it."""
