"""One value asks callers for an identity: what each process is told then, and what it reaches."""

import pytest

from tests.chart.network import Peer, may_send, peer
from tests.chart.render import Object, notes, render, template
from tests.chart.test_code import environment
from tests.chart.test_pods import files

ISSUED: Object = {
    "enabled": True, "issuer": "https://issuer.example.com/", "audience": "shop",
    "jwks": "http://issuer.identity:8080/keys",
}  # fmt: skip

SERVICES = {"user-service": "user", "order-service": "order"}


def test_by_default_nobody_is_asked() -> None:
    chart = render()
    assert "shop-identity" not in chart.named("Secret")
    for pod in chart.processes().values():
        told = environment(pod.spec["containers"][0])
        assert not [name for name in told if name.startswith(("AUTH", "IDENTITY"))]


def test_each_service_has_its_own_token_and_the_gateway_all_of_them() -> None:
    chart = render("auth")
    for name, pod in chart.processes().items():
        (container,) = pod.spec["containers"]
        told, found = environment(container), files(chart, pod, container)
        tokens = {value for key, value in told.items() if key.startswith("IDENTITY")}
        if name == "gateway":
            assert tokens == {"/secrets/identity_user", "/secrets/identity_order"}
            assert told["AUTH_API_KEYS_FILE"] in found
            assert told["AUTH_ISSUER"] == "https://issuer.example.com/realms/shop"
        elif name in SERVICES:
            assert (told["AUTH"], tokens) == ("on", {"/secrets/identity"})
            (source,) = [
                item
                for volume in pod.spec["volumes"]
                for each in volume.get("projected", {}).get("sources", ())
                if each["secret"]["name"] == "shop-identity"
                for item in each["secret"]["items"]
            ]
            assert source["key"] == SERVICES[name]
        else:
            assert "AUTH" not in told
            assert not tokens
        assert tokens <= found


def test_the_gateway_alone_reaches_the_issuer_at_the_port_of_its_keys() -> None:
    chart = render(given={"auth": ISSUED})
    issuer = Peer("issuer", {"app": "issuer"}, "identity", {"http": 8080})
    reaching = {
        name for name, pod in chart.processes().items() if may_send(chart, peer(pod), issuer, 8080)
    }
    assert reaching == {"gateway"}
    assert not may_send(chart, peer(chart.pod("gateway")), issuer, 443)
    assert not may_send(render(), peer(render().pod("gateway")), issuer, 8080)


def test_the_issuer_may_be_bound_to_peers() -> None:
    chosen: Object = {"podSelector": {"matchLabels": {"app": "issuer"}}, "namespaceSelector": {}}
    chart = render(given={"auth": {**ISSUED, "peers": [chosen]}})
    gateway = peer(chart.pod("gateway"))
    assert may_send(chart, gateway, Peer("issuer", {"app": "issuer"}, "identity"), 8080)
    assert not may_send(chart, gateway, Peer("another", {"app": "other"}, "identity"), 8080)


@pytest.mark.parametrize("component", ["test", "traffic"])
def test_the_releases_own_clients_read_their_key_from_its_secret(component: str) -> None:
    client: Object = {"secret": "of-mine", "key": "of-the-test"}
    pod = render("auth", given={"auth": {"client": client}}).pod(component)
    (container,), (volume,) = pod.spec["containers"], pod.spec["volumes"]
    (item,) = volume["secret"]["items"]
    assert (volume["secret"]["secretName"], item["key"]) == ("of-mine", "of-the-test")
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod.spec["securityContext"]["fsGroup"] == pod.spec["securityContext"]["runAsGroup"]
    (mount,) = container["volumeMounts"]
    assert (mount["name"], mount["readOnly"]) == (volume["name"], True)
    file = f"{mount['mountPath']}/{item['path']}"
    assert environment(container) == {"AUTH": "on", "API_KEY_FILE": file}


def test_without_a_key_the_test_only_knows_that_callers_are_asked() -> None:
    pod = render(given={"auth": ISSUED}).pod("test")
    assert environment(pod.spec["containers"][0]) == {"AUTH": "on"}
    assert not pod.spec.get("volumes")
    off = render(given={"auth": {"client": {"secret": "of-mine"}}}).pod("test")
    assert environment(off.spec["containers"][0]) == {}


def test_the_notes_say_how_to_call() -> None:
    asked, keyed = notes({"auth": ISSUED}), notes(values="auth")
    for each in (asked, keyed):
        assert '-H "Authorization: Bearer $TOKEN"' in each
        assert "whoever reaches" not in each.lower()
    assert "TOKEN is a token of https://issuer.example.com/ for shop.\n" in asked
    assert "or an API key of the Secret shop-api-keys.\n" in keyed
    assert "auth.client.secret names a Secret" in asked
    assert "auth.client.secret" not in keyed
    open_to_all = notes()
    assert "Authorization" not in open_to_all
    assert "auth.enabled=true asks callers for a token" in open_to_all


@pytest.mark.parametrize(("auth", "more", "said"), [
    ({"enabled": True}, {}, "nobody could call"),
    ({"enabled": True, "issuer": "https://issuer"}, {}, "need each other"),
    (ISSUED, {"traffic": {"enabled": True}}, "auth.client.secret"),
    ({**ISSUED, "jwks": "file:///keys"}, {}, "does not match pattern"),
])  # fmt: skip
def test_values_by_which_nobody_could_call_are_refused(
    auth: Object, more: Object, said: str
) -> None:
    done, text = template(given={"auth": auth, **more})
    assert not done
    assert said in text
