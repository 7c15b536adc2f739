"""The saga of an order whose user has a credit limit: its steps, and how each is undone. Pure.

To make another saga, copy this file: the steps, then what its outcome does to an aggregate of its
own service. The other services have a reactor each, which carries out the steps that are theirs.
"""

from collections.abc import Mapping
from uuid import UUID

from eventcore.model.saga import Outcome, Saga, SagaState, Start, Step
from eventcore.store.port import Deadline
from order.events import ORDER_SAGA
from order.order import PlaceOrder, Status
from user.events import CreditRefused, CreditReleased, CreditReserved

SAGA = Saga(
    catalogue=ORDER_SAGA,
    steps=(
        Step(
            "reserve-credit",
            done=CreditReserved,
            refused=CreditRefused,
            compensated=CreditReleased,
            timeout=5,
            attempts=4,
        ),
    ),
)

DECIDER = SAGA.decider

ENDS: Mapping[Outcome, Status] = {
    "done": Status.CONFIRMED,
    "refused": Status.REJECTED,
    "failed": Status.REJECTED,
    "cancelled": Status.CANCELLED,
}
"""The status that each outcome gives the order."""


def start(order_id: UUID, placed: PlaceOrder) -> Start:
    """The command that starts the saga of an order."""
    return Start({"userId": placed.user_id, "orderId": str(order_id), "amount": placed.price})


def deadline(saga: SagaState | None) -> Deadline:
    """The deadline of a saga in this state."""
    return Deadline(SAGA.deadline(saga))
