"""While servers are away: every answer says what to do, and none names a server of ours."""

import json
import re
from collections.abc import Iterator

import pytest

from local.servers import MongoDB, PostgreSQL
from local.shop import Shop
from tests.integration.wire import (
    LEAKS,
    ORDER_DOORS,
    USER_DOORS,
    Answer,
    Wire,
    order_body,
    user_body,
)

Call = tuple[str, str, str, str]
"""Method, path, body and door of a call."""


@pytest.fixture
def calls(wire: Wire, user_id: str, order_id: str) -> list[Call]:
    """Each call of the documents at each door, and probes."""
    users = [
        ("POST", "/users", user_body().decode()),
        ("GET", f"/users/{user_id}", ""),
        ("GET", f"/users/{user_id}?version=1", ""),
        ("PUT", f"/users/{user_id}", '{"name": "Eve"}'),
        ("GET", f"/users/{user_id}/events", ""),
    ]
    orders = [
        ("POST", "/orders", order_body(user_id, b"1").decode()),
        ("GET", f"/queries/orders/{order_id}", ""),
        ("GET", "/queries/orders", ""),
        ("POST", f"/orders/{order_id}/cancel", "{}"),
        ("GET", f"/orders/{order_id}/events", ""),
    ]
    probes = [("GET", "/readyz", ""), ("GET", "/openapi.json", "")]
    doors = ((USER_DOORS, (*users, *probes)), (ORDER_DOORS, (*orders, *probes)))
    return [(*call, door) for at, those in doors for call in those for door in at]


@pytest.fixture
def _servers_come_back(shop: Shop, postgres: PostgreSQL, mongodb: MongoDB) -> Iterator[None]:
    yield
    postgres.start()
    mongodb.start()
    shop.start()


@pytest.mark.usefixtures("_servers_come_back")
def test_no_answer_names_a_server_while_all_of_them_are_away(
    shop: Shop,
    wire: Wire,
    calls: list[Call],
    postgres: PostgreSQL,
    mongodb: MongoDB,
) -> None:
    mongodb.kill()
    for method, path, body, door in calls:
        assert_names_nothing(send(wire, method, path, body, door), postgres, mongodb)
    postgres.kill()
    refused = 0
    for method, path, body, door in calls:
        answer = send(wire, method, path, body, door)
        assert_names_nothing(answer, postgres, mongodb)
        if answer.headers["content-type"] == "application/problem+json":
            refused += 1
            problem = json.loads(answer.body)
            if problem["type"] == "urn:problem:outcome-unknown":  # it was sent as the server died
                assert (answer.status, "not known" in problem["detail"]) == (504, True), answer
                continue
            assert answer.status == 503, answer
            assert int(answer.headers["retry-after"]) > 0
            assert ("othing was written" in problem["detail"]) == (method != "GET"), answer
    assert refused >= 18
    for name in ("user-service", "order-service"):  # the reason is for the operator
        assert f"port {postgres.address.port} failed" in shop.log(name)


def send(wire: Wire, method: str, path: str, body: str, door: str) -> Answer:
    return wire.send(method, path, body.encode() if body else None, at=door)


def assert_names_nothing(answer: Answer, postgres: PostgreSQL, mongodb: MongoDB) -> None:
    ports = "|".join(str(each.address.port) for each in (postgres, mongodb))
    ours = rf"127\.0\.0\.1|localhost|::1|\b({ports})\b|user_|order_"
    if not answer.body.startswith(b'{\n "openapi"'):
        assert not re.search(ours.encode(), answer.body), answer
    assert not LEAKS.search(answer.body)
