"""The repository works as a clone: without variables of a shell, and with nothing beside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
