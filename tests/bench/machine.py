"""This machine: a description of it, and the CPU time that our processes take."""

import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")

_ENDED = FileNotFoundError, ProcessLookupError
"""Raised for a process or a thread that has ended meanwhile."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes and all below them, those that have ended included."""
    return sum(_own_cpu_seconds(each) for pid in pids for each in family(pid))


_KINDS = (
    ("postgres", "PostgreSQL"),
    ("beam.smp", "RabbitMQ"),
    ("secantusd", "the stand-in for MongoDB"),
    ("-m eventcore", "our processes"),
)
"""Part of a command line, and the kind of its process; all others are the benchmark itself."""


class Spent:
    """Measures, from now on, the CPU time of this run's processes, by kind."""

    def __init__(self) -> None:
        self._before = _cpu_by_kind()

    def each(self, done: int, what: str) -> str:
        """CPU time of each of so many, and how many a second that allows at most."""
        took = {kind: now - self._before.get(kind, 0.0) for kind, now in _cpu_by_kind().items()}
        parts = {kind: seconds / max(done, 1) * 1e6 for kind, seconds in took.items()}
        said = ", ".join(f"{kind} {each:.0f}" for kind, each in parts.items() if each >= 0.5)
        cores, whole = os.cpu_count() or 1, sum(parts.values())
        return (
            f"µs of CPU {what}: {said}; {whole:.0f} in all, so that {cores} cores do"
            f" {cores / whole * 1e6:,.0f} a second at most."
        )


def _cpu_by_kind() -> dict[str, float]:
    spent: dict[str, float] = {}
    for pid in family(os.getpid()):
        try:
            told = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except _ENDED:
            continue  # it has ended meanwhile; its parent has its time
        kind = next((kind for part, kind in _KINDS if part in told), "the benchmark")
        spent[kind] = spent.get(kind, 0.0) + _own_cpu_seconds(pid)
    return spent


def _own_cpu_seconds(pid: int) -> float:
    """CPU time of a process, and of those that it has seen end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except _ENDED:
        return 0.0  # it has ended meanwhile; its parent has its time
    return sum(map(int, fields[11:15])) / TICKS


def described() -> list[str]:
    """When, where and on which commit this is measured, a line each."""
    return [
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"Commit: {_commit()}",
        f"Machine: {os.cpu_count()} cores ({_processor()}), {_memory()} GiB of memory,"
        f" Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
    ]


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        each = todo.pop()
        found.append(each)
        with suppress(*_ENDED):
            for thread in os.listdir(f"/proc/{each}/task"):
                with suppress(*_ENDED):
                    children = Path(f"/proc/{each}/task/{thread}/children").read_text()
                    todo += [int(child) for child in children.split()]
    return found


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "services", "init.sql")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (", changed" if changed else "")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> int:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
