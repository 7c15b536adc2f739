"""Identity, from the gateway to the events: who is refused, who sees what, and who is believed."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from flask import request
from werkzeug.test import TestResponse

from eventcore.ids import new_id
from eventcore.store.port import Answer as Given
from eventcore.web.caller import ACTOR_HEADER, SCOPES_HEADER, USER_HEADER
from eventcore.web.queries import History
from eventcore.web.routes import Routes
from gateway import apikeys
from local.services import SERVICES
from tests.fakes.guarded import IDENTITY_TOKEN, Guarded
from tests.fakes.shop import web_app


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def operations(guarded: Guarded) -> Iterator[tuple[str, str]]:
    """Method and path of every call that the gateway describes."""
    document = guarded.client.get("/openapi.json").get_json()
    for path, item in document["paths"].items():
        for method in item:
            yield method.upper(), path


BODIES: dict[str, Any] = {
    "POST /users": {"name": "Eve", "email": "eve@example.com"},
    "PUT /users/{id}": {"name": "Eve"},
    "PUT /users/{id}/credit-limit": {"limit": 100},
    "POST /orders": {"userId": "{user}", "item": "Laptop", "price": 1},
    "POST /orders/batch": {"orders": [{"userId": "{user}", "item": "Laptop", "price": 1}]},
    "POST /orders/{id}/cancel": {},
}
"""A body that each command accepts; a new command needs one here."""

FOR_ADMINS = ("PUT /users/{id}/credit-limit",)
"""Calls that only admins make."""


def filled(value: Any, user: str) -> Any:
    if isinstance(value, dict):
        return {name: filled(each, user) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, user) for each in value]
    return value.replace("{user}", user) if isinstance(value, str) else value


def calls(guarded: Guarded, user: str, order: str) -> Iterator[tuple[str, str, str, Any]]:
    """Every call about one user and one of its orders: name, method, path, body."""
    for method, path in operations(guarded):
        name = f"{method} {path}"
        id = user if "users" in path or "customers" in path else order
        body = None if method == "GET" else filled(BODIES[name], user)
        yield name, method, path.replace("{id}", id), body
        if name == "GET /queries/orders":
            yield f"{name}?userId=", method, f"{path}?userId={user}", None
        if method == "GET" and "events" not in path and "{id}" in path:
            yield f"{name}?version=", method, f"{path.replace('{id}', id)}?version=1", None
            moment = "2001-01-01T00:00:00Z"
            yield f"{name}?at=", method, f"{path.replace('{id}', id)}?at={moment}", None


def test_every_call_without_a_credential_is_a_401_with_a_challenge(guarded: Guarded) -> None:
    asked = list(calls(guarded, str(new_id()), str(new_id())))
    assert len(asked) >= 14
    for name, method, path, body in asked:
        for given in ("", "Basic YWRhOmFkYQ==", "Bearer", "Bearer a b", "Bearer a,Bearer b"):
            headers = {"Authorization": given} if given else {}
            answer = guarded.call(method, path, "", body, **headers)
            assert answer.status_code == 401, (name, given)
            assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="shop"')
            assert answer.mimetype == "application/problem+json"
            assert answer.get_json()["type"] == "urn:problem:unauthenticated"
    assert guarded.shop.user_store.log == guarded.shop.order_store.log == []


def normal(answer: TestResponse, user: str, order: str) -> tuple[int, Any]:
    """Status and body of an answer, without what differs for every request."""
    text = answer.text.replace(user, "USER").replace(order, "ORDER")
    return answer.status_code, {**json.loads(text), "requestId": ""}


def test_every_call_about_another_user_is_as_if_there_were_none(guarded: Guarded) -> None:
    victim, own = guarded.person()
    order = guarded.order(victim, own)
    _, stranger = guarded.person()
    before = [*guarded.shop.user_store.log], [*guarded.shop.order_store.log]
    none = str(new_id()), str(new_id())
    asked = zip(calls(guarded, victim, order), calls(guarded, *none), strict=True)
    for (name, method, path, body), (_, _, path_of_none, body_of_none) in asked:
        answer = normal(guarded.call(method, path, stranger, body), victim, order)
        assert answer == normal(guarded.call(method, path_of_none, stranger, body_of_none), *none)
        lists = ("GET /queries/orders", "GET /queries/customers")
        refusal = 422 if name in ("POST /users", "POST /orders", "POST /orders/batch") else 404
        if name in FOR_ADMINS:
            assert answer[0] == 403, name
            continue
        is_no_query = name.startswith(("GET /queries/customers/{id}?", "GET /users/{id}/credit?"))
        assert answer[0] == (200 if name in lists else 422 if is_no_query else refusal), name
        assert "USER" not in str(answer[1].get("customers", answer[1].get("orders", ""))), name
    assert ([*guarded.shop.user_store.log], [*guarded.shop.order_store.log]) == before


def test_a_user_sees_and_changes_its_own(guarded: Guarded) -> None:
    user, token = guarded.person()
    order = guarded.order(user, token)
    _other, other_token = guarded.person()
    guarded.order(_other, other_token)
    for name, method, path, body in calls(guarded, user, order):
        if name in ("POST /users", "POST /orders/{id}/cancel") or "?" in name:
            continue
        answer = guarded.call(method, path, token, body)
        expected = (403,) if name in FOR_ADMINS else (200, 202)
        assert answer.status_code in expected, (name, answer.text)
    guarded.shop.settle()
    orders = guarded.call("GET", "/queries/orders", token).get_json()["orders"]
    assert {each["userId"] for each in orders} == {user}
    customers = guarded.call("GET", "/queries/customers", token).get_json()
    assert ([each["_id"] for each in customers["customers"]], customers["next"]) == ([user], None)
    assert guarded.call("POST", f"/orders/{order}/cancel", token, {}).status_code == 200


def test_an_admin_sees_and_changes_all(guarded: Guarded) -> None:
    user, token = guarded.person()
    order = guarded.order(user, token)
    admin = guarded.issuer.token("root", "read write admin")
    for name, method, path, body in calls(guarded, user, order):
        if "?" in name:
            continue
        assert guarded.call(method, path, admin, body).status_code in (200, 202), name
    made = guarded.call("POST", "/users", admin, BODIES["POST /users"]).get_json()["userId"]
    assert made != user


def test_a_call_without_a_guard_is_for_admins(guarded: Guarded) -> None:
    route = Routes("new")

    @route("GET", "/new", "A call that nobody has thought about", {200: History})
    def new(_incoming: object) -> Given:
        return Given(200, {"events": ()}, {})

    service, store = SERVICES["user"], guarded.shop.user_store
    client = web_app(store, route, service, identity=lambda: IDENTITY_TOKEN).test_client()
    told = {"Authorization": f"Bearer {IDENTITY_TOKEN}", ACTOR_HEADER: "sub:ada"}
    refused = client.get("/new", headers={**told, SCOPES_HEADER: "read write"})
    assert refused.status_code == 403
    assert 'error="insufficient_scope", scope="admin"' in refused.headers["WWW-Authenticate"]
    assert client.get("/new", headers={**told, SCOPES_HEADER: "read admin"}).status_code == 200


@pytest.mark.parametrize(("scope", "reads", "writes"), [
    ("read", True, False), ("write", False, True), ("", False, False), ("admin", False, False),
])  # fmt: skip
def test_a_scope_is_needed_for_each_kind_of_call(
    guarded: Guarded, scope: str, reads: bool, writes: bool
) -> None:
    user, token = guarded.person()
    order = guarded.order(user, token)
    limited = guarded.issuer.token(user, scope)
    for name, method, path, body in calls(guarded, user, order):
        answer = guarded.call(method, path, limited, body)
        is_allowed = reads if method == "GET" else writes
        if name in FOR_ADMINS and is_allowed:
            continue
        assert (answer.status_code != 403) == is_allowed, name
        if not is_allowed:
            needed = "read" if method == "GET" else "write"
            assert (
                f'error="insufficient_scope", scope="{needed}"'
                in (answer.headers["WWW-Authenticate"])
            )


def test_headers_of_identity_from_outside_gain_nothing(guarded: Guarded) -> None:
    victim, own = guarded.person()
    order = guarded.order(victim, own)
    _, stranger = guarded.person()
    spoofed = {
        ACTOR_HEADER: "sub:root", SCOPES_HEADER: "read write admin", USER_HEADER: victim,
        "X-Forwarded-User": victim, "Forwarded": f"for={victim}",
    }  # fmt: skip
    path = f"/queries/orders/{order}"
    assert guarded.call("GET", path, stranger, **spoofed).status_code == 404
    assert guarded.call("GET", path, "", **spoofed).status_code == 401
    for given in ("", IDENTITY_TOKEN + "x", own):
        told = {"Authorization": f"Bearer {given}", **spoofed}
        refused = guarded.shop.orders.get(path, headers=told)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    believed = {"Authorization": f"Bearer {IDENTITY_TOKEN}"}
    assert guarded.shop.orders.get(path, headers=believed).status_code == 401  # of nobody
    assert guarded.client.get(path, headers=believed).status_code == 401


def test_the_credential_does_not_reach_a_service(guarded: Guarded) -> None:
    user, token = guarded.person()
    seen: list[dict[str, str]] = []
    note = lambda: seen.append(dict(request.headers.items()))  # noqa: E731
    guarded.shop.orders.application.before_request(note)
    guarded.order(user, token)
    assert seen
    assert all(token not in "".join(each.values()) for each in seen)


def test_the_actor_is_in_every_event_and_its_history(guarded: Guarded) -> None:
    user, token = guarded.person()
    order = guarded.order(user, token)
    key, made = apikeys.make(["read", "write", "admin"])
    guarded.api_keys[made.id] = made
    assert guarded.call("POST", f"/orders/{order}/cancel", key, {}).status_code == 200
    batch = {"orders": [{"userId": user, "item": "Laptop", "price": 1}]}
    assert guarded.call("POST", "/orders/batch", token, batch).status_code == 200
    events = guarded.call("GET", f"/orders/{order}/events", token).get_json()["events"]
    assert [each["actor"] for each in events] == [f"sub:{user}", f"key:{made.id}"]
    stored = [*guarded.shop.user_store.log, *guarded.shop.order_store.log]
    assert len(stored) == 4
    for event in stored:
        assert event.metadata["actor"] in (f"sub:{user}", f"key:{made.id}")
        assert token not in str(event)
        assert key not in str(event)


def test_an_idempotency_key_is_bound_to_the_subject_and_not_to_its_token(
    guarded: Guarded,
) -> None:
    user, token = guarded.person()
    body = {"userId": user, "item": "Laptop", "price": 1}
    first = guarded.call("POST", "/orders", token, body, Idempotency_Key="k")
    renewed = guarded.issuer.token(user, exp=2_000_000_000)
    again = guarded.call("POST", "/orders", renewed, body, Idempotency_Key="k")
    assert renewed != token
    assert again.get_json() == first.get_json()
    assert again.headers["Idempotency-Replayed"] == "true"
    admin = guarded.issuer.token("root", "read write admin")
    others = guarded.call("POST", "/orders", admin, body, Idempotency_Key="k")
    assert (others.status_code, others.get_json()["type"]) == (422, "urn:problem:key-reused")


def test_a_repeated_creation_gives_the_first_answer_and_another_is_refused(
    guarded: Guarded,
) -> None:
    user = str(new_id())
    token = guarded.issuer.token(user)
    body = BODIES["POST /users"]
    first = guarded.call("POST", "/users", token, body, Idempotency_Key="k")
    again = guarded.call("POST", "/users", token, body, Idempotency_Key="k")
    assert first.get_json() == again.get_json() == {"userId": user}
    refused = guarded.call("POST", "/users", token, body)
    assert (refused.status_code, refused.get_json()["title"]) == (422, "User exists")
    nobody = guarded.call("POST", "/users", guarded.issuer.token("ada"), body)
    assert nobody.status_code == 422
    assert "names no user" in nobody.get_json()["detail"]


def test_an_api_key_is_accepted_until_it_is_revoked(guarded: Guarded) -> None:
    user, token = guarded.person()
    order = guarded.order(user, token)
    key, made = apikeys.make(["read"], user)
    assert guarded.call("GET", f"/queries/orders/{order}", key).status_code == 401
    guarded.api_keys[made.id] = made
    assert guarded.call("GET", f"/queries/orders/{order}", key).status_code == 200
    assert guarded.call("POST", f"/orders/{order}/cancel", key, {}).status_code == 403
    of_another, other = apikeys.make(["read"], str(uuid4()))
    guarded.api_keys[other.id] = other
    assert guarded.call("GET", f"/queries/orders/{order}", of_another).status_code == 404
    for wrong in (key[:-1], key + "A", key.replace(made.id, other.id), "shop_", "shop_x_y"):
        assert guarded.call("GET", f"/queries/orders/{order}", wrong).status_code == 401
    del guarded.api_keys[made.id]
    refused = guarded.call("GET", f"/queries/orders/{order}", key)
    assert (refused.status_code, key in refused.text) == (401, False)


def test_every_call_is_described_with_its_credentials(guarded: Guarded) -> None:
    document = guarded.client.get("/openapi.json").get_json()
    assert set(document["components"]["securitySchemes"]) == {"token", "apiKey"}
    for item in document["paths"].values():
        for method, operation in item.items():
            scope = "read" if method == "get" else "write"
            assert operation["security"] == [{"token": [scope]}, {"apiKey": [scope]}]
            assert {"401", "403"} <= operation["responses"].keys()


def test_pages_probes_and_methods_need_no_credential(guarded: Guarded) -> None:
    for path in ("/docs", "/openapi.json", "/healthz", "/readyz", "/metrics"):
        assert guarded.client.get(path).status_code == 200
    assert guarded.client.options("/users").status_code == 200
    assert guarded.client.get("/unknown").status_code == 404
