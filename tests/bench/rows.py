"""Rows of the benchmark: the work of each, and rounds in which the rows take turns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

Values: TypeAlias = tuple[float, ...]
"""The result of one measurement: a value for each unit of its row."""

Measure: TypeAlias = Callable[[], Values]
"""Does the work, requires that it was done, and returns what was measured."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work, beside the same work of a bare client of the server where there is one.

    `notes` describes the last measurement beside its values.
    """

    name: str
    ours: str
    measure: Measure
    units: tuple[str, ...] = ("/s",)
    beside: str = ""
    ceiling: Measure | None = None
    notes: Callable[[], Sequence[str]] = tuple


@dataclass(slots=True)
class Outcome:
    """The values of a row's rounds."""

    row: Row
    ours: list[Values] = field(default_factory=list)
    beside: list[Values] = field(default_factory=list)
    notes: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """The row's lines of the table: medians, least and greatest values, and their ratio."""
        row = self.row
        what = f"{row.ours} / {row.beside}" if row.beside else row.ours
        for place, unit in enumerate(row.units):
            ours = [values[place] for values in self.ours]
            beside = [values[place] for values in self.beside]
            ratio = f"{median(ours) / median(beside):.2f}" if beside else ""
            cells = [row.name, what, _spread(ours, unit), _spread(beside, unit), ratio]
            yield f"| {' | '.join(cells)} |"


HEAD = ("| row | ours / beside | ours | beside | ratio |", "| --- | --- | --- | --- | --- |")


def measure(rows: Sequence[Row], rounds: int, say: Callable[[str], object]) -> Sequence[Outcome]:
    """Measures all rows once in each round, so that a slow minute of the machine meets all of them.

    A row and its ceiling begin in turn. Raises AssertionError where the work was not done.
    """
    outcomes = [Outcome(row) for row in rows]
    for number in range(rounds):
        for outcome in outcomes:
            row = outcome.row
            say(f"round {number + 1} of {rounds}: {row.name} {row.ours}")
            acts = [(row.measure, outcome.ours)]
            if row.ceiling:
                acts.append((row.ceiling, outcome.beside))
            for act, values in acts if number % 2 == 0 else reversed(acts):
                values.append(act())
            outcome.notes = row.notes()
    return outcomes


def require(condition: bool, what: str) -> None:
    """Fails the run where the work was not done: its values would mean nothing."""
    if not condition:
        raise AssertionError(f"The work was not done: {what}.")


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    middle, least, most = (_number(value) for value in (median(values), min(values), max(values)))
    return f"{middle}{unit} ({least} to {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
