"""`python -m eventcore saga` and `trace`, on the sagas of orders; and what is counted of them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from prometheus_client import REGISTRY

from eventcore.errors import Misconfigured, Refused
from eventcore.operate import sagas
from eventcore.operate.history import History, find
from eventcore.operate.timeline import timeline
from order import service as order_service
from tests.flow.test_saga import STEP, Shop, story
from user import service as user_service

NAMES = ("POSTGRES_HOST", "POSTGRES_DATABASE", "POSTGRES_USER", "POSTGRES_PASSWORD")


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose store of orders the tools open."""
    shop = Shop()
    monkeypatch.setenv("SERVICE", "order")
    for name in NAMES:
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(sagas, "Postgres", lambda *_: shop.order_store)
    return shop


def call(*arguments: str) -> Result:
    return CliRunner().invoke(sagas.saga, arguments, catch_exceptions=False)


def lines(*arguments: str) -> list[dict[str, Any]]:
    """The objects that a command prints with --json."""
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def stick(shop: Shop, user: str) -> str:
    """An order whose saga is stuck: its compensation was answered by nobody."""
    order = shop.place_order(user, 3)
    assert shop.status(order) == "confirmed"
    shop.cancel(order)
    for _ in range(STEP.attempts):
        shop.late()
    return order


def test_a_saga_is_shown_with_each_attempt_and_what_it_waits_for(shop: Shop) -> None:
    user = shop.create_limited()
    order = shop.place_order(user, 3)
    asked = shop.order_store.now
    shop.late()
    [shown] = lines("show", order)
    assert shown["arguments"] == {"userId": user, "orderId": order, "amount": 3}
    assert (shown["saga"], shown["id"], shown["state"]) == ("order_saga", order, "waits")
    assert (shown["awaits"], shown["attempt"]) == ("step reserve-credit", 2)
    due = shop.order_store.now + timedelta(seconds=2 * STEP.timeout)
    assert shown["deadline"] == due.isoformat(timespec="milliseconds")
    first, second = shown["steps"]
    assert (first["request"], first["attempt"], first["answer"]) == ("step", 1, "late")
    assert first["requestedAt"] == asked.isoformat(timespec="milliseconds")
    assert (second["attempt"], second["answer"], second["answeredAt"]) == (2, None, None)
    shop.settle()
    [shown] = lines("show", order)
    assert (shown["state"], shown["outcome"], shown["awaits"]) == ("ended", "done", None)
    assert [each["answer"] for each in shown["steps"]] == ["late", "done"]
    told = call("show", order).output
    assert all(word in told for word in ("order_saga", "userId", "reserve-credit", "late", "done"))


def test_a_refusal_and_its_reason_are_shown(shop: Shop) -> None:
    order = shop.place_order(shop.create_limited(), 11)
    shop.settle()
    [shown] = lines("show", order)
    assert (shown["outcome"], [each["answer"] for each in shown["steps"]]) == (
        "refused",
        ["refused"],
    )
    assert "11" in shown["reason"]


def test_sagas_that_have_not_ended_are_listed_stuck_ones_first(shop: Shop) -> None:
    user = shop.create_limited()
    assert call("list").output == "No saga waits.\n"
    assert call("list", "--stuck").output == "No saga is stuck.\n"
    stuck = stick(shop, user)
    waiting = shop.place_order(user, 1)
    assert [(each["id"], each["state"]) for each in lines("list")] == [
        (stuck, "stuck"), (waiting, "waits"),
    ]  # fmt: skip
    [only] = lines("list", "--stuck")
    assert (only["id"], only["deadline"]) == (stuck, None)
    assert (only["awaits"], only["attempt"]) == ("compensation of reserve-credit", STEP.attempts)
    few = call("list", "--limit", "1", "--json")
    assert [json.loads(line)["id"] for line in few.stdout.splitlines()] == [stuck]
    assert "there are more than 1" in few.stderr
    shop.settle()
    assert lines("list") == []


def test_a_stuck_saga_is_retried_with_its_attempts_and_deadlines(shop: Shop) -> None:
    user = shop.create_limited()
    order = stick(shop, user)
    before = shop.order_store.log[-1]
    done = call("retry", order)
    assert done.exit_code == 0
    assert "requested again; it waits for the compensation of reserve-credit, attempt 1" in (
        done.output
    )
    new = shop.order_store.log[-1]
    assert (new.event_type, new.data["attempt"]) == ("COMPENSATION_REQUESTED", 1)
    assert new.metadata["correlationId"] == before.metadata["correlationId"]
    shop.late()
    assert shop.order_store.log[-1].data["attempt"] == 2
    shop.settle()
    assert story(shop.order_store, order)[-2:] == ["STEP_COMPENSATED", "SAGA_ENDED"]
    assert shop.reserved(user) == 0


def test_a_saga_that_is_not_stuck_is_left_alone(shop: Shop) -> None:
    order = shop.place_order(shop.create_limited(), 3)
    with pytest.raises(Refused, match="not stuck: it waits for the step reserve-credit, attempt 1"):
        call("retry", order)
    shop.settle()
    head = shop.order_store.head
    with pytest.raises(Refused, match="not stuck: it ended done; nothing was changed"):
        call("retry", order)
    assert shop.order_store.head == head


def test_a_saga_that_is_not_there_and_a_service_without_any_are_said_so(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = shop.place_order(shop.create_user())  # no limit, so no saga
    for command in ("show", "retry"):
        with pytest.raises(Refused, match=f"there is no saga {order} in the service order"):
            call(command, order)
    assert call("show", "7").exit_code == 2
    monkeypatch.delenv("POSTGRES_HOST")
    where = "POSTGRES_HOST is not set. Run it in the shell of order-service or order-saga"
    with pytest.raises(Misconfigured, match=where):
        call("list")
    monkeypatch.setenv("SERVICE", "user")
    with pytest.raises(Refused, match="the service user declares no saga"):
        call("list")


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"aggregate_type": "order_saga", **labels}) or 0.0


def test_steps_and_ends_are_counted_by_outcome(shop: Shop) -> None:
    kinds = ("requested", "done", "compensation_requested", "late", "compensated")

    def now() -> list[float]:
        steps = [counted("saga_steps_total", step=STEP.name, outcome=each) for each in kinds]
        ends = [counted("saga_ended_total", outcome=each) for each in ("done", "cancelled")]
        return [*steps, *ends]

    before = now()
    stick(shop, shop.create_limited())
    shop.settle()
    grown = [after - earlier for after, earlier in zip(now(), before, strict=True)]
    assert grown == [1, 1, STEP.attempts, STEP.attempts, 1, 1, 1]


def of_orders(shop: Shop, wanted: str) -> History:
    service = order_service.SERVICE
    types = [each.aggregate_type for each in service.catalogues]
    return find(wanted, "order", shop.order_store, shop.readmodel, service.projections, None, types)


def of_users(shop: Shop, wanted: str) -> History:
    service = user_service.SERVICE
    types = [each.aggregate_type for each in service.catalogues]
    return find(wanted, "user", shop.user_store, shop.readmodel, service.projections, None, types)


def test_an_order_is_traced_with_its_saga_and_in_the_user_service_with_its_credit(
    shop: Shop,
) -> None:
    shop.user_store.now = shop.order_store.now = datetime.now(UTC)  # as of the ids
    user = shop.create_limited()
    order, other = shop.place_order(user, 3), shop.place_order(user, 2)
    shop.settle()
    shop.cancel(order)
    shop.settle()
    found = of_orders(shop, order)
    assert [each.event_type for each in found.events] == story(shop.order_store, order)
    text = "\n".join(each.text for each in timeline(found))
    assert f"order_saga {order}: STEP_REQUESTED appended" in text
    assert "order-saga reacted to event" in text
    there = of_users(shop, order)
    assert [each.event_type for each in there.events] == ["CREDIT_RESERVED", "CREDIT_RELEASED"]
    assert {each.data["orderId"] for each in there.events} == {order}
    assert [each.event_type for each in of_users(shop, other).events] == ["CREDIT_RESERVED"]
    text = "\n".join(each.text for each in timeline(there))
    assert "user-credit reacted to event" in text
    assert f"user-credit is at version 8: order_saga {order}" in text
    assert f"credit {user}: CREDIT_RESERVED appended" in text


def test_an_order_that_nobody_knows_is_not_found_in_the_user_service(shop: Shop) -> None:
    shop.place_order(shop.create_limited(), 3)
    shop.settle()
    assert of_users(shop, str(uuid4())).is_empty
