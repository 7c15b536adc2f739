"""A saga: given events, when a command, then events; and its promises, whatever happens when."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import reduce
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.catalogue import Catalogue
from eventcore.model.saga import (
    Cancel,
    CancelRequested,
    CompensationRequested,
    DeadlinePassed,
    Reply,
    Retry,
    Saga,
    SagaCommand,
    SagaEnded,
    SagaEvent,
    SagaStarted,
    SagaState,
    Start,
    Step,
    StepCompensated,
    StepDone,
    StepRefused,
    StepRequested,
    TimeOut,
    evolve,
)

CATALOGUE = Catalogue("journey", SagaEvent)
ARGUMENTS = {"userId": "u", "amount": 3}


def step(name: str, attempts: int = 2) -> Step:
    """A step with classes of its own for its answers."""
    done, compensated = (make_dataclass(f"{name}{end}", []) for end in ("Booked", "Freed"))
    refused = make_dataclass(f"{name}Refused", [("reason", str)])
    return Step(name, done, refused, compensated, timeout=5, attempts=attempts)


HOTEL, FLIGHT = step("hotel"), step("flight")
SAGA = Saga(CATALOGUE, (HOTEL, FLIGHT))


def after(*events: SagaEvent) -> SagaState | None:
    return reduce(evolve, events, SAGA.decider.initial)


def decided(command: SagaCommand, *events: SagaEvent) -> Sequence[SagaEvent]:
    """The events that the saga decides for a command after these."""
    return SAGA.decider.decide(command, after(*events))


def ask(step: Step, attempt: int = 1) -> StepRequested:
    return StepRequested(step.name, attempt, ARGUMENTS)


def undo(step: Step, attempt: int = 1) -> CompensationRequested:
    return CompensationRequested(step.name, attempt, ARGUMENTS)


def refusal(step: Step, reason: str = "full") -> Reply:
    assert step.refused
    return Reply(step.refused(reason))


STARTED: list[SagaEvent] = [SagaStarted(ARGUMENTS), ask(HOTEL)]
HALF: list[SagaEvent] = [*STARTED, StepDone("hotel"), ask(FLIGHT)]
DONE: list[SagaEvent] = [*HALF, StepDone("flight"), SagaEnded("done")]


def test_a_saga_starts_with_its_first_step_and_starts_once() -> None:
    assert decided(Start(ARGUMENTS)) == STARTED
    assert decided(Start(ARGUMENTS), *STARTED) == []


def test_each_step_that_is_done_leads_to_the_next_and_the_last_to_the_end() -> None:
    assert decided(Reply(HOTEL.done()), *STARTED) == HALF[2:]
    assert decided(Reply(FLIGHT.done()), *HALF) == DONE[4:]


def test_a_refused_first_step_ends_the_saga_with_its_reason() -> None:
    assert decided(refusal(HOTEL), *STARTED) == [
        StepRefused("hotel", "full"), SagaEnded("refused", "full"),
    ]  # fmt: skip


def test_a_refused_step_compensates_those_before_it_and_not_itself() -> None:
    new = decided(refusal(FLIGHT), *HALF)
    assert new == [StepRefused("flight", "full"), undo(HOTEL)]
    saga = after(*HALF, *new)
    assert saga
    assert (saga.outcome, saga.reason) == ("refused", "full")
    assert decided(Reply(HOTEL.compensated()), *HALF, *new) == [
        StepCompensated("hotel"), SagaEnded("refused", "full"),
    ]  # fmt: skip


def test_a_cancellation_waits_for_the_answer_and_then_goes_back() -> None:
    cancelled: list[SagaEvent] = [*HALF, *decided(Cancel("rain"), *HALF)]
    assert cancelled[4:] == [CancelRequested("rain")]
    assert decided(Cancel("again"), *cancelled) == []
    new = decided(Reply(FLIGHT.done()), *cancelled)
    assert new == [StepDone("flight"), undo(FLIGHT)]
    then = decided(Reply(FLIGHT.compensated()), *cancelled, *new)
    assert then == [StepCompensated("flight"), undo(HOTEL)]
    assert decided(Reply(HOTEL.compensated()), *cancelled, *new, *then) == [
        StepCompensated("hotel"), SagaEnded("cancelled", "rain"),
    ]  # fmt: skip


def test_a_refusal_outlives_a_cancellation() -> None:
    assert decided(refusal(HOTEL), *STARTED, CancelRequested("rain")) == [
        StepRefused("hotel", "full"), SagaEnded("refused", "full"),
    ]  # fmt: skip


def test_a_saga_that_is_done_can_be_cancelled_and_any_other_cannot() -> None:
    new = decided(Cancel("rain"), *DONE)
    assert new == [CancelRequested("rain"), undo(FLIGHT)]
    saga = after(*DONE, *new)
    assert saga
    assert (saga.outcome, saga.reason) == ("cancelled", "rain")
    back: list[SagaEvent] = [StepCompensated("flight"), undo(HOTEL)]
    assert decided(Reply(HOTEL.compensated()), *DONE, *new, *back) == [
        StepCompensated("hotel"), SagaEnded("cancelled", "rain"),
    ]  # fmt: skip
    refused: list[SagaEvent] = [
        *STARTED,
        StepRefused("hotel", "full"),
        SagaEnded("refused", "full"),
    ]
    assert decided(Cancel("rain"), *refused) == []


def test_a_late_step_is_requested_again_and_compensated_after_its_last_attempt() -> None:
    again = decided(TimeOut(2), *STARTED)
    assert again == [DeadlinePassed("hotel", 1), ask(HOTEL, 2)]
    saga = after(*STARTED, *again)
    assert saga
    assert saga.begun == ("hotel",)
    given_up = decided(TimeOut(4), *STARTED, *again)
    assert given_up == [DeadlinePassed("hotel", 2), undo(HOTEL)]
    saga = after(*STARTED, *again, *given_up)
    assert saga
    assert (saga.outcome, saga.reason) == ("failed", "hotel was not answered in time")


def test_a_late_step_of_a_cancelled_saga_is_compensated_at_once() -> None:
    new = decided(TimeOut(3), *STARTED, CancelRequested(None))
    assert new == [DeadlinePassed("hotel", 1), undo(HOTEL)]
    saga = after(*STARTED, CancelRequested(None), *new)
    assert saga
    assert saga.outcome == "cancelled"


def test_a_deadline_of_an_earlier_request_changes_nothing() -> None:
    assert decided(TimeOut(1), *STARTED) == []
    assert decided(TimeOut(2), *HALF) == []
    assert decided(TimeOut(99), *DONE) == []


def test_an_answer_that_is_not_awaited_changes_nothing() -> None:
    for reply in (
        Reply(FLIGHT.done()),
        refusal(FLIGHT),
        Reply(HOTEL.compensated()),
        Reply(object()),
    ):
        assert decided(reply, *STARTED) == []
    for reply in (Reply(HOTEL.done()), refusal(HOTEL)):
        assert decided(reply, *HALF) == []
        assert decided(reply, *STARTED, DeadlinePassed("hotel", 2), undo(HOTEL)) == []
        assert decided(reply, *DONE) == []


def test_a_compensation_that_no_attempt_answers_leaves_the_saga_stuck() -> None:
    back: list[SagaEvent] = [*STARTED, DeadlinePassed("hotel", 2), undo(HOTEL)]
    back += decided(TimeOut(len(back)), *back)
    assert back[-2:] == [DeadlinePassed("hotel", 1), undo(HOTEL, 2)]
    stuck = [*back, *decided(TimeOut(len(back)), *back)]
    saga = after(*stuck)
    assert saga
    assert (stuck[-1], saga.stuck) == (DeadlinePassed("hotel", 2), True)
    assert SAGA.deadline(saga) == math.inf
    assert decided(TimeOut(len(stuck)), *stuck) == []
    assert decided(Retry(), *back) == []
    assert decided(Retry(), *stuck) == [undo(HOTEL)]
    assert decided(Reply(HOTEL.compensated()), *stuck) == [
        StepCompensated("hotel"), SagaEnded("failed", "hotel was not answered in time"),
    ]  # fmt: skip


def test_each_further_attempt_has_twice_the_time() -> None:
    assert SAGA.deadline(after(*STARTED)) == 5
    assert SAGA.deadline(after(*STARTED, DeadlinePassed("hotel", 1), ask(HOTEL, 2))) == 10
    assert SAGA.deadline(after(*DONE)) is None
    assert SAGA.deadline(None) is None


def test_a_saga_that_was_never_started_awaits_nothing() -> None:
    for command in (Reply(HOTEL.done()), Cancel(), TimeOut(9), Retry()):
        assert decided(command) == []
    with pytest.raises(CannotApply):
        after(StepDone("hotel"))


@pytest.mark.parametrize("steps", [(), (HOTEL, HOTEL), (HOTEL, step("hotel"))])
def test_steps_that_answers_cannot_tell_apart_are_refused(steps: tuple[Step, ...]) -> None:
    with pytest.raises(Misconfigured):
        Saga(CATALOGUE, steps)


# ── whatever happens when ─────────────────────────────────────────────────────────────────


@dataclass
class Other:
    """Another aggregate, with a step of the saga: one answer to all attempts, void once undone."""

    step: Step
    accepts: bool
    live: bool = False
    answer: object = None
    undone: object = None

    def take(self, request: SagaEvent) -> object:
        """Carries out a request; the event is that of the first time."""
        if isinstance(request, CompensationRequested):
            self.undone = self.undone or self.step.compensated()
            self.live = False
            return self.undone
        if self.answer is None and self.undone is None:
            assert self.step.refused
            self.live = self.accepts
            self.answer = self.step.done() if self.accepts else self.step.refused("full")
        return self.answer


@dataclass
class World:
    """A saga among messages that are late, repeated, and in any order."""

    saga: Saga
    others: dict[str, Other]
    log: list[SagaEvent] = field(default_factory=list)
    requests: list[SagaEvent] = field(default_factory=list)
    replies: list[object] = field(default_factory=list)
    rounds: int = 0

    def do(self, command: SagaCommand) -> None:
        """Carries out a command, and checks what must hold after each."""
        before = self.state
        new = self.saga.decider.decide(command, before)
        self.log += new
        self.requests += [e for e in new if isinstance(e, StepRequested | CompensationRequested)]
        self.rounds += bool(new) and isinstance(command, Retry)
        ended = [event.outcome for event in self.log if isinstance(event, SagaEnded)]
        assert ended[1:] in ([], ["cancelled"])
        assert len(ended) < 2 or ended[0] == "done"
        state = self.state
        assert state
        assert (self.saga.deadline(state) is None) == (state.awaited is None)
        assert (self.saga.deadline(state) == math.inf) == state.stuck
        assert state.stuck == isinstance(self.log[-1], DeadlinePassed)
        if before and before.outcome and before.outcome != state.outcome:
            assert (before.outcome, state.outcome) == ("done", "cancelled")

    @property
    def state(self) -> SagaState | None:
        return reduce(evolve, self.log, self.saga.decider.initial)

    def act(self, kind: str, which: int) -> None:
        """One thing that can happen."""
        if kind == "request" and self.requests:
            request = self.requests[which % len(self.requests)]
            answer = self.others[request.step].take(request)  # type: ignore[union-attr]
            self.replies += [answer] if answer else []
        elif kind == "reply" and self.replies:
            self.do(Reply(self.replies[which % len(self.replies)]))
        elif kind == "time out":
            self.do(TimeOut(which % (len(self.log) + 1)))
        elif kind == "late":
            self.do(TimeOut(len(self.log)))
        elif kind in ("cancel", "retry", "start"):
            commands: dict[str, SagaCommand] = {
                "cancel": Cancel("rain"), "retry": Retry(), "start": Start({}),
            }  # fmt: skip
            self.do(commands[kind])


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["request", "request", "reply", "reply", "time out", "late", "cancel",
                         "retry", "start"]),
        st.integers(0, 99),
    ),
    max_size=60,
)  # fmt: skip

WORLDS = st.lists(st.tuples(st.booleans(), st.integers(1, 3)), min_size=1, max_size=4)


def world_of(steps: list[tuple[bool, int]]) -> World:
    made = [step(f"step{place}", attempts) for place, (_, attempts) in enumerate(steps)]
    others = {s.name: Other(s, accepts) for s, (accepts, _) in zip(made, steps, strict=True)}
    world = World(Saga(CATALOGUE, tuple(made)), others)
    world.do(Start(ARGUMENTS))
    return world


def bring_all(world: World) -> None:
    """Requests and replies arrive once more, until there is nothing new."""
    for _ in range(9):
        for place in range(len(world.requests)):
            world.act("request", place)
        for place in reversed(range(len(world.replies))):
            world.act("reply", place)


def requested(world: World, kind: type[Any]) -> list[str]:
    """The steps that were requested so, each once, in the order of the first time."""
    return list(dict.fromkeys(e.step for e in world.log if isinstance(e, kind)))


def check(world: World) -> None:
    """The promises that hold at any time."""
    attempts = Counter(
        (type(event), event.step, event.attempt)
        for event in world.log
        if isinstance(event, StepRequested | CompensationRequested)
    )
    assert max(attempts.values()) <= 1 + world.rounds
    names = [each.name for each in world.saga.steps]
    assert requested(world, StepRequested) == names[: len(requested(world, StepRequested))]
    refused = {event.step for event in world.log if isinstance(event, StepRefused)}
    begun = [name for name in requested(world, StepRequested) if name not in refused]
    back = requested(world, CompensationRequested)
    assert back == begun[::-1][: len(back)]
    state = world.state
    assert state
    if state.outcome not in (None, "done") and state.awaited is None:
        assert back == begun[::-1]
        assert not any(other.live for other in world.others.values())
    if state.outcome == "done":
        assert state.awaited is None
        assert all(other.live for other in world.others.values())


@given(WORLDS, ACTS)
def test_whatever_comes_when_the_promises_hold(
    steps: list[tuple[bool, int]], acts: list[tuple[str, int]]
) -> None:
    world = world_of(steps)
    for kind, which in acts:
        world.act(kind, which)
        check(world)


@given(WORLDS, ACTS)
def test_a_saga_that_nobody_answers_any_more_ends_or_is_stuck(
    steps: list[tuple[bool, int]], acts: list[tuple[str, int]]
) -> None:
    world = world_of(steps)
    for kind, which in acts:
        world.act(kind, which)
    for _ in range(8):
        world.do(TimeOut(len(world.log)))
    state = world.state
    assert state
    assert state.stuck or state.awaited is None
    check(world)


@given(WORLDS, ACTS)
def test_a_saga_whose_requests_arrive_in_the_end_ends(
    steps: list[tuple[bool, int]], acts: list[tuple[str, int]]
) -> None:
    world = world_of(steps)
    for kind, which in acts:
        world.act(kind, which)
    bring_all(world)
    state = world.state
    assert state
    assert state.awaited is None
    assert state.outcome
    assert not state.stuck
    refuses = any(not other.accepts for other in world.others.values())
    assert state.outcome == "done" or state.cancel or refuses or state.outcome == "failed"
    check(world)


@given(st.integers(0, 8), st.integers(1, 4), st.booleans())
def test_a_cancellation_at_any_step_leaves_nothing_behind(
    place: int, count: int, twice: bool
) -> None:
    world = world_of([(True, 1)] * count)
    for number in range(place):
        world.act(("request", "reply")[number % 2], number // 2)
    world.act("cancel", 0)
    if twice:
        world.act("cancel", 0)
    bring_all(world)
    state = world.state
    assert state
    assert (state.outcome, state.reason, state.awaited) == ("cancelled", "rain", None)
    assert state.begun == ()
    check(world)


@given(st.integers(0, 3), st.integers(1, 4), st.booleans())
def test_a_late_answer_at_any_step_leaves_nothing_behind(
    late: int, count: int, accepts: bool
) -> None:
    world = world_of([(True, 1)] * count)
    late %= count
    world.others[f"step{late}"].accepts = accepts
    for place in range(late):
        world.act("request", place)
        world.act("reply", place)
    world.act("late", 0)
    bring_all(world)
    state = world.state
    assert state
    assert (state.outcome, state.awaited) == ("failed", None)
    check(world)
