"""The whole system as something to hold: start, stop and kill each process by its name."""

import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from local.child import Child
from local.processes import Environment, Process

READY_TIME = 60
"""Seconds until a process must be ready when all its servers are there."""


class Shop:
    """The processes, each with its log in `logs`. Nothing runs until `start`."""

    def __init__(self, processes: Sequence[Process], logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._processes = {each.name: each for each in processes}
        self._children = {
            each.name: Child(each.name, each.argv, logs / f"{each.name}.log", each.env)
            for each in processes
        }

    @property
    def names(self) -> list[str]:
        """All processes, in an order in which they can be started and stopped."""
        return list(self._processes)

    def url(self, name: str) -> str:
        """The URL of the calls of a service, or of the probes and metrics of another process."""
        return f"http://127.0.0.1:{self._processes[name].port}"

    def environment(self, name: str) -> Environment:
        """The environment of a process, for tools that run in its place."""
        return self._processes[name].env

    def log(self, name: str) -> str:
        """The log of a process since it was first started."""
        return self._children[name].log.read_text(errors="replace")

    def pid(self, name: str) -> int:
        """The process id of one that runs."""
        return self._children[name].pid

    def runs(self, name: str) -> bool:
        """Returns whether a process runs."""
        return self._children[name].is_running

    def launch(self, *names: str) -> None:
        """Start those named, or all, and return at once. Those that run are left alone."""
        for child in self._those(names):
            child.launch()

    def start(self, *names: str) -> None:
        """Start those named, or all, and return when they are ready."""
        self.launch(*names)
        self.await_ready(*names)

    def await_ready(self, *names: str) -> None:
        """Return when those named, or all, say that they are ready."""
        for child in self._those(names):
            child.await_that(says_ready(self._processes[child.name].ready_url), READY_TIME)

    def stop(self, *names: str) -> None:
        """SIGTERM those named, or all, all at once, and return when they have ended."""
        children = list(self._those(names))
        for child in children:
            child.ask_to_end()
        for child in children:
            child.stop()

    def kill(self, *names: str) -> None:
        """SIGKILL those named, or all, and whatever they have started."""
        for child in self._those(names):
            child.kill()

    def restart(self, *names: str) -> None:
        """Stop and start those named, or all."""
        self.stop(*names)
        self.start(*names)

    def _those(self, names: Iterable[str]) -> Iterable[Child]:
        return (self._children[name] for name in tuple(names) or self.names)


_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs of this machine, whatever the environment says about proxies."""


def says_ready(url: str) -> Callable[[], bool]:
    """Returns a condition: `url` answers 200."""

    def ready() -> bool:
        try:
            with _NO_PROXY.open(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return False
        except OSError:
            return False

    return ready
