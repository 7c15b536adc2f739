"""`local/rotate`: the order of its steps, on a kubectl that answers with what the chart renders."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chart.render import KUBERNETES, ROOT, Object, Render, render
from tests.chart.test_render import invalid

KUBECTL = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
arguments = sys.argv[3:]
reads = "exec" in arguments or "patch" in arguments or "create" in arguments
given = sys.stdin.read() if reads else ""
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([sys.argv[1:], given]) + "\\n")
if (folder / "fails").exists() and (folder / "fails").read_text() in " ".join(arguments):
    sys.exit("it is away")
if arguments[0] == "get":
    print((folder / (arguments[1] + ".json")).read_text())
"""


class Kubectl:
    """A program `kubectl` that knows a rendering's objects, and writes down how it is called."""

    def __init__(self, folder: Path, chart: Render) -> None:
        self.folder = folder
        program = folder / "kubectl"
        program.write_text(KUBECTL.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        for kind, plural in (
            ("Secret", "secrets"),
            ("StatefulSet", "statefulsets"),
            ("Deployment", "deployments"),
            ("Job", "jobs"),
        ):
            self.hold(plural, chart.of(kind))

    def hold(self, plural: str, objects: list[Object]) -> None:
        dated = [
            each | {"metadata": each["metadata"] | {"creationTimestamp": "2026-01-01", "uid": "7"}}
            for each in objects
        ]
        (self.folder / f"{plural}.json").write_text(json.dumps({"items": dated}))

    def rotate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "calls").write_text("")
        return subprocess.run(
            [sys.executable, ROOT / "local/rotate", "--namespace=here", *arguments],
            env={"PATH": f"{self.folder}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[tuple[list[str], str]]:
        lines = (self.folder / "calls").read_text().splitlines()
        read = [json.loads(line) for line in lines]
        assert all(arguments[:2] == ["--namespace", "here"] for arguments, _ in read)
        return [(arguments[2:], given) for arguments, given in read]


@pytest.fixture
def kubectl(tmp_path: Path) -> Kubectl:
    return Kubectl(tmp_path, render())


def patches(kubectl: Kubectl) -> list[tuple[str, dict[str, Any]]]:
    """The Secrets that were changed, and how, in order."""
    return [
        (arguments[2], json.loads(given)["data"])
        for arguments, given in kubectl.calls
        if arguments[0] == "patch"
    ]


def restarted(kubectl: Kubectl) -> list[str]:
    """The deployments that were restarted, in order."""
    return [
        arguments[2] for arguments, _ in kubectl.calls if arguments[:2] == ["rollout", "restart"]
    ]


def test_every_password_and_token_is_new(kubectl: Kubectl) -> None:
    assert kubectl.rotate().returncode == 0
    after: dict[str, dict[str, str]] = {}
    for name, data in patches(kubectl):
        after.setdefault(name, {}).update({key: text for key, text in data.items() if text})
    for name, secret in render().named("Secret").items():
        kept = {"monitor.user"}
        changed = set(after[name]) - {"admin.next"}
        assert changed == set(secret["data"]) - kept, name
        assert all(after[name][key] != secret["data"][key] for key in changed)
    values = [text for data in after.values() for key, text in data.items() if key != "admin.next"]
    assert len(set(values)) == len(values)
    assert all(len(base64.b64decode(text)) == 32 for text in values)


def test_no_password_is_on_a_command_line_or_printed(kubectl: Kubectl) -> None:
    done = kubectl.rotate()
    values = {text for _, data in patches(kubectl) for text in data.values() if text}
    told = done.stdout + json.dumps([arguments for arguments, _ in kubectl.calls])
    assert values
    for each in values:
        assert each not in told
        assert base64.b64decode(each).decode() not in told


def test_servers_learn_of_a_password_before_processes_are_restarted(kubectl: Kubectl) -> None:
    kubectl.rotate()
    acts = [
        "restart" if arguments[:2] == ["rollout", "restart"] else arguments[0]
        for arguments, _ in kubectl.calls
    ]
    last = {act: len(acts) - 1 - acts[::-1].index(act) for act in set(acts)}
    assert last["exec"] < last["patch"] < acts.index("create") < acts.index("wait")
    assert acts.index("wait") < acts.index("restart")
    [job] = [json.loads(given) for arguments, given in kubectl.calls if arguments[0] == "create"]
    assert job["metadata"]["ownerReferences"][0]["uid"] == "7", "it goes with the release"
    assert "deployment/shop-order-service" in restarted(kubectl)
    assert "deployment/shop-user-relay" in restarted(kubectl)
    assert "deployment/shop-gateway" not in restarted(kubectl)


def test_what_has_no_password_is_not_restarted(tmp_path: Path) -> None:
    observed = {"observability": {"enabled": True}, "traffic": {"enabled": True}}
    chart = render(given=observed)
    kubectl = Kubectl(tmp_path, chart)
    kubectl.rotate()
    holders = {
        pod.component
        for pod in chart.pods
        if pod.kind == "Deployment" and "secret" in str(pod.spec)
    }
    assert {each.removeprefix("deployment/shop-") for each in restarted(kubectl)} == holders


def test_the_job_is_a_valid_copy_of_setup_that_the_policies_let_through(kubectl: Kubectl) -> None:
    kubectl.rotate()
    [job] = [json.loads(given) for arguments, given in kubectl.calls if arguments[0] == "create"]
    assert not [said for each in KUBERNETES if (said := invalid(job, each))]
    (setup,) = render().of("Job")
    assert job["metadata"]["name"] != setup["metadata"]["name"]
    assert job["spec"]["template"]["spec"] == setup["spec"]["template"]["spec"]
    policy = render().named("NetworkPolicy")["shop-setup"]["spec"]["podSelector"]["matchLabels"]
    assert policy.items() <= job["spec"]["template"]["metadata"]["labels"].items()


def test_an_administrators_new_password_is_kept_before_its_server_has_it(kubectl: Kubectl) -> None:
    kubectl.folder.joinpath("fails").write_text("exec --stdin statefulset/shop-mongodb")
    done = kubectl.rotate()
    assert done.returncode == 1
    assert "it is away" in done.stderr
    (data,) = [data for name, data in patches(kubectl) if name == "shop-mongodb"]
    assert set(data) == {"admin.next"}

    kubectl.folder.joinpath("fails").unlink()
    secrets = [
        each | {"data": each["data"] | data} if each["metadata"]["name"] == "shop-mongodb" else each
        for each in render().of("Secret")
    ]
    kubectl.hold("secrets", secrets)
    assert kubectl.rotate().returncode == 0
    told = [given for arguments, given in kubectl.calls if "statefulset/shop-mongodb" in arguments]
    assert told == [base64.b64decode(data["admin.next"]).decode() + "\n"]


@pytest.mark.parametrize("encrypted", [False, True])
def test_mongodbs_password_is_changed_by_tls_where_it_takes_nothing_else(
    encrypted: bool, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl.rotate()
    (script,) = (
        arguments[-1] for arguments, _ in kubectl.calls if "statefulset/shop-mongodb" in arguments
    )
    (tmp_path / "admin").write_text("old")
    if encrypted:
        (tmp_path / "ca.crt").write_text("")
    program = tmp_path / "mongosh"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [
            "bash",
            "-c",
            script.replace("/secrets/", f"{tmp_path}/").replace("/tls/", f"{tmp_path}/"),
        ],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        input="new\n",
        capture_output=True,
        text=True,
        check=True,
    )
    tls = f"--tls --tlsCAFile {tmp_path}/ca.crt --tlsAllowInvalidHostnames " if encrypted else ""
    assert done.stdout.startswith(f"--quiet {tls}--username admin --password old admin")


def test_a_secret_of_yours_is_left_alone(kubectl: Kubectl) -> None:
    kubectl.hold("secrets", [each for each in render().of("Secret") if "feed" not in str(each)])
    done = kubectl.rotate()
    assert done.returncode == 1
    assert "nothing was changed" in done.stderr
    assert not patches(kubectl)
    assert kubectl.rotate("--keep-secrets").returncode == 0
    assert not patches(kubectl)


def test_services_accept_a_new_identity_token_before_the_gateway_sends_it(tmp_path: Path) -> None:
    chart = render("auth")
    kubectl = Kubectl(tmp_path, chart)
    assert kubectl.rotate().returncode == 0
    held = chart.named("Secret")["shop-identity"]["data"]
    changes = [data for name, data in patches(kubectl) if name == "shop-identity"]
    assert len(changes) == 3
    for key, old in held.items():
        states = [base64.b64decode(each).decode() for each in (old, *(c[key] for c in changes))]
        first, last = states[0], states[-1]
        assert states == [first, f"{first}\n{last}", f"{last}\n{first}", last]
        assert (len(last), first == last) == (32, False)
    acts = [
        arguments[2]
        for arguments, _ in kubectl.calls
        if arguments[0] == "patch" or arguments[:2] == ["rollout", "status"]
    ]
    accept, send, forget = (at for at, name in enumerate(acts) if name == "shop-identity")
    services = [acts.index(f"deployment/shop-{each}-service") for each in ("user", "order")]
    assert accept < min(services) <= max(services) < send
    assert send < acts.index("deployment/shop-gateway") < forget == len(acts) - 1


def test_identity_tokens_in_a_secret_of_yours_are_left_alone(tmp_path: Path) -> None:
    chart = render("auth")
    kubectl = Kubectl(tmp_path, chart)
    kubectl.hold("secrets", [each for each in chart.of("Secret") if "identity" not in str(each)])
    done = kubectl.rotate()
    assert (done.returncode, patches(kubectl)) == (1, [])
    assert "no Secret for identity; nothing was changed" in done.stderr
