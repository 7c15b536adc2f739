"""The faults as data, one for each row of the table; the strikes are in `faults`."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from random import Random

from tests.chaos.journal import Entry, Try
from tests.chaos.load import Known, Load
from tests.chaos.system import System
from tests.chaos.truth import Log

USERS, ORDERS, QUERIES, LISTS = "user commands", "order commands", "queries", "lists"
ALL = (USERS, ORDERS, QUERIES, LISTS)


class Skipped(Exception):
    """A fault that cannot be made here; the message says why."""


class Unmet(AssertionError):
    """Something that should have happened did not, within its time."""


@dataclass(frozen=True)
class Scene:
    """The input of a strike; `chance` makes all its choices, `number` counts its strikes."""

    system: System
    load: Load
    log: Log
    chance: Random
    number: int

    @property
    def known(self) -> Known:
        """The knowledge of the clients."""
        return self.load.known

    def turn(self, *options: str) -> str:
        """One of these: each in its turn, so that all are reached."""
        return options[self.number % len(options)]

    def plant(self, entry: Entry) -> None:
        """Note an event that we append ourselves."""
        self.load.journal.begin(entry)
        self.load.journal.answer(entry, Try(time.monotonic(), 0.0, 200, False))


Strike = Callable[[Scene], AbstractContextManager[str]]
"""Hurts on entering, says what it did, heals on leaving."""


@dataclass(frozen=True)
class Fault:
    """One row: what is done, which promises it is aimed at, and what must hold meanwhile.

    Times are seconds: `hold` how long it lasts, from and to; `first` and `lag` how soon after
    healing an answer is good and a write is readable within a second; `answers` how long any
    answer may take. `goes_on` must go on meanwhile. `no_answer`: the callers' own connections
    may break; without `failures` no request at all may fail.
    """

    row: str
    name: str
    aims: str
    injections: int
    strike: Strike
    hold: tuple[float, float] = (0.2, 1.5)
    first: float = 2.0
    lag: float = 5.0
    answers: float = 2.0
    goes_on: tuple[str, ...] = ()
    no_answer: bool = False
    failures: bool = True


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for a condition; raises Unmet."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Unmet(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)
