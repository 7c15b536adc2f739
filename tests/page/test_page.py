"""The page in a real browser, on the running system."""

import json
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import pytest

from local.browser import Browser, Tab
from local.shop import Shop

FIRST_VIEW = 100_000
"""Bytes of the first view, as they are before any compression."""

WIDTHS = (320, 768, 1280, 2560)

NAME = "<img src=x onerror=alert(1)> \u05d0\u05d3\u05d4 \u05dc\u05d0 Ada"
"""A name of markup and of text that runs from right to left."""

LONG = "A very long name of an item " * 7


def ask(shop: Shop, method: str, path: str, body: object = None) -> Any:
    """The JSON of the gateway's answer."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(shop.url("gateway") + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def places(shop: Shop) -> dict[str, str]:
    """The path of every view, with data that is hard to show."""
    shop.start()
    person = {"name": NAME, "email": f"{'a' * 60}@example.com"}
    user = ask(shop, "POST", "/users", person)["userId"]
    ask(shop, "PUT", f"/users/{user}", {"name": f"{NAME} the second"})
    ask(shop, "PUT", f"/users/{user}/credit-limit", {"limit": 100})
    item = {"userId": user, "item": LONG.strip()[:200], "price": 9.99}
    order = ask(shop, "POST", "/orders", item)["orderId"]
    event = ask(shop, "GET", f"/orders/{order}/events")["events"][0]
    return {
        "start": "/page",
        "batch": "/page/orders/batch",
        "order": f"/page/orders/{order}",
        "user": f"/page/users/{user}",
        "flow": "/page/flow",
        "projections": "/page/projections",
        "correlation": f"/page/correlations/{event['correlationId']}",
        "missing": "/page/orders/01890000-0000-7000-8000-000000000000",
    }


def at(shop: Shop, tab: Tab, path: str) -> Tab:
    """The tab, which shows this path; it has asked for nothing before."""
    for noted in (tab.requests, tab.statuses, tab.complaints):
        noted.clear()
    tab.go(shop.url("gateway") + path)
    return tab


VIEWS = ("start", "batch", "order", "user", "flow", "projections", "correlation", "missing")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_any_view(
    shop: Shop, browser: Browser, places: dict[str, str], axe: str, dark: bool
) -> None:
    tab = browser.open(dark=dark)
    for view in VIEWS:
        at(shop, tab, places[view])
        tab.call("Runtime.evaluate", expression=axe)
        found = tab.run("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))")
        assert found == [], view


def test_a_view_asks_no_other_host_and_the_first_one_is_small(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    tab = browser.open()
    here = urlsplit(shop.url("gateway")).netloc
    for view in VIEWS:
        at(shop, tab, places[view])
        assert {urlsplit(url).netloc for url in tab.requests} == {here}, view
        complaints = [each for each in tab.complaints if "404" not in each]
        assert complaints == [], view
    sizes = "performance.getEntries().map(each => each.decodedBodySize ?? 0)"
    assert 20_000 < sum(at(shop, browser.open(), "/page").run(sizes)) <= FIRST_VIEW


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(
    shop: Shop, browser: Browser, places: dict[str, str], width: int
) -> None:
    tab = browser.open(width=width)
    for view in VIEWS:
        at(shop, tab, places[view])
        assert tab.run("document.documentElement.scrollWidth") <= width, view


def test_names_do_nothing_and_keep_their_direction_to_themselves(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    tab = at(shop, browser.open(), places["user"])
    assert tab.run("document.querySelectorAll('main img').length") == 0
    assert tab.run("document.querySelector('h1 bdi').textContent") == f"{NAME} the second"
    assert tab.complaints == []


def test_an_order_of_the_form_is_placed_by_keyboard_travels_and_arrives(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    flow = at(shop, browser.open(), places["flow"])
    flow.run(
        "new MutationObserver(() => { if (document.querySelector('.lane-order .wire-4.moves'))"
        " window.moved = true; }).observe(document.querySelector('#flow'), {childList: true})"
    )
    tab = at(shop, browser.open(), places["start"])
    for _ in range(40):
        tab.press("Tab")
        if tab.run("document.activeElement.id") == "order-item":
            break
    tab.run("document.activeElement.select()")
    tab.type("A keyboard")
    tab.press("Enter", "\r")
    tab.wait("location.pathname.startsWith('/page/orders/')")
    tab.wait("document.querySelector('h1').innerText.includes('A keyboard')")
    flow.wait("window.moved", "an event that travels")
    flow.wait("document.querySelector('.journeys').innerText.includes('ORDER_PLACED')")
    tab.wait("document.body.innerText.includes('answered from the read model')")
    flow.wait("!document.querySelector('.moves')", "the event to have arrived")
    flow.wait("!document.querySelector('.not-there')", "everything to be applied")
    at(shop, tab, places["start"])
    assert "A keyboard" in tab.run("document.querySelector('.rows').innerText")


def test_a_double_click_is_one_order(shop: Shop, browser: Browser, places: dict[str, str]) -> None:
    tab = at(shop, browser.open(), places["start"])
    user = places["user"].rsplit("/", 1)[1]
    tab.run(f"document.querySelector('#order-userId').value = '{user}'")
    before = len(ask(shop, "GET", f"/queries/orders?userId={user}")["orders"])
    send = (
        "fetch('/page/orders', {method: 'POST', redirect: 'manual',"
        " body: new URLSearchParams(new FormData(document.querySelector('form.card')))})"
    )
    tab.run(f"Promise.all([{send}, {send}]).then(() => 1)")
    listed = ask(shop, "GET", f"/queries/orders?userId={user}&limit=100")["orders"]
    tab.until(
        lambda: len(ask(shop, "GET", f"/queries/orders?userId={user}")["orders"]) > before,
        "the order to be listed",
    )
    listed = ask(shop, "GET", f"/queries/orders?userId={user}&limit=100")["orders"]
    assert len(listed) == before + 1


def test_a_stopped_projector_is_seen_within_five_seconds_and_heals(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    tab = at(shop, browser.open(), places["flow"])
    node = "[...document.querySelectorAll('a.node')].find(n => n.innerText.includes('%s'))"
    projector = node % "order-projector"
    tab.wait(f"{projector}.classList.contains('node-ok')")
    shop.kill("order-projector")
    try:
        user = places["user"].rsplit("/", 1)[1]
        placed = {"userId": user, "item": "Patience", "price": 1}
        order = ask(shop, "POST", "/orders", placed)["orderId"]
        tab.wait(f"!{projector}.classList.contains('node-ok')", "it to be seen", seconds=5)
        tab.wait(
            "document.querySelector('.wire-label').closest('.lane') && "
            "document.body.innerText.includes('waiting')"
        )
        story = at(shop, browser.open(), f"/page/orders/{order}")
        story.wait("document.querySelector('.causes')?.innerText.includes('order-projector')")
    finally:
        shop.start("order-projector")
    tab.wait(f"{projector}.classList.contains('node-ok')", "it to be well again", seconds=30)


def test_without_scripts_everything_can_be_read_and_sent(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    tab = browser.open(scripts=False)
    for view in VIEWS:
        tab.call("Page.navigate", url=shop.url("gateway") + places[view])
        tab.until(lambda: title(tab) != "", view)
    tab.call("Page.navigate", url=shop.url("gateway") + places["order"] + "?version=1")
    tab.until(lambda: "As it was at version 1" in text(tab), "the document as it was")


def text(tab: Tab) -> str:
    """The markup of the page, read from outside: its scripts do not run."""
    root = tab.call("DOM.getDocument", depth=-1)["root"]
    return str(tab.call("DOM.getOuterHTML", nodeId=root["nodeId"])["outerHTML"])


def title(tab: Tab) -> str:
    return text(tab).partition("<h1>")[2][:20]


def test_a_poll_that_brings_nothing_is_a_304_and_a_hidden_page_asks_nothing(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    tab = at(shop, browser.open(), places["projections"])
    try:
        tab.until(
            lambda: any(status == 304 for _, status in tab.statuses), "an answer 304", seconds=30
        )
    except TimeoutError:
        pytest.fail(f"no 304 among {tab.statuses}; {tab.complaints}")
    tab.run("Object.defineProperty(document, 'hidden', {value: true})")
    time.sleep(0.5)  # one that is under way may still end
    tab.requests.clear()
    with pytest.raises(TimeoutError):
        tab.until(lambda: bool(tab.requests), "a request", seconds=4.5)


def test_the_slider_shows_the_document_as_it_was(
    shop: Shop, browser: Browser, places: dict[str, str]
) -> None:
    tab = at(shop, browser.open(), places["user"])
    tab.run("document.querySelector('#version').focus()")
    tab.press("ArrowLeft", times=2)
    tab.wait("document.querySelector('#then').innerText.includes('As it was at version 1 of 3')")
    assert "the second" not in tab.run("document.querySelector('#then').innerText")
