"""The life of an order whose user has a credit limit, through both reactors."""

from datetime import timedelta
from decimal import Decimal
from itertools import accumulate
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventcore.errors import CannotApply
from eventcore.model.event import Event
from eventcore.reactor import Commands, Reactor
from eventcore.store.port import Stream
from order import credit_saga
from tests.fakes.shop import FakeShop, reactor_projector
from tests.fakes.store import FakeStore
from user import credit
from user.credit_reactor import REACTOR as CREDIT
from user.events import CreditReserved

REPLIES = credit_saga.REACTOR.name

STEP = credit_saga.SAGA.steps[0]


class Shop(FakeShop):
    """The shop, in which users have credit."""

    def create_limited(self, limit: object = 10) -> str:
        """A user who has a credit limit."""
        user_id = self.create_user()
        changed = self.users.put(f"/users/{user_id}/credit-limit", json={"limit": limit})
        assert changed.status_code == 200, changed.text
        self.settle()
        return user_id

    def status(self, order_id: str) -> Any:
        """The status of an order in a query, once nothing is left to be done."""
        self.settle()
        return self.orders.get(f"/queries/orders/{order_id}").get_json()["status"]

    def cancel(self, order_id: str) -> tuple[int, str]:
        """The status codes of a cancellation: of HTTP, and of the order."""
        answer = self.orders.post(f"/orders/{order_id}/cancel", json={"reason": "rain"})
        return answer.status_code, answer.get_json()["status"]

    def reserved(self, user_id: str) -> Decimal:
        """The reserved credit of a user."""
        events = self.user_store.read_stream(Stream("credit", UUID(user_id)))
        return credit.DECIDER.fold(credit.Credit(), events).reserved

    def late(self) -> None:
        """Time passes until whatever is awaited is late; the deadlines are fired."""
        for store in (self.user_store, self.order_store):
            store.now += timedelta(hours=1)
        self.sweep([REPLIES])


def story(store: FakeStore, order_id: str) -> list[str]:
    """The types of the events of an order and its saga."""
    return [event.event_type for event in store.log if str(event.aggregate_id) == order_id]


@pytest.fixture
def shop() -> Shop:
    return Shop()


PLACED = ["ORDER_PLACED", "SAGA_STARTED", "STEP_REQUESTED"]


def test_an_order_within_the_credit_is_confirmed(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    assert shop.orders.get(f"/queries/orders/{order}").get_json()["status"] == "pending"
    assert story(shop.order_store, order) == PLACED
    assert shop.status(order) == "confirmed"
    ends = ["STEP_DONE", "SAGA_ENDED", "ORDER_CONFIRMED"]
    assert story(shop.order_store, order) == [*PLACED, *ends]
    assert shop.reserved(user) == 10
    assert not shop.order_store.deadlines
    listed = shop.orders.get("/queries/orders?status=confirmed").get_json()["orders"]
    assert [each["orderId"] for each in listed] == [order]


def test_an_order_without_a_limit_is_one_event_and_confirmed_at_once(shop: Shop) -> None:
    order = shop.place_order(shop.create_user(), 1000)
    [event] = [each for each in shop.order_store.log if str(each.aggregate_id) == order]
    assert (event.event_type, set(event.data)) == ("ORDER_PLACED", {"userId", "item", "price"})
    assert shop.orders.get(f"/queries/orders/{order}").get_json()["status"] == "confirmed"
    assert shop.status(order) == "confirmed"
    assert shop.cancel(order) == (200, "cancelled")
    assert story(shop.order_store, order) == ["ORDER_PLACED", "ORDER_CANCELLED"]


def test_an_order_above_the_credit_is_rejected_with_the_reason(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10.01)
    assert shop.status(order) == "rejected"
    shown = shop.orders.get(f"/queries/orders/{order}").get_json()
    assert "10.01" in shown["reason"]
    assert shop.reserved(user) == 0
    assert shop.cancel(order) == (200, "rejected")
    customer = shop.orders.get(f"/queries/customers/{user}").get_json()
    assert (customer["orders"], customer["rejected"], customer["total"]) == (1, 1, 0)


def test_of_two_orders_for_the_last_credit_one_is_confirmed(shop: Shop) -> None:
    user = shop.create_limited()
    orders = [shop.place_order(user, 6) for _ in range(2)]
    assert sorted(map(shop.status, orders)) == ["confirmed", "rejected"]
    assert shop.reserved(user) == 6


def test_a_batch_starts_a_saga_for_each_order_of_a_limited_user(shop: Shop) -> None:
    limited, free = shop.create_limited(), shop.create_user("Bob")
    body = [{"userId": user, "item": "Pen", "price": 6} for user in (limited, free, limited)]
    placed = shop.post(shop.orders, "/orders/batch", {"orders": body})["orderIds"]
    assert story(shop.order_store, placed[1]) == ["ORDER_PLACED"]
    assert len(shop.order_store.deadlines) == 2
    statuses = [shop.status(each) for each in placed]
    assert (statuses[1], sorted(statuses)) == ("confirmed", ["confirmed", "confirmed", "rejected"])


def test_a_pending_order_is_cancelled_when_its_answer_is_there(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    assert shop.cancel(order) == (202, "pending")
    assert shop.cancel(order) == (202, "pending")
    assert story(shop.order_store, order) == [*PLACED, "CANCEL_REQUESTED"]
    assert shop.status(order) == "cancelled"
    assert shop.reserved(user) == 0
    assert shop.cancel(order) == (200, "cancelled")
    assert story(shop.order_store, order)[4:] == [
        "STEP_DONE", "COMPENSATION_REQUESTED", "ORDER_CANCELLED", "STEP_COMPENSATED", "SAGA_ENDED",
    ]  # fmt: skip


def test_a_pending_order_that_is_cancelled_and_refused_is_rejected(shop: Shop) -> None:
    order = shop.place_order(shop.create_limited(), 11)
    assert shop.cancel(order) == (202, "pending")
    assert shop.status(order) == "rejected"


def test_a_confirmed_order_is_cancelled_at_once_and_its_credit_released(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    assert shop.status(order) == "confirmed"
    key = {"Idempotency-Key": "k"}
    first, again = (shop.orders.post(f"/orders/{order}/cancel", headers=key) for _ in range(2))
    assert (first.status_code, first.get_json()["status"]) == (200, "cancelled")
    assert again.get_data() == first.get_data()
    assert story(shop.order_store, order)[6:] == [
        "ORDER_CANCELLED", "CANCEL_REQUESTED", "COMPENSATION_REQUESTED",
    ]  # fmt: skip
    assert len(shop.order_store.deadlines) == 1
    shop.settle()
    assert shop.reserved(user) == 0
    assert story(shop.order_store, order)[9:] == ["STEP_COMPENSATED", "SAGA_ENDED"]
    assert not shop.order_store.deadlines


def test_a_cancellation_obeys_if_match_of_the_order(shop: Shop) -> None:
    order = shop.place_order(shop.create_limited(), 1)
    stale = {"If-Match": '"7"'}
    assert shop.orders.post(f"/orders/{order}/cancel", headers=stale).status_code == 412
    good = {"If-Match": '"1"'}
    assert shop.orders.post(f"/orders/{order}/cancel", headers=good).status_code == 202


def test_a_cancellation_that_races_with_the_answer_is_decided_again(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    append_many = shop.order_store.append_many

    def race(*given: Any) -> Any:
        shop.order_store.append_many = append_many  # type: ignore[method-assign]
        shop.settle()
        return append_many(*given)

    shop.order_store.append_many = race  # type: ignore[assignment,method-assign]
    assert shop.cancel(order) == (200, "cancelled")
    assert shop.status(order) == "cancelled"
    assert shop.reserved(user) == 0


def test_an_order_whose_credit_is_not_answered_is_rejected_and_released_later(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    for _ in range(STEP.attempts):
        shop.late()
    assert story(shop.order_store, order)[-2:] == ["COMPENSATION_REQUESTED", "ORDER_REJECTED"]
    assert shop.status(order) == "rejected"  # the user service is back: reserves and releases
    shown = shop.orders.get(f"/queries/orders/{order}").get_json()
    assert shown["reason"] == "The credit could not be checked in time."
    assert shop.reserved(user) == 0
    assert story(shop.order_store, order)[-1] == "SAGA_ENDED"
    assert story(shop.order_store, order).count("STEP_REQUESTED") == STEP.attempts


@pytest.mark.parametrize("sweep", [0.5, 0.7, 3.0])
def test_without_an_answer_an_order_ends_at_its_deadlines_plus_a_sweep(
    shop: Shop, sweep: float
) -> None:
    order = shop.place_order(shop.create_limited(), 10)
    while story(shop.order_store, order)[-1] != "ORDER_REJECTED":
        shop.order_store.now += timedelta(seconds=sweep)
        shop.projectors[REPLIES].sweep()
    saga = shop.order_store.read_stream(Stream("order_saga", UUID(order)))
    asked = [each.recorded_at for each in saga if each.event_type == "STEP_REQUESTED"]
    passed = [each.recorded_at for each in saga if each.event_type == "DEADLINE_PASSED"]
    after = [(end - asked[0]).total_seconds() for end in passed]
    deadlines = accumulate(STEP.timeout * 2**attempt for attempt in range(STEP.attempts))
    late = [seconds - deadline for seconds, deadline in zip(after, deadlines, strict=True)]
    assert all(0 <= each <= sweep for each in late), "lateness adds up"
    assert asked[1:] == passed[:-1]
    [placed, rejected] = shop.order_store.read_stream(Stream("order", UUID(order)))
    assert (rejected.recorded_at - placed.recorded_at).total_seconds() == pytest.approx(after[-1])


def test_after_an_hour_without_sweeps_each_attempt_still_has_its_time(shop: Shop) -> None:
    order = shop.place_order(shop.create_limited(), 10)
    shop.order_store.now += timedelta(hours=1)
    for _ in range(3):
        shop.projectors[REPLIES].sweep()
    assert story(shop.order_store, order).count("DEADLINE_PASSED") == 1
    shop.order_store.now += timedelta(seconds=2 * STEP.timeout)
    shop.projectors[REPLIES].sweep()
    assert story(shop.order_store, order).count("DEADLINE_PASSED") == 2


def test_a_late_answer_after_a_repeated_request_confirms_once(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    shop.late()
    assert shop.status(order) == "confirmed"
    assert shop.reserved(user) == 10
    kinds = story(shop.order_store, order)
    assert (kinds.count("STEP_REQUESTED"), kinds.count("ORDER_CONFIRMED")) == (2, 1)


def test_a_stuck_saga_moves_on_when_the_answer_comes(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    assert shop.status(order) == "confirmed"
    shop.cancel(order)
    for _ in range(STEP.attempts):
        shop.late()
    assert story(shop.order_store, order)[-1] == "DEADLINE_PASSED"
    assert shop.order_store.count_stuck(["order_saga"]) == {"order_saga": 1}
    shop.late()
    assert story(shop.order_store, order)[-1] == "DEADLINE_PASSED"
    shop.settle()
    assert story(shop.order_store, order)[-2:] == ["STEP_COMPENSATED", "SAGA_ENDED"]
    assert not shop.order_store.deadlines
    assert shop.reserved(user) == 0


def test_a_saga_goes_on_by_the_sweeps_when_its_queues_are_lost(shop: Shop) -> None:
    user = shop.create_limited()
    orders = [shop.place_order(user, 5) for _ in range(3)]
    for _ in range(4):
        shop.relay()
        shop.broker.queues.clear()
        shop.sweep()
    assert sorted(map(shop.status, orders)) == ["confirmed", "confirmed", "rejected"]
    assert shop.reserved(user) == 10


def test_each_message_twice_and_each_sweep_twice_change_nothing(shop: Shop) -> None:
    user = shop.create_limited()
    orders = [shop.place_order(user, 5) for _ in range(3)]
    shop.settle()
    before = [shop.user_store.head, shop.order_store.head]
    for store in (shop.user_store, shop.order_store):
        store.checkpoints.clear()
        store.answers.clear()  # the keys have expired
    for name in (REPLIES, CREDIT.name):
        for document in shop.readmodel.collections[name.replace("-", "_")].values():
            document["version"], document["eventId"] = 0, ""
    shop.settle()
    shop.sweep()
    assert [shop.user_store.head, shop.order_store.head] == before
    assert sorted(map(shop.status, orders)) == ["confirmed", "confirmed", "rejected"]


def test_an_answer_of_an_order_without_a_saga_is_passed_over(shop: Shop) -> None:
    user = shop.create_limited()
    stream = Stream("credit", UUID(user))
    new = credit.DECIDER.to_new_event(CreditReserved(str(uuid4()), Decimal(1)), uuid4())
    shop.user_store.append(stream, 0, [new], {})
    order = shop.place_order(user, 9)
    assert shop.status(order) == "confirmed"
    assert not shop.readmodel.parked(REPLIES)


def test_a_poisoned_saga_parks_alone(shop: Shop) -> None:
    def poisoned(commands: Commands, event: Event) -> None:
        if event.data["arguments"]["amount"] == 666:
            raise CannotApply("this order is poisoned")
        CREDIT.on[event.event_type](commands, event)

    on = {**CREDIT.on, "STEP_REQUESTED": poisoned}
    reactor = Reactor(name=CREDIT.name, catalogue=CREDIT.catalogue, queue=CREDIT.queue, on=on)
    shop.projectors[CREDIT.name] = reactor_projector(
        reactor, shop.readmodel, shop.order_store, shop.user_store, shop.broker
    )
    user = shop.create_limited()
    orders = [shop.place_order(user, price) for price in (4, 666, 4)]
    assert [shop.status(each) for each in orders] == ["confirmed", "pending", "confirmed"]
    assert set(shop.readmodel.parked("user-credit")) == {orders[1]}
    assert not shop.readmodel.parked(REPLIES)


@pytest.mark.parametrize("moment", range(12))
def test_a_cancellation_at_any_moment_leaves_no_credit_reserved(shop: Shop, moment: int) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 10)
    acts = (shop.relay, lambda: shop.consume([CREDIT.name]), lambda: shop.consume([REPLIES]))
    for number in range(moment):
        acts[number % 3]()
    shop.cancel(order)
    assert shop.status(order) == "cancelled"
    assert shop.reserved(user) == 0
    assert story(shop.order_store, order)[-1] == "SAGA_ENDED"
    assert story(shop.order_store, order).count("ORDER_CANCELLED") == 1
