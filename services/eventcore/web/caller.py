"""The caller of a request, and what it may see and change."""

import re
from dataclasses import dataclass
from uuid import UUID

from eventcore.errors import NotFound
from eventcore.web.inputs import UUID_PATTERN

READ, WRITE, ADMIN = "read", "write", "admin"
"""Scopes: to query, to command, and to do so for every user."""

SCOPES = (READ, WRITE, ADMIN)

ACTOR_HEADER, SCOPES_HEADER, USER_HEADER = "X-Actor", "X-Actor-Scopes", "X-Actor-User"
"""Headers from the gateway to a service; Authorization then has the service's identity token."""

SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified caller of a request: `actor` names it in events, `user` is its user's id.

    Without an actor nobody is asked for an identity (AUTH=off), and everything is allowed.
    """

    actor: str = ""
    user: str = ""
    scopes: frozenset[str] = frozenset()

    @property
    def is_limited(self) -> bool:
        """Whether the caller sees and changes its own user alone."""
        return bool(self.actor) and ADMIN not in self.scopes

    def may(self, user_id: object) -> bool:
        """Whether the caller may see and change what belongs to a user."""
        return not self.is_limited or bool(self.user and user_id == self.user)

    def require(self, user_id: object, named: str) -> None:
        """Raises NotFound, as for what does not exist, unless the caller may see it."""
        if not self.may(user_id):
            raise NotFound(f"There is no {named}.")


ANYONE = Caller()


def user_id_of(value: object) -> str:
    """The id of a user in its usual form; "" for anything but a UUID."""
    if not isinstance(value, str) or not re.fullmatch(UUID_PATTERN, value):
        return ""
    return str(UUID(value))
