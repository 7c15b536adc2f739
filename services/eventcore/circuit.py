"""A server that does not answer is not asked by everybody: the circuit is open for a moment.

Without it each caller waits for the same time-out, until all threads do. A library was looked
for: those that are kept hold a lock around the call, or count errors that are answers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eventcore.errors import Away

FAILURES = 3
"""Calls in a row that must find the server away before the others are told at once."""

PAUSE = 1.0
"""Seconds in which all are told; then one call tries, and the others are told until it knows."""


class Circuit:
    """Lets calls through while they come back, be it with an error that the server answered."""

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._failures = 0
        self._closed_until = 0.0
        self._reason: Away | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one call. Raises what the last failed call raised, at once, while it is open."""
        if self._reason is not None:
            self._enter()
        try:
            yield
        except Away as away:
            if away.unreachable:
                self._fail(away)
            raise
        except Exception:
            self._succeed()
            raise
        if self._failures:
            self._succeed()

    def _enter(self) -> None:
        with self._lock:
            if self._reason is None:
                return
            if self._timer() < self._closed_until:
                raise type(self._reason)(str(self._reason))
            self._closed_until = self._timer() + PAUSE  # this one tries, the others wait for it

    def _fail(self, away: Away) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES:
                self._reason = away
                self._closed_until = self._timer() + PAUSE

    def _succeed(self) -> None:
        with self._lock:
            self._failures = 0
            self._reason = None
