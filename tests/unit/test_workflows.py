"""The forge's workflows: small rights, pinned actions, and the targets that the Makefile has."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))

every_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["jobs"]
    return found


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(file).values() for step in job["steps"]]


def test_changes_are_checked_and_tags_are_released() -> None:
    assert [file.stem for file in WORKFLOWS] == ["checks", "release"]


@every_workflow
def test_a_workflow_may_read_the_code_and_a_job_only_what_it_says_besides(file: Path) -> None:
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}
    wider = {name for name, job in jobs(file).items() if "permissions" in job}
    assert wider == (set() if file.stem == "checks" else {"images", "chart", "notes"})


@every_workflow
def test_every_job_has_a_time_limit(file: Path) -> None:
    assert all(job["timeout-minutes"] <= 90 for job in jobs(file).values())


@every_workflow
def test_actions_are_pinned_to_a_major_version(file: Path) -> None:
    used = [step["uses"] for step in steps(file) if "uses" in step]
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+", each)] == []


@every_workflow
def test_no_secret_is_used_but_the_forges_own_token(file: Path) -> None:
    assert "secrets." not in file.read_text()


def test_checks_call_targets_of_the_makefile() -> None:
    commands = "\n".join(step.get("run", "") for step in steps(WORKFLOWS[0]))
    called = set(re.findall(r"^make ([a-z0-9-]+)", commands, re.M))
    assert called >= {"lint", "unit", "test", "up", "e2e"}
    assert called <= TARGETS


def test_checks_run_on_the_oldest_python_and_on_that_of_the_images() -> None:
    oldest = re.search(r'requires-python = ">=(\S+)"', (ROOT / "pyproject.toml").read_text())
    dockerfile = (ROOT / "services" / "Dockerfile").read_text()
    images = re.search(r"^ARG BASE=python:([\d.]+)", dockerfile, re.M)
    assert oldest
    assert images
    for name in ("unit", "test"):
        assert jobs(WORKFLOWS[0])[name]["strategy"]["matrix"]["python"] == [oldest[1], images[1]]


def test_a_release_publishes_every_image_for_both_architectures() -> None:
    release = jobs(WORKFLOWS[1])
    images = release["images"]
    assert (
        images["strategy"]["matrix"]["service"] == "${{ fromJSON(needs.services.outputs.names) }}"
    )
    [command] = (step["run"] for step in release["services"]["steps"] if step.get("id") == "list")
    assert "ls -d */main.py" in command
    (build,) = (step["with"] for step in images["steps"] if step.get("id") == "build")
    assert build["platforms"] == "linux/amd64,linux/arm64"
    assert (build["sbom"], build["provenance"], build["push"]) == (True, "mode=max", True)


def notes(version: str) -> subprocess.CompletedProcess[str]:
    program = [str(ROOT / "local" / "release-notes"), version]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_release_notes_are_the_part_of_the_change_log_about_one_version() -> None:
    said = notes("0.1.0").stdout
    assert "eventcore" in said
    assert "## " not in said.replace("### ", "")


def test_a_version_without_notes_is_not_released() -> None:
    done = notes("99.0.0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "says nothing of version 99.0.0" in done.stderr
