"""With UNIQUE_EMAILS no two users have one e-mail address."""

from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from order.projections.customers import VIEW
from tests.fakes.shop import FakeShop
from user.email_claim import stream_id
from user.projections import users


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop(unique_emails=True)


def create(shop: FakeShop, email: str, **headers: str) -> Any:
    return shop.users.post("/users", json={"name": "Ada", "email": email}, headers=headers)


def change(shop: FakeShop, user_id: str, email: str) -> Any:
    return shop.users.put(f"/users/{user_id}", json={"email": email})


def test_without_the_setting_two_users_may_have_one_address() -> None:
    shop = FakeShop()
    assert [create(shop, "ada@example.com").status_code for _ in range(2)] == [202, 202]
    assert {event.aggregate_type for event in shop.user_store.log} == {"user"}


def test_a_second_user_with_an_address_is_refused_whatever_its_case(shop: FakeShop) -> None:
    assert create(shop, "ada@example.com").status_code == 202
    before = len(shop.user_store.log)
    refused = create(shop, "ADA@Example.com")
    assert refused.status_code == 422
    assert refused.get_json()["type"] == "urn:problem:e-mail-taken"
    assert len(shop.user_store.log) == before


def test_a_changed_address_is_claimed_and_the_old_one_is_free(shop: FakeShop) -> None:
    ada = create(shop, "ada@example.com").get_json()["userId"]
    bob = create(shop, "bob@example.com").get_json()["userId"]
    assert change(shop, bob, "ada@example.com").status_code == 422
    assert change(shop, ada, "ada@example.org").status_code == 200
    assert change(shop, bob, "ada@example.com").status_code == 200
    assert change(shop, ada, "ada@example.com").status_code == 422
    assert create(shop, "bob@example.com").status_code == 202


def test_a_change_of_the_name_or_of_case_alone_claims_nothing(shop: FakeShop) -> None:
    ada = create(shop, "ada@example.com").get_json()["userId"]
    shop.users.put(f"/users/{ada}", json={"name": "Ada King"})
    assert change(shop, ada, "Ada@example.com").status_code == 200
    kinds = [event.event_type for event in shop.user_store.log]
    assert kinds == ["USER_CREATED", "EMAIL_CLAIMED", "USER_NAME_CHANGED", "USER_EMAIL_CHANGED"]


def test_a_user_from_before_the_setting_claims_the_next_address(shop: FakeShop) -> None:
    old = FakeShop(user_store=shop.user_store)
    ada = create(old, "ada@example.com").get_json()["userId"]
    assert change(shop, ada, "ada@example.org").status_code == 200
    assert create(shop, "ada@example.org").status_code == 422


def test_a_claim_that_is_lost_to_a_race_is_decided_again(shop: FakeShop) -> None:
    append_many = shop.user_store.append_many

    def race(*given: Any) -> Any:
        shop.user_store.append_many = append_many  # type: ignore[method-assign]
        assert create(shop, "ada@example.com").status_code == 202
        return append_many(*given)

    shop.user_store.append_many = race  # type: ignore[assignment,method-assign]
    refused = create(shop, "ada@example.com")
    assert refused.get_json()["type"] == "urn:problem:e-mail-taken"
    assert len(shop.user_store.log) == 2


def test_a_repeat_with_its_key_is_answered_and_claims_once(shop: FakeShop) -> None:
    first, again = (create(shop, "ada@example.com", **{"Idempotency-Key": "k"}) for _ in range(2))
    assert first.get_data() == again.get_data()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(shop.user_store.log) == 2


def test_projections_and_views_pass_claims_over(shop: FakeShop) -> None:
    ada = create(shop, "ada@example.com").get_json()["userId"]
    shop.settle()
    shop.sweep()
    assert set(shop.readmodel.collections[users.PROJECTION.collection]) == {ada}
    assert set(shop.readmodel.collections[VIEW.collection]) == {ada}
    assert not shop.readmodel.parked(users.PROJECTION.name)


ADDRESSES = [f"{name}@example.com" for name in "abc"]


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(ADDRESSES)), max_size=25))
def test_after_any_commands_each_address_has_one_user_at_most(acts: list[tuple[int, str]]) -> None:
    shop, people = FakeShop(unique_emails=True), dict[int, str]()
    owner = dict[str, str]()
    for person, email in acts:
        user_id = people.get(person)
        answer = change(shop, user_id, email) if user_id else create(shop, email)
        is_free = owner.get(email) in (None, user_id)
        assert (answer.status_code < 300) == is_free
        if is_free:
            people[person] = user_id = user_id or answer.get_json()["userId"]
            owner = {**{e: u for e, u in owner.items() if u != user_id}, email: user_id}


def test_the_stream_of_an_address_depends_on_it_alone() -> None:
    assert stream_id("Ada@Example.com") == stream_id("ada@example.com") != uuid4()
    assert stream_id("ada@example.com") != stream_id("ada@example.org")
