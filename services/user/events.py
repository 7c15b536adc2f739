"""The catalogues of the user service: the events of a user, of the claim of an e-mail address, and
of a user's credit. Pure.

It is in the image of every service.
"""

from dataclasses import dataclass
from decimal import Decimal
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


@dataclass(frozen=True, slots=True)
class UserCreditLimitChanged:
    """A user's credit limit was changed; without a limit, the credit is unlimited."""

    limit: Decimal | None = None


UserEvent: TypeAlias = UserCreated | UserNameChanged | UserEmailChanged | UserCreditLimitChanged

CATALOGUE = Catalogue(aggregate_type="user", events=UserEvent)


@dataclass(frozen=True, slots=True)
class EmailClaimed:
    """An e-mail address was claimed for a user."""

    user_id: str


@dataclass(frozen=True, slots=True)
class EmailReleased:
    """An e-mail address was released by the user who had it."""

    user_id: str


EmailClaimEvent: TypeAlias = EmailClaimed | EmailReleased

EMAIL_CLAIMS = Catalogue(aggregate_type="email_claim", events=EmailClaimEvent, owner="user")


@dataclass(frozen=True, slots=True)
class CreditReserved:
    """An amount of a user's credit was reserved for an order."""

    order_id: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class CreditRefused:
    """An amount was not reserved."""

    order_id: str
    amount: Decimal
    reason: str


@dataclass(frozen=True, slots=True)
class CreditReleased:
    """Nothing is reserved for an order any more, and nothing will be.

    `amount` was reserved until then; it is left out if nothing was.
    """

    order_id: str
    amount: Decimal | None = None


CreditEvent: TypeAlias = CreditReserved | CreditRefused | CreditReleased

CREDIT = Catalogue(aggregate_type="credit", events=CreditEvent, owner="user")
