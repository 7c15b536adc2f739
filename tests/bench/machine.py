"""This machine: what it is, who else is at work on it, and what our processes take of it."""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

TICKS = os.sysconf("SC_CLK_TCK")


class OtherLoad:
    """Watches, from now on, how much CPU time goes to processes that are not ours."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = monotonic(), _busy(), cpu_seconds([os.getpid()])

    def share(self) -> float:
        """What others took since then, of all that the machine has."""
        seconds = (monotonic() - self._began) * (os.cpu_count() or 1)
        others = _busy() - self._busy - (cpu_seconds([os.getpid()]) - self._own)
        return max(0.0, others / seconds)


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of these processes and all below them, those that have ended included."""
    ticks = 0
    for pid in pids:
        for each in _family(pid):
            try:
                fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile; its parent has its time
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def memory_bytes(pid: int) -> int:
    """Memory that a process has resident."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def described() -> list[str]:
    """When, where and on which commit this is measured, a line each."""
    return [
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"Commit: {_commit()}",
        f"Machine: {os.cpu_count()} cores ({_processor()}), {_memory()} GiB of memory,"
        f" Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
    ]


def _busy() -> float:
    """CPU seconds that were spent on processes, or kept from us by other machines, since boot."""
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(
        int, Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + steal) / TICKS


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found, todo = [], [pid]
    while todo:
        each = todo.pop()
        found.append(each)
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                todo += [int(child) for child in children.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread has ended meanwhile
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
