"""The values for each platform: valid everywhere, and right for what that platform differs in."""

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.chart.render import (
    CHART,
    HELMS,
    KUBERNETES,
    ROOT,
    Object,
    Render,
    masked,
    over,
    render,
    title,
)
from tests.chart.test_pods import breaches
from tests.chart.test_render import CUSTOM, invalid

FILES = {file.stem: file for file in sorted((ROOT / "k8s" / "values").glob("*.yaml"))}

OTHERS = {**CUSTOM, "HealthCheckPolicy": "networking.gke.io/v1"}

API = {
    # minikube: pkg/minikube/constants/constants.go, APIServerPort; the others: their documentation
    "minikube": 8443,
    "microk8s": 16443,
    "kind": 6443,
    "k3s": 6443,
    "openshift": 6443,
    "eks": 443,
    "gke": 443,
    "aks": 443,
}
"""Where the API listens, behind its Service: a policy may be judged by this port."""

OBSERVED = {"observability": {"enabled": True}}


def values(platform: str) -> Object:
    """A platform's values."""
    found: Object = yaml.safe_load(FILES[platform].read_text())
    return found


def on(platform: str, **more: Object) -> Render:
    """The chart for a platform."""
    return render(given=over(values(platform), more))


def test_each_platform_has_a_file_and_a_row_in_the_page() -> None:
    assert set(FILES) == {"kind", "minikube", "k3s", "microk8s", "openshift", "eks", "gke", "aks"}
    for page in (ROOT / "k8s" / "README.md", CHART / "README.md"):
        rows = set(re.findall(r"(?m)^\| .*`(?:k8s/)?values/(\w+)\.yaml`", page.read_text()))
        assert rows == set(FILES), page


@pytest.mark.parametrize("platform", FILES)
def test_it_renders_the_same_objects_on_every_helm(platform: str) -> None:
    first, *others = (
        sorted(masked(render(given=values(platform), program=helm).objects), key=title)
        for helm in HELMS
    )
    assert all(each == first for each in others)


@pytest.mark.parametrize("kubernetes", KUBERNETES)
@pytest.mark.parametrize("platform", FILES)
def test_it_is_valid_on_every_kubernetes(platform: str, kubernetes: str) -> None:
    objects = on(platform).objects
    known = [each for each in objects if OTHERS.get(each["kind"]) != each["apiVersion"]]
    assert not [said for each in known if (said := invalid(each, kubernetes))]


@pytest.mark.parametrize("platform", FILES)
def test_its_pods_are_restricted(platform: str) -> None:
    chooses = {"runAsUser"} if platform == "openshift" else set()
    wrong = [
        f"{pod.owner}: {each}"
        for pod in on(platform).pods
        for each in breaches(pod.spec)
        if each.rpartition(": ")[2] not in chooses
    ]
    assert not wrong


@pytest.mark.parametrize("platform", FILES)
def test_it_has_a_way_in_that_its_policy_lets_through(platform: str) -> None:
    chart = on(platform)
    assert len(chart.of("Ingress", "HTTPRoute")) == 1
    policy = chart.named("NetworkPolicy")["shop-gateway"]["spec"]
    outside, *_ = policy["ingress"]
    assert outside["from"][:-1] == values(platform)["networkPolicy"]["ingressFrom"]


@pytest.mark.parametrize("platform", FILES)
def test_prometheus_reaches_the_api_where_it_listens(platform: str) -> None:
    """By the defaults, and by the platform's own values."""
    for given in ({}, values(platform)):
        chart = render(given=over(given, over(OBSERVED, {"global": {"scrape": "annotations"}})))
        rules = chart.named("NetworkPolicy")["shop-prometheus"]["spec"]["egress"]
        (api,) = [rule["ports"] for rule in rules if "to" not in rule]
        assert API[platform] in [port["port"] for port in api]


def test_names_resolve_on_openshift_at_the_port_of_its_pods() -> None:
    for name, policy in on("openshift").named("NetworkPolicy").items():
        for rule in policy["spec"].get("egress", ()):
            if "openshift-dns" in json.dumps(rule):
                assert [port["port"] for port in rule["ports"]] == [5353, 5353], name
                break
        else:
            assert not policy["spec"].get("egress"), name


def test_names_resolve_on_gke_by_a_cache_on_the_node() -> None:
    policy = on("gke").named("NetworkPolicy")["shop-user-relay"]["spec"]
    dns, *_ = policy["egress"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]
    assert {port["port"] for port in dns["ports"]} == {53}


def test_openshift_gives_the_user_ids() -> None:
    told = json.dumps([pod.spec for pod in on("openshift", **OBSERVED_BY_OTHERS).pods])
    assert not re.findall('"(?:runAsUser|runAsGroup|fsGroup)"', told)


OBSERVED_BY_OTHERS: dict[str, Object] = {
    "observability": {"enabled": True, "prometheus": {"enabled": False}}
}


def test_the_commands_in_the_files_name_files_that_are_there() -> None:
    for file in FILES.values():
        named = re.findall(r"--values (\S+)", file.read_text())
        assert named == [f"k8s/values/{file.name}"]
        assert all((ROOT / Path(each)).exists() for each in named)
