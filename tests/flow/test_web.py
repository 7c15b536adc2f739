"""A service's HTTP side: Flask's hooks, refusals in words, validators, and hostile text."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core.core_schema import ErrorType

from eventcore.errors import CannotApply, OutcomeUnknown, StoreUnavailable
from eventcore.model.event import NewEvent
from eventcore.model.projection import Document
from eventcore.query import Views
from eventcore.store.port import Stream
from eventcore.web.app import create_app
from eventcore.web.inputs import MULTILINE, VISIBLE, Input, problems_of, sentence
from eventcore.web.queries import add_queries
from eventcore.web.routes import Routes
from tests.fakes.shop import TOKEN, FakeShop, web_app
from user.api import UserShown
from user.projections import users
from user.service import SERVICE

CALLS = [
    ("POST", "/users", {"name": "Ada", "email": "ada@example.com"}),
    ("GET", "/users/{user}", None),
    ("PUT", "/users/{user}", {"name": "Eve"}),
    ("PUT", "/users/{user}/credit-limit", {"limit": 19.99}),
    ("GET", "/users/{user}/events", None),
    ("POST", "/orders", {"userId": "{user}", "item": "Laptop", "price": 1}),
    ("GET", "/queries/orders/{order}", None),
    ("GET", "/queries/orders", None),
    ("POST", "/orders/{order}/cancel", {"reason": "late"}),
    ("GET", "/orders/{order}/events", None),
]


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


def client_for(shop: FakeShop, path: str) -> FlaskClient:
    return shop.users if path.startswith("/users") else shop.orders


# ── the framework ─────────────────────────────────────────────────────────────────────────


class Extension:
    """A Flask extension that counts its hooks, as an application may add one."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()

    def init_app(self, app: Flask) -> None:
        app.before_request(self._before)
        app.after_request(self._after)
        app.teardown_request(lambda _error: self.ran.update(["teardown"]))

    def _before(self) -> None:
        self.ran["before"] += 1

    def _after(self, response: Response) -> Response:
        self.ran["after"] += 1
        response.headers["X-Extension"] = "was here"
        return response


def targets(app: Flask, known_id: str) -> list[tuple[str, str]]:
    """Every method and route of an application: with an id, and with one that is none."""
    found = []
    for rule in app.url_map.iter_rules():
        for value in (known_id, "x"):
            path = re.sub(r"<(?:\w+:)?\w+>", value, rule.rule)
            found += [(method, path) for method in sorted(rule.methods or ())]
    return [*found, ("GET", "/made-up"), ("DELETE", "/healthz"), ("BREW", "/")]


@pytest.mark.parametrize("name", ["users", "orders"])
@pytest.mark.parametrize("away", [False, True])
def test_hooks_of_an_extension_run_once_for_every_route(
    shop: FakeShop, name: str, away: bool
) -> None:
    client: FlaskClient = getattr(shop, name)
    extension = Extension()
    extension.init_app(client.application)
    user_id = shop.create_user()
    known_id = user_id if name == "users" else shop.place_order(user_id)
    shop.user_store.away = shop.order_store.away = shop.readmodel.away = away
    statuses = set()
    for method, path in targets(client.application, known_id):
        extension.ran.clear()
        answer = client.open(path, method=method, headers={"Authorization": f"Bearer {TOKEN}"})
        statuses.add(answer.status_code)
        assert extension.ran == {"before": 1, "after": 1, "teardown": 1}, (method, path)
        assert answer.headers["X-Extension"] == "was here"
        assert UUID(answer.headers["X-Request-ID"])
    assert {200, 302, 400, 404, 405} | ({503} if away else set()) <= statuses


def test_a_hook_may_answer_in_place_of_a_route(shop: FakeShop) -> None:
    shop.users.application.before_request(lambda: Response("closed", 403))
    answer = shop.users.get("/users/x")
    assert (answer.status_code, answer.data) == (403, b"closed")
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("hook", ["before_request", "after_request"])
def test_an_error_in_a_hook_is_a_problem_that_does_not_say_more(shop: FakeShop, hook: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    getattr(shop.users.application, hook)(fail)
    answer = shop.users.get("/healthz")
    assert answer.status_code == 500
    assert answer.get_json()["requestId"] == answer.headers["X-Request-ID"]
    assert b"secret" not in answer.data


# ── refusals, in words ────────────────────────────────────────────────────────────────────

JARGON = re.compile(
    r"\^|\\[xu]|\[\^|[Ii]nput should|[Vv]alid (dictionary|integer|string)|instance of|pydantic"
    r"|JSONDecode|\bdict\b|\bstr\b|If you entered the URL|browser \(or proxy\)"
)


def refused(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert not JARGON.search(answer.text), answer.text
    problem: dict[str, Any] = answer.get_json()
    return problem


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"name": "Ada", "email": "ada"}, "email", "must be an e-mail address"),
        ({"name": "", "email": "a@b"}, "name", "must not be empty"),
        ({"name": "a" * 101, "email": "a@b"}, "name", "must have at most 100 characters"),
        ({"name": "\u200d", "email": "a@b"}, "name", "must have a visible character"),
        ({"name": 1, "email": "a@b"}, "name", "must be text"),
        ({"email": "a@b"}, "name", "is required"),
        ({"name": "Ada", "email": "a@b", "age": 1}, "age", "is not known here"),
        ([], "body", "must be an object"),
        (None, "body", "must be an object"),
    ],
)
def test_what_is_wrong_with_a_field_is_said_once_and_in_words(
    shop: FakeShop, body: object, field: str, reason: str
) -> None:
    answer = shop.users.post("/users", data=json.dumps(body), content_type="application/json")
    problem = refused(answer, 422)
    [error] = problem["errors"]
    assert error["field"] == field
    assert error["reason"].startswith(reason)
    assert answer.text.count(reason) == 1


def test_every_error_of_a_model_has_a_sentence() -> None:
    class Every(Input):
        text: Annotated[str, Field(min_length=2, pattern="^a")]
        count: Annotated[int, Field(gt=1, multiple_of=2)]
        kind: Literal["a", "b"]
        ids: Annotated[tuple[str, ...], Field(max_length=1)]
        price: float
        more: dict[str, int]

    wrong: list[dict[str, Any]] = [
        {"text": "b", "count": 1, "kind": "c", "ids": ("a", "b"), "price": "x", "more": []},
        {"text": "bb", "count": "x", "kind": 1, "ids": 1, "price": True, "more": {"a": "b"}},
        {"text": "bb", "count": 3},
    ]
    for each in wrong:
        with pytest.raises(ValidationError) as caught:
            Every.model_validate(each)
        for problem in problems_of(caught.value):
            assert re.match("(must|is|has) ", problem["reason"]), problem
            assert not JARGON.search(problem["reason"]), problem


def test_no_error_of_pydantic_is_told_in_its_own_words() -> None:
    context: defaultdict[str, object] = defaultdict(lambda: "3", min_length=3)
    for kind in get_args(ErrorType):
        reason = sentence(kind, context)
        assert re.match("(must|is|has) ", reason), (kind, reason)
        assert not JARGON.search(reason), (kind, reason)


def test_an_empty_body_is_called_empty(shop: FakeShop) -> None:
    for body in (b"", b" \n"):
        problem = refused(shop.users.post("/users", data=body), 400)
        assert problem["detail"].startswith("The body is empty.")


def test_a_time_whose_plus_became_a_space_is_explained(shop: FakeShop) -> None:
    user_id = shop.create_user()
    problem = refused(shop.users.get(f"/users/{user_id}?at=2026-01-16T10:00:00+01:00"), 422)
    assert "%2B" in problem["errors"][0]["reason"]


def test_a_key_that_was_used_otherwise_says_what_to_do(shop: FakeShop) -> None:
    key = {"Idempotency-Key": "k"}
    shop.users.post("/users", json={"name": "Ada", "email": "a@b"}, headers=key)
    answer = shop.users.post("/users", json={"name": "Eve", "email": "a@b"}, headers=key)
    assert "new key" in refused(answer, 422)["detail"]


def test_documents_can_be_queried_without_a_history(shop: FakeShop) -> None:
    user_id, route = shop.create_user(), Routes("users")
    views = Views(users.PROJECTION, shop.readmodel, shop.user_store)
    add_queries(route, "/queries/users/{id}", views, users.shown, UserShown)
    client = web_app(shop.user_store, route, SERVICE).test_client()
    assert refused(client.get(f"/queries/users/{user_id}/events"), 404)
    assert client.get(f"/queries/users/{user_id}").json["userId"] == user_id  # type: ignore[index]
    assert list(json.loads(client.get("/openapi.json").data)["paths"]) == ["/queries/users/{id}"]


def test_a_rule_has_a_type_of_its_own(shop: FakeShop) -> None:
    shop.sweep(["known-users"])
    body = {"userId": str(uuid4()), "item": "x", "price": 1}
    problem = refused(shop.orders.post("/orders", json=body), 422)
    assert (problem["title"], problem["type"]) == ("User unknown", "urn:problem:user-unknown")


def test_what_is_not_there_or_not_allowed_is_told_in_our_words(shop: FakeShop) -> None:
    assert "/docs" in refused(shop.users.get("/made-up"), 404)["detail"]
    answer = shop.users.delete("/healthz")
    assert "Allow" in refused(answer, 405)["detail"]
    assert answer.headers["Allow"]


def test_a_change_on_condition_that_nothing_exists_is_a_412(shop: FakeShop) -> None:
    user_id = shop.create_user()
    headers = {"If-None-Match": "*"}
    refused(shop.users.put(f"/users/{user_id}", json={"name": "Eve"}, headers=headers), 412)
    assert len(shop.user_store.log) == 1


def test_a_stream_that_this_code_cannot_read_is_a_503_with_retry_after(
    shop: FakeShop,
) -> None:
    user_id = shop.create_user()
    event = NewEvent(uuid4(), "USER_MARRIED", 1, {})
    shop.user_store.append(Stream("user", UUID(user_id)), 1, [event], {})
    for answer in (
        shop.users.put(f"/users/{user_id}", json={"name": "Eve"}),
        shop.users.get(f"/users/{user_id}?version=2"),
    ):
        assert "Nothing was lost" in refused(answer, 503)["detail"]
        assert answer.headers["Retry-After"]
        assert "USER_MARRIED" not in answer.text


def test_an_unknown_outcome_names_the_id_and_how_to_find_out(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregate_id = uuid4()

    def lose(*_: object, **__: object) -> None:
        raise OutcomeUnknown("connection to 10.2.3.4 lost", aggregate_id)

    monkeypatch.setattr(shop.user_store, "append", lose)
    answer = shop.users.post("/users", json={"name": "Ada", "email": "a@b"})
    problem = refused(answer, 504)
    assert problem["type"] == "urn:problem:outcome-unknown"
    assert str(aggregate_id) in problem["detail"]
    assert "Idempotency-Key" in problem["detail"]
    assert "othing was written" not in answer.text
    assert "Retry-After" not in answer.headers
    assert "10.2.3.4" not in answer.text


def test_no_address_of_a_server_is_in_an_answer(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable('connection to "10.2.3.4", port 5432 failed: user "user_service"')

    for name in ("append", "read_stream", "recorded_answer"):
        monkeypatch.setattr(shop.user_store, name, fail)
    answers = [
        shop.users.post("/users", json={"name": "Ada", "email": "a@b"}),
        shop.users.get(f"/users/{uuid4()}"),
    ]
    for answer in answers:
        refused(answer, 503)
        assert not re.search(r"10\.2|5432|user_service", answer.text)
    assert "Nothing was written" in answers[0].get_json()["detail"]


def test_readiness_names_what_is_missing_and_no_address() -> None:
    app = create_app(
        "Service",
        (),
        missing=lambda: {"store": 'connection to "10.2.3.4" failed'},
        is_ready=lambda: False,
    )
    answer = app.test_client().get("/readyz")
    assert (answer.status_code, list(answer.get_json()["missing"])) == (503, ["store"])
    assert "10.2" not in answer.text


# ── every command takes a key ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path", "body"), [call for call in CALLS if call[0] != "GET"], ids=str
)
def test_every_command_is_done_once_under_one_key(
    shop: FakeShop, method: str, path: str, body: dict[str, object]
) -> None:
    user_id = shop.create_user()
    ids = {"user": user_id, "order": shop.place_order(user_id)}
    target = path.format(**ids)
    text = json.dumps(body).replace("{user}", user_id)
    client, headers = client_for(shop, path), {"Idempotency-Key": str(uuid4())}

    def send() -> Any:
        return client.open(
            target, method=method, data=text, headers=headers, content_type="application/json"
        )

    first = send()
    assert first.status_code in (200, 202)
    written = len(shop.user_store.log) + len(shop.order_store.log)
    again = send()
    assert (again.status_code, again.data) == (first.status_code, first.data)
    assert again.headers["ETag"] == first.headers["ETag"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(shop.user_store.log) + len(shop.order_store.log) == written


def test_the_document_says_that_every_command_takes_a_key(shop: FakeShop) -> None:
    for client in (shop.users, shop.orders):
        for path, item in client.get("/openapi.json").get_json()["paths"].items():
            for method, operation in item.items():
                names = {each["name"] for each in operation["parameters"]}
                assert ("Idempotency-Key" in names) == (method != "get"), (method, path)


# ── validators ────────────────────────────────────────────────────────────────────────────


def document_of(shop: FakeShop, user_id: str) -> Document:
    return shop.readmodel.collections["users"][user_id]


def test_a_document_that_was_mended_has_another_etag_at_the_same_version(shop: FakeShop) -> None:
    user_id = shop.create_user("Ada")
    right = dict(document_of(shop, user_id))
    document_of(shop, user_id)["name"] = "Wrong"
    tag = shop.users.get(f"/users/{user_id}").headers["ETag"]
    document_of(shop, user_id).update(right)
    again = shop.users.get(f"/users/{user_id}", headers={"If-None-Match": tag})
    assert (again.status_code, again.get_json()["name"]) == (200, "Ada")


@pytest.mark.parametrize("form", ["{}", "W/{}", '"7", {}'])
def test_the_etag_of_a_query_or_a_command_is_taken_by_if_match(shop: FakeShop, form: str) -> None:
    user_id = shop.create_user()
    path = f"/users/{user_id}"
    tags = [shop.users.get(path).headers["ETag"]]
    for name in ("Eve", "Bob"):
        headers = {"If-Match": form.format(tags[-1])}
        changed = shop.users.put(path, json={"name": name}, headers=headers)
        assert changed.status_code == 200, changed.text
        tags.append(changed.headers["ETag"])
    for tag in tags[:-1]:
        headers = {"If-Match": form.format(tag)}
        answer = shop.users.put(path, json={"name": "Eve"}, headers=headers)
        assert refused(answer, 412)["type"] == "urn:problem:stale-version"
        assert answer.headers["ETag"] == tags[-1]


def test_the_etag_of_a_restored_log_is_stale_at_the_same_version(shop: FakeShop) -> None:
    user_id = shop.create_user()
    path = f"/users/{user_id}"
    before = list(shop.user_store.log)
    old = shop.users.put(path, json={"name": "Old"}).headers["ETag"]
    shop.user_store.log[:] = before  # and a life goes on in which the change never was
    new = shop.users.put(path, json={"name": "New"}).headers["ETag"]
    stale = shop.users.put(path, json={"name": "Eve"}, headers={"If-Match": old})
    refused(stale, 412)
    assert shop.users.put(path, json={"name": "Eve"}, headers={"If-Match": new}).status_code == 200


def test_the_document_has_an_etag_and_is_the_same_each_time(shop: FakeShop) -> None:
    first = shop.users.get("/openapi.json")
    again = shop.users.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


@pytest.mark.parametrize(("method", "path", "_"), [c for c in CALLS if c[0] == "GET"], ids=str)
def test_head_has_the_headers_of_get_and_its_length(
    shop: FakeShop, method: str, path: str, _: None
) -> None:
    user_id = shop.create_user()
    target = path.format(user=user_id, order=shop.place_order(user_id))
    shop.settle()
    got, head = (client_for(shop, path).open(target, method=each) for each in ("GET", "HEAD"))
    assert head.data == b""
    assert head.headers["Content-Length"] == str(len(got.data))
    assert head.headers["ETag"] == got.headers["ETag"]


# ── other origins ─────────────────────────────────────────────────────────────────────────

ORIGIN = "https://app.example.com"


def test_browsers_of_named_origins_may_call_every_route(
    shop: FakeShop,
) -> None:
    app = create_app(
        "Service", (), missing=dict, is_ready=lambda: True, cors_origins=(ORIGIN, "https://b.test")
    )
    client = app.test_client()
    for path in ("/healthz", "/openapi.json", "/made-up"):
        for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.test", None)):
            answer = client.get(path, headers={"Origin": origin})
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed
            assert ("Origin" in answer.headers.get("Vary", "")) == bool(allowed)
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "idempotency-key, if-match, content-type",
    }
    preflight = client.options("/healthz", headers=asked)
    assert preflight.status_code == 200
    assert "PUT" in preflight.headers["Access-Control-Allow-Methods"]
    assert "idempotency-key" in preflight.headers["Access-Control-Allow-Headers"].lower()
    assert "ETag" in client.get("/healthz", headers=asked).headers["Access-Control-Expose-Headers"]


def test_without_the_setting_no_other_origin_is_allowed(shop: FakeShop) -> None:
    answer = shop.users.get("/healthz", headers={"Origin": ORIGIN})
    assert "Access-Control-Allow-Origin" not in answer.headers


# ── hostile text ──────────────────────────────────────────────────────────────────────────

HOSTILE = st.text(
    st.one_of(
        st.characters(exclude_categories=()),
        st.sampled_from("\x00\x07\x1b\x7f\x85\u200b\u202e\u2028\u2029\ud800\udfff\ufeff\"'\\{}%$"),
    ),
    max_size=20,
)
UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

slow = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def quoted(text: str) -> str:
    return quote(text, errors="surrogatepass")


def texts_in_the_log(shop: FakeShop) -> list[str]:
    events = [*shop.user_store.log, *shop.order_store.log]
    return [value for event in events for value in event.data.values() if isinstance(value, str)]


@pytest.fixture
def stored(shop: FakeShop) -> FakeShop:
    """A shop with a store that takes what PostgreSQL takes."""
    for store in (shop.user_store, shop.order_store):
        append = store.append

        def checked(*given: Any, append: Callable[..., Any] = append, **more: Any) -> Any:
            text = json.dumps([each.data for each in given[2]], default=str, ensure_ascii=False)
            text.encode()
            assert "\\u0000" not in text, "PostgreSQL would refuse it: 22P05"
            return append(*given, **more)

        store.append = checked  # type: ignore[method-assign]
    return shop


@slow
@given(texts=st.tuples(HOSTILE, HOSTILE, HOSTILE), ascii_only=st.booleans())
@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=str)
def test_no_text_in_a_request_is_an_internal_error(
    stored: FakeShop,
    method: str,
    path: str,
    body: dict[str, object] | None,
    texts: tuple[str, str, str],
    ascii_only: bool,
) -> None:
    one, two, three = texts
    user_id = "01890000-0000-7000-8000-000000000000"
    client = client_for(stored, path)
    target = path.format(user=user_id, order=user_id)
    header = re.sub("[^ -~\x80-\xff]", "", two)
    given_body: object
    for given_body in (
        {**(body or {}), "name": one, "item": one, "reason": one, "userId": user_id},
        dict.fromkeys(body or {}, one),
        {**(body or {}), one: two},
        one,
    ):
        text = json.dumps(given_body, ensure_ascii=ascii_only)
        answer = client.open(
            target,
            method=method,
            data=text.encode("utf-8", "surrogatepass"),
            content_type="application/json",
            query_string=f"{quoted(three[:5])}={quoted(one)}" if three else "",
            headers={"X-Request-ID": header, "If-Match": header, "Idempotency-Key": header},
        )
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        json.loads(answer.data)
    odd = client.open(target.replace(user_id, one.encode("utf-8", "replace").hex()), method=method)
    assert odd.status_code < 500
    assert not any(UNWANTED.search(each) for each in texts_in_the_log(stored))


@slow
@given(text=HOSTILE)
def test_every_text_of_an_input_is_held_to_be_plain(text: str) -> None:
    class Whatever(Input):
        """As a cloner writes one."""

        one: str = ""
        many: list[str] = []  # noqa: RUF012
        more: dict[str, Any] = {}  # noqa: RUF012

    for given_value in ({"one": text}, {"many": [text]}, {"more": {text: 1}},
                        {"more": {"a": [{"b": text}]}}):  # fmt: skip
        try:
            Whatever.model_validate(given_value)
        except ValidationError:
            continue
        assert not UNWANTED.search(text)


@slow
@given(text=HOSTILE)
def test_only_a_multiline_text_may_have_line_breaks(text: str) -> None:
    class Comment(Input):
        title: str = ""
        text: Annotated[str, Field(max_length=5000), MULTILINE] | None = None
        parts: list[Annotated[str, MULTILINE]] = []  # noqa: RUF012

    def accepts(**fields: object) -> bool:
        try:
            Comment.model_validate(fields)
        except ValidationError:
            return False
        return True

    is_plain = not UNWANTED.search(re.sub("[\t\n\r]", "", text))
    assert accepts(text=text) == accepts(parts=[text]) == is_plain
    assert accepts(text=f"{text}\n") == is_plain
    assert not accepts(title=f"{text}\n")


def test_the_schema_of_a_multiline_text_allows_line_breaks_and_no_control() -> None:
    class Comment(Input):
        text: Annotated[str, MULTILINE]

    pattern = Comment.model_json_schema()["properties"]["text"]["pattern"]
    assert re.search(pattern, "one\r\n\ttwo")
    assert not re.search(pattern, "one\0")


@slow
@given(text=HOSTILE)
def test_a_name_can_be_seen_and_turns_nothing(text: str) -> None:
    class Named(BaseModel):
        name: Annotated[str, VISIBLE]

    try:
        Named(name=text)
    except ValidationError:
        return
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]", text)
    assert text.strip()


def test_a_form_is_described_by_the_pattern_that_validates() -> None:
    schema = TypeAdapter(Annotated[str, VISIBLE]).json_schema()
    assert re.fullmatch(schema["pattern"], "Ada Lovelace")
    assert not re.fullmatch(schema["pattern"], "\u200b")


def test_an_error_of_a_projection_is_not_told(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CannotApply("10.2.3.4 said no")

    monkeypatch.setattr(shop.user_store, "read_stream", fail)
    assert "10.2" not in shop.users.get(f"/users/{uuid4()}").text
