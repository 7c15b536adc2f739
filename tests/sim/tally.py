"""Many seeds, and what they came to."""

import gc
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.sim.run import Result, simulate
from tests.sim.states import RARE

CORES = len(os.sched_getaffinity(0))


@dataclass
class Tally:
    """Counts over seeds; `seconds` is the time that all of them took together."""

    seeds: int = 0
    steps: int = 0
    seconds: float = 0.0
    reached: Counter[str] = field(default_factory=Counter)
    wrong: list[Result] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """The rare states that no seed has reached."""
        return [state for state in RARE if not self.reached[state]]

    def add(self, result: Result) -> None:
        """Count one more."""
        self.seeds += 1
        self.steps += result.steps
        self.reached.update(result.reached)
        if result.wrong:
            self.wrong.append(result)

    def lines(self) -> Iterator[str]:
        """What to print of it."""
        for state in sorted(RARE, key=lambda each: self.reached[each]):
            yield f"{self.reached[state]:>9,}  {state}"
        yield ""
        yield (
            f"{self.seeds:,} seeds, {self.steps:,} steps in {self.seconds:.1f} s on {CORES} cores:"
            f" {self.seeds / self.seconds:.0f} seeds/s, {self.steps / self.seconds:,.0f} steps/s"
        )
        yield f"{len(RARE) - len(self.missed)} of {len(RARE)} rare states reached"
        for result in self.wrong[:10]:
            yield f"python -m tests.sim --seed {result.seed}    {result.wrong[0]}"
        yield f"{len(self.wrong)} seeds went wrong"


def workers() -> ProcessPoolExecutor:
    """A process for each core: a simulation uses one thread."""
    return ProcessPoolExecutor(CORES, get_context("spawn"), initializer=_collect_seldom)


def _collect_seldom() -> None:
    """The collector walks all stacks of a simulation, and finds little."""
    gc.freeze()
    gc.set_threshold(100_000)


def tally(seeds: Iterable[int], most_wrong: int = 10) -> Tally:
    """Runs them all, or until so many have gone wrong."""
    counts, began = Tally(), time.monotonic()
    with workers() as pool:
        for result in pool.map(simulate, seeds, chunksize=10):
            counts.add(result)
            if len(counts.wrong) >= most_wrong:
                pool.shutdown(cancel_futures=True)
                break
    counts.seconds = time.monotonic() - began
    return counts
