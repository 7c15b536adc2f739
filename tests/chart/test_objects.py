"""Rules of all objects: labels, selectors, matching names, secrets, numbers of pods."""

import base64
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.services import LOGINS
from tests.chart.render import (
    CHART,
    PLANTED,
    ROOT,
    VALUES,
    Object,
    Render,
    masked,
    notes,
    parse,
    render,
    template,
    title,
)

SELECTING = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
}
LABELS = SELECTING | {
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}


def test_every_object_and_every_pod_has_the_labels_that_tools_know(chart: Render) -> None:
    for each in chart.objects:
        labels = each["metadata"].get("labels", {})
        assert set(labels) >= LABELS, title(each)
        assert labels["app.kubernetes.io/part-of"] == "shop"
    for pod in chart.pods:
        of_server = {"app.kubernetes.io/part-of"} | SELECTING
        wanted = of_server if pod.kind == "StatefulSet" else LABELS
        assert set(pod.labels) >= wanted, pod.owner


def test_a_new_version_of_a_subchart_does_not_restart_its_server(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "shop"
    shutil.copytree(CHART, copy)
    for file in [copy / "Chart.yaml", *copy.glob("charts/*/Chart.yaml")]:
        text = file.read_text()
        assert "version: 0.1.0\n" in text
        file.write_text(text.replace("version: 0.1.0\n", "version: 0.1.1\n"))

    def servers(chart: Path) -> dict[str, Any]:
        done, text = template(chart=chart, given=PLANTED)
        assert done, text
        found = [each for each in parse(text) if each["kind"] == "StatefulSet"]
        return {each["metadata"]["name"]: each["spec"]["template"] for each in found}

    assert servers(copy) == servers(CHART)


def test_no_object_says_its_namespace(chart: Render) -> None:
    assert not [title(each) for each in chart.objects if "namespace" in each["metadata"]]


def test_selectors_name_only_what_never_changes(chart: Render) -> None:
    for each in chart.of("Deployment", "StatefulSet"):
        spec = each["spec"]
        assert set(spec["selector"]) == {"matchLabels"}
        assert set(spec["selector"]["matchLabels"]) == SELECTING, title(each)
        for claim in spec.get("volumeClaimTemplates", ()):
            assert claim["metadata"]["labels"] == spec["selector"]["matchLabels"], title(each)
    for each in chart.of("Service"):
        assert set(each["spec"]["selector"]) == SELECTING, title(each)


def test_a_selector_matches_the_pods_of_its_own_object_and_no_others(chart: Render) -> None:
    for each in chart.of("Deployment", "StatefulSet", "PodDisruptionBudget"):
        matched = {pod.owner for pod in matching(chart, each["spec"]["selector"]["matchLabels"])}
        name = each["metadata"]["name"]
        assert {owner.split()[1] for owner in matched} == {name}, title(each)


def test_every_service_has_pods_with_the_ports_that_it_names(chart: Render) -> None:
    for each in chart.of("Service"):
        (pod,) = matching(chart, each["spec"]["selector"])
        for port in each["spec"]["ports"]:
            assert port["targetPort"] in pod.ports, title(each)
            assert port["name"] in pod.ports, title(each)


def test_stateful_sets_name_a_service_that_is_there(chart: Render) -> None:
    for each in chart.of("StatefulSet"):
        assert each["spec"]["serviceName"] in chart.named("Service"), title(each)


def test_every_way_in_leads_to_the_gateway(chart: Render) -> None:
    services = {
        name: each["spec"]["selector"]["app.kubernetes.io/component"]
        for name, each in chart.named("Service").items()
    }
    for each in chart.of("Ingress"):
        for rule in each["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                assert services[backend["name"]] == "gateway"
                assert backend["port"] == {"name": "http"}
                assert path["path"] not in ("/metrics", "/livez", "/readyz", "/healthz")
                assert (path["path"] == "/") is (path["pathType"] == "Exact")
    for each in chart.of("HTTPRoute"):
        for rule in each["spec"]["rules"]:
            assert {services[backend["name"]] for backend in rule["backendRefs"]} == {"gateway"}


def test_an_autoscaler_alone_says_how_many_pods_there_are(chart: Render) -> None:
    owners = Counter(
        each["spec"]["scaleTargetRef"]["name"]
        for each in chart.of("HorizontalPodAutoscaler", "ScaledObject")
    )
    assert set(owners.values()) <= {1}
    assert set(owners) <= set(chart.named("Deployment"))
    for name, each in chart.named("Deployment").items():
        assert name not in owners or "replicas" not in each["spec"], name
        # one is what there is anyway, and left to whoever sets another number
        assert each["spec"].get("replicas") != 1, name


def test_only_workloads_of_several_pods_have_a_disruption_budget(
    chart: Render,
) -> None:
    for name, each in chart.named("Deployment").items():
        budget = chart.named("PodDisruptionBudget").get(name)
        assert bool(budget) == (fewest(chart, each) > 1), name
        if budget:
            assert budget["spec"]["maxUnavailable"] == 1, name
            assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow", name
    assert set(chart.named("PodDisruptionBudget")) <= set(chart.named("Deployment"))


def test_a_budget_follows_the_fewest_pods_of_an_autoscaler() -> None:
    scaled = {
        "processes": {
            "gateway": {"autoscaling": {"enabled": True, "minReplicas": 2}},
            "user-service": {"replicas": 3, "autoscaling": {"enabled": True, "minReplicas": 1}},
            "user-projector": {"keda": {"enabled": True, "minReplicas": 2}},
            "order-projector": {"replicas": 3, "keda": {"enabled": True, "minReplicas": 1}},
        }
    }
    budgets = render(given=scaled).named("PodDisruptionBudget")
    assert set(budgets) == {"shop-gateway", "shop-user-projector"}


def fewest(chart: Render, deployment: Object) -> int:
    """The fewest pods that a Deployment has, whoever says so."""
    name = deployment["metadata"]["name"]
    for scaler in chart.of("HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        if spec["scaleTargetRef"]["name"] == name:
            return int(spec.get("minReplicas") or spec["minReplicaCount"])
    return int(deployment["spec"].get("replicas", 1))


def test_the_examples_hold_what_they_are_examples_of() -> None:
    assert len(render("ha").of("HorizontalPodAutoscaler")) == 3
    assert len(render("ha").of("PodDisruptionBudget")) == 12
    assert len(render("keda").of("ScaledObject")) == 3
    assert not render("external").of("StatefulSet")
    assert not render().of("Ingress"), "it would take paths of the cluster's whole default ingress"
    assert not render("minimal").of("Ingress", "NetworkPolicy", "Pod")
    assert not render("prepared").of("Job")
    assert render("httproute").of("HTTPRoute")
    assert not render("httproute").of("Ingress")
    assert render("ingress-tls").of("Ingress")[0]["spec"]["tls"]
    assert not render("existing-secrets").of("Secret")


def test_an_ingress_has_a_rule_and_a_certificate_for_each_host() -> None:
    (ingress,) = render("ingress-tls").of("Ingress")
    shared, own = ["shop.example", "www.shop.example"], "shop.example.org"
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == [*shared, own]
    assert ingress["spec"]["tls"] == [
        {"secretName": "shop-org-tls", "hosts": [own]},
        {"secretName": "shop-gateway-tls", "hosts": shared},
    ]
    (ingress,) = render(given={"ingress": {"enabled": True}}).of("Ingress")
    assert ["host" in rule for rule in ingress["spec"]["rules"]] == [False]


def test_where_each_host_has_a_certificate_of_its_own_there_is_no_other() -> None:
    secrets = {"a.example": "a-tls", "b.example": "b-tls"}
    given: Object = {
        "enabled": True, "hosts": [*secrets], "tls": {"enabled": True, "secrets": secrets},
    }  # fmt: skip
    (ingress,) = render(given={"ingress": given}).of("Ingress")
    assert {each["secretName"]: each["hosts"] for each in ingress["spec"]["tls"]} == {
        secret: [host] for host, secret in secrets.items()
    }
    done, said = template(given={"ingress": {**given, "hosts": ["a.example"]}})
    assert not done
    assert "ingress.tls.secrets: b.example is not in ingress.hosts" in said


def test_the_notes_give_a_working_address_and_no_other() -> None:
    forward = "port-forward service/shop-gateway 3000:3000"
    plain = notes()
    assert forward in plain
    assert "ingress" not in plain
    assert "make images" in plain
    unnamed = notes({"ingress": {"enabled": True}, "image": {"registry": "registry.example"}})
    assert forward in unnamed
    assert "get ingress shop-gateway" in unnamed
    assert "localhost:8080" not in unnamed
    assert "make images" not in unnamed
    hosts = {"enabled": True, "hosts": ["a.example", "b.example"], "tls": {"enabled": True}}
    named = notes({"ingress": hosts})
    assert forward in named
    assert "https://a.example/docs" in named
    assert "https://b.example/docs" in named


def test_a_rolling_update_keeps_a_pod_until_its_successor_is_ready(
    chart: Render,
) -> None:
    for each in chart.of("Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


@pytest.mark.parametrize("values", VALUES)
def test_no_password_is_anywhere_but_in_secrets(values: str) -> None:
    chart = render(values, given=PLANTED)
    told = json.dumps(masked(chart.objects))
    for password in planted():
        assert password not in told
        assert base64.b64encode(password.encode()).decode() not in told


def planted() -> Iterator[str]:
    """All passwords of PLANTED."""
    for place in PLANTED.values():
        yield from place["auth"]["passwords"].values()


def test_every_login_has_a_password_and_a_given_one_is_taken() -> None:
    chart = render(given=PLANTED)
    for place, logins in LOGINS.items():
        held = chart.named("Secret")[f"shop-{place}"]["data"]
        assert {login for login in held if not login.endswith(".user")} == set(logins)
        for login in logins:
            expected = PLANTED[place]["auth"]["passwords"][login]
            assert base64.b64decode(held[login]).decode() == expected


def test_generated_passwords_are_long_and_all_different() -> None:
    made = [
        base64.b64decode(value).decode()
        for secret in render().of("Secret")
        for login, value in secret["data"].items()
        if not login.endswith(".user")
    ]
    assert len(made) == sum(map(len, LOGINS.values()))
    assert len(set(made)) == len(made)
    assert all(len(password) == 32 and password.isalnum() for password in made)


def test_secrets_and_with_them_the_data_outlive_the_release(chart: Render) -> None:
    for each in chart.of("Secret"):
        assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", title(each)


def test_a_new_configuration_restarts_a_server_and_a_new_password_does_not() -> None:
    def checksums(given: Object | None) -> dict[str, Any]:
        found = render(given=given).named("StatefulSet")
        return {name: each["spec"]["template"] for name, each in found.items()}

    assert checksums(PLANTED) == checksums(None)
    changed = checksums({"rabbitmq": {"configuration": "channel_max = 512\n"}})
    assert {name for name, each in checksums(None).items() if each != changed[name]} == {
        "shop-rabbitmq"
    }


def test_the_setup_job_has_another_name_whenever_anything_of_it_changes() -> None:
    names = []
    for given in (None, {"image": {"tag": "2"}}, {"setup": {"backoffLimit": 2}}):
        (job,) = render(given=given).of("Job")
        names.append(job["metadata"]["name"])
    assert len(set(names)) == 3
    (again,) = render(given={"defaults": {"replicas": 2}}).of("Job")
    assert again["metadata"]["name"] == names[0]


def test_the_charts_schema_is_the_one_at_the_root() -> None:
    own = (CHART / "files" / "init.sql").read_text()
    assert own == (ROOT / "init.sql").read_text(), "copy init.sql to charts/shop/files/"
    (schema,) = (each["data"] for each in render().of("ConfigMap") if "init.sql" in each["data"])
    assert schema["init.sql"].rstrip() == own.rstrip()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"postgres": {"enabled": False}}, "postgres.enabled is false: say where it is"),
        ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
        ({"processes": {"gateway": {"keda": {"enabled": True}}}}, "processes.gateway.queue"),
        ({"rabbitmq": {"resources": {"limits": {"memory": "512e6"}}}}, "write it in Ki, Mi or Gi"),
        (
            {"defaults": {"autoscaling": {"enabled": True}}},
            "may open 298 connections to PostgreSQL, which takes 200",
        ),
        (
            {
                "postgres": {"external": {"host": "away", "maxConnections": 70}, "enabled": False},
            },
            "Raise postgres.external.maxConnections, or lower maxReplicas or THREADS.",
        ),
        (
            {
                "processes": {
                    "user-service": {"extra": {"env": [{"name": "THREADS", "value": "99"}]}}
                }
            },
            "user-service 2 pods of 100",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_in_a_sentence(
    given: Object, sentence: str
) -> None:
    done, said = template(given=given)
    assert not done
    assert sentence in said


def matching(chart: Render, labels: Object) -> list[Any]:
    """The pods that a selector matches."""
    assert labels
    return [pod for pod in chart.pods if labels.items() <= dict(pod.labels).items()]
