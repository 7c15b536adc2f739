"""What was measured, as lines for a terminal and as the table in docs/performance.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from tests.bench.rows import Measured, Outcome

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end -->"


def lines(outcome: Outcome) -> Iterator[str]:
    """An outcome for people at a terminal."""
    row = outcome.row
    yield f"{row.name}  {row.ours}" + (f" / {row.beside}" if row.beside else "")
    for each in _figures(outcome):
        beside = f" beside {_values(each, each.beside)}" if each.beside else ""
        yield f"     {_values(each, each.ours)}{beside}: {_result(each)}, {_verdict(each)}"
    for note in (*outcome.notes, *_doubts(outcome), *_fit(outcome)):
        yield f"     {note}"


def write(outcomes: Sequence[Outcome], about: Sequence[str], is_short: bool) -> None:
    """Put the table into the page, in place of the one before; the rest of the page stays."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(_table(outcomes, about, is_short))
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def _table(outcomes: Sequence[Outcome], about: Sequence[str], is_short: bool) -> Iterator[str]:
    rounds = max(len(outcome.ours) for outcome in outcomes)
    if is_short or rounds < 5:
        yield "**A short run**: few rounds or small amounts. Its ratios are hints.\n"
    if not all(outcome.is_quiet for outcome in outcomes):
        yield (
            "**The machine was not quiet**: rows marked with † kept rounds in which others took"
            " more than 5 % of its CPU time, after the allowed repetitions.\n"
        )
    yield from (f"- {line}" for line in (*about, f"Rounds: {rounds} of each row"))
    yield ""
    yield "| # | ours / beside | ours | beside | result | reach | stretch | |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for outcome in outcomes:
        yield from _table_rows(outcome)
    yield ""
    for outcome in outcomes:
        for note in (*outcome.notes, *_fit(outcome)):
            yield f"- {outcome.row.name}: {note}"


def _table_rows(outcome: Outcome) -> Iterator[str]:
    row = outcome.row
    what = f"{row.ours} / {row.beside}" if row.beside else row.ours
    mark = "" if outcome.is_quiet else " †"
    for each in _figures(outcome):
        figure = each.figure
        name = f"{what}: {figure.name}" if figure.name else what
        cells = [
            row.name + mark, name, _values(each, each.ours), _values(each, each.beside),
            _result(each), _target(each, figure.reach), _target(each, figure.stretch),
            _verdict(each),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _figures(outcome: Outcome) -> list[Measured]:
    return [outcome.figure(place) for place in range(len(outcome.row.figures))]


def _values(each: Measured, values: Sequence[float]) -> str:
    """The median, and the least and the greatest."""
    if not values:
        return ""
    unit = each.figure.unit
    space = "" if unit.startswith("/") else " "
    middle, least, most = (_number(value) for value in (median(values), min(values), max(values)))
    return f"{middle}{space}{unit} ({least} to {most})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _result(each: Measured) -> str:
    if not each.beside:
        return _number(each.result)
    return f"{each.result:.2f}" + (" (intervals overlap)" if each.overlaps else "")


def _target(each: Measured, target: float | None) -> str:
    if target is None:
        return ""
    return f"{'≤' if each.figure.at_most else '≥'} {target:g}"


def _verdict(each: Measured) -> str:
    return {True: "reached", False: "**not reached**", None: "printed"}[each.is_reached]


def _doubts(outcome: Outcome) -> Iterator[str]:
    if outcome.thrown_away:
        yield f"{outcome.thrown_away} disturbed rounds were thrown away."
    if not outcome.is_quiet:
        yield f"Not quiet: others took up to {max(outcome.foreign):.0%} of the CPU time."


def _fit(outcome: Outcome) -> Iterator[str]:
    """Amdahl's law for a row that grows: the share of the work that did not go faster."""
    if outcome.row.grows:
        gain, workers = outcome.figure(0).result, outcome.row.grows
        if gain <= 1:
            yield f"1 → {workers}: {gain:.2f} times as fast: it does not spread on this machine."
            return
        serial = (workers / gain - 1) / (workers - 1)
        yield (
            f"1 → {workers}: {gain:.2f} times as fast; by Amdahl's law {serial:.0%} of the work"
            " does not spread."
        )
