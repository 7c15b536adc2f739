"""The page for people, on fakes: what each view shows, what a form does, and who may see it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from eventcore.web.app import create_app
from gateway.api import add_forwarding
from gateway.page.pages import add_page
from local.services import SERVICES
from tests.fakes.guarded import Within
from tests.fakes.shop import FakeShop

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@dataclass
class Page:
    """The fake shop behind a gateway with the page."""

    shop: FakeShop

    def __post_init__(self) -> None:
        upstreams = {"user": Within(self.shop.users), "order": Within(self.shop.orders)}
        app = create_app("Gateway", (), missing=dict, is_ready=lambda: True)
        add_forwarding(app, {name: each.paths for name, each in SERVICES.items()}, upstreams)
        add_page(app, upstreams)
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, status: int = 200, **headers: str) -> TestResponse:
        answer = self.client.get(path, headers={**HTML, **headers})
        assert answer.status_code == status, answer.text
        return answer

    def post(self, path: str, status: int = 303, **fields: str) -> TestResponse:
        answer = self.client.post(path, data=fields, headers=HTML)
        assert answer.status_code == status, answer.text
        return answer


@pytest.fixture
def page() -> Page:
    return Page(FakeShop())


@pytest.fixture
def user(page: Page) -> str:
    return page.shop.create_user()


@pytest.fixture
def order(page: Page, user: str) -> str:
    order = page.shop.place_order(user)
    page.shop.settle()
    return order


def visible(answer: TestResponse) -> str:
    """The text of a page, without its markup."""
    return " ".join(re.sub("<[^>]*>", " ", answer.text).split())


def test_a_browser_gets_the_page_and_another_client_what_it_had(page: Page) -> None:
    assert page.get("/", 302).location == "page"
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.9"):
        answer = page.client.get("/", headers={"Accept": accept})
        assert (answer.status_code, answer.location) == (302, "docs")
        assert answer.headers["Vary"] == "Accept"


VIEWS: dict[str, Callable[[str, str], str]] = {
    "start": lambda _, __: "/page",
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
    polled = re.findall(r'hx-get="([^"]+/live[^"]*)"', answer.text)
    for path in polled:
        fragment = page.get(path.replace("&amp;", "&"))
        assert page.get(path, 304, **{"If-None-Match": fragment.headers["ETag"]}).data == b""
