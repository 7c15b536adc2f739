"""A missing tool for a cluster is named in one sentence, with how to get it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALWAYS = ("bash", "dirname", "env", "find", "git", "grep", "mktemp", "rm", "sed", "sort", "echo")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The programs of a machine that has no more than a shell; more can be put there."""
    for name in ALWAYS:
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    return tmp_path


def put(machine: Path, program: str, does: str) -> None:
    (machine / program).write_text(f"#!/usr/bin/env bash\n{does}\n")
    (machine / program).chmod(0o755)


def said(machine: Path, script: str) -> str:
    """The last output of a script, which must fail."""
    done = subprocess.run(
        [str(ROOT / script)],
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_each_missing_program_is_named_with_where_to_get_it(machine: Path) -> None:
    for program, place in (
        ("docker", "docs.docker.com"),
        ("kind", "kind.sigs.k8s.io"),
        ("kubectl", "kubernetes.io"),
        ("helm", "helm.sh"),
    ):
        sentence = said(machine, "local/cluster-up")
        assert sentence.startswith(f"{program} is missing: see {place}")
        put(machine, program, "exit 1")
    assert said(machine, "local/cluster-up") == "No docker engine answers: start it."


def test_without_a_builder_it_is_said_how_to_get_one(machine: Path) -> None:
    assert said(machine, "local/make-images").startswith("No docker engine answers: install Docker")


def test_without_a_cluster_it_is_said_how_to_get_one(machine: Path) -> None:
    assert said(machine, "local/deploy").startswith("helm is missing: see helm.sh")
    put(machine, "helm", "exit 0")
    put(machine, "kubectl", "exit 1")
    assert said(machine, "local/deploy").startswith(
        "kubectl reaches no cluster: `make up` makes one"
    )


def test_images_are_built_by_docker_and_brought_into_kind(machine: Path) -> None:
    log = machine / "log"
    for program in ("docker", "kind"):
        put(machine, program, f'echo "{program} $*" >> {log}')
    put(machine, "kubectl", "echo kind-shop")
    subprocess.run(
        [str(ROOT / "local/make-images")],
        env={"PATH": str(machine), "VERSION": "9.9.9"},
        check=True,
    )
    lines = log.read_text().splitlines()
    builds = [line for line in lines if line.startswith("docker build")]
    services = sorted(each.parent.name for each in (ROOT / "services").glob("*/main.py"))
    for service, line in zip(services, builds, strict=True):
        assert f"--tag shop-{service}:9.9.9 --build-arg SERVICE={service}" in line
        assert "--file services/Dockerfile --target run" in line
    images = " ".join(f"shop-{service}:9.9.9" for service in services)
    assert lines[-1] == f"kind load docker-image --name shop {images}"


@pytest.mark.parametrize(
    ("context", "loads"),
    [
        ("k3d-shop", "k3d image import --cluster shop {}"),
        ("microk8s", "microk8s ctr image import -"),
        ("minikube", "minikube image load --profile minikube {}"),
        ("another-profile", "minikube image load --profile another-profile {}"),
        ("orbstack", ""),
        ("colima-work", ""),
    ],
)
def test_each_local_cluster_is_given_the_images_in_its_own_way(
    machine: Path, context: str, loads: str
) -> None:
    log = machine / "log"
    for program in ("docker", "k3d", "microk8s"):
        put(machine, program, f'echo "{program} $*" >> {log}')
    profiles = '{"valid":[{"Name":"minikube"},{"Name":"another-profile"}]}'
    put(machine, "minikube", f"[ $1 = image ] && echo minikube $* >> {log} || echo '{profiles}'")
    put(machine, "kubectl", f"echo {context}")
    environment = {"PATH": str(machine), "VERSION": "9"}
    subprocess.run([str(ROOT / "local/make-images"), "user"], env=environment, check=True)
    lines = [line for line in log.read_text().splitlines() if not line.startswith("docker ")]
    assert lines == ([loads.format("shop-user:9")] if loads else [])


def test_a_cluster_that_cannot_be_given_images_is_refused_at_once(machine: Path) -> None:
    put(machine, "docker", "exit 0")
    put(machine, "kubectl", "echo company-production")
    sentence = said(machine, "local/make-images")
    assert "company-production cannot be given them" in sentence
    assert "image.registry" in sentence


def test_changed_code_is_another_tag_which_is_built_and_deployed(
    machine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy, log = tmp_path_factory.mktemp("copy"), machine / "log"
    for each in ("services", "local", "charts/shop"):
        shutil.copytree(ROOT / each, copy / each, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "init.sql", copy)
    for program in ("docker", "kubectl", "helm"):
        put(machine, program, f'echo "{program} $*" >> {log}')

    def deployed() -> str:
        log.write_text("")
        for script in ("local/make-images", "local/deploy"):
            subprocess.run([str(copy / script)], env={"PATH": str(machine)}, check=True)
        lines = log.read_text().splitlines()
        (tag,) = {tag for line in lines for tag in re.findall(r"image\.tag=(\S+)", line)}
        built = [line for line in lines if line.startswith("docker build")]
        assert len(built) == len(list((ROOT / "services").glob("*/main.py")))
        assert all(f":{tag} " in line and f"--build-arg VERSION={tag} " in line for line in built)
        return str(tag)

    first = deployed()
    assert first.startswith("0.1.0-")
    (copy / "services/user/__pycache__").mkdir()
    (copy / "services/user/__pycache__/x.pyc").touch()
    (copy / "charts/shop/README.md").write_text("no part of an image")
    assert deployed() == first
    with (copy / "services/user/user.py").open("a") as code:
        code.write("# changed\n")
    assert deployed() != first


def test_the_tag_is_the_version_that_is_asked_for(machine: Path) -> None:
    log = machine / "log"
    put(machine, "kubectl", "exit 0")
    put(machine, "helm", f'echo "$*" >> {log}')
    subprocess.run(
        [str(ROOT / "local/deploy")], env={"PATH": str(machine), "VERSION": "9.9.9"}, check=True
    )
    assert "--set-string image.tag=9.9.9" in log.read_text()


def test_a_deployment_that_fails_shows_its_pods(machine: Path) -> None:
    log = machine / "log"
    put(machine, "kubectl", f'echo "$*" >> {log}')
    put(machine, "helm", "exit 1")
    assert "docs/troubleshooting.md" in said(machine, "local/deploy")
    assert log.read_text().splitlines()[-1] == "--namespace shop get pods"


def test_dashboards_come_along_where_they_are_asked_for(machine: Path) -> None:
    log = machine / "log"
    put(machine, "kubectl", "exit 0")
    put(machine, "helm", f'echo "$*" >> {log}')
    for wish in ({}, {"OBSERVABILITY": "1"}, {"OBSERVABILITY": "0"}):
        subprocess.run(
            [str(ROOT / "local/deploy"), "--debug"], env={"PATH": str(machine), **wish}, check=True
        )
    without, bundled, refused = log.read_text().splitlines()
    assert without == refused
    wishes = "--set observability.enabled=true --set tracing.ratio=1 --set traffic.enabled=true"
    assert bundled == without.replace("--debug", f"{wishes} --debug")


def test_each_page_of_the_release_and_no_other_has_a_local_port(
    machine: Path,
) -> None:
    log = machine / "log"
    for name in ("xargs", "cat"):
        (machine / name).symlink_to(shutil.which(name) or "")
    names = ("shop-gateway", "shop-grafana", "shop-user-service")
    lists = "\n".join(f"service/{name}" for name in names)
    put(machine, "kubectl", f'[ "$3" = get ] && echo "{lists}" || echo "$*" >> {log}')
    done = subprocess.run(
        [str(ROOT / "local/ui")],
        env={"PATH": str(machine), "NAMESPACE": "here"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"http://\S+", done.stdout) == [
        "http://localhost:3000/docs",
        "http://localhost:3030/",
    ]
    assert sorted(log.read_text().splitlines()) == [
        "--namespace here port-forward service/shop-gateway 3000:3000",
        "--namespace here port-forward service/shop-grafana 3030:3000",
    ]


@pytest.mark.parametrize(("port", "scheme"), [("", "http"), ("5671", "https")])
def test_the_page_of_rabbitmq_is_called_as_it_listens(
    port: str, scheme: str, machine: Path
) -> None:
    log = machine / "log"
    for name in ("xargs", "cat"):
        (machine / name).symlink_to(shutil.which(name) or "")
    answers = f'case "$*" in *jsonpath*) echo "{port}" ;; *get*) echo service/shop-rabbitmq ;;'
    put(machine, "kubectl", f'{answers} *) echo "$*" >> {log} ;; esac')
    done = subprocess.run(
        [str(ROOT / "local/ui")],
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f" {scheme}://localhost:15672/" in done.stdout
    assert "port-forward service/shop-rabbitmq 15672:management" in log.read_text()


def test_without_a_release_it_is_said_how_to_get_one(machine: Path) -> None:
    put(machine, "kubectl", "exit 0")
    assert said(machine, "local/ui").startswith("No release `shop` is in the namespace shop")
