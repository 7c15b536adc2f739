"""Hostile and malformed requests, by hand: each is refused in words, and nothing is written.

What is in them: bodies, prices, sizes, framing, headers. They go through the gateway and
straight at the services. See test_http_paths.py for what they are addressed to.
"""

import json
import re
from uuid import UUID, uuid4

import pytest

from local.shop import Shop
from tests.integration.wire import (
    CHUNKED,
    ORDER_DOORS,
    USER_DOORS,
    Headers,
    Wire,
    assert_refused,
    in_chunks,
    listed,
    new_user,
    order_body,
    parse,
    user_body,
)

pytestmark = pytest.mark.usefixtures("nothing_unexpected")


@pytest.fixture(scope="module", autouse=True)
def _all_up(shop: Shop) -> None:
    """Looked after once: nothing here leaves anything down."""
    shop.start()


LIMIT = 64 * 1024


# ── bodies that cannot be read ────────────────────────────────────────────────────────────

UNREADABLE = {
    "nothing": b"",
    "blanks": b" \r\n\t ",
    "cut off": b'{"name": "Ada", "email": "ada@exam',
    "two texts": user_body() * 2,
    "trailing letters": user_body() + b"x",
    "trailing comma": b'{"name": "Ada", "email": "a@b",}',
    "single quotes": b"{'name': 'Ada', 'email': 'a@b'}",
    "a comment": b"/* Ada */" + user_body(),
    "a form": b"name=Ada&email=a%40b",
    "a key twice": b'{"name": "Ada", "email": "a@b", "name": "Eve"}',
    "a key twice, once escaped": b'{"name": "Ada", "email": "a@b", "n\\u0061me": "Eve"}',
    "a key twice, below": b'{"name": "Ada", "email": "a@b", "x": [{"y": 1, "y": 1}]}',
    "a byte order mark": b"\xef\xbb\xbf" + user_body(),
    "UTF-16": user_body().decode().encode("utf-16"),
    "invalid UTF-8": b'{"name": "\xff", "email": "a@b"}',
    "cut UTF-8": b'{"name": "\xc3", "email": "a@b"}',
    "overlong UTF-8": b'{"name": "\xc0\xaf", "email": "a@b"}',
    "a surrogate in UTF-8": b'{"name": "\xed\xa0\x80", "email": "a@b"}',
    "a lone high surrogate": b'{"name": "\\ud800", "email": "a@b"}',
    "a lone low surrogate": b'{"name": "\\udc00", "email": "a@b"}',
    "surrogates the wrong way round": b'{"name": "\\udc00\\ud800", "email": "a@b"}',
    "a lone surrogate in a key": b'{"name": "Ada", "email": "a@b", "\\ud800": 1}',
    "a bare NUL": b'{"name": "A\x00da", "email": "a@b"}',
    "a bare line feed": b'{"name": "A\nda", "email": "a@b"}',
    "an unknown escape": b'{"name": "\\x41da", "email": "a@b"}',
    "30,000 brackets": b"[" * 30_000 + b"]" * 30_000,
    "NaN": b'{"name": NaN, "email": "a@b"}',
    "Infinity": b'{"name": Infinity, "email": "a@b"}',
    "a number no decimal can hold": b'{"name": 1e999999999999999999999, "email": "a@b"}',
    "one that is too small": b'{"name": 1e-999999999999999999999, "email": "a@b"}',
    "5,000 digits": b'{"name": ' + b"9" * 5000 + b', "email": "a@b"}',
    "a leading zero": b'{"name": 01, "email": "a@b"}',
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_json_is_a_400(wire: Wire, body: bytes) -> None:
    for at in USER_DOORS:
        assert_refused(wire.send("POST", "/users", body, at=at), 400)


@pytest.mark.usefixtures("nothing_written")
def test_deeply_nested_json_is_refused(wire: Wire) -> None:
    body = b'{"name":' * 6_000 + b"1" + b"}" * 6_000
    for at in USER_DOORS:
        answer = wire.send("POST", "/users", body, at=at)
        assert_refused(answer, 400 if answer.status == 400 else 422)  # whether Python can parse it


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("path", ["/orders", "/orders/{order}/cancel", "/users/{user}"])
@pytest.mark.parametrize("kind", ["cut off", "a key twice", "a lone high surrogate", "a bare NUL"])
def test_so_it_is_for_every_call_that_takes_a_body(
    wire: Wire, user_id: str, order_id: str, path: str, kind: str
) -> None:
    method = "PUT" if path.startswith("/users") else "POST"
    target = path.format(order=order_id, user=user_id)
    assert_refused(wire.send(method, target, UNREADABLE[kind]), 400)


# ── bodies that break a rule ──────────────────────────────────────────────────────────────

AGAINST_THE_RULES = {
    "null": b"null",
    "a text": b'"Ada"',
    "a number": b"1",
    "true": b"true",
    "a list": b"[]",
    "a list of users": b"[" + user_body() + b"]",
    "an empty object": b"{}",
    "no name": b'{"email": "ada@example.com"}',
    "no email": b'{"name": "Ada"}',
    "an unknown field": user_body(admin=True),
    "an id of the caller's choice": user_body(userId=str(UUID(int=1))),
    "a field in other letters": user_body(Name="Ada"),
    "__proto__": user_body(__proto__={}),
    "an empty key": user_body(**{"": 1}),
    "NUL as a key": user_body(**{"\x00": 1}),
    "$where": user_body(**{"$where": "1"}),
    "a key of 60,000 letters": user_body(**{"k" * 60_000: 1}),
    "name null": user_body(None),
    "name a number": user_body(1),
    "name a huge number": b'{"name": 1e400, "email": "a@b"}',
    "name true": user_body(True),
    "name a list": user_body(["Ada"]),
    "name an operator": user_body({"$ne": ""}),
    "name empty": user_body(""),
    "name blank": user_body("   "),
    "name of 101 letters": user_body("a" * 101),
    "name of 200 letters": user_body("a" * 200),
    "NUL in a name": user_body("A\x00da"),
    "NUL alone": user_body("\x00"),
    "a line feed in a name": user_body("Ada\nLovelace"),
    "a line feed after a name": user_body("Ada\n"),
    "an escape sequence": user_body("\x1b[31mAda"),
    "DEL": user_body("Ada\x7f"),
    "a next line": user_body("Ada\x85Lovelace"),
    "a line separator": user_body("Ada\u2028Lovelace"),
    "a paragraph separator": user_body("Ada\u2029Lovelace"),
    "zero width alone": user_body("\u200d\u200b"),
    "zero width within": user_body("A\u200bda"),
    "a byte order mark within": user_body("A\ufeffda"),
    "writing from right to left": user_body("\u202edaA"),
    "an isolate": user_body("\u2067daA\u2069"),
    "only spaces of other kinds": user_body("\u00a0\u3000\u2003"),
    "email that turns direction": user_body(email="ada\u202e@example.com"),
    "email null": user_body(email=None),
    "email a number": user_body(email=1),
    "email a list": user_body(email=["a@b"]),
    "email empty": user_body(email=""),
    "email without @": user_body(email="ada.example.com"),
    "email only @": user_body(email="@"),
    "email with nothing before @": user_body(email="@example.com"),
    "email with nothing after @": user_body(email="ada@"),
    "email with two @": user_body(email="ada@example@com"),
    "email with a blank": user_body(email="a da@example.com"),
    "email with NUL": user_body(email="ada@example.com\x00"),
    "email with a header": user_body(email="ada@example.com\r\nBcc: eve@example.com"),
    "email of 255 letters": user_body(email="a@" + "b" * 253),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("body", AGAINST_THE_RULES.values(), ids=AGAINST_THE_RULES)
def test_a_user_against_the_rules_is_a_422(wire: Wire, body: bytes) -> None:
    for at in USER_DOORS:
        answer = wire.send("POST", "/users", body, at=at)
        assert_refused(answer, 422)
        assert json.loads(answer.body)["errors"]


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "body",
    [
        {"name": "Eve", "email": "no at"},
        {"name": "", "email": "eve@example.com"},
        {"name": "Eve", "email": "eve@example.com", "admin": True},
        {"name": "Eve\x00"},
        {"email": 1},
        ["name", "Eve"],
    ],
)
def test_a_change_of_which_half_is_against_the_rules_changes_nothing(
    wire: Wire, user_id: str, body: object
) -> None:
    before = wire.send("GET", f"/users/{user_id}").body
    assert_refused(wire.send("PUT", f"/users/{user_id}", json.dumps(body).encode()), 422)
    assert wire.send("GET", f"/users/{user_id}").body == before


NO_ITEMS = {
    "null": b"null",
    "a number": b"1",
    "a list": b'["Laptop"]',
    "empty": b'""',
    "blank": b'" "',
    "201 letters": b'"%b"' % (b"a" * 201),
    "NUL": b'"Lap\\u0000top"',
    "a tab": b'"Lap\\ttop"',
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("item", NO_ITEMS.values(), ids=NO_ITEMS)
def test_an_order_of_no_item_is_a_422(wire: Wire, user_id: str, item: bytes) -> None:
    for at in ORDER_DOORS:
        assert_refused(wire.send("POST", "/orders", order_body(user_id, b"1", item), at=at), 422)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "body",
    [
        b'{"reason": 1}',
        b'{"reason": ["late"]}',
        b'{"reason": "%b"}' % (b"a" * 501),
        b'{"reason": "to\\u0000o late"}',
        b'{"reason": "late", "refund": true}',
        b'"late"',
        b"null",
    ],
)
def test_a_cancellation_against_the_rules_cancels_nothing(
    wire: Wire, order_id: str, body: bytes
) -> None:
    assert_refused(wire.send("POST", f"/orders/{order_id}/cancel", body), 422)
    assert wire.send("GET", f"/queries/orders/{order_id}").value("status") == "confirmed"


@pytest.mark.parametrize(
    "name",
    [
        "a" * 100,
        "\U0001f600" * 100,
        "Z\u0351\u036b\u0343algo",
        "\ufffe\uffff\U0010ffff",
        "Zoë \U0001f469\ufe0f",
        "O'Brien\"; drop table events; --",
        "$where {$ne: 1} %s %(x)s {0} ${jndi:x}",
        "<script>alert(1)</script>",
        "\\u0000 \\ud800",
    ],
)
def test_odd_but_proper_text_comes_back_as_it_was(wire: Wire, name: str) -> None:
    created = new_user(wire, user_body(name))
    for query in ("", "?version=1"):
        assert wire.send("GET", f"/users/{created}{query}").value("name") == name
    history = json.loads(wire.send("GET", f"/users/{created}/events").body)
    assert history["events"][0]["data"]["name"] == name


# ── prices ────────────────────────────────────────────────────────────────────────────────

NO_PRICES = {
    "-0.01": 422,
    "-1": 422,
    "-1e400": 422,
    "1e400": 422,
    "1e1000000": 422,
    "1e999999999999999999999": 400,
    "0e99999999999999999999": 400,
    "1e-999999999999999999999": 400,
    "NaN": 400,
    "-Infinity": 400,
    "0.30000000000000004": 422,
    "0.001": 422,
    "19.999": 422,
    "19.990": 422,
    "10.000": 422,
    "1e-7": 422,
    "0e-3": 422,
    "0.000": 422,
    "-0.000": 422,
    "1000.00e-1": 422,
    "1." + "0" * 100: 422,
    "1." + "0" * 60_000: 422,
    "0." + "0" * 3000 + "1": 422,
    "9999999999.991": 422,
    "9999999999.990": 422,
    "10000000000": 422,
    "10000000000.00": 422,
    "9223372036854775808": 422,
    "18446744073709551616": 422,
    "1" * 40: 422,
    "1" * 5000: 400,
    "true": 422,
    "false": 422,
    "null": 422,
    '"1"': 422,
    '"19.99"': 422,
    "[1]": 422,
    "{}": 422,
    '{"$numberDecimal": "1"}': 422,
    "": 400,
    "01": 400,
    "1.": 400,
    ".5": 400,
    "+1": 400,
    "0x10": 400,
    "1_000": 400,
    "1,00": 400,
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(("price", "status"), NO_PRICES.items(), ids=lambda x: str(x)[:30])
def test_what_is_no_price_is_refused(wire: Wire, user_id: str, price: str, status: int) -> None:
    for at in ORDER_DOORS:
        answer = wire.send("POST", "/orders", order_body(user_id, price.encode()), at=at)
        assert_refused(answer, status)


@pytest.mark.usefixtures("nothing_written")
def test_an_order_without_a_price_is_a_422(wire: Wire, user_id: str) -> None:
    body = b'{"userId": "%b", "item": "Laptop"}' % user_id.encode()
    assert_refused(wire.send("POST", "/orders", body), 422)


PRICES = {
    "2500": "2500",
    "0.10": "0.10",
    "19.99": "19.99",
    "9999999999.99": "9999999999.99",
    "0.1": "0.1",
    "0.3": "0.3",
    "0.01": "0.01",
    "0": "0",
    "0.00": "0.00",
    "1.00": "1.00",
    "4.35": "4.35",
    "1.1": "1.1",
    "9007199254.74": "9007199254.74",
    "-0": "0",
    "-0.00": "0.00",
    "0e5": "0",
    "0e999999999": "0",
    "2.5e3": "2500",
    "25E+2": "2500",
    "1999e-2": "19.99",
}
"""Prices as they are given, and as they are answered: plain, and digit for digit."""


@pytest.fixture(scope="module")
def answers(shop: Shop, user_id: str) -> dict[str, list[bytes]]:
    """All that is answered about an order of each price: while the order projector is away,
    and after it has caught up.
    """
    wire = Wire(shop)
    shop.stop("order-projector")
    orders = {}
    for price in PRICES:
        placed = wire.send("POST", "/orders", order_body(user_id, price.encode()))
        assert placed.status == 200, placed
        orders[price] = placed.value("orderId")
    found = {price: about(wire, order_id) for price, order_id in orders.items()}
    shop.start("order-projector")
    for price, order_id in orders.items():
        found[price] += [listed(wire, user_id, order_id), *about(wire, order_id)]
    return found


def about(wire: Wire, order_id: str) -> list[bytes]:
    """What there is to ask about one order, now, as it was, and how it came to be."""
    paths = (f"/queries/orders/{order_id}", f"/orders/{order_id}/events")
    asked = [*paths, f"{paths[0]}?version=1"]
    return [wire.send("GET", path, at=at).body for path in asked for at in ORDER_DOORS]


@pytest.mark.parametrize("price", PRICES)
def test_a_price_is_exact_before_and_after_its_projection(
    answers: dict[str, list[bytes]], price: str
) -> None:
    for answer in answers[price]:
        assert re.findall(rb'"price":([^,}]*)', answer) == [PRICES[price].encode()], answer
    assert len(answers[price]) == 13


# ── sizes ─────────────────────────────────────────────────────────────────────────────────


def padded(size: int) -> bytes:
    """A proper user, with blanks behind it."""
    return user_body().ljust(size)


def test_a_body_of_64_KiB_is_taken(wire: Wire) -> None:
    for at in USER_DOORS:
        assert wire.send("POST", "/users", padded(LIMIT), at=at).status == 202
        assert wire.send("POST", "/users", in_chunks(padded(LIMIT)), CHUNKED, at).status == 202


TOO_LARGE = {
    "one byte more": padded(LIMIT + 1),
    "65 KiB": padded(65 * 1024),
    "65 KiB of one name": user_body("a" * 65 * 1024),
    "65 KiB of brackets": b"[" * 65 * 1024,
    "a whole user, then something else": padded(LIMIT) + b"x",
    "a whole user, then another request": padded(LIMIT)
    + b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(user_body()), user_body()),
    "200 KiB": padded(200 * 1024),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("body", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_larger_one_is_a_413(wire: Wire, body: bytes) -> None:
    for at in USER_DOORS:
        assert_refused(wire.send("POST", "/users", body, at=at), 413)
        assert_refused(wire.send("POST", "/users", in_chunks(body), CHUNKED, at), 413)


@pytest.mark.usefixtures("nothing_written")
def test_what_is_left_of_a_refused_body_is_not_taken_for_a_request(wire: Wire) -> None:
    post = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    hidden = post + b"Content-Length: %d\r\n\r\n%b" % (len(user_body()), user_body())
    body = in_chunks(padded(LIMIT + 1) + hidden * 20)
    first = post + b"Transfer-Encoding: chunked\r\n\r\n" + body
    second = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for at in USER_DOORS:
        answered = wire.exchange(first + second, at)
        assert re.findall(rb"HTTP/1\.1 (\d+)", answered) in ([b"413"], [b"413", b"200"])


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("at", ["gateway", "user-service"])
@pytest.mark.parametrize(
    "body", [b"{}", b'{"name": "Eve"}', b"\x00\xff", b"GET /users HTTP/1.1\r\n\r\n"]
)
def test_a_body_of_a_query_is_passed_over(wire: Wire, user_id: str, at: str, body: bytes) -> None:
    assert wire.send("GET", f"/users/{user_id}", body, at=at).value("name") == "Ada"
    assert_refused(wire.send("GET", f"/users/{user_id}", b" " * (LIMIT + 1), at=at), 413)


# ── framing and types ─────────────────────────────────────────────────────────────────────

OTHER_TYPES = {
    "none": "",
    "text": "text/plain",
    "form": "application/x-www-form-urlencoded",
    "multipart": "multipart/form-data; boundary=x",
    "problem": "application/problem+json",
    "patch": "application/merge-patch+json",
    "javascript": "application/javascript",
    "prefix": "application/jsonp",
    "nonsense": "json",
    "two": "application/json, text/plain",
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("kind", OTHER_TYPES.values(), ids=OTHER_TYPES)
def test_a_body_of_another_type_is_a_415(wire: Wire, kind: str) -> None:
    for at in USER_DOORS:
        answer = wire.send("POST", "/users", user_body(), {"Content-Type": kind}, at)
        assert_refused(answer, 415)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
)
def test_json_by_any_of_its_names_is_taken(wire: Wire, kind: str) -> None:
    assert wire.send("POST", "/users", user_body(), {"Content-Type": kind}).status == 202


BROKEN_CHUNKS = {
    "an early end": b'1d\r\n{"nam',
    "an early end before a size": b"2\r\n{}\r\n",
    "an early end in the trailers": b"2\r\n{}\r\n0\r\n",
    "no size": b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a size with 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "too short a size": b"1\r\n{}\r\n0\r\n\r\n",
    "a compressed body": in_chunks(b"\x1f\x8b\x08\x00"),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("body", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
def test_chunks_that_make_no_body_are_a_400(wire: Wire, body: bytes) -> None:
    for at in USER_DOORS:
        assert_refused(wire.send("POST", "/users", body, CHUNKED, at, is_last=True), 400)


@pytest.mark.usefixtures("nothing_written")
def test_a_body_that_ends_early_is_a_400(wire: Wire) -> None:
    for at in USER_DOORS:
        length = {"Content-Length": str(len(user_body()) + 1)}
        answer = wire.send("POST", "/users", user_body(), length, at, is_last=True)
        assert_refused(answer, 400)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "gzip, identity", "x"])
def test_a_compressed_body_is_a_415(wire: Wire, coding: str) -> None:
    for at in USER_DOORS:
        headers = {"Content-Encoding": coding}
        assert_refused(wire.send("POST", "/users", user_body(), headers, at), 415)


UNREADABLE_HEADS: dict[str, tuple[Headers, int]] = {
    "a length and chunks": ({"Content-Length": "5", "Transfer-Encoding": "chunked"}, 400),
    "a negative length": ({"Content-Length": "-5"}, 400),
    "a length with a sign": ({"Content-Length": "+5"}, 400),
    "a length in letters": ({"Content-Length": "five"}, 400),
    "two lengths": ({"Content-Length": "5, 50"}, 400),
    "an unknown coding": ({**CHUNKED, "Transfer-Encoding": "x, chunked"}, 501),
    "a coding that is known": ({**CHUNKED, "Transfer-Encoding": "gzip, chunked"}, 501),
    "a coding that is not the last": ({**CHUNKED, "Transfer-Encoding": "chunked, gzip"}, 400),
    "no host": ({"Host": ""}, 400),
    "an expectation": ({"Expect": "a miracle"}, 417),
    "a name with a blank": ({"X-Request-ID ": "x"}, 400),
    "a folded header": ({"X-Request-ID": "x\r\n y"}, 400),
    "a second host": ({"X-Request-ID": "x\r\nHost: y"}, 400),
    "a header of 9,000 letters": ({"X-Filler": "x" * 9000}, 431),
    "60 headers": ({f"X-Filler-{n}": "x" for n in range(60)}, 431),
}


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    ("headers", "status"), UNREADABLE_HEADS.values(), ids=UNREADABLE_HEADS.keys()
)
def test_a_head_that_http_forbids_is_refused(wire: Wire, headers: Headers, status: int) -> None:
    for at in USER_DOORS:
        answer = wire.send("POST", "/users", in_chunks(user_body()), headers, at)
        assert_refused(answer, status)


UNREADABLE_LINES: dict[str, tuple[bytes, int]] = {
    "a method in lower case": (b"get /healthz HTTP/1.1", 400),
    "no version": (b"GET /healthz", 400),
    "another protocol": (b"GET /healthz ICAP/1.0", 400),
    "letters beyond ASCII": (b"GET /caf\xc3\xa9 HTTP/1.1", 400),
    "an address of 5,000 letters": (b"GET /%b HTTP/1.1" % (b"a" * 5000), 414),
}


@pytest.mark.parametrize(("line", "status"), UNREADABLE_LINES.values(), ids=UNREADABLE_LINES.keys())
def test_a_request_line_that_http_forbids_is_refused(wire: Wire, line: bytes, status: int) -> None:
    for at in USER_DOORS:
        answer = parse(at, wire.exchange(line + b"\r\nHost: shop\r\n\r\n", at))
        assert_refused(answer, status)


# ── headers ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("key", [" ", "two words", "a" * 256, "schl\xfcssel", "\xff", "tab\tbed"])
def test_an_idempotency_key_that_is_none_is_a_400(wire: Wire, key: str) -> None:
    for at in USER_DOORS:
        answer = wire.send("POST", "/users", user_body(), {"Idempotency-Key": key}, at)
        assert_refused(answer, 400)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("tag", ["1", "'1'", '"1', '"1" "2"', '"1",', "W/1", "**", "\xff"])
def test_an_if_match_that_is_no_etag_is_a_400(wire: Wire, user_id: str, tag: str) -> None:
    for at in USER_DOORS:
        answer = wire.send("PUT", f"/users/{user_id}", b'{"name": "Eve"}', {"If-Match": tag}, at)
        assert_refused(answer, 400)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "tag",
    ['"0"', '"2"', '"01"', '"-1"', '""', '"x"', 'W/"2"', '"2-ab"', f'"{"9" * 400}"', '"\xff"'],
)
def test_an_if_match_of_another_version_is_a_412(wire: Wire, user_id: str, tag: str) -> None:
    answer = wire.send("PUT", f"/users/{user_id}", b'{"name": "Eve"}', {"If-Match": tag})
    assert_refused(answer, 412)
    assert answer.headers["etag"].startswith('"1.')


@pytest.mark.parametrize("tag", ["2", '"', "W/", ",,,", "\xff", '"1" "2"', "*" * 4000])
def test_an_if_none_match_that_is_no_etag_is_passed_over(
    wire: Wire, user_id: str, tag: str
) -> None:
    answer = wire.send("GET", f"/users/{user_id}", headers={"If-None-Match": tag})
    assert (answer.status, answer.value("userId")) == (200, user_id)


@pytest.mark.parametrize("given", ["a" * 129, "two words", "<script>", "\xff", "a,b", "%0d%0aX: y"])
@pytest.mark.parametrize("header", ["X-Request-ID", "X-Correlation-ID"])
def test_an_id_of_another_form_is_replaced(
    wire: Wire, user_id: str, given: str, header: str
) -> None:
    for at in USER_DOORS:
        answer = wire.send("GET", f"/users/{user_id}", headers={header: given}, at=at)
        assert answer.status == 200
        assert UUID(answer.headers[header.lower()])


@pytest.mark.parametrize("given", ["x" * 4000, "00-0-0-00", "\xff", "00-" + "0" * 60])
def test_a_traceparent_of_another_form_is_passed_over(wire: Wire, given: str) -> None:
    created = wire.send("POST", "/users", user_body(), {"traceparent": given})
    assert created.status == 202


def test_a_key_is_free_again_after_a_refusal(wire: Wire) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    assert_refused(wire.send("POST", "/users", user_body(""), key), 422)
    assert wire.send("POST", "/users", user_body(), key).status == 202
    again = wire.send("POST", "/users", user_body(), key)
    assert (again.status, again.headers["idempotency-replayed"]) == (202, "true")


def test_a_repeated_command_is_answered_by_the_same_bytes(wire: Wire, user_id: str) -> None:
    for at in USER_DOORS:
        key = {"Idempotency-Key": str(uuid4())}
        first, again = (
            wire.send("PUT", f"/users/{user_id}", b'{"name": "Ada"}', key, at) for _ in range(2)
        )
        assert again.headers["idempotency-replayed"] == "true"
        assert (again.status, again.body) == (first.status, first.body)


OTHER_REQUESTS: dict[str, tuple[str, str, bytes, Headers]] = {
    "another caller": ("POST", "/users", user_body(), {"Authorization": "Bearer eve"}),
    "nobody": ("POST", "/users", user_body(), {"Authorization": ""}),
    "a caller in other letters": ("POST", "/users", user_body(), {"Authorization": "bearer ada"}),
    "another body": ("POST", "/users", user_body("Eve"), {}),
    "a body that says the same": ("POST", "/users", user_body() + b" ", {}),
    "another caller with a body of their own": (
        "POST", "/users", user_body("Eve"), {"Authorization": "Bearer eve"},
    ),
    "another address": ("PUT", "/users/{user}", b'{"name": "Eve"}', {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def answered(shop: Shop, user_id: str) -> Headers:
    """What somebody has sent with a POST to /users, the key included, and had answered."""
    sent = {"Idempotency-Key": str(uuid4()), "Authorization": "Bearer ada"}
    assert Wire(shop).send("POST", "/users", user_body(), sent).status == 202
    return sent


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("other", OTHER_REQUESTS.values(), ids=OTHER_REQUESTS)
def test_a_key_answers_nobody_else_and_nothing_else(
    wire: Wire, user_id: str, answered: Headers, other: tuple[str, str, bytes, Headers]
) -> None:
    method, path, body, headers = other
    for at in USER_DOORS:
        again = wire.send("POST", "/users", user_body(), answered, at)
        assert again.headers["idempotency-replayed"] == "true"
        answer = wire.send(method, path.format(user=user_id), body, {**answered, **headers}, at)
        assert_refused(answer, 409, 422)
        assert "idempotency-replayed" not in answer.headers
        assert again.value("userId").encode() not in answer.body
