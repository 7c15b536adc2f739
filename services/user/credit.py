"""The credit of a user, one stream a user, with the user's id. Pure.

An order reserves its price, within the limit. Each order has one answer: a repeated request appends
nothing, and a release that comes before its reservation makes the reservation void. To lower the
limit takes no reservation away.
"""

from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from typing import Any, TypeAlias, assert_never
from uuid import UUID

from eventcore.model.decider import Decider
from eventcore.model.event import Json
from user.events import CREDIT, CreditEvent, CreditRefused, CreditReleased, CreditReserved


@dataclass(frozen=True, slots=True)
class Credit:
    """The reserved amounts by order; and the orders that were refused, and those released.

    Orders without a reservation only grow in number, so their ids are one text, in a short form and
    between spaces: a text of thousands is searched, extended and read from a snapshot much faster
    than a set of them is built.
    """

    live: Mapping[str, Decimal] = field(default_factory=dict)
    refused: str = ""
    released: str = ""

    @property
    def reserved(self) -> Decimal:
        """The sum of all reservations."""
        return sum(self.live.values(), Decimal(0))


@dataclass(frozen=True, slots=True)
class Reserve:
    """Reserves an amount for an order, within a limit; None: unlimited."""

    order_id: str
    amount: Decimal
    limit: Decimal | None


@dataclass(frozen=True, slots=True)
class Release:
    """Releases the reservation of an order, or forbids it for good."""

    order_id: str


CreditCommand: TypeAlias = Reserve | Release


def decide(command: CreditCommand, credit: Credit) -> Sequence[CreditEvent]:
    """The new events: none where the order has its answer."""
    match command:
        case Reserve(order_id, amount, limit):
            mark = _mark(order_id)
            if order_id in credit.live or mark in credit.refused or mark in credit.released:
                return []
            if limit is None or credit.reserved + amount <= limit:
                return [CreditReserved(order_id, amount)]
            left = max(limit - credit.reserved, Decimal(0))
            reason = f"The price, {amount:f}, is above the credit that is left: {left:f}."
            return [CreditRefused(order_id, amount, reason)]
        case Release(order_id):
            is_released = _mark(order_id) in credit.released
            return [] if is_released else [CreditReleased(order_id, credit.live.get(order_id))]
        case _:
            assert_never(command)


def evolve(credit: Credit, event: CreditEvent) -> Credit:
    """The credit after an event."""
    match event:
        case CreditReserved(order_id, amount):
            return replace(credit, live={**credit.live, order_id: amount})
        case CreditRefused(order_id):
            return replace(credit, refused=credit.refused + _mark(order_id))
        case CreditReleased(order_id):
            live = {id: amount for id, amount in credit.live.items() if id != order_id}
            mark = _mark(order_id)
            return Credit(live, credit.refused.replace(mark, ""), credit.released + mark)
        case _:
            assert_never(event)


def _mark(order_id: str) -> str:
    """The id between spaces; of a UUID, 22 characters of base64 instead of 36."""
    try:
        return f" {urlsafe_b64encode(UUID(order_id).bytes)[:22].decode()} "
    except ValueError:
        return f" {order_id} "


def to_json(credit: Credit) -> Json:
    """The credit in a snapshot."""
    return asdict(credit)


def from_json(snapshot: Any) -> Credit:
    """The credit of a snapshot; an amount without a fraction comes as an integer."""
    live = {order_id: Decimal(amount) for order_id, amount in snapshot["live"].items()}
    return Credit(live, snapshot["refused"], snapshot["released"])


DECIDER: Decider[CreditCommand, Credit, CreditEvent] = Decider(
    catalogue=CREDIT,
    initial=Credit(),
    decide=decide,
    evolve=evolve,
    snapshot_every=20,
    state_to_json=to_json,
    state_from_json=from_json,
)
