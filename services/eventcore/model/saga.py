"""A saga: steps in other aggregates, done one after another, or compensated in reverse. Pure.

A saga is an aggregate. Its stream holds what was requested and what was answered. A reactor of the
other aggregate carries out a request, and its event is the answer, which the saga's own reactor
brings back as a `Reply`. An answer that comes late, twice or out of order appends nothing.

    forwards:  SAGA_STARTED, STEP_REQUESTED a, STEP_DONE a, STEP_REQUESTED b, STEP_REFUSED b,
    backwards: COMPENSATION_REQUESTED a, STEP_COMPENSATED a, SAGA_ENDED refused

It also turns back when it is cancelled, even after it ended `done`, and when a step is late. A
deadline that passes proves nothing: the step may be done, or be done later. So it is requested
again, and after its last attempt compensated as if it were done. A compensation that is late to
the last attempt leaves the saga stuck, until its answer comes, or `Retry`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, assert_never

from eventcore.errors import CannotApply, Misconfigured
from eventcore.model.catalogue import Catalogue
from eventcore.model.decider import Decider

Arguments: TypeAlias = Mapping[str, Any]
"""Strings and exact numbers by name; every request of a saga has them."""

Outcome: TypeAlias = Literal["done", "refused", "cancelled", "failed"]
"""`refused`: a step was; `failed`: a step was not answered in time."""


@dataclass(frozen=True, slots=True)
class SagaStarted:
    """A saga was started."""

    arguments: Arguments


@dataclass(frozen=True, slots=True)
class StepRequested:
    """A step is to be carried out. Attempts of one step are the same request."""

    step: str
    attempt: int
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step was carried out."""

    step: str


@dataclass(frozen=True, slots=True)
class StepRefused:
    """A step was refused, and has no effect."""

    step: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The saga is to be compensated, once the step that it waits for is answered."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class CompensationRequested:
    """A step is to be compensated, whether it was carried out or not."""

    step: str
    attempt: int
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class StepCompensated:
    """A step has no effect any more, and will have none."""

    step: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A request was not answered in time. If no other request follows, the saga is stuck."""

    step: str
    attempt: int


@dataclass(frozen=True, slots=True)
class SagaEnded:
    """Nothing is left to be done. Only `done` can still become `cancelled`."""

    outcome: Outcome
    reason: str | None = None


SagaEvent: TypeAlias = (
    SagaStarted | StepRequested | StepDone | StepRefused | CancelRequested
    | CompensationRequested | StepCompensated | DeadlinePassed | SagaEnded
)  # fmt: skip

Request: TypeAlias = StepRequested | CompensationRequested


@dataclass(frozen=True, slots=True)
class Step:
    """A step in another aggregate, and its compensation.

    `done`, `refused` (which has a `reason`) and `compensated` are the classes of the answers. The
    other aggregate gives one answer to all attempts of a request. It answers each compensation: of
    a step that it refused too, and of one that it has not seen, which it then never carries out.
    `timeout` is in seconds; each further attempt waits twice as long.
    """

    name: str
    done: type[object]
    refused: type[Any] | None
    compensated: type[object]
    timeout: float
    attempts: int


@dataclass(frozen=True, slots=True)
class SagaState:
    """A saga, as far as decisions need one. It is stuck if its last event is DEADLINE_PASSED.

    `begun` names the steps that have, or may have, an effect. `awaited` is the request without an
    answer, `asked_at` its version. `outcome` is set when it is decided, before compensations.
    """

    arguments: Arguments
    version: int = 1
    begun: tuple[str, ...] = ()
    awaited: Request | None = None
    asked_at: int = 0
    cancel: CancelRequested | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Starts a saga."""

    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Reply:
    """Takes the event of another aggregate as the awaited answer, if it is."""

    event: object


@dataclass(frozen=True, slots=True)
class Cancel:
    """Compensates all steps: at once if the saga ended `done`, else after the awaited answer."""

    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TimeOut:
    """Says that the deadline passed that was set at this version of the stream."""

    version: int


@dataclass(frozen=True, slots=True)
class Retry:
    """Begins the attempts of a stuck saga anew."""


SagaCommand: TypeAlias = Start | Reply | Cancel | TimeOut | Retry


@dataclass(frozen=True)
class Saga:
    """A kind of saga: its steps, in order. `catalogue` has the events of `SagaEvent`.

    No two steps share a name or an answer. A step stays while sagas wait for it.
    """

    catalogue: Catalogue
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        answers = [kind for s in self.steps for kind in (s.done, s.refused, s.compensated) if kind]
        if not names or len({*names, *answers}) < len(names) + len(answers):
            raise Misconfigured("each step of a saga needs a name and answers of its own")

    @cached_property
    def decider(self) -> Decider[SagaCommand, SagaState | None, SagaEvent]:
        """The rules of its aggregate."""
        return Decider(self.catalogue, None, self._decide, evolve)

    def deadline(self, saga: SagaState | None) -> float | None:
        """Seconds until the awaited answer is late; infinity: stuck; None: none is awaited."""
        if saga is None or saga.awaited is None or saga.stuck:
            return math.inf if saga and saga.stuck else None
        return float(self._step(saga.awaited).timeout * 2 ** (saga.awaited.attempt - 1))

    def _decide(self, command: SagaCommand, saga: SagaState | None) -> Sequence[SagaEvent]:
        if isinstance(command, Start):
            first = StepRequested(self.steps[0].name, 1, command.arguments)
            return [] if saga else [SagaStarted(command.arguments), first]
        if saga is None:
            return []  # it was never started, so it awaits nothing
        match command, saga.awaited:
            case Cancel(reason), _ if saga.outcome == "done":
                return _backwards(CancelRequested(reason), saga)
            case Cancel(reason), _:
                return [] if saga.cancel or saga.outcome else [CancelRequested(reason)]
            case _, None:
                return []
            case Reply(answer), request:
                return self._take(answer, request, saga)
            case TimeOut(version), request:
                is_due = saga.asked_at <= version and not saga.stuck
                return self._pass_deadline(request, saga) if is_due else []
            case Retry(), request:
                return [replace(request, attempt=1)] if saga.stuck else []
        assert_never(command)

    def _take(self, answer: object, request: Request, saga: SagaState) -> Sequence[SagaEvent]:
        step = self._step(request)
        if isinstance(request, CompensationRequested):
            compensated = isinstance(answer, step.compensated)
            return _backwards(StepCompensated(step.name), saga) if compensated else []
        if step.refused and isinstance(answer, step.refused):
            return _backwards(StepRefused(step.name, answer.reason), saga)
        if not isinstance(answer, step.done):
            return []
        if saga.cancel:
            return _backwards(StepDone(step.name), saga)
        rest = self.steps[self.steps.index(step) + 1 :]
        following = StepRequested(rest[0].name, 1, saga.arguments) if rest else SagaEnded("done")
        return [StepDone(step.name), following]

    def _pass_deadline(self, request: Request, saga: SagaState) -> Sequence[SagaEvent]:
        passed = DeadlinePassed(request.step, request.attempt)
        compensates = isinstance(request, CompensationRequested)
        if request.attempt < self._step(request).attempts and (compensates or not saga.cancel):
            return [passed, replace(request, attempt=request.attempt + 1)]
        return [passed] if compensates else _backwards(passed, saga)

    def _step(self, request: Request) -> Step:
        return next(step for step in self.steps if step.name == request.step)


def _backwards(event: SagaEvent, saga: SagaState) -> Sequence[SagaEvent]:
    """The event, and the compensation of the last step that is begun then; else the end."""
    after = evolve(saga, event)
    if after.begun:
        return [event, CompensationRequested(after.begun[-1], 1, after.arguments)]
    assert after.outcome
    return [event, SagaEnded(after.outcome, after.reason)]


def evolve(saga: SagaState | None, event: SagaEvent) -> SagaState:
    """The saga after an event, whatever its steps are now. Raises CannotApply."""
    if isinstance(event, SagaStarted):
        return SagaState(event.arguments)
    if saga is None:
        raise CannotApply("a saga begins with SAGA_STARTED")
    saga = replace(saga, version=saga.version + 1, stuck=isinstance(event, DeadlinePassed))
    match event:
        case StepRequested(step):
            begun = (*_without(step, saga), step)
            return replace(saga, begun=begun, awaited=event, asked_at=saga.version)
        case StepRefused(step, reason):
            return replace(saga, begun=_without(step, saga), outcome="refused", reason=reason)
        case CompensationRequested(step):
            saga = replace(saga, awaited=event, asked_at=saga.version)
            if saga.outcome:
                return saga
            if saga.cancel:
                return replace(saga, outcome="cancelled", reason=saga.cancel.reason)
            return replace(saga, outcome="failed", reason=f"{step} was not answered in time")
        case StepCompensated(step):
            return replace(saga, begun=_without(step, saga))
        case CancelRequested():
            return replace(saga, cancel=event, outcome=None)
        case SagaEnded(outcome, reason):
            return replace(saga, outcome=outcome, reason=reason, awaited=None)
        case StepDone() | DeadlinePassed():
            return saga
    assert_never(event)


def _without(step: str, saga: SagaState) -> tuple[str, ...]:
    return tuple(each for each in saga.begun if each != step)
