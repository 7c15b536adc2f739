"""The states of all services, asked once for all open pages, and the rates between two states."""

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Any

TTL = 1.5
"""Seconds for which a state, and what was rendered of it, is used again."""

WINDOW = 10.0
"""Seconds over which rates are taken."""

States = Mapping[str, Any]
"""The answer of /internal/status by service; None: it is away."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The states at a moment of the monotonic clock, and those of about WINDOW seconds before."""

    at: float
    states: States
    earlier: "Sample | None" = None

    def rate(self, position: Callable[[States], int | None]) -> float | None:
        """Positions a second, taken of two states; None: it is not known yet."""
        if not self.earlier or self.at - self.earlier.at < TTL / 2:
            return None
        now, then = position(self.states), position(self.earlier.states)
        if now is None or then is None:
            return None
        return max(0.0, (now - then) / (self.at - self.earlier.at))


class Watch:
    """Keeps the states of the last seconds; while nobody looks, nothing is asked."""

    def __init__(self, ask: Callable[[], States], clock: Callable[[], float] = monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = Lock()
        self._samples = deque[Sample]()

    def now(self) -> Sample:
        """The states, at most TTL seconds old, or those before while another thread asks."""
        last = self._samples[-1] if self._samples else None
        if last and self._clock() - last.at < TTL:
            return last
        if not self._lock.acquire(blocking=last is None):
            assert last
            return last
        try:
            if self._samples and self._clock() - self._samples[-1].at < TTL:
                return self._samples[-1]
            return self._take()
        finally:
            self._lock.release()

    def _take(self) -> Sample:
        states, at = self._ask(), self._clock()
        while self._samples and at - self._samples[0].at > WINDOW:
            self._samples.popleft()
        earlier = self._samples[0] if self._samples else None
        bare = Sample(earlier.at, earlier.states) if earlier else None
        self._samples.append(sample := Sample(at, states, bare))
        return sample


class Rendered:
    """Fragments as they were rendered, for TTL seconds: all who look get the same."""

    MANY = 200

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, ...], tuple[float, str, str]] = {}

    def get(self, key: tuple[str, ...], render: Callable[[], str]) -> tuple[str, str]:
        """The fragment under a key and its tag, rendered again if it is older."""
        at, text, tag = self._kept.get(key, (float("-inf"), "", ""))
        if self._clock() - at >= TTL:
            text = render()
            tag = hashlib.sha256(text.encode()).hexdigest()[:16]
            if len(self._kept) >= self.MANY:
                self._kept.clear()
            self._kept[key] = self._clock(), text, tag
        return text, tag


def log_of(states: States, service: str) -> Mapping[str, Any] | None:
    """The log of a service; None while it or its store is away."""
    state = states.get(service)
    return state["log"] if state else None
