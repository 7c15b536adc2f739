"""Orders on credit: whatever dies at any call, what is reserved is the sum of the live orders."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from eventcore.model.event import Event
from eventcore.model.saga import DeadlinePassed, SagaEnded
from tests.sim.credit import Sold, simulate
from tests.sim.mutants import Mutant

pytestmark = pytest.mark.timeout(300)

SEEDS = int(os.environ.get("SIM_CREDIT_SEEDS", "40"))
"""How many to run; each has some dozen orders."""

ENDS = {"done", "refused", "cancelled", "failed"}

STATES = {
    "a commit's answer is lost",
    "a deadline passes",
    "a deadline passes for the last time",
    "a saga moves on that was stuck",
    "a step is requested twice",
    "an order is cancelled while it is pending",
    "an order is cancelled that was confirmed",
}
"""Rare states that the seeds must reach."""


def states(sold: Sold) -> Counter[str]:
    """The states that a run has reached, as its logs tell, and the outcomes of its sagas."""
    found = Counter(sold.result.reached)
    for (kind, _), events in sold.orders.items():
        if kind == "order_saga":
            found.update(states_of_saga(events))
        elif [event.event_type for event in events[1:]] == ["ORDER_CONFIRMED", "ORDER_CANCELLED"]:
            found["an order is cancelled that was confirmed"] += 1
    return found


def states_of_saga(events: Sequence[Event]) -> Iterator[str]:
    types = [event.event_type for event in events]
    pairs = set(pairwise(types))
    yield str(events[-1].data["outcome"])
    for is_so, state in (
        ("DEADLINE_PASSED" in types, "a deadline passes"),
        (types.count("STEP_REQUESTED") > 1, "a step is requested twice"),
        (
            ("DEADLINE_PASSED", "COMPENSATION_REQUESTED") in pairs,
            "a deadline passes for the last time",
        ),
        (("DEADLINE_PASSED", "STEP_COMPENSATED") in pairs, "a saga moves on that was stuck"),
    ):
        if is_so:
            yield state
    if "CANCEL_REQUESTED" in types and "SAGA_ENDED" not in types[: types.index("CANCEL_REQUESTED")]:
        yield "an order is cancelled while it is pending"


def test_whatever_dies_at_any_call_credit_is_reserved_for_the_live_orders_alone() -> None:
    found = Counter[str]()
    for seed in range(SEEDS):
        sold = simulate(seed)
        assert (seed, sold.result.wrong) == (seed, ())
        found.update(states(sold))
    assert {each for each in STATES | ENDS if not found[each]} == set()


def test_a_seed_of_credit_is_the_same_run_every_time() -> None:
    assert simulate(7) == simulate(7)
    assert len({simulate(seed).result.trace_hash for seed in range(5)}) == 5


def _gives_up_without_compensation(real: Any, self: Any, request: Any, saga: Any) -> Any:
    decided = real(self, request, saga)
    if saga.outcome is None and request.attempt == self.steps[0].attempts:
        return [DeadlinePassed(request.step, request.attempt), SagaEnded("failed")]
    return decided


def _forgets_the_cancellation(real: Any, self: Any, answer: Any, request: Any, saga: Any) -> Any:
    return real(self, answer, request, replace(saga, cancel=None))


def _compares_no_other_stream(real: Any, self: Any, decider: Any, *given: Any, **more: Any) -> Any:
    if decider.aggregate_type == "credit":
        more.pop("also", None)
    return real(self, decider, *given, **more)


def _leaves_the_order(real: Any, self: Any, decider: Any, *given: Any, **more: Any) -> Any:
    return real(self, decider, *given, **more)[:0]


MUTANTS = [
    Mutant(fault, f"eventcore.{target}", wrong)
    for fault, target, wrong in (
        (
            "a step that was late is not compensated",
            "model.saga.Saga._pass_deadline",
            _gives_up_without_compensation,
        ),
        (
            "a cancellation is forgotten when the answer comes",
            "model.saga.Saga._take",
            _forgets_the_cancellation,
        ),
        (
            "a reservation does not compare the user's stream",
            "project.reacting.StoreCommands.handle",
            _compares_no_other_stream,
        ),
        (
            "an order does not end with its saga",
            "project.reacting.StoreCommands.append_of",
            _leaves_the_order,
        ),
    )
]
"""The saga with one of its safeguards taken out, each in turn."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)
def test_a_saga_without_a_safeguard_is_found_out(mutant: Mutant) -> None:
    with mutant.lives():
        assert any(simulate(seed).result.wrong for seed in range(4 * SEEDS))
