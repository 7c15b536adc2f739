"""The credit of a user: its limit, and what is reserved of it."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventcore.clock import Clock
from eventcore.command import append_of
from eventcore.consistency import Waits
from eventcore.errors import NotYet, ReadModelUnavailable
from eventcore.model.projection import Document
from eventcore.model.token import Token
from eventcore.store.port import Stream
from order.customers import LIMIT_TTL, Customers
from order.projections import known_users
from tests.fakes.shop import FakeShop
from user.credit import DECIDER, CreditCommand, Release, Reserve
from user.projections import credit as projection
from user.projections import users


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


def limit(shop: FakeShop, user_id: str, body: str, **headers: str) -> Any:
    """The answer to a limit, which is given as JSON text, since prices are exact."""
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    return shop.users.put(
        f"/users/{user_id}/credit-limit", data=f'{{"limit": {body}}}',
        content_type="application/json", headers=given,
    )  # fmt: skip


def document(shop: FakeShop, collection: str, user_id: str) -> dict[str, object]:
    found: dict[str, object] = shop.readmodel.collections[collection][user_id]
    return found


# ── the limit ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("price", ["0", "100", "0.10", "9999999999.99", "null"])
def test_a_limit_is_answered_as_it_was_given(shop: FakeShop, price: str) -> None:
    user_id = shop.create_user()
    answer = limit(shop, user_id, price)
    assert answer.status_code == 200
    assert answer.text == f'{{"userId":"{user_id}","limit":{price}}}'
    assert answer.headers["ETag"].startswith('"2.')
    assert "Consistency-Token" in answer.headers


def test_each_limit_that_differs_is_an_event(shop: FakeShop) -> None:
    user_id = shop.create_user()
    for price in ("null", "null", "100", "100.00", "100", "0", "null"):
        assert limit(shop, user_id, price).status_code == 200
    assert [e.event_type for e in shop.user_store.log[1:]] == 4 * ["USER_CREDIT_LIMIT_CHANGED"]
    assert [dict(e.data) for e in shop.user_store.log[1:]] == [{}, {"limit": 100}, {"limit": 0}, {}]


def test_a_limit_changes_nothing_else_of_the_user(shop: FakeShop) -> None:
    user_id = shop.create_user()
    before = shop.users.get(f"/users/{user_id}").get_json()
    limit(shop, user_id, "100")
    shop.settle()
    shown = shop.users.get(f"/users/{user_id}")
    assert (shown.get_json(), shown.headers["Answered-From"]) == (before, "view")
    changed = shop.users.put(f"/users/{user_id}", json={"name": "Eve"})
    assert changed.headers["ETag"].startswith('"3.')


def test_the_limit_of_nobody_is_a_404(shop: FakeShop) -> None:
    assert limit(shop, str(uuid4()), "1").status_code == 404
    assert shop.users.put("/users/me/credit-limit", json={"limit": 1}).status_code == 404
    assert not shop.user_store.log


def test_a_limit_based_on_an_old_version_is_a_412_and_writes_nothing(shop: FakeShop) -> None:
    user_id = shop.create_user()
    first = limit(shop, user_id, "100", If_Match='"1"')
    assert limit(shop, user_id, "200", If_Match='"1"').status_code == 412
    assert limit(shop, user_id, "300", If_Match=first.headers["ETag"]).status_code == 200
    assert len(shop.user_store.log) == 3


def test_a_repeat_with_its_key_has_the_first_answer(shop: FakeShop) -> None:
    user_id = shop.create_user()
    first = limit(shop, user_id, "100", Idempotency_Key="k")
    limit(shop, user_id, "200")
    again = limit(shop, user_id, "100", Idempotency_Key="k")
    assert again.get_data() == first.get_data()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(shop.user_store.log) == 3


@pytest.mark.parametrize(
    ("body", "status"),
    {
        "": 400, "{": 400, "[]": 422, "null": 422, "{}": 422, '{"limit": 1, "limit": 2}': 400,
        '{"limit": 1, "more": 1}': 422, '{"Limit": 1}': 422, '{"limit": "1"}': 422,
        '{"limit": ""}': 422, '{"limit": true}': 422, '{"limit": [1]}': 422, '{"limit": {}}': 422,
        '{"limit": -0.01}': 422, '{"limit": 0.001}': 422, '{"limit": 19.990}': 422,
        '{"limit": 10000000000}': 422, '{"limit": 1e1000000}': 422, '{"limit": NaN}': 400,
        '{"limit": Infinity}': 400, '{"limit": 1e999999999999999999999}': 400,
        '{"limit": 01}': 400, '{"limit": {"$numberDecimal": "1"}}': 422,
    }.items(),
)  # fmt: skip
def test_what_is_no_limit_is_refused_and_writes_nothing(
    shop: FakeShop, body: str, status: int
) -> None:
    user_id = shop.create_user()
    path = f"/users/{user_id}/credit-limit"
    refused = shop.users.put(path, data=body, content_type="application/json")
    assert refused.status_code == status, refused.text
    assert refused.content_type == "application/problem+json"
    assert len(shop.user_store.log) == 1


def test_a_refusal_names_the_field_and_the_rule(shop: FakeShop) -> None:
    [problem] = limit(shop, shop.create_user(), "-1").get_json()["errors"]
    assert problem == {
        "field": "limit",
        "reason": "must be a number from 0 to 9999999999.99 with at most two decimals",
    }


# ── the read models that have the limit ───────────────────────────────────────────────────


@pytest.mark.parametrize(("price", "limited"), [("100", True), ("0", True), ("null", False)])
def test_known_users_say_who_is_limited(shop: FakeShop, price: str, limited: bool) -> None:
    user_id = shop.create_user()
    assert "limited" not in document(shop, known_users.PROJECTION.collection, user_id)
    limit(shop, user_id, price)
    shop.settle()
    assert document(shop, known_users.PROJECTION.collection, user_id)["limited"] is limited
    assert "creditLimit" in document(shop, users.PROJECTION.collection, user_id)
    assert not shop.readmodel.parked_list


# ── who is limited, as the order service knows it ─────────────────────────────────────────


class Asked:
    """Customers on a shop's read model, which count how often they ask it, and for whom last."""

    def __init__(self, shop: FakeShop, *, limited: bool = False) -> None:
        self.now, self.questions, find = 1000.0, 0, shop.readmodel.find

        self.ids: set[str] = set()

        def counted(collection: str, ids: Iterable[str]) -> dict[str, Document]:
            self.ids = {*ids}
            self.questions += collection == known_users.PROJECTION.collection
            return find(collection, self.ids)

        shop.readmodel.find = counted  # type: ignore[method-assign]
        waits = Waits(0, 1, Clock(monotonic=lambda: self.now))
        self.customers = Customers(
            shop.readmodel, wait=0, margin=0, waits=waits, limited=limited
        )  # fmt: skip


@pytest.mark.parametrize(
    ("price", "default", "limited"),
    [
        ("", False, False), ("", True, True), ("0", False, True), ("5", True, True),
        ("null", False, False), ("null", True, False),
    ],
)  # fmt: skip
def test_a_limit_that_was_set_counts_and_else_the_setting(
    shop: FakeShop, price: str, default: bool, limited: bool
) -> None:
    user_id = shop.create_user()
    if price:
        limit(shop, user_id, price)
        shop.settle()
    assert Asked(shop, limited=default).customers.is_limited(user_id) is limited


def test_one_question_answers_whether_users_are_known_and_limited(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    limit(shop, ada, "1")
    shop.settle()
    asked = Asked(shop)
    assert asked.customers.unknown([ada, bob]) == []
    assert asked.customers.limited_among([ada, bob]) == {ada}
    assert asked.customers.is_limited(ada)
    assert asked.questions == 1


def test_a_limit_that_comes_later_counts_within_a_second(shop: FakeShop) -> None:
    ada, asked = shop.create_user(), Asked(shop)
    assert not asked.customers.is_limited(ada)
    limit(shop, ada, "1")
    shop.settle()
    asked.questions = 0
    asked.now += LIMIT_TTL
    assert not asked.customers.is_limited(ada)
    assert asked.questions == 0
    asked.now += 0.001
    assert asked.customers.is_limited(ada)
    assert asked.questions == 1


def test_one_question_a_second_loads_all_who_ordered_again(shop: FakeShop) -> None:
    users = [shop.create_user(str(number)) for number in range(5)]
    asked = Asked(shop)
    for second in range(3):
        asked.questions = 0
        for user_id in users * 4:
            assert not asked.customers.is_limited(user_id)
        assert asked.questions == (1 if second else len(users))
        asked.now += LIMIT_TTL + 0.001
    for user_id in users:
        limit(shop, user_id, "1")
    shop.settle()
    assert all(asked.customers.is_limited(user_id) for user_id in users)


def test_a_user_who_orders_no_more_is_not_loaded_again(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    asked = Asked(shop)
    asked.customers.limited_among([ada, bob])
    for loaded in ({ada, bob}, {ada}):
        asked.now += LIMIT_TTL + 0.001
        asked.customers.is_limited(ada)
        assert asked.ids == loaded


def test_while_one_request_asks_again_others_do_not_wait(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    asked = Asked(shop)
    assert not asked.customers.limited_among([ada, bob])
    limit(shop, bob, "1")
    shop.settle()
    find, answers = shop.readmodel.find, []

    def slow(collection: str, ids: Iterable[str]) -> dict[str, Document]:
        shop.readmodel.find = find  # type: ignore[method-assign]
        answers.append(asked.customers.is_limited(bob))
        asked.now += LIMIT_TTL
        answers.append(asked.customers.is_limited(bob))
        return find(collection, ids)

    shop.readmodel.find = slow  # type: ignore[method-assign]
    asked.now += LIMIT_TTL + 0.001
    asked.customers.is_limited(ada)
    assert answers == [False, True]  # an answer of two seconds is too old for anybody


def test_a_limit_that_was_seen_counts_at_once(shop: FakeShop) -> None:
    ada, asked = shop.create_user(), Asked(shop)
    assert not asked.customers.is_limited(ada)
    seen = Token.parse(limit(shop, ada, "1").headers["Consistency-Token"])
    with pytest.raises(NotYet):
        asked.customers.is_limited(ada, seen)
    shop.settle()
    assert asked.customers.is_limited(ada, seen)


def test_with_mongodb_away_a_remembered_user_keeps_the_answer(shop: FakeShop) -> None:
    ada, bob = shop.create_user("Ada"), shop.create_user("Bob")
    limit(shop, ada, "1")
    shop.settle()
    asked = Asked(shop)
    assert asked.customers.is_limited(ada)
    shop.readmodel.away = True
    asked.now += 3600
    assert asked.customers.is_limited(ada)
    with pytest.raises(ReadModelUnavailable):
        asked.customers.is_limited(bob)
    with pytest.raises(ReadModelUnavailable):
        asked.customers.limited_among([ada, bob])


# ── the credit, as it is shown ────────────────────────────────────────────────────────────


def credit(shop: FakeShop, user_id: str, token: str = "") -> tuple[str, str]:
    """A user's credit as JSON text, without the id, and its source."""
    headers = {"Consistency-Token": token} if token else {}
    answer = shop.users.get(f"/users/{user_id}/credit", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-cache"
    text = answer.text.replace(f'"userId":"{user_id}",', "")
    return text, answer.headers["Answered-From"]


def carry_out(shop: FakeShop, user_id: str, *asked: CreditCommand) -> None:
    """Carries out commands of a user's credit."""
    for command in asked:
        appends = append_of(shop.user_store, DECIDER, UUID(user_id), command)
        shop.user_store.append_many(appends, {})


def test_a_user_without_a_limit_has_unlimited_credit(shop: FakeShop) -> None:
    user_id = shop.create_user()
    assert credit(shop, user_id) == ('{"limit":null,"reserved":0,"available":null}', "view")


def test_the_setting_is_the_limit_of_those_who_have_none_set() -> None:
    shop = FakeShop(credit_limit=Decimal("99.50"))
    user_id = shop.create_user()
    assert credit(shop, user_id)[0] == '{"limit":99.50,"reserved":0,"available":99.50}'
    limit(shop, user_id, "null")
    shop.settle()
    assert credit(shop, user_id)[0] == '{"limit":null,"reserved":0,"available":null}'


def test_the_credit_shows_what_is_reserved_and_what_is_left(shop: FakeShop) -> None:
    user_id = shop.create_user()
    limit(shop, user_id, "20")
    shop.settle()
    a, b, c, z = (str(UUID(int=number)) for number in range(4))
    carry_out(shop, user_id, *[Reserve(id, Decimal("9.90"), Decimal(20)) for id in (a, b, c)])
    shown = '{"limit":20,"reserved":19.80,"available":0.20}'
    assert credit(shop, user_id) == (shown, "live")
    shop.settle()
    assert credit(shop, user_id) == (shown, "view")
    carry_out(shop, user_id, Release(a), Release(a), Release(c), Release(z))
    shop.settle()
    assert credit(shop, user_id) == ('{"limit":20,"reserved":9.90,"available":10.10}', "view")
    limit(shop, user_id, "5")
    shop.settle()
    assert credit(shop, user_id) == ('{"limit":5,"reserved":9.90,"available":0}', "view")
    assert not shop.readmodel.parked_list


def test_a_limit_that_was_set_is_shown_with_its_token_at_once(shop: FakeShop) -> None:
    user_id = shop.create_user()
    token = limit(shop, user_id, "20").headers["Consistency-Token"]
    assert credit(shop, user_id)[0] == '{"limit":null,"reserved":0,"available":null}'
    assert credit(shop, user_id, token) == ('{"limit":20,"reserved":0,"available":20}', "live")
    shop.settle()
    assert credit(shop, user_id, token)[1] == "view"


def test_with_mongodb_away_the_credit_is_folded_from_its_streams(shop: FakeShop) -> None:
    user_id = shop.create_user()
    limit(shop, user_id, "20")
    carry_out(shop, user_id, Reserve("a", Decimal("9.90"), None))
    shop.readmodel.away = True
    assert credit(shop, user_id) == ('{"limit":20,"reserved":9.90,"available":10.10}', "live")


def test_the_credit_of_nobody_is_a_404(shop: FakeShop) -> None:
    assert shop.users.get(f"/users/{uuid4()}/credit").status_code == 404
    assert shop.users.get("/users/me/credit").status_code == 404


def test_the_tag_of_the_credit_serves_for_a_change_of_the_limit(shop: FakeShop) -> None:
    user_id = shop.create_user()
    shown = shop.users.get(f"/users/{user_id}/credit")
    tag = shown.headers["ETag"]
    again = shop.users.get(f"/users/{user_id}/credit", headers={"If-None-Match": tag})
    assert again.status_code == 304
    assert limit(shop, user_id, "20", If_Match=tag).status_code == 200
    assert limit(shop, user_id, "30", If_Match=tag).status_code == 412
    shop.settle()
    after = shop.users.get(f"/users/{user_id}/credit", headers={"If-None-Match": tag})
    assert after.status_code == 200


amounts = st.decimals(0, 50, places=2)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.builds(Reserve, st.sampled_from("abcd"), amounts, amounts | st.none()),
            st.builds(Release, st.sampled_from("abcd")),
        ),
        max_size=12,
    )
)
def test_after_any_commands_the_read_model_has_the_sum_of_the_reservations(
    asked: list[CreditCommand],
) -> None:
    shop = FakeShop()
    user_id = shop.create_user()
    carry_out(shop, user_id, *asked)
    shop.settle()
    state = DECIDER.fold(
        DECIDER.initial, shop.user_store.read_stream(Stream("credit", UUID(user_id)))
    )
    found = shop.readmodel.collections[projection.PROJECTION.collection].get(user_id, {})
    assert projection.reserved(found) == state.reserved >= 0
