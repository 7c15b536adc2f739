"""Identity on real processes, with the issuer of `make run AUTH=on`."""

import http.client
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from eventcore.ids import new_id
from gateway.journey import play
from local.browser import chromium
from local.demo import Demo
from local.identity import create_own_user, own_user, token_for
from local.services import SERVED
from local.shop import Shop


def call(
    url: str, token: str, method: str = "GET", body: object = None
) -> urllib3.BaseHTTPResponse:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return urllib3.request(method, url, json=body, headers=headers, retries=False, timeout=30)


def test_a_user_is_created_and_read_by_its_own_token(guarded_shop: Shop, issuer: Path) -> None:
    gateway, user = guarded_shop.url("gateway"), str(new_id())
    token = token_for(issuer, user)
    body = {"name": "Ada", "email": f"{user}@example.com"}
    assert call(f"{gateway}/users", "", "POST", body).status == 401
    created = call(f"{gateway}/users", token, "POST", body)
    assert (created.status, created.json()) == (202, {"userId": user})
    [event] = call(f"{gateway}/users/{user}/events", token).json()["events"]
    assert event["actor"] == f"sub:{user}"
    stranger = token_for(issuer, str(new_id()))
    assert call(f"{gateway}/users/{user}", stranger).status == 404
    assert call(f"{gateway}/queries/orders", stranger).json()["orders"] == []
    for service in ("user-service", "order-service"):
        direct = call(f"{guarded_shop.url(service)}/users/{user}", token)
        assert direct.status in (401, 404)
    assert call(f"{guarded_shop.url('user-service')}/users/{user}", token).status == 401
    logs = "".join(map(guarded_shop.log, SERVED))
    assert token not in logs
    assert token_for(issuer, user).split(".")[2] not in logs


def test_the_demo_prints_a_token_that_opens_the_page_it_names(
    guarded_shop: Shop, issuer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Demo(guarded_shop.url("gateway"), guarded_shop.url("order-service"), issuer).play()
    said = capsys.readouterr().out
    [order] = re.findall(r"/page/orders/([0-9a-f-]+)", said)
    [token] = re.findall(r"^  (ey\S+)$", said, re.M)
    answer = call(f"{guarded_shop.url('gateway')}/queries/orders/{order}", token)
    assert answer.status == 200


def test_the_user_of_make_run_is_made_once_and_has_a_token_to_paste(
    guarded_shop: Shop, issuer: Path
) -> None:
    gateway = guarded_shop.url("gateway")
    create_own_user(gateway, issuer)
    id, token, admin = create_own_user(gateway, issuer)
    other = str(new_id())
    body = {"name": "Ada", "email": f"{other}@example.com"}
    assert call(f"{gateway}/users", token_for(issuer, other), "POST", body).status == 202
    assert call(f"{gateway}/users/{other}", token).status == 404
    assert call(f"{gateway}/users/{other}", admin).status == 200
    user = call(f"{gateway}/users/{own_user(issuer)}", token).json()
    assert user["userId"] == id
    assert user["name"] == "Grace Hopper"


def test_the_page_of_the_calls_takes_a_token_and_calls_with_it(
    guarded_shop: Shop, issuer: Path
) -> None:
    call = '.opblock-get:has([data-path="/queries/orders"])'
    status = f"{call} .live-responses-table tbody .response-col_status"
    answered = f"document.querySelector('{status}')?.innerText.trim()"
    with chromium() as browser:
        page = browser.open()
        page.go(f"{guarded_shop.url('gateway')}/docs")
        page.click(f"{call} .opblock-summary-control")
        page.wait(f"!!document.querySelector('{call} .highlight-code')")  # it is all resolved
        page.click(f"{call} .execute")
        page.wait(f"{answered} === '401'")
        page.click(f"{call} .btn-clear")
        page.click(".btn.authorize")
        page.click("#auth-bearer-value")
        page.run("document.querySelector('#auth-bearer-value').focus()")
        page.type(token_for(issuer, str(new_id())))
        page.click(".auth-container .auth.authorize")
        page.click(".auth-container .btn-done")
        page.click(f"{call} .execute")
        page.wait(f"{answered} === '200'")


def raw(url: str, path: str, headers: list[tuple[str, str]]) -> int:
    """The status of a request whose headers go out as they are."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.putrequest("GET", path)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_requests_that_no_client_sends_are_refused(guarded_shop: Shop, issuer: Path) -> None:
    gateway, user = guarded_shop.url("gateway"), str(new_id())
    token = f"Bearer {token_for(issuer, user)}"
    long = f"Bearer {token_for(issuer, user, 'read ' * 2000)}"
    assert 9 * 1024 < len(long) < 16 * 1024
    spoofed = [
        ("X-Actor", "sub:root"), ("X-Actor-Scopes", "read write admin"), ("X-Actor-User", user),
        ("X_Actor", "sub:root"), ("X_Actor_Scopes", "read write admin"),
    ]  # fmt: skip
    cases: dict[str, list[tuple[str, str]]] = {
        "two tokens": [("Authorization", token), ("Authorization", token)],
        "9 KiB": [("Authorization", long)],
        "spoofed": spoofed,
        "another scheme": [("Authorization", token.replace("Bearer", "Token"))],
    }
    for name, headers in cases.items():
        assert raw(gateway, f"/users/{user}", headers) == 401, name
    assert raw(guarded_shop.url("user-service"), f"/users/{user}", spoofed) == 401
    other = f"/users/{new_id()}"
    assert raw(gateway, other, [("Authorization", token), *spoofed]) == 404


def test_the_journey_of_helm_test_needs_a_key_and_says_so_without(
    guarded_shop: Shop, issuer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("AUTH", "on")
    assert "Nothing else was tried" in play(guarded_shop.url("gateway"), said.append)
    assert said == ["GET /queries/orders 401\n", "POST /users 401\n"]
    token = token_for(issuer, str(new_id()), "read write admin")
    (tmp_path / "key").write_text(f"{token}\n")
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path / "key"))
    assert "journey is whole" in play(guarded_shop.url("gateway"), said.append)


def test_an_api_key_is_made_used_and_revoked_while_the_gateway_runs(
    guarded_shop: Shop, issuer: Path
) -> None:
    def run(*arguments: str) -> str:
        command = [
            sys.executable,
            "-m",
            "gateway.apikeys",
            str(issuer / "api_keys"),
            *arguments,
        ]
        env = guarded_shop.environment("gateway")
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(env))
        return done.stdout.strip()

    def answers(key: str, status: int) -> bool:
        deadline = time.monotonic() + 20
        while call(f"{guarded_shop.url('gateway')}/queries/customers", key).status != status:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    key = run("make", "--scope", "read", "--scope", "admin")
    assert key not in (issuer / "api_keys").read_text()
    assert answers(key, 200)
    id = key.split("_")[1]
    assert run("list") == f"{id} admin,read"
    run("revoke", id)
    assert answers(key, 401)
    assert run("list") == ""
    assert key not in guarded_shop.log("gateway")
