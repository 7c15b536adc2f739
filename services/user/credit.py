"""The credit of a user, one stream a user, with the user's id. Pure.

An order reserves its price, within the limit. Each order has one answer: a repeated request appends
nothing, and a release that comes before its reservation makes the reservation void. To lower the
limit takes no reservation away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, TypeAlias, assert_never

from eventcore.model.decider import Decider
from eventcore.model.event import Json
from user.events import CREDIT, CreditEvent, CreditRefused, CreditReleased, CreditReserved


@dataclass(frozen=True, slots=True)
class Credit:
    """The reserved amounts by order; and the orders that were refused, and those released."""

    live: Mapping[str, Decimal] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    released: frozenset[str] = frozenset()

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
            if any(order_id in each for each in (credit.live, credit.refused, credit.released)):
                return []
            if limit is None or credit.reserved + amount <= limit:
                return [CreditReserved(order_id, amount)]
            left = max(limit - credit.reserved, Decimal(0))
            reason = f"The price, {amount:f}, is above the credit that is left: {left:f}."
            return [CreditRefused(order_id, amount, reason)]
        case Release(order_id):
            is_released = order_id in credit.released
            return [] if is_released else [CreditReleased(order_id, credit.live.get(order_id))]
        case _:
            assert_never(command)


def evolve(credit: Credit, event: CreditEvent) -> Credit:
    """The credit after an event."""
    match event:
        case CreditReserved(order_id, amount):
            return replace(credit, live={**credit.live, order_id: amount})
        case CreditRefused(order_id):
            return replace(credit, refused=credit.refused | {order_id})
        case CreditReleased(order_id):
            live = {id: amount for id, amount in credit.live.items() if id != order_id}
            refused = credit.refused - {order_id}
            return Credit(live, refused, credit.released | {order_id})
        case _:
            assert_never(event)


def to_json(credit: Credit) -> Json:
    """The credit in a snapshot; ids of orders, which have no space, are one text: that is parsed
    many times faster than a list of thousands.
    """
    return {
        "live": credit.live,
        "refused": " ".join(credit.refused),
        "released": " ".join(credit.released),
    }


def from_json(snapshot: Any) -> Credit:
    """The credit of a snapshot; an amount without a fraction comes as an integer."""
    live = {order_id: Decimal(amount) for order_id, amount in snapshot["live"].items()}
    refused, released = (frozenset(snapshot[name].split()) for name in ("refused", "released"))
    return Credit(live, refused, released)


DECIDER: Decider[CreditCommand, Credit, CreditEvent] = Decider(
    catalogue=CREDIT,
    initial=Credit(),
    decide=decide,
    evolve=evolve,
    snapshot_every=20,
    state_to_json=to_json,
    state_from_json=from_json,
)
