"""No password is where others look: in an environment, a command line, a log or an image."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from local.services import ROOT
from local.shop import Shop


@pytest.fixture(scope="module")
def secrets(shop: Shop, data_folder: Path) -> Mapping[str, str]:
    """All that is secret in the running shop, by its file."""
    files = [*(data_folder / "secrets").iterdir(), data_folder / "rabbitmq" / ".erlang.cookie"]
    found = {file.name: file.read_text().strip() for file in files}
    assert len(found) > 12
    assert all(len(secret) >= 20 for secret in found.values())
    return found


def ours(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(each) for task in tasks for each in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended meanwhile
    for child in children:
        yield child
        yield from ours(child)


def shown(pid: int) -> str:
    """The command line and the environment of a process."""
    folder = Path(f"/proc/{pid}")
    try:
        told = (folder / "cmdline").read_bytes() + b"\0" + (folder / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it has ended meanwhile
    return told.decode(errors="replace")


def test_no_secret_is_in_an_environment_or_a_command_line_of_any_process(
    shop: Shop, secrets: Mapping[str, str]
) -> None:
    """Of services with their workers, relays, projectors and servers."""
    processes = {pid: shown(pid) for pid in ours(os.getpid())}
    assert {shop.pid(name) for name in shop.names} < set(processes)
    for server in ("postgres", "rabbitmq", "secantusd"):
        assert any(server in told for told in processes.values())
    told_to = [
        f"{name}: {told.split(chr(0))[:6]}"
        for told in processes.values()
        for name, secret in secrets.items()
        if secret in told
    ]
    assert told_to == []


def test_no_secret_is_in_a_log_of_a_process(shop: Shop, secrets: Mapping[str, str]) -> None:
    for name in shop.names:
        said = shop.log(name)
        assert said
        assert [each for each, secret in secrets.items() if secret in said] == [], name


def test_an_image_is_made_of_code_alone() -> None:
    """What a build is given is a list of what it may see; of that, it copies what it names."""
    given = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert given[:3] == ["*", "!init.sql", "!services"]
    assert all(line.startswith("**/") for line in given[3:])
    recipe = (ROOT / "services" / "Dockerfile").read_text()
    copied = re.findall(r"(?m)^(?:COPY|ADD) (?!--from=)(?:--chown=\S+ )?(.+) \S+$", recipe)
    assert set(copied) == {
        "services/requirements.txt", "services/requirements-dev.txt", "init.sql",
        "services/eventcore", "services/${SERVICE}", "services",
    }  # fmt: skip
    assert not re.search("(?im)^(ENV|ARG) .*(password|secret|token|_key)", recipe)
    # one stage sees all services, and keeps their catalogues alone
    assert re.findall(r"AS (\w+)\nCOPY services /services\nRUN .*cp --parents (\S+) ", recipe) == [
        ("catalogues", "*/events.py")
    ]
    code = [file for file in (ROOT / "services").rglob("*") if file.is_file()]
    kinds = {file.suffix for file in code if "__pycache__" not in file.parts}
    pages = {".html", ".css", ".js", ".svg"}  # of /docs and of the page
    assert kinds <= {".py", ".txt", ".in", ".typed", "", *pages}
