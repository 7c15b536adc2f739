"""The order service's queries of customers."""

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from eventcore.errors import Invalid
from eventcore.query import ViewDocuments
from eventcore.store.port import Answer
from eventcore.web.inputs import DIGITS, UUID_PATTERN, Form, QueryInput
from eventcore.web.queries import SOURCE, source_of
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, in_handler
from order.ownership import own_customer
from order.projections.customers import shown


class CustomerShown(BaseModel):
    """The orders of a user, counted; `total` leaves out those that are cancelled or rejected."""

    id: str = Field(alias="_id")
    userId: str
    name: str | None = Field(description="null: the user's event has not arrived yet.")
    orders: int
    cancelled: int
    rejected: int
    total: Annotated[Decimal, WithJsonSchema({"type": "number"})]
    lastOrderAt: str | None


class CustomerList(BaseModel):
    """A page of customers, the highest first."""

    customers: list[CustomerShown]
    next: str | None = Field(description="The `after` of the next page; null: there is none.")


PLACE = Form(
    re.compile(f"^[0-9A-Z.:+-]{{0,60}}_{UUID_PATTERN[1:]}"),
    "must be the `next` of a page with the same `sort`",
)
"""A value and the id of the user who has it."""


class CustomerQuery(QueryInput):
    """Which customers to list, and in which order."""

    sort: Literal["total", "lastOrderAt"] = Field("total", description="The highest come first.")
    limit: Annotated[int, Field(ge=1, le=100), DIGITS] = Field(20, description="How many at most.")
    after: Annotated[str, PLACE] | None = Field(
        None, description="Those after this place: `next` of a page with the same `sort`."
    )

    @property
    def place(self) -> tuple[str | Decimal, str] | None:
        """The value and the id after which the page begins; raises Invalid."""
        if self.after is None:
            return None
        value, _, user_id = self.after.rpartition("_")
        try:
            return _number(value) if self.sort == "total" else value, user_id
        except ArithmeticError as error:
            raise Invalid("`after` must be the `next` of a page with the same `sort`.") from error


def _number(text: str) -> Decimal:
    """A number that a read model can compare with; raises ArithmeticError for any other text."""
    number = Decimal(text)
    if not number.is_finite() or len(number.as_tuple().digits) > 30 or abs(number.adjusted()) > 30:
        raise InvalidOperation
    return number


def add_customers(route: Routes, customers: ViewDocuments) -> None:
    """Adds the queries of customers: a list, and one by its id."""

    @route(
        "GET", "/queries/customers", "Customers, the highest first", {200: CustomerList},
        query=CustomerQuery, guard=in_handler,
    )  # fmt: skip
    def list_customers(incoming: Incoming[None, CustomerQuery]) -> Answer:
        asked = incoming.query
        source = source_of(customers.reached(incoming.seen, incoming.wait))
        if incoming.caller.is_limited:
            place, own = asked.place, customers.find([incoming.caller.user])
            found = [] if place else list(own.values())
        else:
            found = customers.ranked(asked.sort, asked.place, asked.limit + 1)
        page, more = found[: asked.limit], len(found) > asked.limit
        body = {
            "customers": tuple(shown(document) for document in page),
            "next": f"{page[-1][asked.sort]}_{page[-1]['_id']}" if more else None,
        }
        return Answer(200, body, {SOURCE: source})

    @route(
        "GET", "/queries/customers/{id}", "A customer", {200: CustomerShown},
        guard=own_customer(customers),
    )  # fmt: skip
    def get_customer(incoming: Incoming[None, None]) -> Answer:
        reached = customers.reached(incoming.seen, incoming.wait)
        document = customers.one(str(incoming.id), reached)
        return Answer(200, shown(document), {SOURCE: source_of(reached)})
