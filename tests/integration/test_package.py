"""eventcore as a package of its own: built, installed into an empty environment, used there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import Databases

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv") or str(Path(sys.executable).parent / "uv")

USE = """
import eventcore.web.server, eventcore.relay, eventcore.project.projector
from eventcore.model.decider import Decider
assert Decider
"""


def run(*command: str, cwd: Path, **environ: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the locked hatchling."""
    folder = tmp_path_factory.mktemp("wheel")
    told = ("--wheel", "--no-build-isolation", "--python", sys.executable)
    run(UV, "build", *told, "--out-dir", str(folder), str(ROOT), cwd=ROOT)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_has_eventcore_and_the_schema_and_no_service(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        schema = archive.read("eventcore/init.sql")
    assert schema == (ROOT / "init.sql").read_bytes()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"eventcore"}
    assert "eventcore/web/docs/page.html" in names
    assert "eventcore/py.typed" in names


def test_an_empty_environment_that_installs_it_can_run_it(
    wheel: Path, tmp_path: Path, spare_databases: Databases
) -> None:
    run(UV, "venv", "--quiet", "--python", sys.executable, "venv", cwd=tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    versions = str(ROOT / "services" / "requirements.txt")
    told = ("--quiet", "--python", python, "--constraint", versions)
    run(UV, "pip", "install", *told, str(wheel), cwd=tmp_path)
    isolated = (python, "-I")  # neither PYTHONPATH nor the current folder
    run(*isolated, "-c", USE, cwd=tmp_path)
    owner = spare_databases("spare", "owner")
    environ = {
        "SERVICE": "spare",
        "POSTGRES_HOST": owner.host,
        "POSTGRES_PORT": str(owner.port),
        "POSTGRES_DATABASE": owner.name,
        "POSTGRES_USER": owner.user,
        "POSTGRES_PASSWORD": owner.password.read(),
    }
    said = run(*isolated, "-m", "eventcore", "migrate", cwd=tmp_path, **environ)
    assert said.startswith("spare_event_db is at schema version ")
