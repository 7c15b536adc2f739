"""A shell where a process of `make run` is."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local.inside import _tell_of_trace, forget_environments, note_environments, runs_of
from local.processes import Process
from local.services import ROOT, SERVICES


def relay() -> Process:
    told = {"SERVICE": "order", "METRICS_PORT": "23001", "PYTHONPATH": str(ROOT / "services")}
    return Process("order-relay", ("python",), told, 23001, "http://127.0.0.1:23001/readyz")


def inside(data: Path, *command: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "local.inside", "--data", str(data), *command]
    environ = {"PYTHONPATH": f"{ROOT / 'services'}:{ROOT}", "PATH": "/usr/bin:/bin", "LEAKED": "no"}
    return subprocess.run(
        argv, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )


def test_a_command_has_the_environment_of_the_process_and_our_python(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    note_environments([relay()], tmp_path / "secrets")
    says = "import json, os, sys; print(json.dumps([dict(os.environ), sys.executable]))"
    environ, program = json.loads(inside(tmp_path, "order-relay", "python", "-c", says).stdout)
    assert environ["METRICS_PORT"] == "23001"
    assert "LEAKED" not in environ
    assert program == sys.executable


def test_what_a_process_is_told_is_for_its_owner_alone_and_gone_in_the_end(tmp_path: Path) -> None:
    note_environments([relay()], tmp_path)
    [file] = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    forget_environments(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_name_is_one_sentence_that_has_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    note_environments([relay()], tmp_path / "secrets")
    done = inside(tmp_path, "nobody")
    assert done.returncode == 1
    assert done.stderr == "make shell: there is no process 'nobody', only order-relay.\n"


def test_beside_nothing_it_says_to_start_something(tmp_path: Path) -> None:
    done = inside(tmp_path, "order-relay")
    assert done.returncode == 1
    assert "start it with `make run`" in done.stderr


def whole() -> dict[str, Any]:
    """All processes, as `make run` notes them."""
    run = {
        "gateway": "serve", "user-service": "serve", "order-service": "serve",
        "order-relay": "relay", "user-projector": "project users",
        "credit-projector": "project credit", "order-projector": "project orders",
        "order-user-sync": "project known-users", "order-customers": "project customers",
    }  # fmt: skip
    of = {"credit-projector": "user"}
    return {
        name: {
            "argv": ["python", "-m", "eventcore", *command.split()],
            "env": {"SERVICE": of.get(name, name.partition("-")[0])},
        }
        for name, command in run.items()
    }


@pytest.mark.parametrize(
    ("tool", "places"),
    [
        ("verify orders --all", ["order-projector"]),
        ("parked retry known-users", ["order-user-sync"]),
        ("parked show customers/order 0198", ["order-customers"]),
        ("rebuild --stream 0198 credit", ["credit-projector"]),
        ("parked list", ["credit-projector", "order-customers"]),
        ("dead-letters list users", ["user-projector"]),
        ("saga list --stuck", ["order-service"]),
        ("verify --snapshots", ["user-service"]),
        ("trace 0198", ["user-service", "order-service"]),
        ("--help", ["user-projector"]),
        ("", ["user-projector"]),
    ],
)
def test_a_tool_runs_at_the_process_that_it_is_about(tool: str, places: list[str]) -> None:
    assert runs_of(tool.split(), whole()) == [(each, tool.split()) for each in places]


@pytest.mark.parametrize("tool", ["lag --json", "verify --sample 50"])
def test_each_projection_is_told_once(tool: str) -> None:
    assert [(place, " ".join(told)) for place, told in runs_of(tool.split(), whole())] == [
        ("user-projector", tool),  # and credit, of the same log
        ("order-projector", tool),
        ("order-user-sync", f"{tool} known-users"),
        ("order-customers", f"{tool} customers"),
    ]


def test_several_names_are_verified_each_at_its_process() -> None:
    assert runs_of(["verify", "orders", "--all", "users"], whole()) == [
        ("order-projector", ["verify", "--all", "orders"]),
        ("user-projector", ["verify", "--all", "users"]),
    ]


def test_a_projection_that_nobody_has_is_answered_once_with_all_names(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "environments").write_text(json.dumps(whole()))
    done = inside(tmp_path, "--tool", "rebuild", "nope")
    names = "users, credit, orders, known-users, customers"
    assert done.stderr == f"eventcore: there is no projection 'nope', only {names}\n"
    assert done.returncode == 1


def test_an_id_that_no_service_knows_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    none = [f"eventcore: nothing is known of 0198 in the service {each}" for each in SERVICES]
    _tell_of_trace([none[0], "eventcore: MongoDB is away"], found=True)
    assert capsys.readouterr().err == "eventcore: MongoDB is away\n"
    _tell_of_trace(none, found=False)
    told = f"eventcore: nothing is known of 0198 in the services {', '.join(SERVICES)}\n"
    assert capsys.readouterr().err == told


def test_the_shell_of_all_runs_a_tool_with_the_settings_of_its_process(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    told = {"SERVICE": "user", "PYTHONPATH": str(ROOT / "services")}
    argv = ("python", "-m", "eventcore", "project", "users")
    projector = Process("user-projector", argv, told, 23001, "http://127.0.0.1:23001/readyz")
    note_environments([projector], tmp_path / "secrets")
    done = inside(tmp_path, "--tool", "lag")
    assert done.returncode == 1
    assert "lag cannot start: MONGODB_HOST is not set" in done.stderr
