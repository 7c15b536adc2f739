"""`make bench`: the rows of the performance table, ours beside each server's own ceiling.

    python -m tests.bench               all rows, five rounds each; writes docs/performance.md
    python -m tests.bench P8 P9         these rows alone; writes nothing
    python -m tests.bench --quick       small amounts, one round: shows that the benchmark works

Servers and processes are the run's own, on private ports and data, and all of it is removed.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import click

from tests.bench import machine, report
from tests.bench.appends import Appends
from tests.bench.bed import FULL, QUICK, SHORT, Bed, Size
from tests.bench.calls import Calls
from tests.bench.projector import Projecting
from tests.bench.rebuild import Rebuilding
from tests.bench.relay import Relaying
from tests.bench.rows import Outcome, Row, measure
from tests.bench.system import WholeSystem
from tests.bench.tracing import Tracing


class Family(Protocol):
    """Rows that are measured on the same things."""

    def rows(self) -> Sequence[Row]: ...


FAMILIES: Sequence[Callable[[Bed, Size], Family]] = (
    Appends,
    Relaying,
    Projecting,
    WholeSystem,
    Rebuilding,
    Calls,
    Tracing,
)


@click.command()
@click.argument("names", metavar="[ROW]...", nargs=-1)
@click.option("--rounds", default=5, show_default=True, help="Rounds of each row.")
@click.option(
    "--patience", default=5, show_default=True,
    help="Disturbed rounds of a row that are measured again, at most.",
)  # fmt: skip
@click.option("--short", is_flag=True, help="Smaller amounts.")
@click.option("--quick", is_flag=True, help="Tiny amounts, one round, any load.")
@click.option("--rebuilt", default=0, help="Events of P11's log, in place of the usual amount.")
@click.option("--write", is_flag=True, help="Write docs/performance.md even if it is not all rows.")
def main(
    names: Sequence[str], rounds: int, patience: int, short: bool, quick: bool, rebuilt: int,
    write: bool,
) -> None:  # fmt: skip
    """Measure all rows, or those named (P8), beside their ceilings."""
    if quick:
        rounds, patience = 1, 0
    size = QUICK if quick else SHORT if short else FULL
    size = replace(size, rebuilt=rebuilt or size.rebuilt)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bed = Bed(folder, stack)
        rows = chosen([row for family in FAMILIES for row in family(bed, size).rows()], names)
        about = [*machine.described(), f"Durability: {bed.durability()}"]
        print("\n".join(about))
        for row in rows:
            outcomes.append(measure(row, rounds, patience))
            print("\n".join(report.lines(outcomes[-1])), flush=True)
        if write or not (names or quick or short):
            report.write(outcomes, about, is_short=short or quick)


def chosen(rows: Sequence[Row], names: Sequence[str]) -> Sequence[Row]:
    """Those named, or all."""
    known = {row.name for row in rows}
    if unknown := set(names) - known:
        raise click.BadParameter(f"no row is called {', '.join(sorted(unknown))}")
    return [row for row in rows if not names or row.name in names]


if __name__ == "__main__":
    main()
