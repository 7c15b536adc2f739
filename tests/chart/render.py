"""The objects that Helm renders from charts/shop for a set of values, once a run."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from local.services import LOGINS

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "shop"
SERVERS = ("postgres", "rabbitmq", "mongodb")
EXPORTERS = ("postgres-exporter", "mongodb-exporter")
STACK = ("prometheus", "grafana", "collector", "jaeger")

Object: TypeAlias = dict[str, Any]

HELMS = tuple(name for name in ("helm", "helm3") if shutil.which(name)) or ("helm",)
"""The Helms of this machine; the first is used where one will do."""

KUBERNETES = tuple(f"1.{minor}" for minor in range(30, 37))
"""Versions that every object must be valid for, by the schema of each."""

USUAL = "1.34"
"""The version that is rendered for where any will do."""

NAMESPACE = "elsewhere"

OPERATOR = "--api-versions=monitoring.coreos.com/v1"
"""By it Helm knows that Prometheus' operator is there."""

VALUES: Mapping[str, Path | None] = {"default": None} | {
    file.stem.removesuffix("-values").removeprefix("values-"): file
    for file in sorted([*CHART.glob("ci/*-values.yaml"), *CHART.glob("values-*.yaml")])
}
"""The sets of values that are rendered, by name: the defaults, the examples, the profiles."""

GENERATING: Object = {"auth": {"generate": "always"}}
"""Values by which a rendering without a cluster makes passwords."""

PLANTED: Object = {
    place: {"auth": {"passwords": {login: f"Planted.{place}.{login}" for login in logins}}}
    for place, logins in LOGINS.items()
}
"""Values that give every password, so that none is generated."""


@dataclass(frozen=True)
class Pod:
    """A pod that an object makes, with the labels it will have."""

    owner: str
    kind: str
    labels: Mapping[str, str]
    spec: Object
    annotations: Mapping[str, str]

    @property
    def component(self) -> str:
        """The process or server it belongs to."""
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def is_long_running(self) -> bool:
        """Whether it is meant to run until it is told to stop."""
        return self.kind in ("Deployment", "StatefulSet", "DaemonSet")

    @property
    def containers(self) -> list[Object]:
        """All containers, those that come first included."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def ports(self) -> dict[str, int]:
        """Its ports by name."""
        found = [port for each in self.containers for port in each.get("ports", ())]
        return {port["name"]: port["containerPort"] for port in found}


@dataclass(frozen=True, eq=False)
class Render:
    """All objects of one rendering; not to be changed."""

    name: str
    values: Object
    text: str
    objects: tuple[Object, ...]

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def named(self, kind: str) -> dict[str, Object]:
        """The objects of a kind, by name."""
        return {each["metadata"]["name"]: each for each in self.of(kind)}

    @cached_property
    def pods(self) -> list[Pod]:
        """Every pod that any object makes, whatever its kind."""
        return [pod for each in self.objects for pod in _pods(each, title(each), each["kind"])]

    def pod(self, component: str) -> Pod:
        """The only pod of a component."""
        (found,) = (pod for pod in self.pods if pod.component == component)
        return found

    def processes(self) -> dict[str, Pod]:
        """The pods of the processes, by the name of the process."""
        others = (*EXPORTERS, *STACK, "traffic")
        found = (pod for pod in self.pods if pod.kind == "Deployment")
        return {pod.component: pod for pod in found if pod.component not in others}


def title(thing: Object) -> str:
    """An object's kind and name."""
    return f"{thing['kind']} {thing['metadata']['name']}"


def _pods(thing: Any, owner: str, kind: str) -> Iterator[Pod]:
    if isinstance(thing, dict):
        spec = thing.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            metadata = thing.get("metadata", {})
            labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
            yield Pod(owner, kind, labels, spec, annotations)
        for below in thing.values():
            yield from _pods(below, owner, kind)
    elif isinstance(thing, list):
        for below in thing:
            yield from _pods(below, owner, kind)


def helm(*arguments: str, program: str = HELMS[0], given: Object | None = None) -> tuple[bool, str]:
    """Run Helm: whether it succeeded, and what it printed, or else what it complained of.

    `given` are values, over those of files.
    """
    command = [program, *arguments, *(("--values", "-") if given else ())]
    done = subprocess.run(
        command,
        input=json.dumps(given),
        env=os.environ | {"GOGC": "400"},  # it ends soon: with less garbage collected it is faster
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (True, done.stdout) if done.returncode == 0 else (False, done.stdout + done.stderr)


def template(
    values: str = "default",
    *,
    release: str = "shop",
    kubernetes: str = USUAL,
    program: str = HELMS[0],
    given: Object | None = None,
    chart: Path = CHART,
    operator: bool = True,
) -> tuple[bool, str]:
    """`helm template`, of a set of values by its name and of `given` over it.

    Passwords that are not given are made, as a cluster's first installation does.
    """
    file = VALUES[values]
    return helm(
        "template",
        release,
        str(chart),
        f"--namespace={NAMESPACE}",
        f"--kube-version={kubernetes}.0",
        *([OPERATOR] if operator else []),
        *([f"--values={file}"] if file else []),
        program=program,
        given=over(GENERATING, given or {}),
    )


def notes(given: Object | None = None, values: str = "default") -> str:
    """The notes that `helm install` prints. Helm 3 cannot print them without a cluster."""
    file = VALUES[values]
    done, said = helm(
        "install",
        "shop",
        str(CHART),
        "--dry-run=client",
        f"--namespace={NAMESPACE}",
        *([f"--values={file}"] if file else []),
        given=over(GENERATING, given or {}),
    )
    assert done, said
    return said.rpartition("\nNOTES:\n")[2]


def parse(text: str) -> tuple[Object, ...]:
    """The objects of a rendering. Raises AssertionError for a key that is there twice."""
    return tuple(each for each in yaml.load_all(text, _Loader) if each)


def render(
    values: str = "default",
    *,
    release: str = "shop",
    kubernetes: str = USUAL,
    program: str = HELMS[0],
    given: Object | None = None,
) -> Render:
    """A set of values, by name, and `given` over it, rendered; kept for who asks again."""
    return _render(values, release, kubernetes, program, json.dumps(given, sort_keys=True))


@cache
def _render(values: str, release: str, kubernetes: str, program: str, given: str) -> Render:
    told = json.loads(given)
    done, text = template(
        values, release=release, kubernetes=kubernetes, program=program, given=told
    )
    assert done, text
    file = VALUES[values]
    read = yaml.safe_load(file.read_text()) if file else {}
    return Render(values, over(read or {}, told or {}), text, parse(text))


def over(below: Object, above: Object) -> Object:
    """Values with others over them, as Helm does it."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = over(old or {}, value) if both else value
    return result


def masked(objects: tuple[Object, ...]) -> list[Object]:
    """The objects without what is in Secrets."""
    return [
        each | {"data": dict.fromkeys(each["data"])} if each["kind"] == "Secret" else each
        for each in objects
    ]


class _Loader(yaml.CSafeLoader):
    """Refuses a mapping that has a key twice, of which YAML readers silently keep one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"twice in one mapping, {node.start_mark}: {twice}"
        return super().construct_mapping(node, deep)
