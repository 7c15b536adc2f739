"""`python -m tests.sim`: many seeds, or one step by step, or the suite against itself."""

import sys
from argparse import ArgumentParser

from tests.sim.run import simulate
from tests.sim.tally import tally

ENOUGH = 3000
"""Seeds with which each rare state must be reached."""


def main() -> int:
    """Do what is asked for; 1 if anything is wrong."""
    parser = ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone, and print its steps")
    asked = parser.parse_args()
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


if __name__ == "__main__":
    sys.exit(main())
