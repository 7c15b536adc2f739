"""`make shell IN=order-service`: a shell where a process of `make run` is, as `kubectl exec` gives
one in its pod, for the operator's tools.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from local.processes import Environment, Process

_FILE = "environments"


def note_environments(processes: Sequence[Process], secrets: Path) -> None:
    """Keep what each process is told, among the secrets, for as long as they run."""
    draft = secrets / f".{_FILE}"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({each.name: dict(each.env) for each in processes}))
    draft.rename(secrets / _FILE)


def forget_environments(secrets: Path) -> None:
    """The processes have ended."""
    (secrets / _FILE).unlink(missing_ok=True)


def within(told: Environment) -> Environment:
    """The environment of a shell in which `python -m eventcore` is what that process runs."""
    paths = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    return {**told, "PATH": os.pathsep.join(paths)}


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--data", type=click.Path(path_type=Path), default=".data", show_default=True)
@click.argument("name")
@click.argument("command", nargs=-1)
def main(data: Path, name: str, command: Sequence[str]) -> None:
    """Run COMMAND, or a shell, where the process NAME of `make run` is."""
    file = data / "secrets" / _FILE
    if not file.exists():
        sys.exit(f"make shell: nothing runs on {data}; start it with `make run`.")
    environments = json.loads(file.read_text())
    if name not in environments:
        sys.exit(f"make shell: there is no process {name!r}, only {', '.join(environments)}.")
    argv = list(command) or [os.environ.get("SHELL", "/bin/sh")]
    environment = within(environments[name])
    os.execvpe(argv[0], argv, dict(environment))


if __name__ == "__main__":
    main()
