"""Keeps processes running, as Kubernetes does: one that has ended is started again."""

import os
import queue
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from threading import Thread

from honcho.colour import get_colours
from honcho.printer import Message, Printer
from honcho.process import Process

from local.child import CannotStart

LEAST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a process is started again: doubled each time."""

STEADY = 60.0
"""Seconds of running after which the pause is the shortest again."""

GRACE = 5.0
"""Seconds in which processes that are told to stop may end by themselves."""

POLL = 0.1


@dataclass(slots=True)
class _Kept:
    process: Process
    pid: int | None = None
    begun: float = 0.0
    due: float | None = 0.0
    """When it is to be started; None while it runs."""
    pause: float = LEAST_PAUSE
    starts: int = 0


class Keeper:
    """Runs processes, prints their lines, and starts again each that ends, until a signal."""

    def __init__(self, printer: Printer, pause: float = LEAST_PAUSE) -> None:
        """`pause` is the shortest one, in seconds."""
        self._printer = printer
        self._pause = pause
        self._colours = get_colours()
        self._kept: dict[str, _Kept] = {}
        self._events: queue.Queue[Message] = queue.Queue()
        self._signal: int | None = None
        self._kill_at: float | None = None  # None: not told to stop
        self._problem = ""

    def add(self, name: str, command: str, env: Mapping[str, str]) -> None:
        """Adds a process; `run` starts it."""
        process = Process(command, name=name, colour=next(self._colours), env=dict(env))
        self._kept[name] = _Kept(process, pause=self._pause)
        self._printer.width = max(self._printer.width, len(name))

    def run(self) -> None:
        """Runs them until SIGINT or SIGTERM; then ends all, with SIGKILL after GRACE seconds.

        Raises CannotStart, when all have ended, if one ends with an error at its first start.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._printer.width = max(self._printer.width, len("system"))
        while not (self._kill_at and all(each.due is not None for each in self._kept.values())):
            if self._signal:
                self._stop(f"{_name_of(self._signal)} received")
            self._start_due()
            with suppress(queue.Empty):
                self._take(self._events.get(timeout=POLL))
            if self._kill_at and time.monotonic() > self._kill_at:
                self._send(signal.SIGKILL)
        if self._problem:
            raise CannotStart(self._problem)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signal = number  # no more: a handler may interrupt a print

    def _stop(self, why: str) -> None:
        if self._kill_at is None:
            self._kill_at = time.monotonic() + GRACE
            self._say(f"{why}: stopping all processes")
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for each in self._kept.values():
            if each.pid and each.due is None:
                with suppress(ProcessLookupError):  # it ended at this moment
                    os.kill(each.pid, number)

    def _start_due(self) -> None:
        now = time.monotonic()
        for name, each in self._kept.items():
            if self._kill_at is None and each.due is not None and each.due <= now:
                each.due, each.begun, each.pid = None, now, None
                each.starts += 1
                # setpriv's signal follows the thread that starts a process: this one waits for it
                Thread(
                    target=each.process.run, args=(self._events,), name=name, daemon=True
                ).start()

    def _take(self, message: Message) -> None:
        if message.type == "line":
            self._printer.write(message)
            return
        kept = self._kept[message.name]
        if message.type == "start":
            kept.pid = message.data["pid"]
            self._say(f"{message.name} started (pid {kept.pid})")
            if self._kill_at:  # it was being started when all were told to stop
                with suppress(ProcessLookupError):
                    os.kill(message.data["pid"], signal.SIGTERM)
        else:
            self._ended(message.name, kept, message.data["returncode"])

    def _ended(self, name: str, kept: _Kept, status: int) -> None:
        now = time.monotonic()
        ran, kept.due = now - kept.begun, now
        how = f"was ended by {_name_of(-status)}" if status < 0 else f"ended with status {status}"
        if self._kill_at:
            self._say(f"{name} {how}")
        elif status > 0 and kept.starts == 1 and ran < STEADY:
            self._problem = f"{name} cannot start, so all were stopped: it says why above."
            self._stop(f"{name} {how} at its first start")
        else:
            pause = self._pause if ran >= STEADY else kept.pause
            kept.due, kept.pause = now + pause, min(2 * pause, LONGEST_PAUSE)
            self._say(f"{name} {how}; it starts again in {pause:g} s")

    def _say(self, text: str) -> None:
        self._printer.write(
            Message(type="line", data=text + "\n", time=datetime.now(), name="system", colour=None)
        )


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
