"""The journey of users and orders, through every file but the servers'."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from eventcore import jsontext
from eventcore.clock import Clock
from eventcore.consistency import Waits
from eventcore.errors import NotYet
from eventcore.ids import new_id
from eventcore.model.event import NewEvent
from eventcore.model.projection import Document
from eventcore.readmodel.records import Skip, Write
from eventcore.store.port import Stream
from order.customers import Customers
from order.projections import known_users
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.shop import FakeShop, projector


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


def test_the_six_requests_of_the_guide(shop: FakeShop) -> None:
    created = shop.users.post("/users", json={"name": "Ada", "email": "ada@example.com"})
    assert created.status_code == 202
    user_id = created.get_json()["userId"]
    shop.settle()

    shown = shop.users.get(f"/users/{user_id}")
    assert shown.status_code == 200
    assert shown.get_json() == {
        "_id": user_id,
        "userId": user_id,
        "name": "Ada",
        "email": "ada@example.com",
    }

    placed = shop.orders.post("/orders", json={"userId": user_id, "item": "Laptop", "price": 2500})
    assert placed.status_code == 200
    order_id = placed.get_json()["orderId"]
    shop.settle()

    order = shop.orders.get(f"/queries/orders/{order_id}")
    assert order.status_code == 200
    assert order.get_json() == {
        "_id": order_id,
        "orderId": order_id,
        "userId": user_id,
        "item": "Laptop",
        "price": 2500,
        "status": "confirmed",
        "placedAt": "2026-01-16T10:00:00.000000Z",
        "version": 1,
    }

    changed = shop.users.put(f"/users/{user_id}", json={"name": "Ada L."})
    assert changed.status_code == 200
    shop.settle()
    assert shop.users.get(f"/users/{user_id}").get_json()["name"] == "Ada L."


def test_an_answered_write_is_readable_before_any_projector_has_seen_it(shop: FakeShop) -> None:
    created = shop.users.post("/users", json={"name": "Ada", "email": "a@b"}).get_json()
    assert shop.users.get(f"/users/{created['userId']}").status_code == 200


def test_what_nobody_created_is_a_404_that_says_so(shop: FakeShop) -> None:
    answer = shop.users.get("/users/01890000-0000-7000-8000-000000000000")
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"
    assert "There is no user" in answer.get_json()["detail"]


def test_the_same_key_and_body_do_one_thing_and_answer_the_same(shop: FakeShop) -> None:
    body = {"name": "Ada", "email": "a@b"}
    first, second = (
        shop.users.post("/users", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    )
    assert first.data == second.data
    assert second.status_code == 202
    assert second.headers["Idempotency-Replayed"] == "true"
    assert len(shop.user_store.log) == 1


def test_the_same_key_with_another_body_is_refused(shop: FakeShop) -> None:
    for name, status in (("Ada", 202), ("Bob", 422)):
        answer = shop.users.post(
            "/users", json={"name": name, "email": "a@b"}, headers={"Idempotency-Key": "k"}
        )
        assert answer.status_code == status
    assert len(shop.user_store.log) == 1


def test_a_key_is_looked_up_before_if_match(shop: FakeShop) -> None:
    user_id = shop.create_user()
    headers = {"Idempotency-Key": "k", "If-Match": '"1"'}
    answers = [
        shop.users.put(f"/users/{user_id}", json={"name": "Eve"}, headers=headers).status_code
        for _ in range(2)
    ]
    assert answers == [200, 200]


def test_a_change_based_on_an_old_version_is_a_412_and_writes_nothing(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"}, headers={"If-Match": '"1"'})
    stale = shop.users.put(f"/users/{user_id}", json={"name": "Bob"}, headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    assert stale.headers["ETag"].startswith('"2.')
    assert len(shop.user_store.log) == 2


def test_nothing_differs_nothing_is_written(shop: FakeShop) -> None:
    body = {"name": "Ada", "email": "ada@example.com"}
    created = shop.users.post("/users", json=body)
    answer = shop.users.put(f"/users/{created.get_json()['userId']}", json=body)
    assert answer.status_code == 200
    assert answer.headers["ETag"] == created.headers["ETag"]
    assert len(shop.user_store.log) == 1


def test_both_differ_each_is_an_event(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve", "email": "eve@example.com"})
    assert [e.event_type for e in shop.user_store.log] == [
        "USER_CREATED",
        "USER_NAME_CHANGED",
        "USER_EMAIL_CHANGED",
    ]


def test_cancelling_twice_is_one_event(shop: FakeShop) -> None:
    order_id = shop.place_order(shop.create_user())
    for _ in range(2):
        answer = shop.orders.post(f"/orders/{order_id}/cancel", json={"reason": "too late"})
        assert answer.get_json() == {"orderId": order_id, "status": "cancelled", "version": 2}
    shop.settle()
    assert [e.event_type for e in shop.order_store.log] == ["ORDER_PLACED", "ORDER_CANCELLED"]
    assert shop.orders.get(f"/queries/orders/{order_id}").get_json()["status"] == "cancelled"


def test_cancelling_needs_no_body(shop: FakeShop) -> None:
    order_id = shop.place_order(shop.create_user())
    assert shop.orders.post(f"/orders/{order_id}/cancel").status_code == 200


def test_the_state_as_it_was_by_version_and_by_moment(shop: FakeShop) -> None:
    user_id = shop.create_user("Ada")
    shop.user_store.now = shop.user_store.now.replace(hour=12)
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})

    def name(query: str) -> str:
        answer = shop.users.get(f"/users/{user_id}?{query}")
        assert answer.status_code == 200, answer.text
        shown: str = answer.get_json()["name"]
        return shown

    assert name("version=1") == "Ada"
    assert name("version=2") == "Eve"
    assert name("at=2026-01-16T11:00:00Z") == "Ada"
    assert name("at=2026-01-16T12:00:00Z") == "Eve"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("version=9", 404),
        ("at=2026-01-16T09:00:00Z", 404),
        ("version=0", 422),
        ("version=one", 422),
        ("at=noon", 422),
        ("at=2026-01-16T09:00:00", 422),
        ("version=1&at=2026-01-16T11:00:00Z", 422),
        ("version=1&version=2", 422),
        ("colour=red", 422),
    ],
)
def test_a_past_that_never_was_is_refused_with_a_reason(
    shop: FakeShop, query: str, status: int
) -> None:
    user_id = shop.create_user()
    answer = shop.users.get(f"/users/{user_id}?{query}")
    assert answer.status_code == status
    assert answer.get_json()["detail"]


def test_the_history_is_paged_oldest_first_with_ids(shop: FakeShop) -> None:
    headers = {"X-Request-ID": "r-1", "X-Correlation-ID": "c-1"}
    created = shop.users.post(
        "/users", json={"name": "Ada", "email": "a@b"}, headers=headers
    ).get_json()
    path = f"/users/{created['userId']}"
    shop.users.put(path, json={"name": "Eve"})

    first = shop.users.get(f"{path}/events?limit=1").get_json()
    assert first["next"] == 1
    assert first["events"][0]["eventType"] == "USER_CREATED"
    assert first["events"][0]["causationId"] == "r-1"
    assert first["events"][0]["correlationId"] == "c-1"
    second = shop.users.get(f"{path}/events?limit=1&after={first['next']}").get_json()
    assert second["next"] is None
    assert [e["version"] for e in second["events"]] == [2]


def test_a_history_has_the_document_after_each_event_if_asked(shop: FakeShop) -> None:
    user_id = shop.create_user("Ada")
    for name in ("Eve", "Zoe"):
        shop.users.put(f"/users/{user_id}", json={"name": name})
    path = f"/users/{user_id}/events?include=documents"
    events = shop.users.get(path).get_json()["events"]
    past = [shop.users.get(f"/users/{user_id}?version={n}").get_json() for n in (1, 2, 3)]
    assert [each["document"] for each in events] == past
    assert shop.users.get(f"{path}&after=1&limit=1").get_json()["events"] == events[1:2]
    assert "document" not in shop.users.get(f"/users/{user_id}/events").get_json()["events"][0]
    assert shop.users.get(f"/users/{user_id}/events?include=all").status_code == 422
    renamed = [NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": "Bea"}) for _ in range(100)]
    shop.user_store.append(Stream("user", UUID(user_id)), 3, renamed, {})
    page = shop.users.get(f"{path}&limit=500").get_json()
    assert (len(page["events"]), page["next"]) == (100, 100)
    assert len(shop.users.get(f"/users/{user_id}/events?limit=500").get_json()["events"]) == 103


def test_a_history_has_documents_up_to_an_event_that_does_not_apply(shop: FakeShop) -> None:
    user_id = shop.create_user("Ada")
    unknown = NewEvent(uuid4(), "USER_MARRIED", 1, {})
    renamed = NewEvent(uuid4(), "USER_NAME_CHANGED", 1, {"name": "Eve"})
    shop.user_store.append(Stream("user", UUID(user_id)), 1, [unknown, renamed], {})

    def names() -> list[str | None]:
        listed = shop.users.get(f"/users/{user_id}/events?include=documents").get_json()["events"]
        return [each["document"] and each["document"]["name"] for each in listed]

    assert names() == ["Ada", None, None]
    skip = Skip("users", user_id, 2, str(unknown.event_id), "Ada", "why", shop.user_store.now)
    shop.readmodel.skip(skip)
    assert names() == ["Ada", "Ada", "Eve"]


def test_ids_are_made_where_they_are_missing_and_always_returned(shop: FakeShop) -> None:
    answer = shop.users.get("/healthz", headers={"X-Request-ID": "bad id\x00"})
    assert len(answer.headers["X-Request-ID"]) == 36
    assert answer.headers["X-Correlation-ID"] == answer.headers["X-Request-ID"]


def test_orders_are_listed_newest_first_on_stable_pages(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    placed = [shop.place_order(user_id) for _ in range(5)]
    shop.settle()
    first = shop.orders.get("/queries/orders?limit=2").get_json()
    shop.place_order(user_id)
    shop.settle()
    second = shop.orders.get(f"/queries/orders?limit=2&after={first['next']}").get_json()
    third = shop.orders.get(f"/queries/orders?limit=2&after={second['next']}").get_json()
    listed = [o["orderId"] for page in (first, second, third) for o in page["orders"]]
    assert listed == placed[::-1]
    assert third["next"] is None


def test_orders_are_listed_by_user_and_status(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    of_ada, of_bob = shop.place_order(ada), shop.place_order(bob)
    shop.orders.post(f"/orders/{of_bob}/cancel", json={})
    shop.settle()

    def listed(query: str) -> list[str]:
        page = shop.orders.get(f"/queries/orders?{query}").get_json()
        return [order["orderId"] for order in page["orders"]]

    assert listed(f"userId={ada}") == [of_ada]
    assert listed("status=cancelled") == [of_bob]
    assert listed(f"userId={ada}&status=cancelled") == []


@pytest.mark.parametrize("price", ["2500", "0.10", "19.99", "9999999999.99", "0", "0.5", "1e2"])
def test_prices_survive_to_the_byte(shop: FakeShop, price: str) -> None:
    user_id = shop.create_user()
    body = f'{{"userId":"{user_id}","item":"x","price":{price}}}'
    placed = shop.orders.post("/orders", data=body, content_type="application/json")
    assert placed.status_code == 200, placed.text
    path = f"/queries/orders/{placed.get_json()['orderId']}"
    folded = shop.orders.get(path).data
    shop.settle()
    stored = shop.orders.get(path).data
    exact = price.replace("1e2", "100").encode()
    assert b'"price":' + exact + b"," in folded
    assert folded == stored
    assert jsontext.parse(stored)["price"] == Decimal(price)


def test_an_order_for_nobody_is_user_unknown_once_the_cache_covers_the_id(
    shop: FakeShop,
) -> None:
    body = {"userId": str(new_id()), "item": "x", "price": 1}
    unsure = shop.orders.post("/orders", json=body)
    assert unsure.status_code == 503
    assert unsure.headers["Retry-After"]
    shop.sweep(["known-users"])
    refused = shop.orders.post("/orders", json=body)
    assert refused.status_code == 422
    assert refused.get_json()["title"] == "User unknown"
    assert shop.order_store.log == []


def let_a_millisecond_pass() -> None:
    """An id names a millisecond, the checkpoint a microsecond."""
    moment = time.time()
    while time.time() < moment + 0.002:
        time.sleep(0.001)


def test_a_user_whose_message_was_lost_is_never_called_unknown(shop: FakeShop) -> None:
    shop.sweep(["known-users"])
    let_a_millisecond_pass()
    created = shop.users.post("/users", json={"name": "Ada", "email": "a@b"}).get_json()
    body = {"userId": created["userId"], "item": "x", "price": 1}
    assert shop.orders.post("/orders", json=body).status_code == 503
    shop.sweep(["known-users"])
    assert shop.orders.post("/orders", json=body).status_code == 200


def early() -> datetime:
    """The time of a clock that is an hour ahead."""
    return datetime.now(UTC) + timedelta(hours=1)


def test_a_cache_whose_clock_is_ahead_calls_no_new_user_unknown(shop: FakeShop) -> None:
    ahead = projector(
        known_users.PROJECTION, shop.readmodel, shop.user_store, shop.broker, Clock(now=early)
    )
    ahead.sweep()  # what has settled at this one
    ahead.sweep()  # is covered by this one
    let_a_millisecond_pass()
    body = {"userId": str(new_id()), "item": "x", "price": 1}
    assert shop.orders.post("/orders", json=body).status_code == 503


def test_a_clock_that_was_an_hour_ahead_makes_no_new_user_unknown(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = shop.projectors["known-users"].applier.feed
    with monkeypatch.context() as patch:
        patch.setattr(feed, "_clock", Clock(now=early))
        patch.setattr(shop.user_store, "clock", early)
        shop.sweep(["known-users"])
    ahead = shop.readmodel.checkpoint("known-users").covered_at
    assert ahead
    assert ahead > datetime.now(UTC) + timedelta(minutes=59)
    customers = Customers(shop.readmodel, wait=0.03, margin=10, waits=Waits(0, 2))
    created = shop.users.post("/users", json={"name": "Ada", "email": "a@b"}).get_json()
    with pytest.raises(NotYet):
        customers.wait_for(created["userId"])
    shop.settle()
    assert customers.knows(created["userId"])
    shop.sweep(["known-users"])
    right = shop.readmodel.checkpoint("known-users").covered_at
    assert right
    assert right <= datetime.now(UTC)


@pytest.mark.parametrize("ahead", ["service", "database"])
def test_one_clock_that_stays_ahead_covers_no_moment_to_come(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch, ahead: str
) -> None:
    if ahead == "service":
        feed = shop.projectors["known-users"].applier.feed
        monkeypatch.setattr(feed, "_clock", Clock(now=early))
    else:
        monkeypatch.setattr(shop.user_store, "clock", early)
    shop.sweep(["known-users"])
    covered = shop.readmodel.checkpoint("known-users").covered_at
    assert covered
    assert covered <= datetime.now(UTC)


def test_orders_that_wait_share_few_looks_at_the_cache() -> None:
    readmodel = FakeReadModel()
    asked: list[list[str]] = []
    find = readmodel.find

    def noted(collection: str, ids: Iterable[str]) -> dict[str, Document]:
        asked.append(list(ids))
        return find(collection, asked[-1])

    readmodel.find = noted  # type: ignore[method-assign]
    customers = Customers(readmodel, wait=1, margin=10, waits=Waits(0, 8))

    def order(user_id: str) -> bool:
        try:
            customers.wait_for(user_id)
        except NotYet:
            return False
        return True

    nobody, known = [str(new_id()) for _ in range(7)], str(new_id())
    with ThreadPoolExecutor(8) as threads:
        others = [threads.submit(order, each) for each in nobody]
        real = threads.submit(order, known)
        time.sleep(0.2)
        document = Write({"_id": known, "version": 1}, 0)
        readmodel.write(known_users.PROJECTION.collection, [document])
        assert real.result() is True
        assert not any(each.result() for each in others)
    assert len(asked) <= 30  # in a second; a look each hundredth for each would be 800
    assert max(map(len, asked)) == 8


@pytest.mark.parametrize(("hours", "status"), [(1, 503), (25, 422)])
def test_an_id_from_the_future_may_exist_within_the_clock_tolerance(
    shop: FakeShop, hours: int, status: int
) -> None:
    made = int((time.time() + hours * 3600) * 1000)
    user_id = UUID(int=made << 80 | 0x7 << 76 | 0x8 << 60 | 1)
    shop.sweep(["known-users"])
    body = {"userId": str(user_id), "item": "x", "price": 1}
    assert shop.orders.post("/orders", json=body).status_code == status


def test_an_id_that_the_user_service_never_makes_is_user_unknown_at_once(shop: FakeShop) -> None:
    body = {"userId": str(uuid4()), "item": "x", "price": 1}
    assert shop.orders.post("/orders", json=body).status_code == 422


def test_a_query_that_has_not_changed_is_a_304(shop: FakeShop) -> None:
    user_id = shop.create_user()
    tag = shop.users.get(f"/users/{user_id}").headers["ETag"]
    again = shop.users.get(f"/users/{user_id}", headers={"If-None-Match": tag})
    assert again.status_code == 304
    assert again.data == b""


def test_with_mongodb_away_commands_go_on_and_queries_fold_the_stream(shop: FakeShop) -> None:
    user_id = shop.create_user()
    assert shop.place_order(user_id)  # remembered from now on
    shop.readmodel.away = True
    order_id = shop.place_order(user_id)
    assert shop.orders.get(f"/queries/orders/{order_id}").status_code == 200
    assert shop.orders.get("/queries/orders").status_code == 503


def test_with_mongodb_away_an_order_of_somebody_not_remembered_is_503(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.readmodel.away = True
    body = {"userId": user_id, "item": "x", "price": 1}
    assert shop.orders.post("/orders", json=body).status_code == 503


def test_with_postgresql_away_documents_are_answered_and_all_else_is_503(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.user_store.away = True
    assert shop.users.get(f"/users/{user_id}").status_code == 200
    missing = shop.users.get("/users/01890000-0000-7000-8000-000000000000")
    assert missing.status_code == 503
    refused = shop.users.post("/users", json={"name": "Ada", "email": "a@b"})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]


def test_the_feed_is_for_those_who_know_its_token(shop: FakeShop) -> None:
    rules = shop.users.application.url_map.iter_rules()
    paths = [str(rule) for rule in rules if rule.endpoint.startswith("feed.")]
    assert len(paths) == 5
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert shop.users.get(path, headers=headers).status_code == 401


def test_a_page_of_the_history_changes_its_etag_when_another_page_follows(shop: FakeShop) -> None:
    user_id = shop.create_user()
    path = f"/users/{user_id}/events?limit=1"
    before = shop.users.get(path)
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    after = shop.users.get(path, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert after.get_json()["next"] == 1


def test_a_list_that_has_not_changed_is_a_304(shop: FakeShop) -> None:
    tag = shop.orders.get("/queries/orders").headers["ETag"]
    again = shop.orders.get("/queries/orders", headers={"If-None-Match": tag})
    assert again.status_code == 304


def test_a_key_is_looked_up_before_the_user_is(shop: FakeShop) -> None:
    user_id = shop.create_user()
    body = {"userId": user_id, "item": "x", "price": 1}
    first = shop.orders.post("/orders", json=body, headers={"Idempotency-Key": "k"})
    restarted = FakeShop(shop.user_store, shop.order_store, shop.readmodel, shop.broker)
    shop.readmodel.away = True
    again = restarted.orders.post("/orders", json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.data) == (200, first.data)


def test_who_repeats_an_order_never_waits_for_the_user(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"userId": shop.create_user(), "item": "x", "price": 1}
    first = shop.orders.post("/orders", json=body, headers={"Idempotency-Key": "k"})
    forgetful = FakeShop(shop.user_store, shop.order_store, FakeReadModel(), shop.broker)
    waited: list[float] = []

    def note(_: Waits, seconds: float) -> list[float]:
        waited.append(seconds)
        return []

    monkeypatch.setattr(Waits, "looks", note)
    again = forgetful.orders.post("/orders", json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.data) == (200, first.data)
    assert not waited
