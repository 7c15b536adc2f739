"""A suite that misses a missing safety proves nothing: each of these is found out.

Those that take hundreds of seeds are left to `python -m tests.sim --mutants`, which tries all.
"""

import pytest

from tests.sim.mutants import MUTANTS, Mutant, hunt

SEEDS = 300
"""How many seeds a mutant is given; most need some ten."""

QUICK = [mutant for mutant in MUTANTS if not mutant.rare]


@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.says)
def test_a_missing_safety_is_found_out(mutant: Mutant) -> None:
    assert hunt(mutant, range(SEEDS)).seeds


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len(QUICK) >= 25
    assert len({(each.function, each.old, each.new) for each in MUTANTS}) == len(MUTANTS)


def test_a_mutant_whose_text_is_gone_fails_loudly() -> None:
    gone = Mutant("nothing", MUTANTS[0].owner, MUTANTS[0].function, "no such text", "")
    with pytest.raises(AssertionError, match="has changed"), gone.lives():
        pass
