"""`trace` prints everything that happened to an id, in order, and no personal data."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventcore import jsontext
from eventcore.clock import SYSTEM_CLOCK
from eventcore.errors import ReadModelUnavailable, StoreUnavailable
from eventcore.ids import made_at, new_id
from eventcore.model.event import NewEvent
from eventcore.operate.history import History, find
from eventcore.operate.timeline import tell, timeline
from eventcore.project.view_applier import ViewApplier
from eventcore.project.view_projector import PartSweep
from eventcore.readmodel.records import Skip
from eventcore.store.feed import StoreFeed
from eventcore.store.port import Stream
from order.projections import customers, known_users, orders
from tests.fakes.shop import FakeShop
from tests.fakes.store import FakeStore
from user.projections import users

OF_ORDERS = (orders.PROJECTION, known_users.PROJECTION)


@pytest.fixture
def shop() -> FakeShop:
    now = datetime.now(UTC)
    return FakeShop(user_store=FakeStore(now=now), order_store=FakeStore(now=now))


def order_history(shop: FakeShop, wanted: str, since: datetime | None = None) -> History:
    return find(wanted, "order", shop.order_store, shop.readmodel, OF_ORDERS, since)


def user_history(shop: FakeShop, wanted: str) -> History:
    return find(wanted, "user", shop.user_store, shop.readmodel, (users.PROJECTION,))


def told(found: History, **options: bool) -> list[str]:
    return [entry.what for entry in timeline(found, **options)]


def as_json(found: History, **options: bool) -> list[dict[str, Any]]:
    entries = timeline(found, **options)
    return [json.loads(jsontext.render(entry.as_json())) for entry in entries]


def test_an_order_is_told_from_its_request_to_its_document_and_its_user(shop: FakeShop) -> None:
    order_id = shop.place_order(user_id := shop.create_user())
    shop.order_store.now = datetime.now(UTC)
    shop.settle()
    entries = as_json(order_history(shop, order_id))
    by = {each["what"]: each for each in entries}
    assert by["event"]["eventType"] == "ORDER_PLACED"
    assert (by["event"]["position"], by["event"]["version"], by["event"]["relayed"]) == (1, 1, True)
    assert by["request"]["requestId"] == by["event"]["causationId"]
    documents = {each["projection"]: each for each in entries if each["what"] == "document"}
    assert documents["orders"]["stream"] == order_id
    assert documents["known-users"]["stream"] == user_id
    assert (by["relay"]["relayed"], by["relay"]["head"]) == (1, 1)
    assert [each["what"] for each in entries].index("request") < [
        each["what"] for each in entries
    ].index("event")


def test_times_are_in_order_and_each_gap_is_since_the_one_before(shop: FakeShop) -> None:
    order_id = shop.place_order(shop.create_user())
    shop.settle()
    happened = [each for each in as_json(order_history(shop, order_id)) if each["at"]]
    moments = [datetime.fromisoformat(each["at"]) for each in happened]
    assert happened[0]["gapSeconds"] is None
    for before, after, entry in zip(moments, moments[1:], happened[1:], strict=False):
        expected = max(0.0, (after - before).total_seconds())
        assert entry["gapSeconds"] == pytest.approx(expected, abs=0.002)


def test_what_is_not_relayed_and_not_projected_is_said_so(shop: FakeShop) -> None:
    order_id = shop.place_order(shop.create_user())
    found = order_history(shop, order_id)
    [event] = [each for each in as_json(found) if each["what"] == "event"]
    [standing] = [each for each in as_json(found) if each["what"] == "standing"]
    assert event["relayed"] is False
    assert (standing["projection"], standing["version"]) == ("orders", 0)
    text = "\n".join(map(tell, timeline(found)))
    assert "not relayed yet" in text
    assert f"orders has no document: order {order_id}" in text


def test_a_document_that_is_behind_says_of_what(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    text = "\n".join(map(tell, timeline(user_history(shop, user_id))))
    assert f"users wrote user {user_id} at version 1" in text
    assert f"users is at version 1 of 2: user {user_id}" in text


def test_a_write_of_a_later_request_is_no_step_of_this_one(shop: FakeShop) -> None:
    headers = {"X-Correlation-ID": str(new_id())}
    created = shop.users.post("/users", json={"name": "A", "email": "a@b.example"}, headers=headers)
    user_id = (created.json or {})["userId"]
    shop.settle()
    assert "document" in told(user_history(shop, headers["X-Correlation-ID"]))
    order_id = shop.place_order(user_id)
    shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    shop.order_store.now = datetime.now(UTC)
    shop.settle()
    found = user_history(shop, headers["X-Correlation-ID"])
    assert told(found) == ["request", "event", "standing", "relay"]
    says = rf"users is at version 2: user {user_id}; it had version 1 by \S+Z at the latest"
    assert re.search(says, "\n".join(map(tell, timeline(found))))
    of_order = as_json(order_history(shop, order_id))
    by = {each["projection"]: each for each in of_order if "projection" in each}
    assert by["orders"]["what"] == "document"
    assert (by["known-users"]["what"], by["known-users"]["at"]) == ("standing", None)
    assert (by["known-users"]["version"], by["known-users"]["stream"]) == (2, user_id)


def park(shop: FakeShop, user_id: str) -> None:
    event = NewEvent(uuid4(), "USER_MARRIED", 1, {"to": "bob@example.com"})
    shop.user_store.append(Stream("user", UUID(user_id)), 1, [event], {})
    shop.settle()
    [key] = [each for each in shop.readmodel.parked_list if each[0] == "users"]
    parked = shop.readmodel.parked_list[key]
    shop.readmodel.parked_list[key] = replace(parked, error="ValueError: bob@example.com")


def test_a_parked_stream_is_shown_parked_without_the_text_of_its_error(shop: FakeShop) -> None:
    user_id = shop.create_user()
    park(shop, user_id)
    found = user_history(shop, user_id)
    [parked] = [each for each in as_json(found) if each["what"] == "parked"]
    assert (parked["version"], parked["highest"], parked["error"]) == (2, 2, "ValueError")
    [asked] = [each for each in as_json(found, with_data=True) if each["what"] == "parked"]
    assert asked["error"] == "ValueError: bob@example.com"


def test_names_and_addresses_are_told_only_where_they_are_asked_for(shop: FakeShop) -> None:
    user_id = shop.create_user("Ada Lovelace", "ada@example.com")
    park(shop, user_id)
    found = user_history(shop, user_id)
    for entry in timeline(found):
        shown = tell(entry) + jsontext.render(entry.as_json()).decode()
        assert not re.search("Ada|@", shown)
    everything = "\n".join(map(tell, timeline(found, with_data=True)))
    assert '"name":"Ada Lovelace"' in everything


def test_what_is_to_be_skipped_is_told(shop: FakeShop) -> None:
    user_id = shop.create_user()
    now = datetime.now(UTC)
    shop.readmodel.skip(Skip("users", user_id, 2, str(uuid4()), "eve", "it was wrong", now))
    text = "\n".join(map(tell, timeline(user_history(shop, user_id))))
    assert f"users was told to skip version 2 of user {user_id}" in text


def test_a_correlation_id_leads_to_all_events_of_its_requests(shop: FakeShop) -> None:
    user_id = shop.create_user()
    headers = {"X-Correlation-ID": str(new_id())}
    body = {"userId": user_id, "item": "Laptop", "price": 1}
    placed = [shop.orders.post("/orders", json=body, headers=headers) for _ in range(2)]
    shop.orders.post("/orders", json=body)
    shop.settle()
    found = order_history(shop, headers["X-Correlation-ID"])
    streams = {str(event.aggregate_id) for event in found.events}
    assert streams == {answer.get_json()["orderId"] for answer in placed}
    assert told(found).count("request") == 2
    documents = [each for each in as_json(found) if each["what"] == "document"]
    assert {each["stream"] for each in documents} == {*streams, user_id}


def test_a_correlation_id_of_any_form_is_looked_for_among_the_newest(shop: FakeShop) -> None:
    body = {"name": "Ada", "email": "a@b"}
    shop.users.post("/users", json=body, headers={"X-Correlation-ID": "checkout-7"})
    found = user_history(shop, "checkout-7")
    assert [event.event_type for event in found.events] == ["USER_CREATED"]
    assert found.searched
    assert found.searched.is_whole


def a_long_log(monkeypatch: pytest.MonkeyPatch, correlation_id: str) -> FakeStore:
    """Two hundred events, one a minute; the hundred-and-first has the correlation id."""
    monkeypatch.setattr("eventcore.operate.history.SEARCHED_AT_MOST", 40)
    monkeypatch.setattr("eventcore.operate.history.SEARCHED_AT_ONCE", 7)
    store = FakeStore()
    made = made_at(UUID(correlation_id))
    assert made
    for number in range(200):
        store.now = made + timedelta(minutes=number - 100)
        metadata = {"correlationId": correlation_id if number == 100 else "another"}
        store.append(Stream("user", uuid4()), 0, [NewEvent(uuid4(), "X", 1, {})], metadata)
    return store


def test_a_correlation_id_that_has_a_time_is_searched_from_then_on_only(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = str(new_id())
    shop.user_store = a_long_log(monkeypatch, wanted)
    found = user_history(shop, wanted)
    assert [event.position for event in found.events] == [101]
    assert found.searched
    assert (found.searched.after, found.searched.until) == (99, 139)
    assert "above position 99 and up to 139 alone, of 200" in str(found.searched)


def test_an_old_event_is_found_from_a_given_moment(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = a_long_log(monkeypatch, str(new_id()))
    store.log = [
        replace(event, metadata={"correlationId": "checkout-7" if event.position == 50 else "x"})
        for event in store.log
    ]
    shop.user_store = store
    assert user_history(shop, "checkout-7").is_empty
    since = store.log[45].recorded_at
    found = find("checkout-7", "user", store, shop.readmodel, (users.PROJECTION,), since)
    assert [event.position for event in found.events] == [50]


def test_nothing_is_known_of_a_stranger(shop: FakeShop) -> None:
    shop.create_user()
    for wanted in (str(new_id()), "whatever"):
        assert user_history(shop, wanted).is_empty
        assert order_history(shop, wanted).is_empty


def test_the_order_service_knows_a_user_by_its_cache(shop: FakeShop) -> None:
    user_id = shop.create_user()
    [document] = as_json(order_history(shop, user_id))
    assert (document["what"], document["projection"]) == ("document", "known-users")


def fold_customers(shop: FakeShop, *stores: str) -> None:
    for store in stores:
        log = {"user": shop.user_store, "order": shop.order_store}[store]
        part = ViewApplier(
            customers.VIEW, shop.readmodel, StoreFeed(log, store), SYSTEM_CLOCK, None, store
        )
        PartSweep(part, "holder", 60).run()


def history_with_view(shop: FakeShop, wanted: str) -> History:
    projections = (*OF_ORDERS, customers.VIEW)
    return find(wanted, "order", shop.order_store, shop.readmodel, projections)


def lines_of(found: History, projection: str) -> list[str]:
    return [each.text for each in timeline(found) if each.fields.get("projection") == projection]


def test_an_order_is_told_when_a_view_has_applied_it_and_to_which_document(shop: FakeShop) -> None:
    order_id = shop.place_order(user_id := shop.create_user())
    cancelled = shop.post(shop.orders, f"/orders/{order_id}/cancel", {})
    assert cancelled["status"] == "cancelled"
    behind = lines_of(history_with_view(shop, order_id), "customers/order")
    assert behind == [f"customers/order has no document: customers {user_id}"]
    fold_customers(shop, "user", "order")
    shop.order_store.now = datetime.now(UTC)
    found = history_with_view(shop, order_id)
    wrote = f"wrote customers {user_id} at position 2"
    assert lines_of(found, "customers/order") == [f"customers/order {wrote}"]
    assert lines_of(found, "customers/user") == []
    [entry] = [each for each in timeline(found) if each.text.endswith(wrote)]
    assert entry.at == shop.readmodel.projected_at("customers", [user_id])[user_id]
    shop.place_order(user_id)
    correlated = str(shop.order_store.log[-1].metadata["correlationId"])
    late = lines_of(history_with_view(shop, correlated), "customers/order")
    assert late[-1] == f"customers/order is at position 2 of 3: customers {user_id}"
    of_user = history_with_view(shop, user_id)
    assert lines_of(of_user, "customers/user") == [f"customers/user {wrote[:-1]}1"]
    assert lines_of(of_user, "customers/order") == [f"customers/order {wrote}"]


def test_an_order_whose_document_a_view_cannot_name_is_told_as_parked(shop: FakeShop) -> None:
    order = uuid4()
    shop.order_store.append(
        Stream("order", order), 0, [NewEvent(uuid4(), "ORDER_PLACED", 1, {"item": "x"})], {}
    )
    fold_customers(shop, "order")
    [line, standing] = lines_of(history_with_view(shop, str(order)), "customers/order")
    assert line.startswith(f"customers/order parked customers order {order} at position 1:")
    assert standing == f"customers/order has no document: customers order {order}"


def test_a_server_that_is_away_is_named(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shop.readmodel.away = True
    with pytest.raises(ReadModelUnavailable, match="MongoDB"):
        user_history(shop, user_id)
    shop.user_store.away = True
    with pytest.raises(StoreUnavailable, match="PostgreSQL"):
        user_history(shop, user_id)
