"""Retries with backoff, and a circuit breaker, for calls to a server that may be unavailable.

No library is used: the maintained ones serialise calls or count server errors as failures.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import Unavailable

Done = TypeVar("Done")

DELAYS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between two tries; the last one repeats
FAILURES = 3  # consecutive calls that must fail before a circuit breaker opens
PAUSE = 1.0  # seconds that it stays open before it lets one call through as a probe


def backoff(failures: int, clock: Clock = SYSTEM_CLOCK) -> float:
    """Seconds to wait after this many consecutive failures; jittered, so that replicas spread."""
    return DELAYS[min(failures, len(DELAYS) - 1)] * clock.uniform(0.75, 1.25)


def retry(
    action: Callable[[], Done],
    patience: float,
    wait: Callable[[float], object] = time.sleep,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Done:
    """Calls `action` until it returns, with backoff while a server is unavailable.

    Raises Unavailable once `patience` seconds have passed; `on_wait` gets each new reason.
    """
    deadline, failures, said = time.monotonic() + patience, 0, ""
    while True:
        try:
            return action()
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise
            if str(error) != said:
                said = str(error)
                on_wait(f"Waiting: {said}")
        wait(backoff(failures))
        failures += 1


class CircuitBreaker:
    """Fails calls at once while a server is unavailable, instead of letting each wait for it.

    It opens after FAILURES consecutive calls that could not reach the server. An error that the
    server itself answered counts as an answer.
    """

    def __init__(self, timer: Callable[[], float] = time.monotonic) -> None:
        self._timer = timer
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._reason: Unavailable | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """Wraps one call. Raises the error of the last failed call, at once, while open."""
        if self._reason is not None:
            self._enter()
        try:
            yield
        except Unavailable as error:
            if error.unreachable:
                self._fail(error)
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
            if self._timer() < self._open_until:
                raise type(self._reason)(str(self._reason))
            self._open_until = self._timer() + PAUSE  # this call is the probe; the others wait

    def _fail(self, error: Unavailable) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES:
                self._reason = error
                self._open_until = self._timer() + PAUSE

    def _succeed(self) -> None:
        with self._lock:
            self._failures = 0
            self._reason = None
