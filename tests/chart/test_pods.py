"""Rules of every pod: of processes, servers, Jobs and the test."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from eventcore.web.server import GRACE
from local.services import PROCESSES
from tests.chart.render import SERVERS, VALUES, Object, Pod, Render, render

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
"""The kinds of volumes that the "restricted" Pod Security Standard allows."""

WRITABLE = {"dev"}
"""Profiles whose containers may write to their root: files are synced into them."""

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

ASKS_THE_API = {"prometheus"}
"""Components that may: the bundled Prometheus looks for pods."""

READS_NO_FILE = {("mongodb-exporter", "MONGODB_PASSWORD")}
"""Passwords that a program of others takes from its environment alone."""

CONTROL_PLANE = {"cpu": 0.95, "memory": 400 * 2**20}
"""The requests of a kind node's own pods and of the ingress controller."""


@pytest.mark.parametrize("values", VALUES)
def test_every_kind_of_pod_is_looked_at(values: str) -> None:
    chart = render(values)
    kinds = {pod.kind for pod in chart.pods}
    text = repr(chart.objects)
    assert len(chart.pods) == len(re.findall("'containers': ", text))
    assert kinds <= {"Deployment", "StatefulSet", "CronJob", "Job", "Pod"}
    assert "Deployment" in kinds


def test_every_pod_may_do_nothing_as_the_restricted_standard_has_it(chart: Render) -> None:
    wrong = [f"{pod.owner}: {each}" for pod in chart.pods for each in breaches(pod.spec)]
    assert not wrong


def breaches(spec: Object) -> Iterator[str]:
    """The violations of the "restricted" Pod Security Standard in a pod."""
    pod = spec.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield name
    if pod.get("sysctls"):
        yield "sysctls"
    for volume in spec.get("volumes", ()):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume}"
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        own = container.get("securityContext", {})
        both = pod | own
        capabilities = own.get("capabilities", {})
        user = both.get("runAsUser")
        rules = {
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": isinstance(user, int) and user > 0,
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities.drop": capabilities.get("drop") == ["ALL"],
            "capabilities.add": not capabilities.get("add"),
            "seccompProfile": both.get("seccompProfile") == {"type": "RuntimeDefault"},
            "privileged": not own.get("privileged"),
            "procMount": own.get("procMount", "Default") == "Default",
            "seLinuxOptions": not both.get("seLinuxOptions"),
            "windowsOptions": not both.get("windowsOptions"),
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
            "host of a probe": not any(_at(container, each, "httpGet", "host") for each in PROBES),
        }
        yield from (f"{container['name']}: {rule}" for rule, kept in rules.items() if not kept)


def test_no_container_can_write_to_its_image(chart: Render) -> None:
    if chart.name in WRITABLE:
        pytest.skip("Files are synced into its containers.")
    assert not [
        (pod.owner, each["name"])
        for pod in chart.pods
        for each in pod.containers
        if _at(each, "securityContext", "readOnlyRootFilesystem") is not True
    ]


def test_no_pod_gets_a_cluster_token_or_addresses_of_other_services(
    chart: Render,
) -> None:
    for pod in chart.pods:
        asks = pod.component in ASKS_THE_API
        assert pod.spec.get("automountServiceAccountToken") is asks, pod.owner
        assert bool(pod.spec.get("serviceAccountName")) == asks, pod.owner
        assert pod.spec.get("enableServiceLinks") is False, pod.owner


def test_every_container_says_what_it_needs_and_its_limit_of_memory(chart: Render) -> None:
    for pod in chart.pods:
        for each in pod.containers:
            where = f"{pod.owner}: {each['name']}"
            requests = _at(each, "resources", "requests") or {}
            limits = _at(each, "resources", "limits") or {}
            assert set(requests) >= {"cpu", "memory"}, where
            assert set(limits) == {"memory"}, f"{where}: a limit of CPU only makes it wait"
            assert quantity(requests["memory"]) <= quantity(limits["memory"]), where


@pytest.mark.parametrize("values", ["default", "observability"])
def test_all_fits_a_laptops_cluster_of_two_cpus_and_four_gibibytes(values: str) -> None:
    asked = {"cpu": 0.0, "memory": 0.0}
    for pod in render(values).pods:
        for what in asked:
            first = [_request(each, what) for each in pod.spec.get("initContainers", ())]
            together = sum(_request(each, what) for each in pod.spec["containers"])
            asked[what] += max([together, *first])
    assert asked["cpu"] + CONTROL_PLANE["cpu"] <= 2
    assert asked["memory"] + CONTROL_PLANE["memory"] <= 4 * 2**30


UNPROBED = ("traffic",)
"""Pods that serve nobody: nothing waits for them, and a failed call is no reason to start anew."""


def test_what_runs_for_long_is_probed_on_ports_that_it_has(chart: Render) -> None:
    for pod in chart.pods:
        if not pod.is_long_running or pod.component in UNPROBED:
            continue
        for each in pod.spec["containers"]:
            for name in PROBES:
                assert name in each, f"{pod.owner}: {each['name']} has no {name}"
                port = _at(each, name, "httpGet", "port")
                assert port is None or port in pod.ports, f"{pod.owner}: {name}"


def test_liveness_asks_something_else_than_readiness(chart: Render) -> None:
    for name, pod in chart.processes().items():
        (container,) = pod.spec["containers"]
        paths = [_at(container, probe, "httpGet", "path") for probe in PROBES]
        assert paths == ["/healthz", "/readyz", "/livez"], name


def test_liveness_is_more_patient_than_readiness(chart: Render) -> None:
    for pod in chart.pods:
        if pod.is_long_running and pod.component not in UNPROBED:
            for each in pod.spec["containers"]:
                live, ready = each["livenessProbe"], each["readinessProbe"]
                patience = [
                    probe["periodSeconds"] * probe["failureThreshold"] for probe in (live, ready)
                ]
                assert patience[0] > patience[1], pod.owner


def test_who_serves_has_time_for_what_is_in_progress(chart: Render) -> None:
    for name, pod in chart.processes().items():
        (container,) = pod.spec["containers"]
        if "http" not in pod.ports:
            assert "lifecycle" not in container, f"{name} takes no requests that could arrive late"
            continue
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause >= 1, name
        assert pod.spec["terminationGracePeriodSeconds"] >= pause + GRACE + 5, name


def test_every_image_has_a_version(chart: Render) -> None:
    for pod in chart.pods:
        for each in pod.containers:
            image, _, digest = each["image"].partition("@")
            tag = image.rpartition("/")[2].partition(":")[2]
            assert digest or tag, f"{pod.owner}: {image}"
            assert tag != "latest", f"{pod.owner}: {image}"


def test_all_that_is_mounted_is_there_and_nothing_else(chart: Render) -> None:
    for pod in chart.pods:
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in _claims(chart, pod)}
        used = {mount["name"] for each in pod.containers for mount in each.get("volumeMounts", ())}
        assert used == volumes, pod.owner
        for each in pod.containers:
            paths = [mount["mountPath"] for mount in each.get("volumeMounts", ())]
            assert len(paths) == len(set(paths)), f"{pod.owner}: {each['name']}"


def test_every_secret_config_and_claim_of_a_pod_is_rendered_or_given(
    chart: Render,
) -> None:
    given = _given(chart.values)
    for pod in chart.pods:
        for kind, name, keys in references(pod):
            if name in given and name not in chart.named(kind):
                continue
            assert name in chart.named(kind), f"{pod.owner}: there is no {kind} {name}"
            known = set(chart.named(kind)[name].get("data", {}))
            assert keys <= known, f"{pod.owner}: {kind} {name} has no {keys - known}"


def references(pod: Pod) -> Iterator[tuple[str, str, set[str]]]:
    """Kind and name of what a pod's volumes and variables name, and the keys that they take."""
    volumes = list(pod.spec.get("volumes", ()))
    volumes += [source for each in volumes for source in _at(each, "projected", "sources") or ()]
    for volume in volumes:
        for kind, key, name in (
            ("Secret", "secret", "secretName"),
            ("ConfigMap", "configMap", "name"),
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        ):
            if key in volume:
                source = volume[key]
                items = {item["key"] for item in source.get("items", ())}
                yield kind, source.get(name) or source["name"], items
    for container in pod.containers:
        for variable in container.get("env", ()):
            if place := _at(variable, "valueFrom", "secretKeyRef"):
                yield "Secret", place["name"], {place["key"]}
            if place := _at(variable, "valueFrom", "configMapKeyRef"):
                yield "ConfigMap", place["name"], {place["key"]}
        assert not container.get("envFrom"), "each variable is named"


def test_no_variable_is_there_twice(chart: Render) -> None:
    for pod in chart.pods:
        for each in pod.containers:
            names = [variable["name"] for variable in each.get("env", ())]
            assert len(names) == len(set(names)), f"{pod.owner}: {each['name']}"


def test_every_file_that_a_variable_or_an_argument_names_is_mounted(chart: Render) -> None:
    for pod in chart.pods:
        for each in pod.containers:
            there = files(chart, pod, each)
            variables = {
                variable["name"]: variable["value"]
                for variable in each.get("env", ())
                if variable["name"].endswith("_FILE")
            }
            scripts = [arg.partition("=")[2] for arg in each.get("args", ()) if "--script=" in arg]
            missing = {*variables.values(), *scripts} - there
            assert not missing, f"{pod.owner}: {each['name']} has no {missing}"


def files(chart: Render, pod: Pod, container: Object) -> set[str]:
    """Every file that a container finds in what it mounts, by its path: from a Secret or a
    ConfigMap, or written there by an init container.
    """
    found = set()
    for mount in container.get("volumeMounts", ()):
        for volume in pod.spec.get("volumes", ()):
            if volume["name"] != mount["name"]:
                continue
            for source in [volume, *(_at(volume, "projected", "sources") or ())]:
                place = source.get("secret") or source.get("configMap") or {}
                paths = [item["path"] for item in place.get("items", ())]
                if "configMap" in source and not paths:
                    paths = list(chart.named("ConfigMap")[place["name"]]["data"])
                found |= {f"{mount['mountPath']}/{path}" for path in paths}
        for init in pod.spec.get("initContainers", ()):
            for theirs in init.get("volumeMounts", ()):
                if theirs["name"] == mount["name"]:
                    script = " ".join(init.get("command", ()))
                    written = re.findall(rf"> {re.escape(theirs['mountPath'])}/(\S+)", script)
                    found |= {f"{mount['mountPath']}/{path}" for path in written}
    return found


def test_passwords_come_as_files_and_never_as_variables(chart: Render) -> None:
    for pod in chart.pods:
        for each in pod.containers:
            for variable in each.get("env", ()):
                name = variable["name"]
                if (pod.component, name) in READS_NO_FILE:
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}
                    continue
                secret = re.search("PASSWORD|TOKEN|SECRET|_PASS$", name)
                assert not secret or name.endswith("_FILE"), f"{pod.owner}: {name}"
                if "secretKeyRef" in variable.get("valueFrom", ()):
                    assert re.fullmatch("[A-Z]+_(HOST|PORT|USER)", name), f"{pod.owner}: {name}"


def test_passwords_are_read_only_and_not_for_everybody(chart: Render) -> None:
    for pod in chart.pods:
        for volume in pod.spec.get("volumes", ()):
            for kind in {"secret", "projected"} & set(volume):
                if volume["name"].startswith("tls-"):
                    continue
                assert volume[kind].get("defaultMode") == 0o440, f"{pod.owner}: {volume['name']}"
                for each in pod.containers:
                    for mount in each.get("volumeMounts", ()):
                        assert mount["name"] != volume["name"] or mount.get("readOnly")


def test_temporary_folders_have_a_size(chart: Render) -> None:
    for pod in chart.pods:
        for volume in pod.spec.get("volumes", ()):
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), pod.owner


def quantity(text: str | int) -> float:
    """A quantity as Kubernetes writes it: 25m, 80Mi, 2."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert match, text
    return float(match[1]) * (units[match[2]] if match[2] else 1)


def _request(container: Object, what: str) -> float:
    return quantity(container["resources"]["requests"][what])


def _claims(chart: Render, pod: Pod) -> list[Object]:
    kind, name = pod.owner.split()
    claims: list[Object] = chart.named(kind)[name]["spec"].get("volumeClaimTemplates", [])
    return claims


def _given(values: Any) -> set[str]:
    """The names of Secrets and claims that values say are there already."""
    names = {"existingSecret", "existingClaim", "secret", "caSecret", "secretName"}
    found = set()
    if isinstance(values, dict):
        for key, value in values.items():
            found |= {value} if key in names and isinstance(value, str) else _given(value)
    return found


def _at(thing: Any, *path: str) -> Any:
    for key in path:
        thing = thing.get(key) if isinstance(thing, dict) else None
    return thing


def test_in_diagnostic_mode_processes_and_servers_sleep() -> None:
    given: Object = {"traffic": {"enabled": True}, "observability": {"enabled": True}}
    before = {pod.owner: pod for pod in render(given=given).pods}
    asleep = {
        pod.owner: pod for pod in render(given={**given, "global": {"diagnosticMode": True}}).pods
    }
    assert asleep.keys() == before.keys()
    changed = set()
    for owner, pod in asleep.items():
        main, usual = pod.spec["containers"][0], before[owner].spec["containers"][0]
        if main.get("command") == ["sleep", "infinity"]:
            gone = {"args", "lifecycle", *PROBES}
            assert not gone & set(main)
            kept = [each for each in usual if each not in gone | {"command"}]
            assert {key: main[key] for key in kept} == {key: usual[key] for key in kept}
            changed.add(pod.component)
        else:
            assert main == usual
    assert changed == {*PROCESSES, *SERVERS, "traffic"}
