"""The order service's calls: what each takes, does and answers."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Literal, TypeAlias
from uuid import UUID

from pydantic import BaseModel, Field, WithJsonSchema

from eventcore.command import answered_before, begin_many, handle
from eventcore.errors import Invalid
from eventcore.ids import new_id
from eventcore.model.event import Json
from eventcore.model.projection import Document
from eventcore.query import ViewDocuments, Views
from eventcore.store.port import Answer, Append, Store
from eventcore.web.inputs import DIGITS, VISIBLE, Id, Input, Price, QueryInput
from eventcore.web.queries import SOURCE, add_queries, source_of
from eventcore.web.request import Incoming
from eventcore.web.routes import Routes, answer
from order.customer_queries import add_customers
from order.customers import Customers, require_users
from order.order import DECIDER, CancelOrder, Order, PlaceOrder, Status
from order.ownership import own_list, own_order, own_user
from order.pending import cancel_saga, saga_of
from order.projections.orders import shown, stored

OrderStatus: TypeAlias = Literal["pending", "confirmed", "rejected", "cancelled"]


class NewOrder(Input):
    """An order to be placed."""

    userId: Id
    item: Annotated[str, Field(min_length=1, max_length=200, examples=["Laptop"]), VISIBLE]
    price: Price


class NewOrders(Input):
    """Orders to be placed, all or none."""

    orders: Annotated[list[NewOrder], Field(min_length=1, max_length=100)]


class Cancellation(Input):
    """Why an order is called off."""

    reason: Annotated[str, Field(max_length=500)] | None = None


class OrderAccepted(BaseModel):
    """The order is recorded and readable at once; pending, if the user's credit is limited."""

    orderId: str


class OrdersAccepted(BaseModel):
    """The orders are recorded and readable at once."""

    orderIds: list[str] = Field(description="In the order in which they were given.")


class OrderState(BaseModel):
    """Where an order is in its life now. A pending one is cancelled when its saga allows."""

    orderId: str
    status: OrderStatus
    version: int


class OrderShown(BaseModel):
    """An order."""

    id: str = Field(alias="_id")
    orderId: str
    userId: str
    item: str
    price: Annotated[Decimal, WithJsonSchema({"type": "number"})]
    status: OrderStatus
    placedAt: str
    version: int
    reason: str | None = Field(None, description="Why it is rejected; left out of any other.")


class OrderListed(OrderShown):
    """An order with the name of its user."""

    userName: str | None = Field(description="null: the user's event has not arrived yet.")


class OrderList(BaseModel):
    """A page of orders, newest first."""

    orders: list[OrderListed]
    next: str | None = Field(description="The `after` of the next page; null: there is none.")


class OrderQuery(QueryInput):
    """Which orders to list."""

    userId: Id | None = Field(None, description="Those of one user.")
    status: OrderStatus | None = Field(None, description="Those in one state.")
    limit: Annotated[int, Field(ge=1, le=100), DIGITS] = Field(20, description="How many at most.")
    after: Id | None = Field(None, description="Those older than this order: `next` of a page.")


def routes(store: Store, orders: Views, customers: Customers, known: ViewDocuments) -> Routes:
    """All routes of the order service."""
    route = Routes("orders")
    _add_placing(route, store, customers)
    _add_cancelling(route, store)
    _add_batch(route, store, customers)
    add_queries(
        route, "/queries/orders/{id}", orders, shown, OrderShown, "/orders/{id}/events", "userId"
    )
    _add_list(route, orders, known)
    add_customers(route, known)
    return route


def _add_placing(route: Routes, store: Store, customers: Customers) -> None:

    @route("POST", "/orders", "Place an order", {200: OrderAccepted}, body=NewOrder, guard=own_user)
    def place_order(incoming: Incoming[NewOrder, None]) -> Answer:
        body = incoming.body
        if not customers.knows(body.userId, incoming.seen):
            if earlier := answered_before(store, incoming.call):
                return earlier
            customers.wait_for(body.userId, incoming.seen, incoming.wait)
        order_id = new_id()
        limited = customers.is_limited(body.userId, incoming.seen)
        command = PlaceOrder(body.userId, body.item, body.price, pending=limited)

        def start(_: Order | None, __: Order | None) -> Sequence[Append]:
            return saga_of(store, order_id, command)

        def accept(_: Order | None, __: int) -> Answer:
            return answer({"orderId": str(order_id)})

        return handle(
            store, DECIDER, order_id, command, incoming.call, accept,
            creates=True, also=start if limited else None,
        )  # fmt: skip


def _add_cancelling(route: Routes, store: Store) -> None:

    @route(
        "POST", "/orders/{id}/cancel", "Cancel an order", {200: OrderState, 202: OrderState},
        body=Cancellation, body_required=False, guard=own_order(store),
    )  # fmt: skip
    def cancel_order(incoming: Incoming[Cancellation, None]) -> Answer:
        command = CancelOrder(incoming.body.reason)

        def turn_back(order: Order | None, _: Order | None) -> Sequence[Append]:
            return cancel_saga(store, incoming.id, command) if order and order.has_saga else []

        def state(order: Order | None, version: int) -> Answer:
            assert order
            body = {"orderId": str(incoming.id), "status": order.status.value, "version": version}
            return answer(body, 202 if order.status is Status.PENDING else 200)

        return handle(store, DECIDER, incoming.id, command, incoming.call, state, also=turn_back)


def _add_batch(route: Routes, store: Store, customers: Customers) -> None:

    @route(
        "POST", "/orders/batch", "Place up to 100 orders, all or none", {200: OrdersAccepted},
        body=NewOrders, guard=own_user,
    )  # fmt: skip
    def place_orders(incoming: Incoming[NewOrders, None]) -> Answer:
        orders = incoming.body.orders
        if unknown := customers.unknown({each.userId for each in orders}, incoming.seen):
            if earlier := answered_before(store, incoming.call):
                return earlier
            _require_users(orders, unknown, customers, incoming)
        limited = customers.limited_among({each.userId for each in orders}, incoming.seen)
        commands = {
            new_id(): PlaceOrder(each.userId, each.item, each.price, each.userId in limited)
            for each in orders
        }

        def start(order_id: UUID) -> Sequence[Append]:
            return saga_of(store, order_id, commands[order_id])

        accepted = answer({"orderIds": [str(order_id) for order_id in commands]})
        return begin_many(store, DECIDER, commands, incoming.call, accepted, also=start)


def _require_users(
    orders: Sequence[NewOrder],
    unknown: Sequence[str],
    customers: Customers,
    incoming: Incoming[NewOrders, None],
) -> None:
    """Waits for users who are not known yet; raises Invalid, which names each order of no user."""
    refused = {}
    for user_id in unknown:
        try:
            customers.wait_for(user_id, incoming.seen, incoming.wait)
        except Invalid as error:
            refused[user_id] = error
    require_users([each.userId for each in orders], refused)


def _add_list(route: Routes, orders: Views, known: ViewDocuments) -> None:
    @route(
        "GET", "/queries/orders", "Orders, newest first", {200: OrderList}, query=OrderQuery,
        guard=own_list,
    )  # fmt: skip
    def list_orders(incoming: Incoming[None, OrderQuery]) -> Answer:
        asked = incoming.query
        user_id = incoming.caller.user if incoming.caller.is_limited else asked.userId
        status = stored(asked.status) if asked.status else None
        wanted = {"userId": user_id, "status": status}
        where = {name: value for name, value in wanted.items() if value is not None}
        source = source_of(orders.reached(incoming.seen, incoming.wait))
        found = orders.page(where, asked.after, asked.limit)
        page = found[: asked.limit]
        more = len(found) > asked.limit
        users = known.find(str(each["userId"]) for each in page)

        def name_of(order: Document) -> Json:
            return users.get(str(order["userId"]), {}).get("name")

        body = {
            "orders": tuple({**shown(each), "userName": name_of(each)} for each in page),
            "next": page[-1]["_id"] if more else None,
        }
        return Answer(200, body, {SOURCE: source})
