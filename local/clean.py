"""`make clean`: removes the data of `make run`, containers included. Refuses while it runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from local.child import CannotStart
from local.lock import sole_use

COMPOSE = ("docker", "compose", "--file", str(Path(__file__).parent.parent / "compose.yaml"))
VARIABLE = "SHOP_PASSWORD"
"""The variable by which compose.yaml takes the password of all servers."""


def clean(data: Path) -> None:
    """Removes the folder and the volumes; raises CannotStart while a process uses it."""
    if not data.exists():
        return
    with sole_use(data):
        if (data / "secrets" / "compose").exists():
            down = (*COMPOSE, "--profile", "observability", "down", "--volumes")
            if subprocess.run(down, env={**os.environ, VARIABLE: "-"}, check=False).returncode:
                raise CannotStart("docker compose down failed, so nothing was removed.")
        shutil.rmtree(data)


if __name__ == "__main__":
    try:
        clean(Path(sys.argv[1]))
    except CannotStart as problem:
        sys.exit(str(problem))
