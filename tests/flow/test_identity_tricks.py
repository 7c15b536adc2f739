"""Ways around identity: credentials in odd places, other endpoints, tokens that are replaced."""

import re
from pathlib import Path

import pytest
from flask import Blueprint, g
from werkzeug.routing import Rule

from eventcore.settings import read_settings
from eventcore.web.caller import ACTOR_HEADER, SCOPES_HEADER
from gateway.identity import OPEN
from gateway.main import Settings, create_app
from gateway.page.pages import PAGE
from local.services import SERVICES
from tests.fakes.guarded import Guarded
from tests.fakes.shop import FakeShop


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def test_only_pages_and_probes_ask_for_no_identity(guarded: Guarded) -> None:
    rules = list(guarded.app.url_map.iter_rules())
    is_open = {each.rule for each in rules if each.endpoint in OPEN}
    assert is_open == {
        "/", "/docs", "/docs/", "/docs/<path:filename>", "/openapi.json", "/asyncapi.json",
        "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    assert len(rules) - len(is_open) == sum(len(each.paths) for each in SERVICES.values())
    assert {each.endpoint for each in rules} >= OPEN


def test_a_route_that_is_added_needs_a_credential(guarded: Guarded) -> None:
    said = guarded.app.view_functions["mine"] = lambda: g.caller.actor
    guarded.app.add_url_rule("/report", view_func=said, methods=["GET", "POST"])
    guarded.app.url_map.add(Rule("/mine", endpoint="mine"))  # of any method
    token = guarded.issuer.token("ada", "read")
    for path in ("/report", "/mine"):
        for method in ("GET", "HEAD", "POST"):
            assert guarded.call(method, path).status_code == 401, (method, path)
        assert guarded.call("GET", path, token).text == "sub:ada"
        assert guarded.call("POST", path, token).status_code == 403
    assert guarded.call("OPTIONS", "/mine").status_code == 401
    assert guarded.call("OPTIONS", "/report").data == b""  # by Flask, without the view


def test_without_the_page_no_blueprint_of_its_name_is_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").touch()
    given = {
        "SERVICE": "gateway", "UPSTREAMS": "{}", "AUTH": "on", "PAGE": "off",
        "AUTH_API_KEYS_FILE": str(tmp_path / "keys"),
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    app = create_app(read_settings(Settings, "serve"))
    mine = Blueprint(PAGE, __name__)
    mine.add_url_rule("/mine", view_func=lambda: "mine")
    app.register_blueprint(mine)
    assert app.test_client().get("/mine").status_code == 401


def test_a_credential_counts_in_its_header_alone(guarded: Guarded) -> None:
    user, token = guarded.person()
    path = f"/users/{user}"
    odd = (
        "bearer", f"Bearer\t{token}", f"Bearer: {token}", f'Bearer "{token}"', f"Bearer {token},",
        f"Bearer {token} {token}", f"Bearer {token}.", f"Token {token}", token,
        f"Bearer {token}\xff", f"Bearer {token[:-4]}", f"Basic {token}", f"Bearer Bearer {token}",
    )  # fmt: skip
    for given in odd:
        answer = guarded.call("GET", path, Authorization=given)
        assert answer.status_code == 401, given
    for query in ("access_token", "token", "authorization"):
        assert guarded.call("GET", f"{path}?{query}={token}").status_code == 401
    for header in ("X-Authorization", "Proxy-Authorization", "X-Api-Key", "Cookie"):
        answer = guarded.client.get(path, headers={header: f"Bearer {token}"})
        assert answer.status_code == 401, header
    for usual in (f"bearer {token}", f"BEARER   {token} "):
        assert guarded.call("GET", path, Authorization=usual).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "PROPFIND", "TRACE", "DELETE", "PATCH"])
def test_no_method_passes_without_a_credential(guarded: Guarded, method: str) -> None:
    user, _ = guarded.person()
    assert guarded.call(method, f"/users/{user}").status_code == 401
    assert (
        guarded.call(method, f"/users/{user}", X_HTTP_Method_Override="OPTIONS").status_code == 401
    )


def test_options_says_the_methods_and_nothing_of_the_thing(guarded: Guarded) -> None:
    user, _ = guarded.person()
    answer = guarded.client.options(f"/users/{user}")
    assert (answer.status_code, answer.data) == (200, b"")
    assert set(re.findall(r"\w+", answer.headers["Allow"])) >= {"GET", "PUT"}


def test_a_batch_with_one_order_of_another_user_places_none(guarded: Guarded) -> None:
    victim, _ = guarded.person()
    user, token = guarded.person()
    orders = [{"userId": each, "item": "Laptop", "price": 1} for each in (user, victim.upper())]
    refused = guarded.call("POST", "/orders/batch", token, {"orders": orders})
    assert (refused.status_code, refused.get_json()["title"]) == (422, "User unknown")
    assert guarded.shop.order_store.log == []
    own = {"userId": user.upper(), "item": "Laptop", "price": 1}
    assert guarded.call("POST", "/orders", token, own).status_code == 200


@pytest.mark.parametrize(("held", "sent", "status"), [
    ("old\nnew", "new", 200), ("old\nnew", "old", 200), ("new\n", "new", 200),
    ("new", "old", 401), ("old\nnew", "old\nnew", 401), ("", "", 401), ("\nnew", "", 401),
])  # fmt: skip
def test_a_service_accepts_each_line_of_its_token(held: str, sent: str, status: int) -> None:
    shop = FakeShop(identity=lambda: held)
    told = {"HTTP_AUTHORIZATION": f"Bearer {sent}"}
    told |= {f"HTTP_{ACTOR_HEADER.upper().replace('-', '_')}": "sub:root"}
    told |= {f"HTTP_{SCOPES_HEADER.upper().replace('-', '_')}": "read admin"}
    answer = shop.orders.get("/queries/orders", environ_overrides=told)
    assert answer.status_code == status


def test_while_a_token_is_replaced_every_call_is_answered() -> None:
    held = {"service": "old", "gateway": "old"}
    guarded = Guarded(
        shop=FakeShop(identity=lambda: held["service"]), identity=lambda: held["gateway"]
    )
    user, token = guarded.person()
    for changed, to in (
        ("service", "old\nnew"), ("gateway", "old\nnew"), ("gateway", "new\nold"),
        ("service", "new\nold"), ("service", "new"), ("gateway", "new"),
    ):  # fmt: skip
        held[changed] = to
        assert guarded.call("GET", f"/users/{user}", token).status_code == 200, (changed, to)


def test_a_service_that_does_not_know_the_gateway_is_no_fault_of_the_caller() -> None:
    guarded = Guarded(identity=lambda: "another")
    answer = guarded.call("GET", "/queries/orders", guarded.issuer.token("root", "read admin"))
    assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (503, False)
    assert "Retry-After" in answer.headers
