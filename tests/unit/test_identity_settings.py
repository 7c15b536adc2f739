"""Settings of identity, its files, and the commands that make API keys and tokens."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventcore.clock import SYSTEM_CLOCK
from eventcore.errors import Misconfigured
from eventcore.files import LOOK_TIME, Reread, reader
from eventcore.ids import new_id
from eventcore.settings import Secret
from gateway import apikeys, journey
from gateway import main as gateway
from gateway.tokens import Keys, NotVerified, Tokens
from local import identity
from local.processes import Servers, processes
from order.main import Settings as OrderSettings
from tests.environment import settings_from
from tests.fakes.issuer import AUDIENCE, ISSUER, Issuer

UPSTREAMS = json.dumps({"user": {"url": "http://127.0.0.1:1", "paths": ["/users"]}})

GATEWAY: Mapping[str, str] = {"SERVICE": "gateway", "UPSTREAMS": UPSTREAMS}

ISSUED = {"AUTH_ISSUER": ISSUER, "AUTH_AUDIENCE": AUDIENCE, "AUTH_JWKS": "https://keys"}

BELIEVED = {"AUTH": "on", "IDENTITY_USER_TOKEN": "token"}


@pytest.mark.parametrize(("told", "lacking"), [
    ({"AUTH": "on"}, "IDENTITY_USER_TOKEN or IDENTITY_USER_TOKEN_FILE is not set; AUTH=on needs"),
    ({"AUTH": "on", **ISSUED}, "IDENTITY_USER_TOKEN or IDENTITY_USER_TOKEN_FILE is not set"),
    (BELIEVED, "AUTH=on needs AUTH_ISSUER, AUTH_AUDIENCE and AUTH_JWKS, or AUTH_API_KEYS_FILE"),
    ({**BELIEVED, "AUTH_ISSUER": ISSUER}, "AUTH_JWKS need each other"),
])  # fmt: skip
def test_a_gateway_does_not_start_without_what_it_verifies_by(
    told: Mapping[str, str], lacking: str
) -> None:
    with pytest.raises(Misconfigured) as refused:
        settings_from({**GATEWAY, **told}, gateway.Settings)
    assert lacking in str(refused.value)


def test_a_service_does_not_start_without_its_identity_token() -> None:
    servers = {
        f"{server}_{part}": "1"
        for server in ("POSTGRES", "MONGODB")
        for part in ("HOST", "PORT", "DATABASE", "USER", "PASSWORD")
    }
    told = {"SERVICE": "order", "FEED_TOKEN": "feed", **servers}
    assert not settings_from(told, OrderSettings).auth
    with pytest.raises(Misconfigured, match="IDENTITY_TOKEN or IDENTITY_TOKEN_FILE is not set"):
        settings_from({**told, "AUTH": "on"}, OrderSettings)
    believing = settings_from({**told, "AUTH": "on", "IDENTITY_TOKEN": "hidden"}, OrderSettings)
    assert believing.identity
    assert believing.identity.token.read() == "hidden"
    assert "hidden" not in repr(believing.identity)


def test_a_gateway_says_that_it_asks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        gateway.create_app(settings_from(GATEWAY, gateway.Settings))
    assert "AUTH=off: whoever reaches the gateway reads and changes everything" in caplog.text


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """The background turns of a gateway, which the test takes itself."""
    found: list[Callable[[], object]] = []
    monkeypatch.setattr(gateway, "repeat", lambda turn, *_, **__: found.append(turn))
    return found


def test_a_gateway_is_ready_when_it_has_the_keys(
    tmp_path: Path, turns: list[Callable[[], object]]
) -> None:
    file, issuer = tmp_path / "keys.json", Issuer()
    file.write_bytes(issuer.published())
    told = {**GATEWAY, **BELIEVED, **ISSUED, "AUTH_JWKS": str(file)}
    client = gateway.create_app(settings_from(told, gateway.Settings)).test_client()
    headers = {"Authorization": f"Bearer {issuer.token(str(new_id()))}"}
    waiting = client.get("/readyz")
    assert (waiting.status_code, waiting.get_json()["missing"]) == (
        503, {"issuer": "not available"},
    )  # fmt: skip
    refused = client.get("/users", headers=headers)
    assert (refused.status_code, refused.get_json()["type"]) == (503, "urn:problem:issuer-away")
    assert "Retry-After" in refused.headers
    assert client.get("/users").status_code == 401
    for turn in turns:
        turn()
    assert client.get("/readyz").status_code == 200
    assert client.get("/users").status_code == 401


def test_a_file_is_read_again_when_it_has_changed_and_kept_while_it_is_away(
    tmp_path: Path,
) -> None:
    file, now = tmp_path / "number", [100.0]
    file.write_text("1")
    content = Reread(file, int, replace(SYSTEM_CLOCK, monotonic=lambda: now[0]))
    assert content() == 1
    for text, expected in (("2", 2), ("no number", 2), ("35", 35)):
        draft = tmp_path / "draft"
        draft.write_text(text)
        draft.rename(file)
        now[0] += LOOK_TIME * 1.1
        assert content() == expected
    file.unlink()
    now[0] += LOOK_TIME * 1.1
    assert content() == 35
    with pytest.raises(Misconfigured, match="cannot be read"):
        reader(Secret(file=file))


def test_lines_of_api_keys_that_are_none_are_left_out() -> None:
    _, key = apikeys.make(["read", "admin"])
    _, limited = apikeys.make(["write"], str(new_id()))
    lines = ["# made by hand", "", str(key), "id", f"{key.id} x read", f"a {'0' * 64} all",
             f"b {'0' * 64} read nobody", str(limited)]  # fmt: skip
    assert apikeys.parse("\n".join(lines)) == {key.id: key, limited.id: limited}


def test_a_key_is_shown_once_kept_as_a_hash_and_revoked_by_its_id(tmp_path: Path) -> None:
    file, runner = tmp_path / "keys", CliRunner()
    user = str(new_id())

    def run(*arguments: str) -> str:
        done = runner.invoke(apikeys.main, [str(file), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    first = run("make", "--scope", "read", "--scope", "write", "--user", user)
    second = run("make", "--scope", "admin", "--scope", "read")
    assert file.stat().st_mode & 0o777 == 0o600
    assert first not in file.read_text()
    caller = apikeys.verify(first, apikeys.parse(file.read_text()))
    assert (caller.user, caller.is_limited) == (user, True)
    assert not apikeys.verify(second, apikeys.parse(file.read_text())).is_limited
    assert user in run("list").splitlines()[0]
    run("revoke", first.split("_")[1])
    left = apikeys.parse(file.read_text())
    assert apikeys.verify(second, left)
    with pytest.raises(NotVerified):
        apikeys.verify(first, left)
    assert runner.invoke(apikeys.main, [str(file), "revoke", "unknown"]).exit_code == 1
    nobody = runner.invoke(apikeys.main, [str(file), "make", "--scope", "read"])
    assert (nobody.exit_code, "--user" in nobody.output) == (2, True)


def test_the_issuer_of_make_run_signs_for_its_own_gateway(tmp_path: Path) -> None:
    told = identity.identity_settings(tmp_path)
    assert identity.identity_settings(tmp_path) == told
    user = identity.own_user(tmp_path)
    assert identity.own_user(tmp_path) == user
    keys = Keys(told["AUTH_JWKS"])
    keys.refresh()
    verifier = Tokens(keys, told["AUTH_ISSUER"], told["AUTH_AUDIENCE"])
    caller = verifier.verify(identity.token_for(tmp_path, user))
    assert (caller.user, caller.is_limited) == (user, True)
    published = Path(told["AUTH_JWKS"]).read_text()
    assert '"d"' not in published
    assert apikeys.parse(Path(told["AUTH_API_KEYS_FILE"]).read_text()) == {}


def test_make_run_tells_the_gateway_the_identity_token_of_each_service(tmp_path: Path) -> None:
    server = settings_from(
        {
            "SERVICE": "order", "FEED_TOKEN": "feed",
            **{f"{s}_{p}": "1" for s in ("POSTGRES", "MONGODB")
               for p in ("HOST", "PORT", "DATABASE", "USER", "PASSWORD")},
        },
        OrderSettings,
    ).store  # fmt: skip
    servers = Servers(server, server, {"user": server, "order": server})
    ports = {"gateway": 1, "user-service": 2, "order-service": 3}
    told = identity.identity_settings(tmp_path)
    all_of_them = processes(
        servers, tmp_path, ports=ports, free_port=lambda: 4, identity=told
    )  # fmt: skip
    by_name = {each.name: settings_from(each.env, kind) for each, kind in (
        (each, gateway.Settings if each.name == "gateway" else OrderSettings)
        for each in all_of_them if each.name in ports
    )}  # fmt: skip
    front = by_name["gateway"]
    assert isinstance(front, gateway.Settings)
    for name in ("user", "order"):
        service = by_name[f"{name}-service"]
        assert isinstance(service, OrderSettings)
        assert service.identity
        assert service.identity.token.read() == front.identity[name].token.read()
    assert front.identity["user"] != front.identity["order"]
    others = [each.env for each in all_of_them if each.name not in ports]
    assert not [name for env in others for name in env if name.startswith(("AUTH", "IDENTITY"))]


def test_the_journey_calls_with_the_key_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journey.credential() == {}
    (tmp_path / "key").write_text("shop_a_b\n")
    monkeypatch.setenv("API_KEY_FILE", str(tmp_path / "key"))
    assert journey.credential() == {"Authorization": "Bearer shop_a_b"}
