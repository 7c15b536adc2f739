"""The Tiltfile, evaluated as Starlark with built-ins that record what they are told."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import urlopen

import pytest
import starlark
import yaml

from eventcore.__main__ import main as eventcore
from local.servers import free_port
from local.services import SERVICES

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "services" / "Dockerfile").read_text()


@dataclass
class Tilt:
    """What the Tiltfile has asked for."""

    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    buttons: dict[str, dict[str, Any]] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    namespace: str = ""
    yaml: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)


def evaluate(text: str, passwords: Path, **flags: bool) -> Tilt:
    """Run a Tiltfile as with `-- --NAME` for each of the flags; raises what Starlark raises."""
    tilt = Tilt()
    said = ""

    def docker_build(name: str, context: str, **how: Any) -> None:
        tilt.images[name] = {"context": context, **how}

    def local(command: list[str], **_: Any) -> str:
        tilt.commands.append(command)
        told = [str(passwords) if part.startswith(".data/") else part for part in command]
        return subprocess.run(told, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    def watch_file(path: str) -> None:
        assert (ROOT / path).is_file()

    def helm(
        chart: str, name: str, namespace: str, values: list[str], set: list[str], kube_version: str
    ) -> str:
        nonlocal said
        tilt.values, tilt.namespace = values, namespace
        files = [str(passwords) if each.startswith(".data/") else each for each in values]
        told = [part for file in files for part in ("--values", file)]
        told += [part for each in set for part in ("--set", each)]
        where = [f"--kube-version={kube_version}", f"--namespace={namespace}"]
        command = ["helm", "template", name, chart, *where, *told]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        said = done.stdout
        return said

    def decode_yaml_stream(text: str) -> list[dict[str, Any]]:
        found = yaml.load_all(text, Loader=yaml.CSafeLoader)
        tilt.objects = [each for each in found if each]
        return tilt.objects

    def read_yaml(file: str) -> Any:
        return yaml.safe_load((ROOT / file).read_text())

    def k8s_yaml(text: str) -> None:
        tilt.yaml.append(text)

    def define_bool(name: str, usage: str) -> None:
        assert usage
        tilt.flags.append(name)

    def k8s_resource(workload: str, **how: Any) -> None:
        tilt.resources[workload] = how

    def local_resource(name: str, cmd: str, **how: Any) -> None:
        tilt.buttons[name] = {"cmd": cmd, **how}

    module = starlark.Module()
    for builtin in (
        docker_build, local, watch_file, helm, read_yaml, decode_yaml_stream, k8s_yaml,
        k8s_resource,
        local_resource,
    ):  # fmt: skip
        module.add_callable(builtin.__name__, builtin)
    module.add_callable("define_bool", define_bool)
    module.add_callable("parse", lambda: flags)
    module.add_callable("blob", lambda text: text)
    module.add_callable("sync", lambda source, target: {"sync": [source, target]})
    module.add_callable("fall_back_on", lambda files: {"fall_back_on": files})
    module.add_callable("link", lambda url, name: [url, name])
    module["TRIGGER_MODE_MANUAL"] = "manual"
    dialect = starlark.Dialect.extended()
    # a module in Tilt; here its two functions by their own names
    text = text.replace("config.define_bool(", "define_bool(").replace("config.parse(", "parse(")
    starlark.eval(module, starlark.parse("Tiltfile", text, dialect), starlark.Globals.standard())
    assert tilt.yaml[-1] == said
    return tilt


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "observed"])
def tilt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tilt:
    if not shutil.which("helm"):
        assert not os.environ.get("CI"), "CI is set, and helm is not on the PATH"
        pytest.skip("helm is not on the PATH")
    passwords = tmp_path_factory.mktemp("tilt") / "passwords.yaml"
    return evaluate((ROOT / "Tiltfile").read_text(), passwords, observability=request.param)


def observed(tilt: Tilt) -> bool:
    """Whether it was started with the flag."""
    return any(how["labels"] == ["observability"] for how in tilt.resources.values())


def workloads(tilt: Tilt) -> dict[str, dict[str, Any]]:
    kinds = ("Deployment", "StatefulSet", "Job")
    return {each["metadata"]["name"]: each for each in tilt.objects if each["kind"] in kinds}


def test_it_builds_the_images_that_the_chart_runs(tilt: Tilt) -> None:
    used = {
        container["image"].split(":")[0]
        for each in workloads(tilt).values()
        for container in each["spec"]["template"]["spec"]["containers"]
        if container["image"].startswith("shop-")
    }
    assert set(tilt.images) == used == {f"shop-{name}" for name in ("gateway", *SERVICES)}
    for name, image in tilt.images.items():
        assert image["build_args"] == {"SERVICE": name.removeprefix("shop-")}
        assert image["dockerfile"] == "services/Dockerfile"
        assert f" AS {image['target']}\n" in DOCKERFILE


def catalogues_beside(service: str) -> set[str]:
    return {f"services/{name}/events.py" for name in SERVICES if name != service}


def test_what_is_built_of_is_there_and_copied_into_the_image(tilt: Tilt) -> None:
    dev = DOCKERFILE[DOCKERFILE.index(" AS catalogues") : DOCKERFILE.index(" AS run")]
    build = DOCKERFILE[DOCKERFILE.index(" AS build") :]
    for name, image in tilt.images.items():
        service = name.removeprefix("shop-")
        copied = {
            source.replace("${SERVICE}", service)
            for part in (dev, build)
            for source in re.findall(r"^COPY (?:--chown\S+ )?(services\S*|init\.sql) ", part, re.M)
        }
        assert "services" in copied  # of which a stage keeps the catalogues
        assert set(image["only"]) == copied - {"services"} | catalogues_beside(service)
        assert all((ROOT / each).exists() for each in image["only"])


def test_a_saved_file_goes_where_the_image_has_it(tilt: Tilt) -> None:
    for name, image in tilt.images.items():
        update = image["live_update"]
        synced = [each["sync"] for each in update if "sync" in each]
        assert {source for source, _ in synced} == {
            "services/eventcore",
            f"services/{name.removeprefix('shop-')}",
            "init.sql",
        } | catalogues_beside(name.removeprefix("shop-"))
        for source, target in synced:
            assert (ROOT / source).exists()
            # WORKDIR is /app, and each folder is copied to where it is in the repository
            assert target == f"/app/{source}"
        [locks] = [each["fall_back_on"] for each in update if "fall_back_on" in each]
        assert sorted([*locks, *(source for source, _ in synced)]) == sorted(image["only"])
        assert all("run" not in each for each in update)


def test_processes_can_be_written_to_and_by_whom_they_run(tilt: Tilt) -> None:
    dev = DOCKERFILE[DOCKERFILE.index(" AS dev\n") : DOCKERFILE.index(" AS run")]
    assert dev.count("COPY --chown=10001:10001 ") == 3
    for each in workloads(tilt).values():
        [container, *_] = each["spec"]["template"]["spec"]["containers"]
        if each["kind"] == "Deployment" and container["image"].startswith("shop-"):
            assert container["securityContext"]["readOnlyRootFilesystem"] is False


def test_every_resource_is_a_workload_of_the_chart_and_the_reverse(tilt: Tilt) -> None:
    assert set(tilt.resources) == set(workloads(tilt))


def test_every_resource_has_a_label_and_waits_for_what_there_is(tilt: Tilt) -> None:
    names = {how["new_name"] for how in tilt.resources.values()} | set(tilt.buttons)
    assert len(names) == len(tilt.resources) + len(tilt.buttons)
    for how in (*tilt.resources.values(), *tilt.buttons.values()):
        assert len(how["labels"]) == 1
        assert set(how.get("resource_deps", [])) <= names


TOOLS = {"grafana": ["3030:3000"], "prometheus": ["9090:9090"], "jaeger": ["16686:16686"]}


def test_a_flag_adds_what_looks_at_the_system(tilt: Tilt) -> None:
    assert tilt.flags == ["observability"]
    there = set(workloads(tilt)) & {f"shop-{each}" for each in (*TOOLS, "collector")}
    assert len(there) == (4 if observed(tilt) else 0)


def test_all_of_it_is_in_a_namespace_of_its_own_which_is_made(tilt: Tilt) -> None:
    namespace, _ = tilt.yaml
    assert yaml.safe_load(namespace) == {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": tilt.namespace},
    }
    assert tilt.namespace not in ("", "default")
    for how in tilt.buttons.values():
        assert "kubectl exec" not in how["cmd"], "without a namespace it is another one's"
    rebuild = tilt.buttons["rebuild"]["cmd"]
    assert rebuild.startswith(f"NAMESPACE={tilt.namespace} local/dev-rebuild ")
    assert f"NAMESPACE:-{tilt.namespace}" in (ROOT / "local/dev-rebuild").read_text()


def test_a_changed_schema_builds_no_image(tilt: Tilt) -> None:
    for image in tilt.images.values():
        [locks] = [each["fall_back_on"] for each in image["live_update"] if "fall_back_on" in each]
        assert "init.sql" not in locks


def test_the_services_and_the_management_page_have_ports_here(tilt: Tilt) -> None:
    forwards = {
        how["new_name"]: how["port_forwards"]
        for how in tilt.resources.values()
        if how.get("port_forwards")
    }
    assert forwards == {
        "gateway": ["3000:3000"],
        **{f"{name}-service": [f"{s.port}:{s.port}"] for name, s in SERVICES.items()},
        "rabbitmq": ["15672:15672"],
        **(TOOLS if observed(tilt) else {}),
    }
    here = [forward.split(":")[0] for [forward] in forwards.values()]
    assert len(set(here)) == len(here)
    for name, [forward] in forwards.items():
        port = int(forward.split(":")[1])
        [container] = workloads(tilt)[f"shop-{name}"]["spec"]["template"]["spec"]["containers"]
        assert port in [each["containerPort"] for each in container["ports"]]


def test_the_buttons_wait_to_be_pressed_and_do_what_exists(tilt: Tilt) -> None:
    assert {"demo", "rebuild", "parked list", "test"} == set(tilt.buttons)
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M)
    for how in tilt.buttons.values():
        assert (how["auto_init"], how["trigger_mode"]) == (False, "manual")
        command = how["cmd"]
        assert set(re.findall(r"make (\S+)", command)) <= set(targets)
        assert set(re.findall(r"-m eventcore (\w+)", command)) <= set(eventcore.commands)
        for workload in re.findall(r"(?:deployment|statefulset)/(\S+)", command):
            assert workload in workloads(tilt)
        if "local/" in command:
            _, script, *processes = command.split()
            assert os.access(ROOT / script, os.X_OK)
            assert {f"shop-{each}" for each in processes} <= set(workloads(tilt))


def test_a_saved_file_runs_no_setup_and_a_changed_schema_reaches_it(tilt: Tilt) -> None:
    [setup] = [how for how in tilt.resources.values() if how["new_name"] == "setup"]
    assert setup["trigger_mode"] == "manual"
    assert setup.get("auto_init", True)
    assert ["cp", "init.sql", "charts/shop/files/init.sql"] in tilt.commands
    assert not [each for each in tilt.objects if each["kind"] == "CronJob"]


def test_a_process_that_a_syntax_error_stops_waits_for_the_next_save(tilt: Tilt) -> None:
    for each in workloads(tilt).values():
        [container, *_] = each["spec"]["template"]["spec"]["containers"]
        if each["kind"] == "Deployment" and container["image"].startswith("shop-"):
            for probe in ("startupProbe", "livenessProbe"):
                patience = container[probe]["failureThreshold"] * container[probe]["periodSeconds"]
                assert patience > 2 * 3600


def test_the_demo_needs_nothing_of_this_machine(tilt: Tilt) -> None:
    command = tilt.buttons["demo"]["cmd"]
    assert (ROOT / "services/gateway/journey.py").is_file()
    assert command.startswith(
        f"kubectl --namespace {tilt.namespace} exec deployment/shop-gateway"
        " -- python -m gateway.journey "
    )


def test_passwords_are_made_once_for_every_login_and_are_in_no_file_of_git(tilt: Tilt) -> None:
    [kept] = [command[-1] for command in tilt.commands if "local/dev-passwords" in command]
    ignored = subprocess.run(["git", "check-ignore", kept], cwd=ROOT, check=False)
    assert ignored.returncode == 0
    assert kept in tilt.values
    text = (ROOT / "Tiltfile").read_text() + (ROOT / "charts/shop/values-dev.yaml").read_text()
    assert not re.search(r"password\w*\s*[=:]\s*['\"]?[A-Za-z0-9]{8,}(?!.*\.yaml)", text)


def test_two_evaluations_keep_every_password(tmp_path: Path, tilt: Tilt) -> None:
    def secrets() -> dict[str, dict[str, str]]:
        found = evaluate((ROOT / "Tiltfile").read_text(), tmp_path / "passwords.yaml").objects
        return {
            each["metadata"]["name"]: each["data"] for each in found if each["kind"] == "Secret"
        }

    first = secrets()
    assert len(first) == 4
    assert secrets() == first
    made = json.loads((tmp_path / "passwords.yaml").read_text())
    assert (tmp_path / "passwords.yaml").stat().st_mode & 0o077 == 0
    assert made.pop("identity")["auth"]["passwords"].keys() == SERVICES.keys()  # for auth.enabled
    for server, given in made.items():
        logins = set(given["auth"]["passwords"])
        used = set(first[f"shop-{server}"]) - {"monitor.user"}
        # an exporter or rate limits may be switched on, with a new password at each evaluation
        later = {"postgres": {"monitor"}, "mongodb": {"monitor", "gateway"}}
        assert logins == used | later.get(server, set())


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """The gateway as the development image runs it, on a copy of its code, and its URL."""
    watchfiles = shutil.which("watchfiles", path=str(Path(sys.executable).parent))
    assert watchfiles, "watchfiles is not in the virtual environment"
    code = tmp_path / "services"
    for each in ("eventcore", "gateway"):
        shutil.copytree(
            ROOT / "services" / each, code / each, ignore=shutil.ignore_patterns("__pycache__")
        )
    port = free_port()
    env = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(code),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SERVICE": "gateway",
        "PORT": str(port),
        "UPSTREAMS": "{}",
    }
    [entry] = re.findall(r'^ENTRYPOINT \["sh", "-c", "(case .*)", "--"\]$', DOCKERFILE, re.M)
    script = entry.replace('\\"', '"').replace("/app/services", str(code))
    process = subprocess.Popen(
        ["sh", "-c", script, "--", "serve"], env=env, stdout=subprocess.DEVNULL
    )
    try:
        yield code, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def title(url: str) -> str:
    """What /healthz answers, nothing while nobody does."""
    try:
        with urlopen(f"{url}/healthz", timeout=1) as answer:
            return str(answer.read().decode())
    except (OSError, HTTPException):  # it may go in the middle of an answer
        return ""


def test_a_saved_file_restarts_the_process_in_its_place(
    watched: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, url = watched
    deadline = monotonic() + 30
    while not title(url):
        assert monotonic() < deadline
    web = code / "eventcore" / "web" / "app.py"
    text = web.read_text()
    assert '"alive"' in text
    web.write_text(text.replace('"alive"', '"changed"'))
    saved = monotonic()
    while "changed" not in title(url):
        assert monotonic() - saved < 15
    with capsys.disabled():
        print(f"\n  live {monotonic() - saved:.1f} s after it was saved", end="")  # noqa: T201
