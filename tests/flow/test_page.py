"""The page for people, on fakes: what each view shows, what a form does, and who may see it."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import unescape
from itertools import count, pairwise
from typing import Any
from uuid import UUID

import pytest
from flask.testing import FlaskClient
from jinja2.bccache import Bucket, BytecodeCache
from werkzeug.test import TestResponse

from eventcore.clock import Clock
from eventcore.ids import new_id
from eventcore.model.event import Mark
from eventcore.readmodel.records import Depth, Parked
from eventcore.store.port import Stream
from eventcore.web.app import create_app
from eventcore.web.caller import ACTOR_HEADER, SCOPES_HEADER
from gateway.api import add_forwarding
from gateway.forward import Answer, UpstreamUnavailable
from gateway.main import Settings
from gateway.main import create_app as create_gateway
from gateway.page.pages import add_page
from local.services import SERVICES
from tests.environment import settings_from
from tests.fakes.guarded import IDENTITY_TOKEN, Guarded, Within
from tests.fakes.shop import FakeShop
from tests.fakes.store import _NEVER
from tests.flow.test_metrics import value

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Compiled(BytecodeCache):
    """Templates that are compiled once for all tests."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._code:
            bucket.bytecode_from_string(self._code[bucket.key])

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key] = bucket.bytecode_to_string()


COMPILED = Compiled()


NOBODY = "01890000-0000-7000-8000-000000000000"
"""The id of no user, which is older than all that is known."""


@dataclass
class Page:
    """The fake shop behind a gateway with the page, at the time of the stores' clocks."""

    shop: FakeShop
    monotonic: Callable[[], float] = field(default_factory=lambda: count(step=10.0).__next__)
    """By which states grow old: at each look, unless a test says otherwise."""

    def __post_init__(self) -> None:
        for store in (self.shop.user_store, self.shop.order_store):
            store.now = datetime.now(UTC)  # ids tell the time as well
        self.upstreams = {"user": Within(self.shop.users), "order": Within(self.shop.orders)}
        app = create_app("Gateway", (), missing=dict, is_ready=lambda: True, front="page")
        add_forwarding(app, {name: each.paths for name, each in SERVICES.items()}, self.upstreams)
        clock = Clock(monotonic=self.monotonic, now=lambda: self.shop.order_store.now)
        add_page(app, self.upstreams, clock=clock)
        app.jinja_env.bytecode_cache = COMPILED
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, status: int = 200, **headers: str) -> TestResponse:
        answer = self.client.get(path, headers={**HTML, **headers})
        assert answer.status_code == status, answer.text[-3000:]
        return answer

    def post(self, path: str, status: int = 303, **fields: str) -> TestResponse:
        answer = self.client.post(path, data=fields, headers=HTML)
        assert answer.status_code == status, answer.text[-3000:]
        return answer

    def find(self, wanted: str) -> str:
        """The path of the view that the search box leads to."""
        return self.get(f"/page/search?q={wanted}", 302).location

    def asked(self) -> list[str]:
        """The paths that the services are asked for from now on."""
        asked: list[str] = []

        def noted(upstream: Within) -> Callable[..., Answer]:
            call = upstream.call
            return lambda method, path, *more: asked.append(path) or call(method, path, *more)  # type: ignore[func-returns-value]

        for upstream in self.upstreams.values():
            upstream.call = noted(upstream)  # type: ignore[method-assign]
        return asked

    def later(self, seconds: float) -> None:
        """Both stores' clocks go on."""
        for store in (self.shop.user_store, self.shop.order_store):
            store.now += timedelta(seconds=seconds)

    def sweep(self) -> None:
        """Everything comes to rest, and every projector has just swept."""
        self.shop.settle()
        self.shop.sweep()
        for _ in range(2):
            self.shop.view.sweep()


@pytest.fixture
def page() -> Page:
    return Page(FakeShop())


@pytest.fixture
def user(page: Page) -> str:
    return page.shop.create_user()


@pytest.fixture
def order(page: Page, user: str) -> str:
    order = page.shop.place_order(user)
    page.sweep()
    return order


def visible(answer: TestResponse) -> str:
    """The text of a page, without its markup."""
    return unescape(" ".join(re.sub("<[^>]*>", " ", answer.text).split()))


def test_a_browser_gets_the_page_and_another_client_what_it_had(page: Page) -> None:
    assert page.get("/", 302).location == "page"
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.9"):
        answer = page.client.get("/", headers={"Accept": accept})
        assert (answer.status_code, answer.location) == (302, "docs")
        assert answer.headers["Vary"] == "Accept"


@pytest.mark.parametrize(("page", "place", "status"), [("on", "page", 200), ("off", "docs", 404)])
def test_the_gateway_serves_the_page_unless_it_is_off(page: str, place: str, status: int) -> None:
    told = {"SERVICE": "gateway", "UPSTREAMS": "{}", "PAGE": page}
    client = create_gateway(settings_from(told, Settings)).test_client()
    assert client.get("/", headers=HTML).location == place
    assert client.get("/page/static/page.css", buffered=True).status_code == status


VIEWS: dict[str, Callable[[str, str], str]] = {
    "start": lambda _, __: "/page",
    "batch": lambda _, __: "/page/orders/batch",
    "order": lambda _, order: f"/page/orders/{order}",
    "user": lambda user, _: f"/page/users/{user}",
    "flow": lambda _, __: "/page/flow",
    "projections": lambda _, __: "/page/projections",
    "correlation": lambda _, order: f"/page/correlations/{order}",
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_strict_and_loads_only_its_own(
    page: Page, user: str, order: str, view: str
) -> None:
    answer = page.get(VIEWS[view](user, order))
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]* src=\"/page/)|\sstyle=|\son\w+=", answer.text)
    assert not re.search(r"(src|href|action)=\"(?:https?:)?//", answer.text)
    assert "<h1>" in answer.text
    polled = re.findall(r'hx-get="([^"]*/live/[^"]*)"', answer.text)
    for path in polled:
        fragment = page.get(path.replace("&amp;", "&"))
        assert page.get(path, 304, **{"If-None-Match": fragment.headers["ETag"]}).data == b""


# ── forms ─────────────────────────────────────────────────────────────────────────────────


def test_a_form_sends_its_command_once_however_often_it_is_sent(page: Page, user: str) -> None:
    fields = {"userId": user, "item": "Laptop", "price": "0.10", "key": "k1"}
    first, second = (page.post("/page/orders", 303, **fields).location for _ in range(2))
    assert second == f"{first}&repeated=order"
    told = "This order had been placed before: no new one was placed now."
    assert [told in visible(page.get(place)) for place in (first, second)] == [False, True]
    assert [event.event_type for event in page.shop.order_store.log] == ["ORDER_PLACED"]
    assert "0.10" in visible(page.get(first))
    changed = page.post("/page/orders", 422, **{**fields, "item": "Mouse"})
    assert "sent before with other values. Nothing was done now" in visible(changed)
    assert len(page.shop.order_store.log) == 1
    page.post("/page/orders", 303, **form_in(changed.text, "/page/orders"), userId=user)
    assert [each.data["item"] for each in page.shop.order_store.log] == ["Laptop", "Mouse"]


def test_a_refused_form_keeps_what_was_typed_and_says_why_beside_it(page: Page, user: str) -> None:
    answer = page.post("/page/orders", 422, userId=user, item="", price="cheap", key="k")
    assert answer.text.count('aria-invalid="true"') == 2
    assert 'value="cheap"' in answer.text
    assert 'aria-describedby="order-item-error"' in answer.text
    page.sweep()
    unknown = page.post("/page/orders", 422, userId=NOBODY, item="x", price="1", key="k")
    assert "User unknown" in visible(unknown)
    assert not page.shop.order_store.log


def rows(*orders: tuple[str, str, str]) -> dict[str, str]:
    """The fields of the form of several orders: user, item and price of each row."""
    names = ("userId", "item", "price")
    return {
        f"orders.{row}.{name}": value
        for row, order in enumerate(orders)
        for name, value in zip(names, order, strict=True)
    }


def test_a_batch_is_placed_once_without_its_empty_rows(page: Page, user: str) -> None:
    page.sweep()
    empty = ("", " ", "")
    typed = rows(empty, (user, "Laptop", "0.10"), empty, empty, (user, "Mouse", "2"))
    first, again = (
        page.post("/page/orders/batch", 303, **typed, key="k").location for _ in range(2)
    )
    assert again == f"{first}&repeated=batch"
    assert [each.data["item"] for each in page.shop.order_store.log] == ["Laptop", "Mouse"]
    text = page.get(first).text
    placed = [str(each.aggregate_id) for each in page.shop.order_store.log]
    assert [f"/page/orders/{order}" in text for order in placed] == [True, True]


def test_each_error_of_a_batch_stands_beside_its_field(page: Page, user: str) -> None:
    page.sweep()
    typed = rows((user, "Laptop", "1"), ("", "", ""), (user, "", "cheap"))
    refused = page.post("/page/orders/batch", 422, **typed, key="k").text
    wrong = re.findall(r'aria-describedby="batch-([^"]*)-error"', refused)
    assert wrong == ["orders.1.item", "orders.1.price"]  # the empty row is the last one now
    assert 'value="Laptop"' in refused
    typed = rows((user, "Laptop", "1"), (NOBODY, "Mouse", "2"))
    unknown = page.post("/page/orders/batch", 422, **typed, key="k").text
    assert re.findall(r'aria-describedby="batch-([^"]*)-error"', unknown) == ["orders.1.userId"]
    nothing = page.post("/page/orders/batch", 422, **rows(), key="k")
    assert "orders: must not be empty" in visible(nothing)
    assert not page.shop.order_store.log


def test_every_command_has_a_form(page: Page) -> None:
    created = page.post("/page/users", name="Ada", email="ada@example.com").location.partition("?")[
        0
    ]
    user = created.rsplit("/", 1)[1]
    page.post(f"/page/users/{user}", name="Ada King", email="ada@example.com")
    page.post(f"/page/users/{user}/credit-limit", limit="12.50")
    page.post(f"/page/users/{user}/credit-limit", limit="")
    page.shop.settle()
    placed = page.post("/page/orders", userId=user, item="Laptop", price="1").location.partition(
        "?"
    )[0]
    assert page.post(f"{placed}/cancel", reason="too late").location.startswith(f"{placed}?seen=")
    shown = visible(page.get(placed))
    assert "cancelled" in shown
    assert "too late" in shown
    assert "unlimited" in visible(page.get(created))


def form_in(text: str, form: str) -> dict[str, str]:
    """The fields of a form, as a browser would send them unchanged."""
    [its] = re.findall(rf'<form[^>]* action="{form}">(.*?)</form>', text, re.DOTALL)
    found = re.findall(r'<input[^>]* name="([^"]*)"[^>]* value="([^"]*)"', its)
    return {name: unescape(value) for name, value in found}


def test_a_form_sends_only_what_was_changed_in_it(
    page: Page, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/page/users/{user}"
    sent = form_in(page.get(path).text, path)
    page.post(path, 303, **{**sent, "email": "ada@example.org"})
    assert [each.event_type for each in page.shop.user_store.log[1:]] == ["USER_EMAIL_CHANGED"]
    page.shop.settle()
    asked: list[bytes] = []
    call = page.upstreams["user"].call
    monkeypatch.setattr(
        page.upstreams["user"],
        "call",
        lambda m, p, *more: asked.append(more[0]) or call(m, p, *more),  # type: ignore[func-returns-value]
    )
    page.post(path, 303, **{**form_in(page.get(path).text, path), "name": "Ada King"})
    assert asked[-1] == b'{"name":"Ada King"}'


@pytest.mark.parametrize(
    ("form", "typed"), [("", {"email": "ada@example.org"}), ("/credit-limit", {"limit": "12.50"})]
)
def test_a_form_of_a_version_that_is_past_changes_nothing(
    page: Page, user: str, form: str, typed: dict[str, str]
) -> None:
    path = f"/page/users/{user}"
    old = form_in(page.get(path).text, path + form)
    page.shop.users.put(f"/users/{user}", json={"name": "Ada King"})
    page.shop.settle()
    refused = page.post(path + form, 412, **{**old, **typed})
    assert "changed meanwhile by somebody (USER_NAME_CHANGED)" in visible(refused)
    assert 'name="name" type="text" value="Ada King"' in refused.text
    assert [f'value="{each}"' in refused.text for each in typed.values()] == [True]
    assert len(page.shop.user_store.log) == 2
    page.post(path + form, 303, **form_in(refused.text, path + form))
    assert len(page.shop.user_store.log) == 3
    assert page.shop.users.get(f"/users/{user}").get_json()["name"] == "Ada King"


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}]
)
def test_a_form_of_another_site_does_nothing(page: Page, headers: dict[str, str]) -> None:
    body = {"name": "Eve", "email": "eve@example.com"}
    answer = page.client.post("/page/users", data=body, headers=headers)
    assert answer.status_code == 403
    assert not page.shop.user_store.log
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert page.client.post("/page/users", data=body, headers=own).status_code == 303


def test_names_are_text_whatever_they_are_made_of(page: Page) -> None:
    name = "<script>alert(1)</script>\" onload='x' {{ 7*7 }} \u05d0\u05d1"
    user = page.shop.create_user(name)
    for path in ("/page", f"/page/users/{user}"):
        text = page.get(path).text
        assert "<script>alert" not in text
        assert f"<bdi>{'&lt;script&gt;alert(1)&lt;/script&gt;'}" in text
        assert "{{ 7*7 }}" in text


def test_after_a_form_the_page_shows_what_it_has_written(page: Page, user: str) -> None:
    page.sweep()
    path = f"/page/users/{user}"
    place = page.post(
        path, 303, **{**form_in(page.get(path).text, path), "name": "Ada King"}
    ).location
    for _ in range(2):  # no projector has run since: the read model has the old name
        text = page.get(place).text
        assert form_in(text, path)["name"] == "Ada King"
        [live] = re.findall(r'hx-get="(/page/live/[^"]*)"', text)
        assert "<h1><bdi>Ada King</bdi></h1>" in page.get(unescape(live)).text
        place = page.post(path, 303, **form_in(text, path)).location
    assert "<h1><bdi>Ada</bdi></h1>" in page.get(f"{path}?seen=nonsense").text
    page.shop.users.put(f"/users/{user}", json={"name": "Ada Lovelace"})
    late = {**form_in(text, path), "email": "ada@example.org", "key": "late"}
    refused = page.post(path, 412, **late).text
    assert form_in(refused, path)["name"] == "Ada Lovelace"


# ── streams and the search ────────────────────────────────────────────────────────────────


def test_an_event_says_what_it_changed(page: Page, user: str) -> None:
    page.post(f"/page/users/{user}", name="Ada King", email="ada@example.com")
    text = page.get(f"/page/users/{user}").text
    assert re.search(r"<del><bdi>Ada</bdi></del>.*<ins><bdi>Ada King</bdi></ins>", text)
    then = visible(page.get(f"/page/users/{user}?version=1"))
    assert "As it was at version 1 of 2" in then


def test_a_long_stream_is_shown_by_pages_each_read_at_once(page: Page, user: str) -> None:
    names = [f"Ada {number}" for number in range(2, 31)]
    for name in names:
        page.shop.users.put(f"/users/{user}", json={"name": name})
    page.sweep()
    asked = page.asked()
    text = page.get(f"/page/users/{user}").text
    of_stream = [each for each in asked if each.startswith(f"/users/{user}")]
    events = f"/users/{user}/events?after=9&limit=21&include=documents"
    assert of_stream == [f"/users/{user}", events, f"/users/{user}/credit"]
    changes = re.findall(r"<del><bdi>(.*?)</bdi></del>.*?<ins><bdi>(.*?)</bdi></ins>", text)
    assert changes == [*pairwise(names[8:])]
    earlier = page.get(f"/page/users/{user}?after=0").text
    assert re.findall(r'<li id="v(\d+)"', earlier) == [str(version) for version in range(1, 21)]
    assert f"/page/users/{user}?after=20" in earlier


def test_the_search_finds_the_view_of_any_id(page: Page, user: str, order: str) -> None:
    placed = page.shop.order_store.log[0]
    assert page.find(user) == f"/page/users/{user}"
    assert page.find(order) == f"/page/orders/{order}"
    assert page.find(str(placed.event_id)) == f"/page/orders/{order}?after=0#v1"
    correlation = str(placed.metadata["correlationId"])
    assert page.find(correlation) == f"/page/correlations/{correlation}"
    assert "ORDER_PLACED" in visible(page.get(page.find(correlation)))
    assert "Nothing is known" in visible(page.get(page.find("no such thing / at all")))


def test_the_story_of_a_request_goes_across_services(page: Page, user: str) -> None:
    page.post(f"/page/users/{user}/credit-limit", limit="5")
    page.sweep()
    order = page.post("/page/orders", userId=user, item="Laptop", price="1").location
    page.sweep()
    correlation = page.shop.order_store.log[0].metadata["correlationId"]
    text = visible(page.get(f"/page/correlations/{correlation}"))
    steps = ("ORDER_PLACED", "SAGA_STARTED", "CREDIT_RESERVED", "STEP_DONE", "ORDER_CONFIRMED")
    assert [step for step in steps if step not in text] == []
    assert "2 services" in text
    assert "reserve-credit" in visible(page.get(order))


def test_a_command_to_copy_quotes_what_a_link_puts_into_it(page: Page) -> None:
    text = page.get("/page/correlations/x;touch%20pwned%20'$(id)").text
    [command] = re.findall(r'data-copy="([^"]*)"', text)
    arguments = ["python", "-m", "eventcore", "trace", "x;touch pwned '$(id)"]
    assert shlex.split(unescape(command)) == arguments


# ── from a complaint to the cause ─────────────────────────────────────────────────────────


def park(page: Page, generation: str, stream: str, error: str) -> None:
    parked = Parked(generation, stream, 1, 1, error, page.shop.order_store.now)
    page.shop.readmodel.park([parked])


class Gone(Within):
    """A service that cannot be reached."""

    def call(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise UpstreamUnavailable("not reached")


def lose_service(page: Page, order: str) -> None:
    page.upstreams["user"].call = Gone(page.shop.users).call  # type: ignore[assignment,method-assign]


def stop_projector(page: Page, order: str) -> None:
    page.shop.sweep([name for name in page.shop.projectors if name != "orders"])
    page.later(6)
    page.shop.sweep([name for name in page.shop.projectors if name != "orders"])
    for _ in range(2):
        page.shop.view.sweep()


def wait_for_saga(page: Page, order: str) -> None:
    due = page.shop.order_store.now + timedelta(seconds=5)
    page.shop.order_store.deadlines[Stream("order_saga", UUID(order))] = 1, due


def stick_saga(page: Page, order: str) -> None:
    page.shop.order_store.deadlines[Stream("order_saga", UUID(order))] = 1, _NEVER


FAULTS: dict[str, tuple[Callable[[Page, str], object], str]] = {
    "relay stopped": (
        lambda page, _: setattr(page.shop.order_store, "relaying", False),
        "order-relay: No relay holds the lock of the store",
    ),
    "relay halted": (
        lambda page, _: page.shop.order_store.checkpoints.update(relay=Mark(1, str(new_id()))),
        "order-relay: the relay's checkpoint is event",
    ),
    "projector stopped": (stop_projector, "orders: order-projector has not swept since"),
    "order parked": (
        lambda page, order: park(page, "orders", order, "KeyError: 'price'"),
        "orders parked it at 1: KeyError: 'price'",
    ),
    "view parked": (
        lambda page, order: park(page, "customers/order", page_user(page), "TypeError: None"),
        "customers/order parked it at 1: TypeError",
    ),
    "projection halted": (
        lambda page, _: page.shop.readmodel.halt("orders", "the log was restored"),
        "orders: the log was restored",
    ),
    "saga stuck": (stick_saga, "Its saga is stuck"),
    "saga waits": (wait_for_saga, "Its saga waits for an answer until "),
    "read model away": (
        lambda page, _: setattr(page.shop.readmodel, "away", True),
        "orders: The read model cannot be asked",
    ),
    "other store away": (
        lambda page, _: setattr(page.shop.user_store, "away", True),
        "PostgreSQL of user-service is away",
    ),
    "own store away": (
        lambda page, _: setattr(page.shop.order_store, "away", True),
        "The event store is not available",
    ),
    "service away": (lose_service, "user-service does not answer"),
}


def page_user(page: Page) -> str:
    return str(page.shop.order_store.log[0].data["userId"])


@pytest.mark.parametrize("fault", FAULTS)
def test_from_an_orders_id_to_the_cause_it_is_one_search(
    page: Page, order: str, fault: str
) -> None:
    make, cause = FAULTS[fault]
    assert cause not in visible(page.get(f"/page/orders/{order}"))
    make(page, order)
    place = page.find(order)
    answer = page.client.get(place, headers=HTML)
    if fault == "own store away":  # then no id can be looked up: the picture shows it
        assert cause in visible(page.client.get(f"/page/orders/{order}", headers=HTML))
        place = "/page/flow"
        cause = "order_event_db PostgreSQL: the log \u2715 away"
        answer = page.get(place)
    assert cause in visible(answer)


def test_a_call_is_counted_under_its_route_without_the_choices(page: Page, user: str) -> None:
    labels = {"method": "GET", "route": "/page/{kind}/{id}", "status": "200"}
    before = value("http_request_duration_seconds_count", **labels)
    page.get(f"/page/users/{user}")
    assert value("http_request_duration_seconds_count", **labels) == before + 1


def test_a_healthy_order_has_no_cause_and_says_when_it_was_readable(page: Page, order: str) -> None:
    text = visible(page.get(f"/page/orders/{order}"))
    assert "Not as it should be" not in text
    assert "answered from the read model" in text
    assert "later in orders" in text
    assert "1 of 1 event, in the order of the log, times in UTC" in text
    assert "Laptop 1.00" in text
    assert "of Ada , placed" in text


def test_an_event_that_waits_is_seen_in_the_picture_where_it_waits(page: Page, user: str) -> None:
    page.sweep()
    page.shop.place_order(user)
    page.shop.relay()
    page.shop.consume([name for name in page.shop.projectors if name != "orders"])
    page.later(1.5)
    text = page.get("/page/flow").text
    assert visible(page.get("/page/flow")).count("1 waiting") == 1
    assert 'not-there">orders' in text
    page.shop.consume(["orders"])
    assert "1 waiting" not in page.get("/page/flow").text


def test_an_event_that_was_not_published_waits_for_the_relay_alone(page: Page, user: str) -> None:
    page.sweep()
    order = page.shop.place_order(user)
    page.shop.order_store.relaying = False
    page.later(1.5)
    shown = visible(page.get("/page/flow"))
    assert shown.count("1 waiting") == 1
    assert "behind" not in shown
    assert "orders:" not in visible(page.get(f"/page/orders/{order}"))


def test_a_document_that_is_readable_is_not_said_to_be_missing(
    page: Page, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.sweep()
    call = page.upstreams["user"].call

    def raced(method: str, path: str, *more: Any) -> Answer:
        answer = call(method, path, *more)
        if path == f"/users/{user}":  # it was asked for just before the projector wrote it
            answer.headers.replace_header("Answered-From", "live")
        return answer

    monkeypatch.setattr(page.upstreams["user"], "call", raced)
    shown = visible(page.get(f"/page/users/{user}"))
    assert "answered from the log" in shown
    assert "does not have it yet" not in shown


@pytest.mark.parametrize("path", ["/page/nope", "/page/", "/page/live/nope"])
def test_a_path_of_the_page_that_is_none_is_a_page(page: Page, path: str) -> None:
    answer = page.get(path, 404)
    assert "<h1>Not found</h1>" in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_the_state_tells_where_why_and_when_a_stream_was_parked(page: Page, order: str) -> None:
    when = page.shop.order_store.now.replace(microsecond=0)
    entry = Parked("orders", order, 1, 3, "KeyError: 'price'", when)
    page.shop.readmodel.park([entry])
    state = page.shop.orders.get("/internal/status").get_json()
    [orders] = [each for each in state["projections"] if each["label"] == "orders"]
    assert orders["state"]["parked"] == [
        {
            "stream": order, "version": 1, "highest": 3, "error": "KeyError: 'price'",
            "when": f"{when:%Y-%m-%dT%H:%M:%S}.000000Z",
        }
    ]  # fmt: skip


def test_dead_letters_are_counted_where_a_projector_has_noted_them(page: Page, order: str) -> None:
    assert "dead letters: 0" in visible(page.get("/page/projections"))
    page.shop.readmodel.note_depth(Depth("orders", page.shop.order_store.now, 3, 2))
    listed = visible(page.get("/page/projections"))
    assert "Messages in its queue: 3, dead letters: 2 ." in listed
    assert "python -m eventcore dead-letters list orders" in listed
    picture = visible(page.get("/page/flow"))
    assert "RabbitMQ: 3 ready dead letters: 2" in picture
    stop_projector(page, order)
    assert re.search(r"dead letters: 2 , at \d\d:", visible(page.get("/page/projections")))


def test_a_rebuild_is_shown_with_what_is_left(page: Page, order: str) -> None:
    readmodel = page.shop.readmodel
    number = readmodel.begin_generation("orders")
    lease = readmodel.take_lease(f"orders.{number}", "rebuild", 60)
    assert lease
    readmodel.move_checkpoint(lease, page.shop.order_store.log[0].mark, None)
    text = page.get("/page/projections").text
    assert "Rebuild of generation 2" in text
    assert re.search(r'<progress id="rebuild-orders" value="1" max="1">', text)


def test_a_hundred_open_pages_ask_the_services_once() -> None:
    now = [0.0]
    page = Page(FakeShop(), monotonic=lambda: now[0])
    asked = page.asked()
    for view in ("start", "flow", "projections"):
        page.get(f"/page/live/{view}")
    assert asked.count("/internal/status") == 2
    before = len(asked)
    for _ in range(100):
        page.get("/page/live/flow")
        page.get("/page/live/start")
    assert len(asked) == before
    now[0] = 2.0
    page.get("/page/live/flow")
    assert len(asked) == before + 2


# ── where callers are known ───────────────────────────────────────────────────────────────


@pytest.fixture
def guarded() -> Guarded:
    guarded = Guarded()
    guarded.app.jinja_env.bytecode_cache = COMPILED
    add_page(guarded.app, guarded.upstreams, guarded.tokens, guarded.verifier)
    return guarded


def test_without_a_credential_every_view_asks_for_one(guarded: Guarded) -> None:
    for place in VIEWS.values():
        path = place(str(new_id()), str(new_id()))
        answer = guarded.client.get(path, headers=HTML)
        to = f"?to={path}" if path != "/page" else ""
        assert (answer.status_code, answer.location) == (303, f"/page/sign-in{to}")
    wrong = guarded.client.post("/page/sign-in", data={"credential": "nonsense"})
    assert wrong.status_code == 401
    assert "Set-Cookie" not in wrong.headers


@pytest.mark.parametrize(
    ("to", "place"),
    [
        ("/page/flow?a=b", "/page/flow?a=b"), ("", "/page"), ("//evil.example", "/page"),
        ("/pages", "/page"), ("https://evil.example/page", "/page"), ("/page/\\evil", "/page"),
    ],
)  # fmt: skip
def test_a_sign_in_leads_to_the_view_asked_for(guarded: Guarded, to: str, place: str) -> None:
    token = guarded.issuer.token(str(new_id()), scope="read")
    fields = {"credential": f" bearer  {token} "}
    answer = guarded.client.post("/page/sign-in", query_string={"to": to}, data=fields)
    assert (answer.status_code, answer.location) == (303, place)
    shown = visible(guarded.client.get("/page/flow"))
    assert "needs the scope admin" in shown
    assert "No events yet" not in shown


def test_a_caller_sees_its_own_and_an_admin_sees_all(guarded: Guarded) -> None:
    user, token = guarded.person()
    order = guarded.order(user, token)
    other, its = guarded.person()
    signed = guarded.client.post("/page/sign-in", data={"credential": its})
    cookie = signed.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert guarded.client.get(f"/page/orders/{order}").status_code == 404
    assert guarded.client.get(f"/page/users/{other}").status_code == 200
    start = guarded.client.get("/page").text
    assert other in start
    assert user not in start
    for view in ("flow", "projections", f"correlations/{order}"):
        assert "needs the scope admin" in guarded.client.get(f"/page/{view}").text
    admin = guarded.issuer.token(str(new_id()), scope="read write admin")
    guarded.client.post("/page/sign-in", data={"credential": admin})
    assert guarded.client.get(f"/page/orders/{order}").status_code == 200
    assert "order-projector" in guarded.client.get("/page/flow").text


def test_a_caller_who_may_only_read_sends_no_command(guarded: Guarded) -> None:
    token = guarded.issuer.token(str(new_id()), scope="read")
    guarded.client.post("/page/sign-in", data={"credential": token})
    answer = guarded.client.post("/page/users", data={"name": "Ada", "email": "a@example.com"})
    assert answer.status_code == 403
    assert not guarded.shop.user_store.log


@pytest.mark.parametrize("path", ["status", "newest", "trace?id=x", f"event/{NOBODY}"])
def test_a_service_shows_its_state_to_admins_of_the_gateway_alone(
    guarded: Guarded, path: str
) -> None:
    told = {"Authorization": f"Bearer {IDENTITY_TOKEN}", ACTOR_HEADER: "sub:a"}
    for scopes, statuses in (("read", {403}), ("read admin", {200, 404})):
        headers = {**told, SCOPES_HEADER: scopes}
        answer = guarded.shop.users.get(f"/internal/{path}", headers=headers)
        assert answer.status_code in statuses
    assert guarded.shop.users.get(f"/internal/{path}").status_code == 401
    assert guarded.client.get(f"/internal/{path}").status_code == 404
