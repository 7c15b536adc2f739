"""The calls about a user's credit: what each takes, does and answers."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field, WithJsonSchema

from eventcore.command import handle
from eventcore.errors import NotFound
from eventcore.model.event import Json, tag_of
from eventcore.model.projection import Document, version_of
from eventcore.query import Views
from eventcore.store.port import Answer, Store
from eventcore.web.inputs import Input, Price
from eventcore.web.queries import SOURCE
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, answer
from user.ownership import own_user
from user.projections.credit import reserved
from user.user import DECIDER, ChangeCreditLimit, User

Money = Annotated[Decimal, WithJsonSchema({"type": "number"})]


class NewCreditLimit(Input):
    """The limit of a user's credit."""

    limit: Price | None = Field(description="null: unlimited.")


class CreditLimit(BaseModel):
    """The limit of a user's credit."""

    userId: str
    limit: Money | None = Field(description="null: unlimited.")


class CreditShown(CreditLimit):
    """The credit of a user."""

    reserved: Money = Field(description="For the orders that are confirmed or being checked.")
    available: Money | None = Field(description="0 or more; null: unlimited.")


def add_credit(
    route: Routes, store: Store, users: Views, credit: Views, default: Decimal | None
) -> None:
    """Adds the calls about a user's credit; `default` is the limit of users who have none set."""

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

    @route("GET", "/users/{id}/credit", "A user's credit", {200: CreditShown}, guard=own_user)
    def get_credit(incoming: Incoming[None, None]) -> Answer:
        user, source = users.current(incoming.id, incoming.seen)
        try:
            document, source_of_credit = credit.current(incoming.id, incoming.seen)
        except NotFound:  # nothing was ever reserved
            document, source_of_credit = {}, source
        tag = tag_of(version_of(user), str(user.get("eventId", "")))
        is_live = "live" in (source, source_of_credit)
        headers = {"ETag": f'"{tag}"', SOURCE: "live" if is_live else "view"}
        return Answer(200, shown(user, document, default), headers)


def shown(user: Document, credit: Document, default: Decimal | None) -> Mapping[str, Json]:
    """A user's credit, as the query answers it."""
    limit, taken = user.get("creditLimit", default), reserved(credit)
    return {
        "userId": user["_id"],
        "limit": limit,
        "reserved": taken,
        "available": None if limit is None else max(limit - taken, Decimal(0)),
    }
