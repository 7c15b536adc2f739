"""The reactor of credit: carries out a step of sagas, `reserve-credit`, and its compensation. Pure.

A reservation compares the user's stream, which has the limit, in its own transaction: a limit that
is lowered at that moment is a conflict, and the reservation is decided again.
"""

from decimal import Decimal
from uuid import UUID

from eventcore.errors import NotFound
from eventcore.model.event import Event
from eventcore.reactor import Commands, Reactor
from eventcore.store.port import Append, Stream
from order.events import ORDER_SAGA
from user.credit import DECIDER, Credit, Release, Reserve
from user.user import DECIDER as USERS

STEP = "reserve-credit"

LIMIT = "CREDIT_LIMIT"
"""The variable with the limit of users for whom none was set."""


def _reserve(commands: Commands, event: Event) -> None:
    if event.data["step"] != STEP:
        return
    asked = event.data["arguments"]
    user_id = UUID(asked["userId"])
    user, version = commands.read(USERS, user_id)
    if user is None:
        raise NotFound(f"There is no user {user_id}, whose credit is to be reserved.")
    limit = user.credit_limit(commands.amount(LIMIT))
    unchanged = Append(Stream(USERS.aggregate_type, user_id), version, [])

    def compared(before: Credit, after: Credit) -> list[Append]:
        return [] if after is before else [unchanged]

    command = Reserve(asked["orderId"], Decimal(asked["amount"]), limit)
    commands.handle(DECIDER, user_id, command, also=compared)


def _release(commands: Commands, event: Event) -> None:
    if event.data["step"] == STEP:
        asked = event.data["arguments"]
        commands.handle(DECIDER, UUID(asked["userId"]), Release(asked["orderId"]))


REACTOR = Reactor(
    name="user-credit",
    catalogue=ORDER_SAGA,
    queue="user_credit_saga_queue",
    on={"STEP_REQUESTED": _reserve, "COMPENSATION_REQUESTED": _release},
    amounts={LIMIT},
)
