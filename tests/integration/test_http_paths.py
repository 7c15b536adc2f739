"""Hostile and malformed requests, by hand: each is refused in words, and nothing is written.

What they are addressed to: ids, queries, methods, and ways around the gateway. See
test_http_limits.py for what is in them.
"""

import json
import re
import time
from urllib.parse import urljoin, urlsplit

import pytest

from eventcore.ids import new_id
from local.shop import Shop
from tests.integration.wire import (
    LEAKS,
    ORDER_DOORS,
    USER_DOORS,
    Answer,
    Wire,
    assert_refused,
    credentials,
    listed,
    order_body,
    user_body,
)

pytestmark = pytest.mark.usefixtures("nothing_unexpected")


@pytest.fixture(scope="module", autouse=True)
def _all_up(shop: Shop) -> None:
    """Looked after once: nothing here leaves anything down."""
    shop.start()


# ── ids ───────────────────────────────────────────────────────────────────────────────────

NO_IDS = {
    "a word": "x",
    "a number": "1",
    "empty braces": "%7B%7D",
    "in braces": "%7B{id}%7D",
    "a urn": "urn:uuid:{id}",
    "without dashes": "{bare}",
    "one digit less": "{short}",
    "one digit more": "{id}0",
    "not hexadecimal": "{short}g",
    "with a blank": "{id}%20",
    "with a line feed": "{id}%0A",
    "with a NUL": "{id}%00",
    "with a slash": "{id}%2F",
    "full-width digits": "%EF%BC%90{rest}",
    "not UTF-8": "%FF{rest}",
    "64 letters": "a" * 64,
    "65 letters": "a" * 65,
    "36 dashes": "-" * 36,
    "an object": "%7B%22%24ne%22%3A1%7D",
}


def spelled(pattern: str, some_id: str) -> str:
    return pattern.format(
        id=some_id, bare=some_id.replace("-", ""), short=some_id[:-1], rest=some_id[1:]
    )


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("pattern", NO_IDS.values(), ids=NO_IDS)
def test_a_path_with_no_id_in_it_is_a_404(
    wire: Wire, user_id: str, order_id: str, pattern: str
) -> None:
    user, order = spelled(pattern, user_id), spelled(pattern, order_id)
    for at in USER_DOORS:
        assert_refused(wire.send("GET", f"/users/{user}", at=at), 404)
        assert_refused(wire.send("GET", f"/users/{user}/events", at=at), 404)
        assert_refused(wire.send("PUT", f"/users/{user}", b'{"name": "Eve"}', at=at), 404)
    for at in ORDER_DOORS:
        assert_refused(wire.send("GET", f"/queries/orders/{order}", at=at), 404)
        assert_refused(wire.send("GET", f"/orders/{order}/events", at=at), 404)
        assert_refused(wire.send("POST", f"/orders/{order}/cancel", at=at), 404)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("pattern", ["", *NO_IDS.values()], ids=["nothing", *NO_IDS])
def test_a_query_with_no_id_in_it_is_a_422(wire: Wire, user_id: str, pattern: str) -> None:
    for at in ORDER_DOORS:
        for name in ("userId", "after"):
            target = f"/queries/orders?{name}={spelled(pattern, user_id)}"
            assert_refused(wire.send("GET", target, at=at), 422)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "user",
    [b'""', b'"x"', b"1", b"null", b'["{id}"]', b'{"$ne": 1}', b'"{{id}}"', b'"urn:uuid:{id}"',
     b'"{id} "', b'"{id}\\n"', b'"{id}\\u0000"', b'"{bare}"'],
)  # fmt: skip
def test_an_order_with_no_id_in_it_is_a_422(wire: Wire, user_id: str, user: bytes) -> None:
    given = user.replace(b"{id}", user_id.encode()).replace(
        b"{bare}", user_id.replace("-", "").encode()
    )
    body = b'{"userId": %b, "item": "Laptop", "price": 1}' % given
    for at in ORDER_DOORS:
        assert_refused(wire.send("POST", "/orders", body, at=at), 422)


NOBODY = {
    "nil": "00000000-0000-0000-0000-000000000000",
    "max": "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "random": "9b2f3c1e-1d2c-4e5f-8a9b-0c1d2e3f4a5b",
    "from the past": "01890000-0000-7000-8000-000000000000",
    "from 1970": "00000000-0000-7000-8000-000000000000",
    "from the future": "05000000-0000-7000-8000-000000000000",
    "from the year 9999": "e677d21f-d818-7000-8000-000000000000",
    "from the year 10889": "ffffffff-ffff-7fff-bfff-ffffffffffff",
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("nobody", NOBODY.values(), ids=NOBODY)
def test_an_order_of_nobody_is_user_unknown(wire: Wire, nobody: str) -> None:
    for at in ORDER_DOORS:
        begun = time.monotonic()
        answer = wire.send("POST", "/orders", order_body(nobody, b"1"), at=at)
        assert_refused(answer, 422)
        assert answer.value("title") == "User unknown"
        assert time.monotonic() - begun < 0.9, "it was waited for"


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("nobody", NOBODY.values(), ids=NOBODY)
def test_what_nobody_made_is_a_404(wire: Wire, nobody: str) -> None:
    for path in ("/users/{}", "/users/{}/events", "/queries/orders/{}", "/orders/{}/events"):
        assert_refused(wire.send("GET", path.format(nobody)), 404)
    assert_refused(wire.send("POST", f"/orders/{nobody}/cancel"), 404)
    assert_refused(wire.send("PUT", f"/users/{nobody}", b'{"name": "Eve"}'), 404)


def test_an_id_in_upper_case_is_the_same_id(wire: Wire, user_id: str) -> None:
    upper = user_id.upper()
    assert wire.send("GET", f"/users/{upper}").value("userId") == user_id
    assert wire.send("GET", f"/users/{upper}/events").status == 200
    placed = wire.send("POST", "/orders", order_body(upper, b"1"))
    order_id = placed.value("orderId")
    shown = wire.send("GET", f"/queries/orders/{order_id.upper()}")
    assert (shown.value("orderId"), shown.value("userId")) == (order_id, user_id)
    listed(wire, upper, order_id)
    later = wire.send("GET", f"/queries/orders?userId={user_id}&after={str(new_id()).upper()}")
    assert json.loads(later.body)["orders"][0]["_id"] == order_id
    assert wire.send("POST", f"/orders/{order_id.upper()}/cancel").value("orderId") == order_id


# ── queries ───────────────────────────────────────────────────────────────────────────────

NO_QUERIES = {
    "/queries/orders": [
        "x=1", "=", "limit=1&limit=1", "status=confirmed&status=cancelled", "LIMIT=1", "limit[]=1",
        "limit=", "limit", "limit=0", "limit=-1", "limit=101", "limit=1.0", "limit=1e1",
        "limit=%2B1", "limit=%201", "limit=1%20", "limit=1_0", "limit=0x1", "limit=NaN",
        "limit=true", "limit=%D9%A1", "limit=%EF%BC%91", "limit=" + "9" * 3000, "limit=1%00",
        "status=", "status=Confirmed", "status=confirmed%00", "status=lost", "userId[$ne]=x",
        "%FF=1", "%zz=1", "after=null", "before=1",
    ],
    "/users/{user}": [
        "x=1", "name=Eve", "version=0", "version=-1", "version=", "version=1.0", "version=1_0",
        "version=9007199254740992", "version=9223372036854775808", "version=" + "9" * 400,
        "version=1&version=1", "version=latest", "at=", "at=now", "at=0", "at=-1",
        "at=1700000000", "at=1700000000000", "at=NaN", "at=2026-01-16", "at=2026-01-16T10:00:00",
        "at=2026-01-16T10:00Z", "at=2026-01-16%2010:00:00Z", "at=2026-01-16T10:00:00+01:00",
        "at=2026-02-30T10:00:00Z", "at=2026-01-16T24:00:00Z", "at=2026-01-16T10:00:60Z",
        "at=2026-01-16T10:00:00%2B24:00", "at=0000-01-01T00:00:00Z", "at=20260116T100000Z",
        "at=2026-01-16T10:00:00Z%00", "at=2026-01-16T10:00:00Z&at=2026-01-16T10:00:00Z",
        "version=1&at=2099-01-16T10:00:00Z",
    ],
    "/users/{user}/events": [
        "x=1", "after=-1", "after=x", "after=9007199254740992", "after=9223372036854775808",
        "after=0&after=0", "limit=0", "limit=501", "limit=1.5", "version=1",
    ],
    "/orders/{order}/events": ["x=1", "after=-1", "limit=501"],
    "/queries/orders/{order}": ["x=1", "version=0", "at=0", "version=1&at=2099-01-16T10:00:00Z"],
}  # fmt: skip


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    ("path", "query"),
    [(path, query) for path, queries in NO_QUERIES.items() for query in queries],
    ids=lambda text: text[:60],
)
def test_a_query_other_than_documented_is_a_422(
    wire: Wire, user_id: str, order_id: str, path: str, query: str
) -> None:
    target = path.format(user=user_id, order=order_id)
    for at in USER_DOORS if "user" in path else ORDER_DOORS:
        assert_refused(wire.send("GET", f"{target}?{query}", at=at), 422)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/users?dryRun=true", user_body()),
        ("PUT", "/users/{user}?version=1", b'{"name": "Eve"}'),
        ("POST", "/orders/{order}/cancel?reason=late", None),
    ],
)
def test_a_command_takes_nothing_from_the_query(
    wire: Wire, user_id: str, order_id: str, method: str, path: str, body: bytes | None
) -> None:
    assert_refused(wire.send(method, path.format(user=user_id, order=order_id), body), 422)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("version=1", 200),
        ("version=2", 404),
        ("version=9007199254740991", 404),
        ("at=0001-01-01T00:00:00%2B14:00", 404),
        ("at=1999-12-31T23:59:59Z", 404),
        ("at=2099-01-16t10:00:00.123456789z", 200),
        ("at=2099-01-16T10:00:00%2B23:59", 200),
        ("at=9999-12-31T23:59:59.999999-14:00", 200),
    ],
)
def test_the_ends_of_time_can_be_asked_for(
    wire: Wire, user_id: str, query: str, status: int
) -> None:
    answer = wire.send("GET", f"/users/{user_id}?{query}")
    if status == 200:
        assert (answer.status, answer.value("userId")) == (200, user_id)
    else:
        assert_refused(answer, status)


# ── ways around the gateway ───────────────────────────────────────────────────────────────

INSIDE = [
    "/internal/heads", "/internal/heads?after=0", "/internal/events?stream={user}",
    "/internal/feed", "/internal", "/internal/", "//internal/heads", "///internal/heads",
    "/./internal/heads", "/%2finternal/heads", "/%2Finternal%2Fheads", "/%69nternal/heads",
    "/INTERNAL/heads", "/internal%2fheads", "/internal;/heads",
    "/users/../internal/heads", "/users/..%2finternal/heads", "/users/..%2Finternal%2Fheads",
    "/users/%2e%2e/internal/heads", "/users/%252e%252e/internal/heads",
    "/users/..;/internal/heads", "/users;/../internal/heads", "/users/;/../../internal/heads",
    "/users/{user}/../../internal/heads", "/users/{user}/..%2f..%2finternal/heads",
    "/users/..%5cinternal%5cheads", "/users%2f..%2finternal/heads", "/users/.../internal/heads",
    "/users/%c0%ae%c0%ae/internal/heads", "/users/%ff/internal/heads", "/users/%00/internal",
    "/users/%0d%0a/internal/heads", "/users/internal/heads", "/orders/internal/heads",
    "/queries/internal/heads", "/queries/orders/../../internal/heads",
    "/queries/../internal/heads", "/queries/orders/..%2f..%2finternal%2fheads",
    "/docs/../internal/heads", "/docs/..%2finternal%2fheads", "/openapi.json/../internal/heads",
    "/users#/../internal/heads",
    "http://shop/internal/heads", "http://127.0.0.1:{port}/internal/heads",
    "http://shop/users/../internal/heads",
    "http://user:pw@127.0.0.1:{port}/internal/heads",  # pragma: allowlist secret
    "https://127.0.0.1:{port}/internal/heads", "file:///internal/heads",
]  # fmt: skip
OUT_OF_FORM = [
    "*", "internal/heads", ";/internal/heads", "@127.0.0.1:{port}/internal/heads",
    "127.0.0.1:{port}", "?/internal/heads", "\\internal\\heads", "/users/\xe9", "/users/\x7f",
    "/users/" + "a" * 5000,
]  # fmt: skip


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("target", INSIDE)
def test_no_spelling_of_a_path_reaches_the_feed_through_the_gateway(
    shop: Shop, wire: Wire, user_id: str, target: str
) -> None:
    for method in ("GET", "POST", "PUT"):
        answer = wire.send(method, aimed(shop, target, user_id), headers=credentials(shop))
        # what follows # is no part of a target: POST /users without a body
        assert_refused(answer, 404, 405, *([400] if "#" in target else []))
        assert b"heads" not in answer.body


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("target", OUT_OF_FORM, ids=lambda text: text[:40])
def test_a_target_that_is_none_gets_no_further_than_gunicorn(
    shop: Shop, wire: Wire, user_id: str, target: str
) -> None:
    answer = wire.send("GET", aimed(shop, target, user_id), headers=credentials(shop))
    assert answer.status in (400, 404, 414)
    assert b'"heads"' not in answer.body
    assert not LEAKS.search(answer.body)


def aimed(shop: Shop, target: str, user_id: str) -> bytes:
    port = urlsplit(shop.url("user-service")).port
    return target.replace("{user}", user_id).replace("{port}", str(port)).encode("latin-1")


@pytest.mark.parametrize(
    "path", ["/internal/heads", "/internal/feed", "/internal/events?stream={user}"]
)
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer x", "Basic eDp4",
                                   "Bearer {token}x", "{token}", "Bearer \xff"])  # fmt: skip
def test_the_feed_itself_is_for_those_who_know_its_token(
    shop: Shop, wire: Wire, user_id: str, path: str, given: str
) -> None:
    token = credentials(shop)["Authorization"].split()[1]
    headers = {"Authorization": given.replace("{token}", token)}
    answer = wire.send("GET", path.format(user=user_id), headers=headers, at="user-service")
    assert_refused(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize(
    "query",
    ["heads?after=-1", "heads?after=x", "heads?after=9223372036854775808", "heads?x=1",
     "heads?after=0&after=0", "feed?until=1_0", "events", "events?stream=x",
     "events?stream={user}&after=-1", "events?stream={user}&stream={user}"],
)  # fmt: skip
def test_the_feed_takes_what_it_names_and_nothing_else(
    shop: Shop, wire: Wire, user_id: str, query: str
) -> None:
    target = f"/internal/{query.format(user=user_id)}"
    assert_refused(wire.send("GET", target, headers=credentials(shop), at="user-service"), 422)


@pytest.mark.parametrize("target", ["/users/", "/users//", "/queries", "/queries/",
                                    "/queries/orders/", "/query", "/healthz/",
                                    "/docs/..%2f..%2fetc%2fpasswd", "/favicon.ico", "/.env",
                                    "/users/{user}/", "/users//{user}",
                                    "/users/{user}/events/1", "/users/{user};v=1",
                                    "/users/{user}%20", "/users/{user}/orders"])  # fmt: skip
def test_what_is_not_on_the_list_is_not_there(wire: Wire, user_id: str, target: str) -> None:
    assert_refused(wire.send("GET", target.format(user=user_id)), 404)


# ── methods ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("method", ["DELETE", "PATCH", "TRACE", "POST", "BREW"])
def test_another_method_is_a_405_that_names_those_there_are(
    wire: Wire, user_id: str, method: str
) -> None:
    for at in USER_DOORS:
        answer = wire.send(method, f"/users/{user_id}", b'{"name": "Eve"}', at=at)
        assert_refused(answer, 405)
        assert allowed(answer) == {"GET", "HEAD", "OPTIONS", "PUT"}
        assert "Allow" in answer.value("detail")


def allowed(answer: Answer) -> set[str]:
    return set(re.split(r",\s*", answer.headers["allow"]))


@pytest.mark.usefixtures("nothing_written")
def test_options_names_the_methods_that_there_are(wire: Wire, user_id: str) -> None:
    for at in USER_DOORS:
        for target, methods in ((f"/users/{user_id}", "GET HEAD PUT"), ("/users", "POST")):
            answer = wire.send("OPTIONS", target, at=at)
            assert (answer.status, answer.body) == (200, b"")
            assert allowed(answer) == {"OPTIONS", *methods.split()}


def test_a_browser_at_the_root_or_with_a_trailing_slash_gets_the_page(
    wire: Wire, shop: Shop
) -> None:
    for at in USER_DOORS:
        for target in ("/", "/?x=1", "/docs/"):
            answer = wire.send("GET", target, at=at)
            assert answer.status == 302
            assert urljoin(shop.url(at) + target, answer.headers["location"]).endswith("/docs")
        page = wire.send("GET", "/docs", at=at)
        assert re.search(rb"<title>[A-Z][A-Za-z ]+: API</title>", page.body)
        about = json.loads(wire.send("GET", "/openapi.json", at=at).body)["info"]["description"]
        assert len(about) > 50


@pytest.mark.parametrize("name", ["gateway", "user-service"])
def test_methods_that_callers_make_up_are_counted_together(wire: Wire, name: str) -> None:
    for number in range(3):
        wire.send(f"BREW{chr(65 + number)}", "/users", at=name)
    metrics = wire.send("GET", "/metrics", at=name).body
    assert b"BREW" not in metrics
    assert b'method="(other)"' in metrics


def test_head_answers_as_get_without_the_body(wire: Wire, user_id: str) -> None:
    asked, told = (wire.send(method, f"/users/{user_id}") for method in ("HEAD", "GET"))
    assert asked.status == told.status == 200
    assert asked.headers["etag"] == told.headers["etag"]
    assert asked.body == b""
