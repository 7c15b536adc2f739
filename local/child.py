"""A program that we start, watch and stop: a server, or one of the services' processes."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL = 0.03
"""Seconds between two looks at a condition that is waited for."""


class CannotStart(Exception):
    """Something that cannot be had here; the message is one sentence that says what to do."""


class Child:
    """One program in a session of its own, so that the terminal's Ctrl-C reaches only us.

    It is told to stop when the thread that started it dies, however that happens: start it
    from a thread that lasts. Its output goes to `log`. It can be started again.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        as_user: Sequence[str] = (),
    ) -> None:
        """`as_user` begins a command that runs the rest of it as another user."""
        self.name = name
        self.log = log
        self._env = dict(os.environ if env is None else env)
        self._stop_signal = stop_signal
        self._argv = [*as_user, "setpriv", "--pdeathsig", stop_signal.name, "--", *argv]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        assert self._process, f"{self.name} has not been started"
        return self._process.pid

    def launch(self) -> None:
        """Start it and return at once. Does nothing while it runs."""
        if self.is_running:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def await_that(self, condition: Callable[[], bool], seconds: float) -> None:
        """Return when `condition` holds.

        Raises CannotStart, with the end of its log, when it has ended or the time is over.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if not self.is_running:
                raise CannotStart(f"{self.name} ended while it started: {self.last_words()}")
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"{self.name} was not ready within {seconds:.0f} s: {self.last_words()}"
                )
            time.sleep(POLL)

    def ask_to_end(self) -> None:
        """Ask it to end and return at once. Does nothing when it does not run."""
        if self._process and self.is_running:
            self._process.send_signal(self._stop_signal)

    def stop(self, grace: float = 30) -> None:
        """Ask it to end, wait `grace` seconds, then end it and all it has started."""
        self.ask_to_end()
        if self._process is None:
            return
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL it and all it has started, and return when none of them is left."""
        if self._process is None or not self.is_running:
            return
        family = [self._process.pid, *_descendants(self._process.pid)]
        for pid in family:
            _send(pid, signal.SIGKILL)
        self._process.wait()
        while any(is_alive(pid) for pid in family):
            time.sleep(POLL)

    def last_words(self) -> str:
        """Returns the last line of its log, and where the log is."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        words = next((line for line in reversed(lines) if line), "it said nothing")
        return f"{words} (more in {self.log})"


def _descendants(pid: int) -> list[int]:
    """All processes below `pid`; those that have started a session of their own, too."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for t in tasks for child in (t / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []  # it ended in between
    return children + [each for child in children for each in _descendants(child)]


def is_alive(pid: int) -> bool:
    """Returns whether the process is there and more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it was faster


def is_free(port: int) -> bool:
    """Returns whether `port` is free on all addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Returns whether a process of this machine accepts connections on `port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
