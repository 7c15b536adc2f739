"""`lint-imports` with the rules of pyproject.toml for every service there is.

import-linter takes no pattern for its root packages, so a copy of the configuration names them.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from local.services import ROOT, SERVICES


def rules() -> str:
    """Returns the configuration, with all services wherever pyproject.toml names the first two."""
    text = (ROOT / "pyproject.toml").read_text()
    for one in ('"{0}"', '"{0}.{0}", "{0}.events", "{0}.projections", "{0}.service"'):
        named = ", ".join(map(one.format, ("user", "order")))
        assert named in text, f"pyproject.toml does not name {named}"
        text = text.replace(named, ", ".join(map(one.format, SERVICES)))
    return text


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(rules())
        file.flush()
        program = Path(sys.executable).parent / "lint-imports"
        command = (program, "--no-logo", "--no-cache", "--config", file.name)
        sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
