"""The claim of an e-mail address, which keeps it unique: one stream for each address. Pure.

A user and the claim of their address change in one transaction (`handle(..., also=...)`), so of two
who want one address at the same moment one is refused. The stream's id is made from the address.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

from eventcore.errors import Invalid
from eventcore.model.decider import Decider
from user.events import EMAIL_CLAIMS, EmailClaimed, EmailClaimEvent, EmailReleased


@dataclass(frozen=True, slots=True)
class Claim:
    """Claims the address for a user."""

    user_id: str


@dataclass(frozen=True, slots=True)
class Release:
    """Releases the address that a user has."""

    user_id: str


ClaimCommand: TypeAlias = Claim | Release

Owner: TypeAlias = str | None
"""The state of a claim: the id of the user who has the address; None: nobody has it."""


def decide(command: ClaimCommand, owner: Owner) -> Sequence[EmailClaimEvent]:
    """The new events; raises Invalid for an address that another user has."""
    match command:
        case Claim(user_id):
            if owner not in (None, user_id):
                raise Invalid("Another user has this e-mail address.", "E-mail taken")
            return [] if owner else [EmailClaimed(user_id)]
        case Release(user_id):
            return [EmailReleased(user_id)] if owner == user_id else []
        case _:
            assert_never(command)


def evolve(_: Owner, event: EmailClaimEvent) -> Owner:
    """The owner after an event."""
    match event:
        case EmailClaimed(user_id):
            return user_id
        case EmailReleased():
            return None
        case _:
            assert_never(event)


DECIDER: Decider[ClaimCommand, Owner, EmailClaimEvent] = Decider(
    catalogue=EMAIL_CLAIMS, initial=None, decide=decide, evolve=evolve
)


def stream_id(email: str) -> UUID:
    """The id of an address's stream; upper and lower case are one address."""
    return uuid5(NAMESPACE_URL, f"mailto:{email.casefold()}")
