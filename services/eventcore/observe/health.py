"""Whether a process has what it needs, and whether its loop still turns."""

import logging
import threading
import time
from collections.abc import Callable

from eventcore.observe.metrics import UP

_NAMES = {"store": "Postgres", "broker": "RabbitMQ", "readmodel": "MongoDB", "feed": "feed"}

_SERVERS = {**_NAMES, "store": "PostgreSQL"}

STUCK = 120.0
"""Seconds without a beat after which a process counts as stuck; no wait in it is that long."""


class Heartbeat:
    """Whether a process's loop still runs, also while servers are unavailable: each turn beats."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at: float | None = None

    def beat(self) -> None:
        """Notes a turn of the loop."""
        self._beat_at = self._clock()

    def stuck(self) -> bool:
        """Whether the loop has begun, and made no turn for STUCK seconds."""
        return self._beat_at is not None and self._clock() - self._beat_at > STUCK


_UNKNOWN = "not connected yet"

HEARTBEAT = Heartbeat()
"""The heartbeat of this process; one that serves HTTP has none, see web.readiness.Liveness."""


class Health:
    """The parts that a process lacks; each change of a part's state is one log line."""

    def __init__(self, *parts: str) -> None:
        self._problems: dict[str, str | None] = dict.fromkeys(parts, _UNKNOWN)
        self._lock = threading.Lock()
        self._log = logging.getLogger("eventcore.health")
        for part in parts:
            UP.labels(_SERVERS.get(part, part)).set(0)

    def mark_up(self, part: str) -> None:
        """Notes that `part` works."""
        if self._note(part, None) is not None:
            UP.labels(_SERVERS.get(part, part)).set(1)
            self._log.info(f"Connected to {_NAMES.get(part, part)}")

    def mark_down(self, part: str, problem: str) -> None:
        """Notes that `part` does not work now, for the reason `problem`."""
        if self._note(part, problem) in (None, _UNKNOWN):
            UP.labels(_SERVERS.get(part, part)).set(0)
            self._log.warning(f"Waiting for {_NAMES.get(part, part)}", extra={"reason": problem})

    def _note(self, part: str, problem: str | None) -> str | None:
        """Returns the problem that was known before."""
        with self._lock:
            known, self._problems[part] = self._problems.get(part), problem
        return known

    def missing(self) -> dict[str, str]:
        """Each part that does not work, with the reason; empty when all is well."""
        with self._lock:
            return {part: problem for part, problem in self._problems.items() if problem}
