"""The block `extra` of values, which every workload takes, and user ids that a cluster chooses."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.render import CHART, HELMS, KUBERNETES, Object, Render, over, render, title
from tests.chart.test_render import invalid
from tests.chart.values import at, documented, maps

PART = {
    "name": "part",
    "image": "part:1",
    "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "1Mi"}},
}

EXTRA: Object = {
    "env": [{"name": "HTTP_PROXY", "value": "http://proxy.example:3128"}],
    "envFrom": [{"secretRef": {"name": "more"}}],
    "volumes": [{"name": "more", "configMap": {"name": "more"}}],
    "volumeMounts": [{"name": "more", "mountPath": "/more", "readOnly": True}],
    "initContainers": [PART | {"name": "first"}],
    "containers": [PART | {"name": "beside"}],
    "serviceAccountName": "workload",
    "automountServiceAccountToken": True,
    "podLabels": {"team": "checkout", "app.kubernetes.io/component": "stolen"},
    "podAnnotations": {"sidecar.istio.io/inject": "false"},
    "podSecurityContext": {"fsGroup": None, "supplementalGroups": [1234]},
    "securityContext": {"readOnlyRootFilesystem": None, "runAsUser": 12345},
    "pod": {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}},
}
"""Something in each field."""

EVERYTHING: Object = {
    "observability": {"enabled": True},
    "rebuild": {"projections": ["orders"]},
    "backup": {"enabled": True},
    "restore": {"stores": {"user": "latest"}},
}

PLACES = [path for path in maps(documented()) if path[-1:] == ("extra",)]


def with_extra(program: str = HELMS[0]) -> Render:
    """All workloads there are, each with EXTRA."""
    given = EVERYTHING
    for path in PLACES:
        given = over(given, at(path, EXTRA))
    return render(given=given, program=program)


@pytest.mark.parametrize("program", HELMS)
def test_every_workload_takes_every_field_of_extra(program: str) -> None:
    chart = with_extra(program)
    assert len(chart.pods) == len(render(given=EVERYTHING).pods) > 20
    for pod in chart.pods:
        spec = pod.spec
        assert EXTRA["volumes"][0] in spec["volumes"], pod.owner
        assert "first" in [each["name"] for each in spec["initContainers"]], pod.owner
        assert "beside" in [each["name"] for each in spec["containers"]], pod.owner
        assert spec["serviceAccountName"] == "workload", pod.owner
        assert spec["automountServiceAccountToken"] is True, pod.owner
        assert spec["dnsConfig"] == EXTRA["pod"]["dnsConfig"], pod.owner
        assert pod.labels["team"] == "checkout", pod.owner
        assert pod.component != "stolen", f"{pod.owner}: selectors name this label"
        assert pod.annotations["sidecar.istio.io/inject"] == "false", pod.owner
        assert spec["securityContext"]["supplementalGroups"] == [1234], pod.owner
        assert "fsGroup" not in spec["securityContext"], f"{pod.owner}: null removes it"
        main = [each for each in spec["containers"] if each["name"] != "beside"]
        for container in main:
            where = f"{pod.owner}: {container['name']}"
            assert EXTRA["env"][0] in container["env"], where
            assert EXTRA["envFrom"][0] in container["envFrom"], where
            assert EXTRA["volumeMounts"][0] in container["volumeMounts"], where
            assert container["securityContext"]["runAsUser"] == 12345, where
            assert "readOnlyRootFilesystem" not in container["securityContext"], where


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_pods_with_all_of_it_are_valid(kubernetes: str) -> None:
    wrong = [
        said
        for each in with_extra().of("Deployment", "StatefulSet", "Job", "CronJob", "Pod")
        if (said := invalid(each, kubernetes))
    ]
    assert not wrong


def test_the_example_of_the_charts_page_renders() -> None:
    _, section = (CHART / "README.md").read_text().split("## Clusters that differ\n")
    lines = section.split("\n## ")[0].splitlines()
    given = yaml.safe_load("\n".join(line for line in lines if line.startswith("    ")))
    chart = render(given=given)
    gateway = chart.pod("gateway")
    assert gateway.spec["serviceAccountName"] == "shop"
    assert "fsGroup" not in gateway.spec["securityContext"]
    assert chart.pod("setup").annotations["sidecar.istio.io/inject"] == "false"


def test_annotations_and_labels_for_all_reach_every_object_and_every_pod() -> None:
    given = over(
        EVERYTHING,
        {"global": {"commonLabels": {"team": "x"}, "commonAnnotations": {"example.com/a": "b"}}},
    )
    chart = render(given=given)
    for pod in chart.pods:
        assert pod.labels["team"] == "x", pod.owner
        assert pod.annotations["example.com/a"] == "b", pod.owner
    for each in chart.objects:
        assert each["metadata"]["labels"]["team"] == "x", title(each)
        assert each["metadata"]["annotations"]["example.com/a"] == "b", title(each)


def test_on_openshift_no_pod_names_a_user_or_a_group() -> None:
    chart = render(given=over(EVERYTHING, {"global": {"openshift": True}}))
    told = json.dumps([pod.spec for pod in chart.pods])
    assert not re.findall('"(?:runAsUser|runAsGroup|fsGroup)"', told)
    assert all(pod.spec["securityContext"]["runAsNonRoot"] for pod in chart.pods)


@pytest.mark.parametrize("password", ["it's", 'a"b\\c', "100% $HOME `id`", "pässwörd"])
def test_rabbitmq_takes_any_password_of_a_secret_of_yours(password: str, tmp_path: Path) -> None:
    """The script of its init container, on folders of this machine."""
    (init,) = render().pod("rabbitmq").spec["initContainers"]
    script = init["command"][-1]
    for name in ("config", "secrets", "conf.d"):
        (tmp_path / name).mkdir()
        script = script.replace(f"/{name}/", f"{tmp_path}/{name}/")
    (tmp_path / "config/rabbitmq.conf").touch()
    (tmp_path / "secrets/admin").write_text(password)
    subprocess.run(["sh", "-euc", script], check=True)
    term = (tmp_path / "conf.d/advanced.config").read_text()
    (found,) = re.findall("default_pass, <<([0-9,]*)>>", term)
    assert bytes(map(int, found.split(","))).decode() == password
