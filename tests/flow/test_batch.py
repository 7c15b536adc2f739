"""Several orders in one transaction: all or none."""

from uuid import uuid4

import pytest

from eventcore.ids import new_id
from eventcore.model.token import Token
from tests.fakes.shop import FakeShop


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


def orders(*user_ids: str) -> dict[str, object]:
    """A body with an order for each user."""
    return {
        "orders": [
            {"userId": user_id, "item": f"Laptop {place}", "price": place}
            for place, user_id in enumerate(user_ids)
        ]
    }


def test_a_batch_of_orders_is_placed_and_answered_in_its_order(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    placed = shop.orders.post("/orders/batch", json=orders(ada, bob, ada))
    assert placed.status_code == 200, placed.text
    shop.settle()
    shown = [
        shop.orders.get(f"/queries/orders/{id}").get_json() for id in placed.get_json()["orderIds"]
    ]
    assert [(each["userId"], each["item"], each["price"]) for each in shown] == [
        (ada, "Laptop 0", 0), (bob, "Laptop 1", 1), (ada, "Laptop 2", 2),
    ]  # fmt: skip


def test_a_batch_is_seen_with_its_token_before_the_projector_runs(shop: FakeShop) -> None:
    ada = shop.create_user()
    placed = shop.orders.post("/orders/batch", json=orders(*[ada] * 10))
    token = placed.headers["Consistency-Token"]
    newest = list(reversed(placed.get_json()["orderIds"]))[:8]
    assert [id for _, id in Token.parse(token).streams] == newest
    assert Token.parse(token).positions == {"order": 10}
    seen = shop.orders.get(f"/queries/orders/{newest[0]}", headers={"Consistency-Token": token})
    assert seen.status_code == 200
    assert seen.headers["Answered-From"] == "live"


def test_one_refused_order_refuses_the_batch_and_each_is_named(shop: FakeShop) -> None:
    ada, nobody = shop.create_user(), str(new_id())
    before, unknown = len(shop.order_store.log), str(uuid4())
    refused = shop.orders.post("/orders/batch", json=orders(ada, unknown, ada, unknown))
    assert refused.status_code == 422
    assert refused.get_json()["title"] == "User unknown"
    assert refused.get_json()["detail"] == "2 of the 4 orders are of no user: none was placed."
    assert [each["field"] for each in refused.get_json()["errors"]] == [
        "orders.1.userId", "orders.3.userId",
    ]  # fmt: skip
    unsure = shop.orders.post("/orders/batch", json=orders(ada, nobody))
    assert unsure.status_code == 503
    assert len(shop.order_store.log) == before


def test_a_batch_is_repeated_safely_with_its_key(shop: FakeShop) -> None:
    ada = shop.create_user()
    key = {"Idempotency-Key": "batch-1"}
    first = shop.orders.post("/orders/batch", json=orders(ada, ada), headers=key)
    again = shop.orders.post("/orders/batch", json=orders(ada, ada), headers=key)
    assert again.get_data() == first.get_data()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(shop.order_store.log) == 2
    other = shop.orders.post("/orders/batch", json=orders(ada), headers=key)
    assert other.status_code == 422


@pytest.mark.parametrize("count", [0, 101])
def test_a_batch_has_between_one_and_a_hundred_orders(shop: FakeShop, count: int) -> None:
    ada = shop.create_user()
    refused = shop.orders.post("/orders/batch", json=orders(*[ada] * count))
    assert refused.status_code == 422
    assert refused.get_json()["errors"][0]["field"] == "orders"
    hundred = shop.orders.post("/orders/batch", json=orders(*[ada] * 100))
    assert hundred.status_code == 200
    assert len(set(hundred.get_json()["orderIds"])) == 100
