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
from typing import Any, NamedTuple

import click

from eventcore.operate.tools import TOOLS
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


class Unknown(Exception):
    """A name that no service has; the message is one sentence."""


class Run(NamedTuple):
    """A process at whose settings a tool runs, and what it is told."""

    place: str
    arguments: Sequence[str]


def runs_of(arguments: Sequence[str], noted: Mapping[str, Any]) -> list[Run]:
    """The runs of a tool: at the process of each projection that it names, or at several.

    Raises Unknown.
    """
    projectors = {each["argv"][4]: name for name, each in noted.items() if _does(each) == "project"}
    if names := _projections_named(arguments):
        if unknown := [each for each in names if each.partition("/")[0] not in projectors]:
            raise Unknown(f"there is no projection {unknown[0]!r}, only {', '.join(projectors)}")
        others = [each for each in arguments if each not in names]
        if len(names) == 1:
            return [Run(projectors[names[0].partition("/")[0]], arguments)]
        return [Run(projectors[each], [*others, each]) for each in names]
    if arguments[:1] in (["lag"], ["verify"]) and "--snapshots" not in arguments:
        return _of_each_projection(arguments, projectors)
    return [Run(each, arguments) for each in _places(arguments, noted, list(projectors.values()))]


def _does(process: Any) -> str:
    return str(process["argv"][3])


def _projections_named(arguments: Sequence[str]) -> Sequence[str]:
    """The names of projections among the arguments of a tool."""
    tools: Mapping[str | None, click.Command] = {each.name: each for each in TOOLS}
    name, *left = [*arguments, ""]
    command = tools.get(name)
    while isinstance(command, click.Group):
        name, *left = left or [""]
        command = command.commands.get(name)
    if command is None:
        return ()
    given = command.make_context(command.name, left[:-1], resilient_parsing=True).params
    one = given.get("projection_name")
    return (one,) if one else given.get("projection_names") or ()


def _of_each_projection(arguments: Sequence[str], projectors: Mapping[str, str]) -> list[Run]:
    """A run at one projector of each log, of all that are folded from it; the others by name."""
    runs, logs = list[Run](), set[str]()
    for service in SERVICES.values():
        for each in service.projections:
            if each.name in projectors and each.owners != (service.name,):
                runs.append(Run(projectors[each.name], [*arguments, each.name]))
            elif each.name in projectors and service.name not in logs:
                logs.add(service.name)
                runs.append(Run(projectors[each.name], arguments))
    return runs


def _places(
    arguments: Sequence[str], noted: Mapping[str, Any], projectors: Sequence[str]
) -> Sequence[str]:
    served = {
        each["env"]["SERVICE"]: name for name, each in noted.items() if _does(each) == "serve"
    }
    words = [each for each in arguments if not each.startswith("-")]
    if words[:1] == ["metrics"]:
        return list(noted)
    if words[:1] == ["trace"]:
        return [name for service, name in served.items() if service in SERVICES]
    if words[:1] == ["verify"]:  # snapshots
        return [name for of, name in served.items() if of in SERVICES and SERVICES[of].deciders]
    if words[:1] == ["saga"]:
        return [name for of, name in served.items() if of in SERVICES and SERVICES[of].sagas]
    if words[:2] == ["parked", "list"]:  # it lists all projections of a service
        return list({noted[name]["env"]["SERVICE"]: name for name in projectors}.values())
    return projectors[:1]


def run_tool(arguments: Sequence[str], noted: Mapping[str, Any]) -> int:
    """Runs a tool where it belongs; returns the worst status, or the best one of a `trace`.

    Raises Unknown.
    """
    runs = runs_of(arguments, noted)
    traced = list(arguments[:1]) == ["trace"]
    statuses, said = list[int](), list[str]()
    for place, told in runs:
        if len(runs) > 1 and not traced:
            print(f"── {place}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "eventcore", *told],
            env=dict(within(noted[place]["env"])),
            stderr=subprocess.PIPE if traced else None,
            text=True,
            check=False,
        )
        statuses.append(done.returncode)
        said += (done.stderr or "").splitlines()
    if traced:
        _tell_of_trace(said, found=0 in statuses)
    return min(statuses) if traced else max(statuses)


def _tell_of_trace(said: Sequence[str], found: bool) -> None:
    """Prints what a trace said at several services; once, if none of them knows the id."""
    unknown = [each for each in said if "nothing is known of" in each]
    for line in dict.fromkeys(each for each in said if each not in unknown):
        print(line, file=sys.stderr)
    if unknown and not found:
        what, _, first = unknown[0].partition(" in the service ")
        others = [each.rpartition(" ")[2] for each in unknown[1:]]
        print(f"{what} in the services {', '.join([first, *others])}", file=sys.stderr)


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
        try:
            sys.exit(run_tool(list(words), noted))
        except Unknown as problem:
            sys.exit(f"eventcore: {problem}")
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
