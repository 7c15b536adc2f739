"""What is measured, as data, and how: rounds in which ours and its ceiling take turns.

A row whose rounds were disturbed is measured again, a bounded number of times: what other
processes of the machine do is no property of ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

from eventcore.errors import Away
from tests.bench.machine import OtherLoad

Values: TypeAlias = tuple[float, ...]
"""What one measurement gives: a value for each figure of its row."""

Measure: TypeAlias = Callable[[], Values]
"""Does the work, requires that it was done, and says what it took."""

MOST_FOREIGN = 0.05
"""Share of the machine's CPU time that others may take in a round that counts."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a row and what it should reach: the ratio to the ceiling, where there is one.

    `at_most` says that smaller is better.
    """

    unit: str = "/s"
    reach: float | None = None
    stretch: float | None = None
    at_most: bool = False
    name: str = ""

    def is_met(self, value: float, target: float) -> bool:
        """Whether a value is as good as a target."""
        return value <= target if self.at_most else value >= target


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what is ours, what stands beside it, and what it should reach.

    `grows` is set where ours has so many times the workers of what stands beside it. `notes`
    gives what is to be said of the last measurement beside its figures.
    """

    name: str
    ours: str
    measure: Measure
    figures: tuple[Figure, ...] = (Figure(),)
    beside: str = ""
    ceiling: Measure | None = None
    grows: int = 0
    notes: Callable[[], Sequence[str]] = tuple


@dataclass(slots=True)
class Outcome:
    """What the rounds of a row gave; `foreign` is the share others took in each that counts."""

    row: Row
    ours: list[Values] = field(default_factory=list)
    beside: list[Values] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    thrown_away: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_quiet(self) -> bool:
        """Whether nobody else was at work in any of its rounds."""
        return max(self.foreign) <= MOST_FOREIGN

    def figure(self, place: int) -> "Measured":
        """The values of one of the row's figures."""
        beside = [values[place] for values in self.beside]
        return Measured(self.row.figures[place], [v[place] for v in self.ours], beside)


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure's values, ours and the ceiling's, round by round."""

    figure: Figure
    ours: Sequence[float]
    beside: Sequence[float]

    @property
    def result(self) -> float:
        """What the target is about: the ratio of the medians, or the median alone."""
        return median(self.ours) / median(self.beside) if self.beside else median(self.ours)

    @property
    def overlaps(self) -> bool:
        """Whether the two intervals do: then the ratio may be chance."""
        return bool(self.beside) and max(min(self.ours), min(self.beside)) <= min(
            max(self.ours), max(self.beside)
        )

    @property
    def is_reached(self) -> bool | None:
        """Whether it is as good as it should be; None where nothing is asked."""
        target = self.figure.reach
        return None if target is None else self.figure.is_met(self.result, target)


def measure(row: Row, rounds: int, patience: int) -> Outcome:
    """Measure so many rounds of a row. Up to `patience` disturbed ones are thrown away, also those
    in which a server was too slow to answer; after that they count, and the outcome says that it
    was not quiet. Raises AssertionError where the work was not done, and Away.
    """
    outcome = Outcome(row)
    while len(outcome.ours) < rounds:
        load = OtherLoad()
        may_repeat = outcome.thrown_away < patience
        try:
            ours, beside = _take_turns(row, ours_first=len(outcome.ours) % 2 == 0)
        except Away:
            if load.share() <= MOST_FOREIGN or not may_repeat:
                raise
            outcome.thrown_away += 1
            continue
        foreign = load.share()
        if foreign > MOST_FOREIGN and may_repeat:
            outcome.thrown_away += 1
            continue
        outcome.ours.append(ours)
        outcome.foreign.append(foreign)
        if beside is not None:
            outcome.beside.append(beside)
    outcome.notes = tuple(row.notes())
    return outcome


def _take_turns(row: Row, ours_first: bool) -> tuple[Values, Values | None]:
    if row.ceiling is None:
        return row.measure(), None
    if ours_first:
        ours = row.measure()
        return ours, row.ceiling()
    beside = row.ceiling()
    return row.measure(), beside


def require(condition: bool, what: str) -> None:
    """Fail the run where the work was not done: its figures would mean nothing."""
    if not condition:
        raise AssertionError(f"The work was not done: {what}.")
