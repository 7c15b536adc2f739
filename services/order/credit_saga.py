"""The saga of an order whose user has a credit limit: its steps, and how each is undone. Pure.

To make another saga, copy this file: the steps, then what its outcome does to an aggregate of its
own service. The other services have a reactor each, which carries out the steps that are theirs.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

from eventcore.model.event import Event
from eventcore.model.saga import Outcome, Reply, Saga, SagaCommand, SagaState, Start, Step, TimeOut
from eventcore.reactor import Commands, Reactor
from eventcore.store.port import Append, Deadline, Due
from order.events import ORDER_SAGA
from order.order import DECIDER as ORDER
from order.order import EndPending, PlaceOrder, Status
from user.events import CREDIT, CreditRefused, CreditReleased, CreditReserved

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


def _answer(commands: Commands, event: Event) -> None:
    _move(commands, UUID(event.data["orderId"]), Reply(CREDIT.to_domain_event(event)))


def _time_out(commands: Commands, due: Due) -> None:
    _move(commands, due.stream.aggregate_id, TimeOut(due.version))


def _move(commands: Commands, order_id: UUID, command: SagaCommand) -> None:
    """Carries out a command of the saga; an outcome ends the order, if that is still pending."""

    def end_order(_: SagaState | None, saga: SagaState | None) -> Sequence[Append]:
        if not saga or not saga.outcome:
            return []
        late = "The credit could not be checked in time."
        reason = late if saga.outcome == "failed" else saga.reason
        command = EndPending(ENDS[saga.outcome], reason)
        return commands.append_of(ORDER, order_id, command)

    commands.handle(DECIDER, order_id, command, also=end_order, deadline=deadline)


REACTOR = Reactor(
    name="order-saga",
    catalogue=CREDIT,
    queue="order_saga_queue",
    collection="order_saga",
    log_message="Saga answered",
    on={"CREDIT_RESERVED": _answer, "CREDIT_REFUSED": _answer, "CREDIT_RELEASED": _answer},
    deadlines=_time_out,
    deadline_type=ORDER_SAGA.aggregate_type,
)
