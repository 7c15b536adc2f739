"""The catalogue of the user service: the events of a user. Pure.

It is in the image of every service.
"""

from dataclasses import dataclass
from typing import TypeAlias

from eventcore.model.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class UserCreated:
    """A user was created."""

    name: str
    email: str


@dataclass(frozen=True, slots=True)
class UserNameChanged:
    """A user's name was changed."""

    name: str


@dataclass(frozen=True, slots=True)
class UserEmailChanged:
    """A user's e-mail address was changed."""

    email: str


UserEvent: TypeAlias = UserCreated | UserNameChanged | UserEmailChanged

CATALOGUE = Catalogue(aggregate_type="user", events=UserEvent)
