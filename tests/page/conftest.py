"""A real browser, and axe-core to run in it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.browser import Browser, chromium

AXE = Path(__file__).parent / "axe"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of axe-core, which npm brings in the version of the lock."""
    folder = tmp_path_factory.mktemp("axe")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(AXE / name, folder / name)
    npm = ["npm", "ci", "--silent", "--ignore-scripts", "--prefer-offline"]
    subprocess.run(npm, cwd=folder, check=True, timeout=120)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()
