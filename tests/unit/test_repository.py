"""The repository works as a clone: without variables of a shell, and with nothing beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import packages
from local.child import CannotStart

ROOT = Path(__file__).parents[2]


def test_the_environment_finds_all_packages_without_pythonpath(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    packages = "eventcore, user, order, gateway, local, tests"
    done = subprocess.run(
        [sys.executable, "-c", f"import {packages}; print(eventcore.__file__)"],
        env=plain,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(ROOT)


@pytest.mark.parametrize("name", ["Makefile", "README.md", "pyproject.toml"])
def test_nothing_outside_the_repository_is_named(name: str) -> None:
    assert "../" not in (ROOT / name).read_text()


def test_make_test_says_what_is_missing_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "_SCRIPTS", tmp_path)
    with pytest.raises(CannotStart, match="rabbitmq-server is missing and this system has no apt"):
        packages.install_all()


def test_without_helm_it_says_that_the_charts_tests_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for program in ("rabbitmq-server", "promtool", "amtool", "pgbouncer", "chromium"):
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    packages.install_all()
    said = capsys.readouterr().err
    assert said == "Helm is not on the PATH: the tests of the chart are left out.\n"
