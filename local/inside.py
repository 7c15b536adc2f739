"""`make shell`: a shell for the operator's tools, beside `make run`.

`make shell IN=order-service` is the shell of one process, as `kubectl exec` opens it in a pod.
Without IN, each tool gets the settings of the process that it is about.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from local.processes import Environment, Process
from local.services import ROOT, SERVICES

_FILE = "environments"


def note_environments(processes: Sequence[Process], secrets: Path) -> None:
    """Writes down how each process is run, among the secrets, for as long as they run."""
    draft = secrets / f".{_FILE}"
    draft.touch(mode=0o600)
    noted = {each.name: {"argv": each.argv, "env": dict(each.env)} for each in processes}
    draft.write_text(json.dumps(noted))
    draft.rename(secrets / _FILE)


def forget_environments(secrets: Path) -> None:
    """Removes what `note_environments` wrote."""
    (secrets / _FILE).unlink(missing_ok=True)


def within(told: Environment) -> Environment:
    """Returns the environment in which `python -m eventcore` has the settings of a process."""
    paths = (str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
    return {**told, "PATH": os.pathsep.join(paths)}


def places_of(arguments: Sequence[str], noted: Mapping[str, Any]) -> list[str]:
    """Returns the processes at which a tool runs: that of the projection it names, or several."""
    commands = {name: each["argv"][3:] for name, each in noted.items()}
    projectors = {each[1]: name for name, each in commands.items() if each[0] == "project"}
    words = tuple(each for each in arguments if not each.startswith("-"))
    if named := [projectors[word] for word in words if word in projectors]:
        return named[:1]
    if words[:1] == ("metrics",):
        return list(commands)
    if words[:1] == ("trace",):
        return [name for name, each in commands.items() if each[0] == "serve" and name != "gateway"]
    if words[:1] == ("saga",):
        having = {each.name for each in SERVICES.values() if each.sagas}
        serving = [name for name, each in commands.items() if each[0] == "serve"]
        return [name for name in serving if noted[name]["env"]["SERVICE"] in having]
    if words[:2] == ("parked", "list"):  # it lists all projections of a service
        return list({noted[name]["env"]["SERVICE"]: name for name in projectors.values()}.values())
    if words[:1] in (("lag",), ("verify",)):
        return list(projectors.values())
    return list(projectors.values())[:1]


def run_tool(arguments: Sequence[str], noted: Mapping[str, Any]) -> int:
    """Runs a tool where it belongs; returns the worst status, or the best one of a `trace`."""
    places = places_of(arguments, noted)
    traced = list(arguments[:1]) == ["trace"]
    statuses = []
    for place in places:
        if len(places) > 1 and not traced:
            print(f"── {place}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "eventcore", *arguments],
            env=dict(within(noted[place]["env"])),
            stderr=subprocess.PIPE if traced else None,
            text=True,
            check=False,
        )
        statuses.append(done.returncode)
        if traced and (done.returncode == 0 or (place == places[-1] and all(statuses))):
            print(done.stderr, end="", file=sys.stderr)
    return min(statuses) if traced else max(statuses)


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("--data", type=click.Path(path_type=Path), default=".data", show_default=True)
@click.option("--tool", is_flag=True, help="Run a tool of eventcore where it belongs.")
@click.argument("words", metavar="[NAME [COMMAND]]", nargs=-1)
def main(data: Path, tool: bool, words: Sequence[str]) -> None:
    """Open a shell beside `make run`, or where its process NAME is; or run COMMAND there."""
    file = data.absolute() / "secrets" / _FILE
    if not file.exists():
        sys.exit(f"make shell: nothing runs on {data}; start it with `make run`.")
    noted = json.loads(file.read_text())
    if tool:
        sys.exit(run_tool(words, noted))
    if words and words[0] not in noted:
        sys.exit(f"make shell: there is no process {words[0]!r}, only {', '.join(noted)}.")
    if words:
        environment = dict(within(noted[words[0]]["env"]))
    else:
        print("All tools work here: python -m eventcore lag, verify, parked list, trace ID, ...")
        print("`make shell IN=order-service` is the shell of one process. Ctrl-D ends this one.")
        told = {"SHOP_PYTHON": sys.executable, "SHOP_DATA": str(data.absolute())}
        paths = (str(ROOT / "local" / "bin"), os.environ.get("PATH", os.defpath))
        environment = {**os.environ, **told, "PATH": os.pathsep.join(paths)}
        environment["PYTHONPATH"] = f"{ROOT / 'services'}:{ROOT}"
    argv = list(words[1:]) or [os.environ.get("SHELL", "/bin/sh")]
    os.execvpe(argv[0], argv, environment)


if __name__ == "__main__":
    main()
