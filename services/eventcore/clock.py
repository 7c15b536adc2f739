"""The clock of a process, passed as an argument, so that a simulation can pass its own."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, sleep and random delays; `now` is in UTC, all else in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    now: Callable[[], datetime] = _utc_now
    uniform: Callable[[float, float], float] = random.uniform


SYSTEM_CLOCK = Clock()
