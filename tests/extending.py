"""A copy of the repository in which somebody has followed docs/extending.md to the letter."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from local.services import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
_BLOCK = re.compile(r"<!-- (file|edit): (\S+) -->\n```(?:python|diff)\n(.*?)```", re.S)
_LEFT = shutil.ignore_patterns(".git", ".venv*", ".data", ".*_cache", "__pycache__", "dist")


def extended(folder: Path) -> Path:
    """Copies the repository, and writes and edits its files as the page says, in that order."""
    copy = shutil.copytree(ROOT, folder / "repository", ignore=_LEFT)
    for kind, name, text in _BLOCK.findall(PAGE):
        file = copy / name
        if kind == "edit":
            edit(file, text)
            continue
        assert not file.exists(), f"{name} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    subprocess.run(["git", "init", "--quiet", copy], check=True)
    subprocess.run(["git", "-C", copy, "add", "--all"], check=True)
    run(copy, "-m", "local.chart_docs")  # what `make docs` does with the values
    run(copy, "-m", "local.contracts")  # `make contracts`
    return copy


def edit(file: Path, diff: str) -> None:
    """Applies a diff whose hunks are told apart by @@; raises AssertionError where one is not."""
    text = file.read_text()
    for hunk in re.split(r"^@@\n", diff, flags=re.M):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{file.name} does not have exactly once:\n{old}"
        text = text.replace(old, new)
    file.write_text(text)


def environment(copy: Path) -> Mapping[str, str]:
    """An environment in which Python takes the copy's modules."""
    return {**os.environ, "PYTHONPATH": f"{copy / 'services'}{os.pathsep}{copy}"}


def run(copy: Path, *arguments: str, timeout: float = 200) -> str:
    """Runs Python in the copy and returns what it printed; an AssertionError where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment(copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
