"""The calls about a user's credit: what each takes, does and answers."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field, WithJsonSchema

from eventcore.command import handle
from eventcore.store.port import Answer, Store
from eventcore.web.inputs import Input, Price
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, answer
from user.user import DECIDER, ChangeCreditLimit, User

Money = Annotated[Decimal, WithJsonSchema({"type": "number"})]


class NewCreditLimit(Input):
    """The limit of a user's credit."""

    limit: Price | None = Field(description="null: unlimited.")


class CreditLimit(BaseModel):
    """The limit of a user's credit."""

    userId: str
    limit: Money | None = Field(description="null: unlimited.")


def add_credit(route: Routes, store: Store) -> None:
    """Adds the calls about a user's credit."""

    @route(
        "PUT", "/users/{id}/credit-limit", "Limit a user's credit", {200: CreditLimit},
        body=NewCreditLimit,
    )  # fmt: skip
    def change_limit(incoming: Incoming[NewCreditLimit, None]) -> Answer:
        command = ChangeCreditLimit(incoming.body.limit)

        def show(user: User | None, _: int) -> Answer:
            assert user
            return answer({"userId": str(incoming.id), "limit": user.limit})

        return handle(store, DECIDER, incoming.id, command, incoming.call, show)
