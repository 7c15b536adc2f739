"""A suite that misses a missing safety proves nothing: each of these is found out.

Those that take hundreds of seeds are left to `python -m tests.sim --mutants`, which tries all.
"""

import pytest

from tests.sim.mutants import MUTANTS, Misfit, Mutant, hunt

SEEDS = 300
"""How many seeds a mutant is given; most need some ten."""

QUICK = [mutant for mutant in MUTANTS if not mutant.rare]


@pytest.mark.parametrize("mutant", QUICK, ids=lambda mutant: mutant.fault)
def test_a_missing_safety_is_found_out(mutant: Mutant) -> None:
    assert hunt(mutant, range(SEEDS)).seeds


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len(QUICK) >= 25
    assert len({each.fault for each in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    "target", ["relay.Forwarder.gone", "gone.Forwarder.turn", "relay.Gone.turn"]
)
def test_a_mutant_whose_target_is_gone_fails_loudly(target: str) -> None:
    gone = Mutant("nothing", f"eventcore.{target}", lambda *_: None)
    with pytest.raises(Misfit, match="nothing"), gone.lives():
        pass


def test_a_mutant_that_uses_what_is_gone_fails_loudly() -> None:
    stale = Mutant("nothing", "eventcore.relay.Forwarder.turn", lambda _, forwarder: forwarder.gone)
    with pytest.raises(Misfit, match="nothing"):
        hunt(stale, range(3))
