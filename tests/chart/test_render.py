"""Every set of values renders: on every Helm, twice the same, valid, beside another release."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from local.services import PROJECTORS
from tests.chart.render import (
    CHART,
    HELMS,
    KUBERNETES,
    PLANTED,
    USUAL,
    VALUES,
    Object,
    Render,
    helm,
    masked,
    render,
    template,
    title,
)

CRDS = {
    crd["spec"]["names"]["kind"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for file in (Path(__file__).parent / "crds").glob("*.yaml")
    for crd in [yaml.safe_load(file.read_text())]
}
"""The schemas of Prometheus' operator, by kind."""

CUSTOM = {
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "TriggerAuthentication": "keda.sh/v1alpha1",
}
"""Kinds that Kubernetes itself does not know; the shape of each has its own test below."""

every_set = pytest.mark.parametrize("values", VALUES)


@pytest.mark.parametrize(
    ("program", "values"),
    [(HELMS[0], values) for values in VALUES] + [(program, "default") for program in HELMS[1:]],
)
def test_lint_finds_nothing(program: str, values: str) -> None:
    file = VALUES[values]
    done, said = helm(
        "lint",
        "--strict",
        f"--kube-version={USUAL}.0",
        str(CHART),
        *([f"--values={file}"] if file else []),
        program=program,
    )
    assert done, said
    assert "[WARNING]" not in said


@every_set
def test_every_helm_renders_the_same_objects(values: str) -> None:
    if len(HELMS) < 2:
        pytest.skip("There is only one Helm on the PATH.")
    first, second = (masked(render(values, program=each).objects) for each in HELMS)
    assert sorted(first, key=title) == sorted(second, key=title)


@every_set
def test_two_renders_differ_in_generated_passwords_alone(values: str) -> None:
    done, again = template(values)
    assert done
    assert without_generated(again) == without_generated(render(values).text)


def without_generated(text: str) -> str:
    """A rendering without the passwords that were made for it: 32 letters and digits, encoded."""
    kind = r"(?m)^(kind: Secret\n(?:(?!---).*\n)*)"
    return re.sub(
        kind, lambda found: re.sub("(?m): [A-Za-z0-9+/]{43}=$", ": generated", found[0]), text
    )


def test_two_renders_with_all_passwords_given_are_identical() -> None:
    assert template(given=PLANTED) == template(given=PLANTED)


def test_all_versions_of_kubernetes_get_the_same() -> None:
    first, *others = (masked(render(kubernetes=each).objects) for each in KUBERNETES)
    assert all(other == first for other in others)


@pytest.fixture(scope="module", autouse=True)
def schemas_are_read_once() -> Iterator[None]:
    """The validator reads its files again for each object, which takes most of its time."""
    utils = kubernetes_validate.utils
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", cache(utils.schema_contents))
        yield


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_every_object_is_valid_and_has_no_field_that_is_unknown(kubernetes: str) -> None:
    distinct = {repr(each): each for values in VALUES for each in masked(render(values).objects)}
    wrong = [said for each in distinct.values() if (said := invalid(each, kubernetes))]
    assert not wrong


def invalid(thing: Object, kubernetes: str) -> str:
    """What is wrong with an object, by the schema of a version of Kubernetes."""
    if CUSTOM.get(thing["kind"]) == thing["apiVersion"]:
        return ""
    if thing["apiVersion"] == "monitoring.coreos.com/v1":
        validator = jsonschema.Draft7Validator(closed(CRDS[thing["kind"]]))
        return "; ".join(f"{title(thing)}: {each.message}" for each in validator.iter_errors(thing))
    try:
        kubernetes_validate.validate(thing, kubernetes, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{title(thing)}: {'.'.join(map(str, error.path))}: {error.message}"
    return ""


def test_the_check_of_schemas_knows_a_wrong_field() -> None:
    service = render().of("Service")[0]
    assert not invalid(service, KUBERNETES[0])
    assert invalid(service | {"spec": service["spec"] | {"prots": []}}, KUBERNETES[0])


def closed(schema: Any) -> Any:
    """A schema by which a field that it does not name is wrong: the API server drops those."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    shut = {key: closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        shut.setdefault("additionalProperties", False)
        if "apiVersion" in schema["properties"]:
            shut["properties"]["metadata"] = {"type": "object"}
    return shut


def test_the_check_of_monitors_knows_a_wrong_field() -> None:
    for kind in ("PodMonitor", "PrometheusRule"):
        (good,) = render("monitors").of(kind)
        assert not invalid(good, KUBERNETES[0])
        assert invalid(good | {"spec": good["spec"] | {"selectors": {}}}, KUBERNETES[0])


def test_scaled_objects_have_the_shape_that_keda_reads() -> None:
    keda = render("keda")
    found = keda.of("ScaledObject")
    assert len(found) == 3
    for each in found:
        spec = each["spec"]
        assert set(spec) == {
            "scaleTargetRef",
            "minReplicaCount",
            "maxReplicaCount",
            "cooldownPeriod",
            "fallback",
            "advanced",
            "triggers",
        }
        assert 1 <= spec["minReplicaCount"] <= spec["maxReplicaCount"]
        assert spec["scaleTargetRef"]["name"] in keda.named("Deployment")
        assert set(spec["fallback"]) == {"failureThreshold", "replicas"}
        (trigger,) = spec["triggers"]
        assert set(trigger) == {"type", "metadata", "authenticationRef"}
        assert trigger["type"] == "rabbitmq"
        told = trigger["metadata"]
        assert all(isinstance(value, str) for value in told.values()), "KEDA reads strings"
        assert told["protocol"] == "http", "over AMQP, what is worked on is not counted"
        assert told["mode"] == "QueueLength"
        assert {"host", "queueName", "value", "activationValue", "vhostName"} <= set(told)
        assert trigger["authenticationRef"]["name"] in keda.named("TriggerAuthentication")


def test_keda_finds_its_login_in_a_secret() -> None:
    keda = render("keda")
    found = keda.of("TriggerAuthentication")
    assert len(found) == 3
    for each in found:
        (username, password) = each["spec"]["secretTargetRef"]
        assert (username["parameter"], password["parameter"]) == ("username", "password")
        for place in (username, password):
            assert place["key"] in keda.named("Secret")[place["name"]]["data"]


def test_the_route_has_the_shape_that_gateways_read() -> None:
    (route,) = render("httproute").of("HTTPRoute")
    spec = route["spec"]
    assert set(spec) <= {"parentRefs", "hostnames", "rules"}
    assert all(parent["name"] for parent in spec["parentRefs"])
    (rule,) = spec["rules"]
    assert set(rule) == {"matches", "backendRefs"}
    assert {match["path"]["type"] for match in rule["matches"]} == {"PathPrefix", "Exact"}
    assert len(rule["matches"]) <= 64
    (backend,) = rule["backendRefs"]
    service = render("httproute").named("Service")[backend["name"]]
    assert backend["port"] in [port["port"] for port in service["spec"]["ports"]]


@every_set
def test_two_releases_in_one_namespace_share_no_object(values: str) -> None:
    assert not names(render(values)) & names(render(values, release="another"))


@every_set
def test_no_object_is_there_twice(values: str) -> None:
    chart = render(values)
    assert len(names(chart)) == len(chart.objects)


def test_two_releases_with_long_names_have_names_of_their_own_that_fit() -> None:
    long = "a-name-as-long-as-helm-will-take-it-and-not-one-more"
    charts = [render(release=f"{long}{end}") for end in "xy"]
    assert not names(charts[0]) & names(charts[1])
    for chart in charts:
        assert all(len(name) <= 63 for _, name in names(chart))
        assert all(len(text) <= 63 for text in _label_values(chart.objects))
    selectors = [each["spec"]["selector"] for chart in charts for each in chart.of("Service")]
    assert len({repr(each) for each in selectors}) == len(selectors)


def test_names_fit_and_differ_where_both_parts_are_long() -> None:
    one = {"service": "user", "run": "project users", "feed": "user", "queue": "q"}
    long = "a-projector-of-the-longest-name"
    serving = {"service": "user", "run": "serve", "port": 4000}
    given = {
        "processes": {
            f"{long[:-1]}a": one,
            f"{long[:-1]}b": one | {"queue": "r", "keda": {"enabled": True}},
            f"{long[:-3]}api": serving,
        },
        "rebuild": {"projections": ["known-users", "users"]},
    }
    chart = render(release="shop-production-eu-central-1-blue", given=given)
    found = [(each["kind"], each["metadata"]["name"]) for each in chart.objects]
    assert len(set(found)) == len(found)
    assert all(len(name) <= (52 if kind == "CronJob" else 63) for kind, name in found)
    assert all(len(text) <= 63 for text in _label_values(chart.objects))
    assert len(chart.of("CronJob")) == len(PROJECTORS) + 2, "each projector is verified"
    assert len(chart.of("Job")) == 1 + 4, "setup, and a rebuild by each of four projectors"


def names(chart: Render) -> set[tuple[str, str]]:
    """Kind and name of each object."""
    return {(each["kind"], each["metadata"]["name"]) for each in chart.objects}


def _label_values(thing: Any) -> list[str]:
    if isinstance(thing, list | tuple):
        return [text for each in thing for text in _label_values(each)]
    if not isinstance(thing, dict):
        return []
    own = [text for key in ("labels", "matchLabels") for text in thing.get(key, {}).values()]
    return own + [text for each in thing.values() for text in _label_values(each)]
