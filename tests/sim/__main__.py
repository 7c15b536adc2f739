"""`python -m tests.sim`: many seeds, or one step by step, or the suite against itself."""

import sys
from argparse import ArgumentParser
from itertools import repeat

from tests.sim.mutants import MUTANTS, hunt_at
from tests.sim.run import simulate
from tests.sim.tally import tally, workers

ENOUGH = 10_000
"""Seeds with which each rare state must be reached."""


def main() -> int:
    """Do what is asked for; 1 if anything is wrong."""
    parser = ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone, and print its steps")
    parser.add_argument("--mutants", action="store_true", help="try the suite on itself")
    asked = parser.parse_args()
    if asked.mutants:
        return mutants(asked.first, asked.seeds)
    if asked.seed is not None:
        return one(asked.seed)
    return many(asked.first, asked.seeds)


def one(seed: int) -> int:
    """One seed, step by step."""
    result = simulate(seed, print)
    print(f"{result.steps} steps, trace {result.trace_hash}")
    for wrong in result.wrong:
        print(f"WRONG: {wrong}")
    return bool(result.wrong)


def many(first: int, count: int) -> int:
    """So many seeds, and the table of what they reached."""
    counts = tally(range(first, first + count))
    for line in counts.lines():
        print(line)
    return bool(counts.wrong or (count >= ENOUGH and counts.missed))


def mutants(first: int, most: int) -> int:
    """Each mutant, until it is found out; so many seeds at most, ten times that if it is rare."""
    missed, numbers = 0, range(len(MUTANTS))
    print("  seeds  seconds  with this safeguard taken out, and the promise that was broken")
    with workers() as pool:
        for number, caught in enumerate(pool.map(hunt_at, numbers, repeat(first), repeat(most))):
            missed += not caught.seeds
            seeds = f"{caught.seeds:,}" if caught.seeds else "MISSED"
            fault = MUTANTS[number].fault
            print(f"{seeds:>7}  {caught.seconds:7.2f}  {fault}: {caught.by[:90]}", flush=True)
    print(f"{len(MUTANTS) - missed} of {len(MUTANTS)} caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
