"""The page in a real browser, on the running system with `AUTH=on`."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3

from eventcore.ids import new_id
from local.browser import Browser, Tab
from local.identity import token_for
from local.shop import Shop


@dataclass(frozen=True, slots=True)
class Person:
    """A user, the token that names it, and an order of its own."""

    id: str
    token: str
    item: str
    order: str


def person(shop: Shop, issuer: Path, item: str) -> Person:
    """Creates a user and its order, through the API."""
    id = str(new_id())
    token = token_for(issuer, id)

    def send(path: str, body: object) -> urllib3.BaseHTTPResponse:
        headers = {"Authorization": f"Bearer {token}"}
        url = shop.url("gateway") + path
        answer = urllib3.request("POST", url, json=body, headers=headers, retries=False, timeout=30)
        assert answer.status < 300, answer.data
        return answer

    send("/users", {"name": f"Buyer of {item}", "email": f"{id}@example.com"})
    order = send("/orders", {"userId": id, "item": item, "price": 1}).json()["orderId"]
    return Person(id, token, item, order)


@pytest.fixture(scope="module")
def own(guarded_shop: Shop, issuer: Path) -> Person:
    return person(guarded_shop, issuer, "An abacus")


@pytest.fixture(scope="module")
def other(guarded_shop: Shop, issuer: Path) -> Person:
    return person(guarded_shop, issuer, "A secret diary")


def sign_in(tab: Tab, credential: str) -> None:
    """Types a credential into the form that is shown, and sends it."""
    tab.run("document.querySelector('#credential').focus()")
    tab.type(credential)
    tab.press("Enter", "\r")


def status(tab: Tab, url: str) -> int:
    """Opens a URL; the status of the answer that is shown in the end."""
    tab.statuses.clear()
    tab.go(url)
    place = tab.run("location.href").partition("#")[0]
    return next(status for asked, status in tab.statuses if asked == place)


SIGN_IN = "location.pathname === '/page/sign-in' && !!document.querySelector('#credential')"


def test_a_caller_signs_in_sees_its_own_alone_and_signs_out(
    guarded_shop: Shop, browser: Browser, own: Person, other: Person
) -> None:
    gateway, tab = guarded_shop.url("gateway"), browser.open()
    for path in ("/", "/page/flow", f"/page/orders/{own.order}", f"/page/users/{own.id}"):
        tab.go(gateway + path)
        tab.wait(SIGN_IN, f"{path} to ask for a token")
    sign_in(tab, f"{own.token[:-8]}12345678")
    tab.wait("!!document.querySelector('#credential-error')?.innerText")
    assert tab.run("location.pathname") == "/page/sign-in"
    sign_in(tab, own.token)
    tab.wait(f"location.pathname === '/page/users/{own.id}'", "the page that was asked for")
    tab.go(f"{gateway}/page")
    tab.wait(f"document.querySelector('.lists')?.innerText.includes('{own.item}')")
    shown = tab.run("document.documentElement.outerHTML")
    assert own.id in shown
    assert [each for each in (other.id, other.item, other.order) if each in shown] == []
    assert tab.run("document.cookie") == ""

    assert status(tab, f"{gateway}/page/orders/{own.order}") == 200
    for path in (f"orders/{other.order}", f"users/{other.id}", f"orders/{new_id()}"):
        assert status(tab, f"{gateway}/page/{path}") == 404, path
        assert other.item not in tab.run("document.documentElement.outerHTML")
    for path in ("flow", "projections", f"correlations/{other.order}"):
        tab.go(f"{gateway}/page/{path}")
        assert "needs the scope admin" in tab.run("document.body.innerText"), path
        assert "Buyer of" not in tab.run("document.body.innerText"), path

    tab.go(f"{gateway}/page/orders/{own.order}")
    tab.click(".sign-out button")
    tab.wait(SIGN_IN, "to be signed out")
    tab.go(f"{gateway}/page/orders/{own.order}")
    tab.wait(SIGN_IN, "an order to ask for a token again")


def test_a_caller_who_is_signed_in_places_an_order_for_itself(
    guarded_shop: Shop, browser: Browser, own: Person
) -> None:
    tab = browser.open()
    tab.go(f"{guarded_shop.url('gateway')}/page")
    sign_in(tab, own.token)
    tab.wait("location.pathname === '/page' && !!document.querySelector('#order-item')")
    users = "[...document.querySelector('#order-userId').options].map(each => each.value)"
    assert tab.run(users) == [own.id]
    tab.run("(each => { each.value = ''; each.focus(); })(document.querySelector('#order-item'))")
    tab.type("A sundial")
    tab.press("Enter", "\r")
    tab.wait("location.pathname.startsWith('/page/orders/')")
    tab.wait("document.querySelector('h1')?.innerText.includes('A sundial')")
    actor = f"sub:{own.id}"
    assert actor in tab.run("document.querySelector('.causation').innerText")


def test_an_admin_sees_the_orders_of_all_and_the_flow(
    guarded_shop: Shop, browser: Browser, issuer: Path, own: Person, other: Person
) -> None:
    gateway, tab = guarded_shop.url("gateway"), browser.open()
    tab.go(f"{gateway}/page")
    sign_in(tab, token_for(issuer, str(new_id()), "read write admin"))
    tab.wait("location.pathname === '/page'")
    for each in (own, other):
        assert status(tab, f"{gateway}/page/orders/{each.order}") == 200
    tab.go(f"{gateway}/page/flow")
    assert "order-projector" in tab.run("document.querySelector('#flow').innerText")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_where_a_token_is_asked_for(
    guarded_shop: Shop, browser: Browser, axe: str, dark: bool
) -> None:
    tab = browser.open(dark=dark)
    tab.go(f"{guarded_shop.url('gateway')}/page")
    for credential in ("", "nonsense"):
        if credential:
            sign_in(tab, credential)
            tab.wait("!!document.querySelector('#credential-error')")
        tab.call("Runtime.evaluate", expression=axe)
        found = tab.run("axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html]))")
        assert found == [], credential
