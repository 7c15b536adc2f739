"""One value asks callers for an identity: what each process is told then, and what it reaches."""

import pytest

from tests.chart.network import Peer, may_send, peer
from tests.chart.render import Object, render, template
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
