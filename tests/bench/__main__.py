"""`make bench`: prints a table of rates and latencies, beside bare clients of each server.

    python -m tests.bench               all rows, three rounds
    python -m tests.bench P8 P9         these rows
    python -m tests.bench --short       smaller amounts
    python -m tests.bench --quick       tiny amounts, one round: shows that the benchmark works

Servers and processes are the run's own, on private ports and data, and all of it is removed.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from tests.bench import machine
from tests.bench.appends import Appends
from tests.bench.bed import FULL, QUICK, SHORT, Bed
from tests.bench.identity import Identity
from tests.bench.limits import RateLimits
from tests.bench.parking import Parking
from tests.bench.projector import Projecting
from tests.bench.relay import Relaying
from tests.bench.rows import HEAD, Row, measure
from tests.bench.snapshots import Snapshots
from tests.bench.system import WholeSystem
from tests.bench.tokens import Tokens

FAMILIES = (
    Appends, Relaying, Projecting, Parking, WholeSystem, Tokens, Snapshots, RateLimits, Identity,
)  # fmt: skip


@click.command()
@click.argument("names", metavar="[ROW]...", nargs=-1)
@click.option("--rounds", default=3, show_default=True, help="Rounds of each row.")
@click.option("--short", is_flag=True, help="Smaller amounts.")
@click.option("--quick", is_flag=True, help="Tiny amounts, one round.")
def main(names: Sequence[str], rounds: int, short: bool, quick: bool) -> None:
    """Measures all rows, or those named (P8), and prints a table."""
    size = QUICK if quick else SHORT if short else FULL
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bed = Bed(folder, stack)
        rows = chosen([row for family in FAMILIES for row in family(bed, size).rows()], names)
        for line in (*machine.described(), f"Durability: {bed.durability()}"):
            click.echo(line)
        outcomes = measure(rows, 1 if quick else rounds, lambda said: click.echo(said, err=True))
    click.echo("\n".join(["", *HEAD, *(line for each in outcomes for line in each.lines()), ""]))
    for outcome in outcomes:
        for note in outcome.notes:
            click.echo(f"- {outcome.row.name}: {note}")


def chosen(rows: Sequence[Row], names: Sequence[str]) -> Sequence[Row]:
    """The rows that are named, or all."""
    if unknown := set(names) - {row.name for row in rows}:
        raise click.BadParameter(f"no row is called {', '.join(sorted(unknown))}")
    return [row for row in rows if not names or row.name in names]


if __name__ == "__main__":
    main()
