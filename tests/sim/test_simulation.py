"""Some hundred seeds: nothing is lost, doubled, or out of order, whatever dies at any call."""

import os
import subprocess
import sys
from pathlib import Path

from tests.sim.run import simulate
from tests.sim.states import RARE
from tests.sim.tally import tally

SEEDS = int(os.environ.get("SIM_SEEDS", "200"))
"""How many to run; 10,000 must reach every rare state."""


def test_whatever_dies_at_any_call_every_promise_holds() -> None:
    counts = tally(range(SEEDS))
    assert [(result.seed, result.wrong) for result in counts.wrong] == []
    assert len(RARE) >= 50
    assert len(counts.missed) <= (0 if SEEDS >= 10_000 else 16), counts.missed


def test_a_seed_is_the_same_run_every_time_in_any_process() -> None:
    """Whatever order the sets of another process have."""
    told: list[str] = []
    first, second = simulate(11), simulate(11, told.append)
    assert first == second
    assert len(told) > 50
    for hashing in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", "from tests.sim.run import simulate as s; print(s(11))"],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": "services:."},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert printed.stdout.strip() == str(first)


def test_another_seed_is_another_run() -> None:
    assert len({simulate(seed).trace_hash for seed in range(20)}) == 20
