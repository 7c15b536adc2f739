"""`make chaos`: every fault of the table on real servers under load, and nine invariants after it.

python -m tests.chaos                      all rows
python -m tests.chaos --row 11 --seed 7    one row, as it was in another run
python -m tests.chaos soak --minutes 30    half of what goes for long, and nothing may grow
"""

import os
import sys
import time

import click

from tests.chaos import soak as soaking
from tests.chaos.faults import FAULTS
from tests.chaos.report import print_row, print_summary, write
from tests.chaos.run import Result, started


@click.group(invoke_without_command=True)
@click.option("--seed", default="", help="Replays the choices of another run.")
@click.option("--row", "rows", multiple=True, help="Only this row; may be given again.")
@click.option("--injections", default=0, help="How often, in place of the table's count.")
@click.option("--rate", default=40.0, show_default=True, help="Requests a second.")
@click.option("--slack", default=3.0, show_default=True, help="Times are judged by so many limits.")
@click.pass_context
def main(
    context: click.Context, seed: str, rows: tuple[str, ...], injections: int, rate: float,
    slack: float,
) -> None:  # fmt: skip
    """Strike, drain, check; ends with status 1 if any invariant was violated."""
    if context.invoked_subcommand:
        return
    seed = seed or os.environ.get("SEED") or str(int(time.time()))
    faults = [fault for fault in FAULTS if not rows or fault.row in rows]
    print(f"seed {seed}; times are judged by {slack:g} times their limits", flush=True)
    results: list[Result] = []
    with started(seed, rate, slack=slack) as run:
        for fault in faults:
            results.append(run.row(fault, injections or fault.injections))
            print_row(results[-1])
        whole = run.whole()
    print_summary(results, whole, seed)
    if not rows:
        write(results, whole, seed, slack, rate)
    sys.exit(1 if any(r.wrong for r in results) or any(f.wrong for f in whole) else 0)


@main.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--seed", default="soak", show_default=True)
def soak(minutes: float, seed: str) -> None:
    """Half of what goes, for long: memory, lag and errors must stay flat."""
    with started(seed, warm_up=10) as run:
        most = soaking.capacity(run)
        print(f"{most:.0f} requests a second are answered; half of that from now on", flush=True)
        run.load.ask_for(most / 2)
        seen, finding = soaking.soak(run, minutes)
        whole = run.whole()
    text = soaking.lines(seen, finding, whole, seed, minutes, most)
    print("\n".join(text))
    soaking.write(text)
    sys.exit(1 if finding.wrong or any(each.wrong for each in whole) else 0)


if __name__ == "__main__":
    main()
