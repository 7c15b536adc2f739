"""`saga`: show a saga, list those that wait, and retry a stuck one."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

import click

from eventcore import jsontext, settings
from eventcore.command import Call, handle
from eventcore.errors import Misconfigured, Refused
from eventcore.ids import new_id
from eventcore.model.event import Event
from eventcore.model.saga import (
    CompensationRequested,
    DeadlinePassed,
    Request,
    Retry,
    Saga,
    SagaState,
    StepCompensated,
    StepDone,
    StepRefused,
    StepRequested,
)
from eventcore.model.service import Service
from eventcore.operate.shared import Row, as_json, declared, show
from eventcore.reactor import Reactor
from eventcore.store.port import Answer, Deadline, Store, Stream, read_pages
from eventcore.store.postgres import Postgres

LISTED = 100
"""Sagas that `list` prints at most, unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One saga: its kind, its stream's events, and the state that they fold to."""

    saga: Saga
    events: Sequence[Event]
    state: SagaState

    @property
    def stream(self) -> Stream:
        """Its stream."""
        return Stream(self.saga.catalogue.aggregate_type, self.events[0].aggregate_id)

    @property
    def due_at(self) -> datetime | None:
        """The time when the awaited answer is late, to about a sweep; None: it is stuck."""
        seconds = self.saga.deadline(self.state)
        if seconds is None or self.state.stuck:
            return None
        return self.events[-1].recorded_at + timedelta(seconds=seconds)


@click.group()
def saga() -> None:
    """Look at the sagas of a service, or retry a stuck one."""


_saga_id = click.argument("saga_id", metavar="ID", type=click.UUID)


@saga.command(name="show")
@_saga_id
@as_json
def saga_show(saga_id: UUID, as_json: bool) -> None:
    """Show a saga and each attempt of its steps.

    Also its arguments, which may be personal, and what it waits for until when. ID is that of its
    stream; the saga of an order has the order's.
    """
    found = _require(_open("saga show"), saga_id)
    summary, steps = summarized(found), attempts(found)
    arguments = dict(found.state.arguments)
    if as_json:
        whole = {**summary, "arguments": arguments, "steps": steps}
        click.echo(jsontext.render_line(whole))
        return
    show([summary], as_json)
    click.echo()
    show([{"argument": name, "value": value} for name, value in arguments.items()], as_json)
    click.echo()
    show(steps, as_json)


@saga.command(name="list")
@click.option("--stuck", is_flag=True, help="Only those that wait for `saga retry`.")
@click.option("--limit", default=LISTED, show_default=True, type=click.IntRange(min=1))
@as_json
def saga_list(stuck: bool, limit: int, as_json: bool) -> None:
    """List the sagas that have not ended.

    Stuck ones come first, then those with the latest deadline.
    """
    store, sagas = opened = _open("saga list")
    found = [
        waiting.stream.aggregate_id
        for each in sagas
        for waiting in store.read_waiting(each.catalogue.aggregate_type, limit + 1, stuck=stuck)
    ]
    read = [instance for id in found[:limit] for instance in _read(opened, id)]
    rows = [summarized(each) for each in read if each.state.awaited]
    show(rows, as_json, "No saga is stuck." if stuck else "No saga waits.")
    if len(found) > limit:
        click.echo(f"eventcore: there are more than {limit}; --limit shows more", err=True)


@saga.command(name="retry")
@_saga_id
def saga_retry(saga_id: UUID) -> None:
    """Request what a stuck saga waits for again.

    It gets all its attempts once more, with their deadlines. Repeating it does no harm: the other
    service gives one answer to all requests of one step.
    """
    opened = store, _ = _open("saga retry")
    before = _require(opened, saga_id)
    if not before.state.stuck:
        raise Refused(f"{before.stream} is not stuck: it {_rest(before)}; nothing was changed")
    last, kind = before.events[-1].metadata, before.saga
    call = Call({"correlationId": last.get("correlationId"), "causationId": str(new_id())})
    handle(
        store, kind.decider, saga_id, Retry(), call, lambda *_: Answer(200, {}, {}),
        deadline=lambda state: Deadline(kind.deadline(state)),
    )  # fmt: skip
    after = _require(opened, saga_id)
    request = kind.catalogue.to_domain_event(after.events[-1])
    if isinstance(request, Request):
        click.echo(f"{after.stream}: requested again; it {_rest(after)}.")
    else:  # its answer came at the same moment
        click.echo(f"{after.stream}: it {_rest(after)}.")


def summarized(found: Instance) -> Row:
    """A row about a saga: its state, its outcome, and what it waits for."""
    state = found.state
    stands = "stuck" if state.stuck else "waits" if state.awaited else "ended"
    return {
        "saga": found.stream.aggregate_type,
        "id": str(found.stream.aggregate_id),
        "state": stands,
        "awaits": _awaited(state.awaited) if state.awaited else None,
        "attempt": state.awaited.attempt if state.awaited else None,
        "deadline": _time(found.due_at) if found.due_at else None,
        "startedAt": _time(found.events[0].recorded_at),
        "cancelled": bool(state.cancel),
        "outcome": state.outcome,
        "reason": state.reason,
    }


def attempts(found: Instance) -> list[Row]:
    """A row for each request of a saga, in order, with its answer."""
    rows: list[Row] = []
    for event in found.events:
        told = found.saga.catalogue.to_domain_event(event)
        if isinstance(told, Request):
            does = "compensation" if isinstance(told, CompensationRequested) else "step"
            row: Row = {"step": told.step, "request": does, "attempt": told.attempt}
            at = {"requestedAt": _time(event.recorded_at), "answer": None, "answeredAt": None}
            rows.append(row | at)
        elif isinstance(told, StepDone | StepRefused | StepCompensated | DeadlinePassed):
            answer = {
                StepDone: "done", StepRefused: "refused", StepCompensated: "compensated",
                DeadlinePassed: "late",
            }[type(told)]  # fmt: skip
            rows[-1] |= {"answer": answer, "answeredAt": _time(event.recorded_at)}
    return rows


def _rest(found: Instance) -> str:
    """The rest of a sentence that says what a saga does now."""
    state = found.state
    if state.awaited is None:
        return f"ended {state.outcome}"
    until = f" until {_time(found.due_at)}" if found.due_at else ""
    return f"waits for the {_awaited(state.awaited)}, attempt {state.awaited.attempt}{until}"


def _awaited(request: Request) -> str:
    if isinstance(request, StepRequested):
        return f"step {request.step}"
    return f"compensation of {request.step}"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


_Opened: TypeAlias = tuple[Store, Sequence[Saga]]


def _open(command: str) -> _Opened:
    """The store of the service that SERVICE names, and its sagas. Raises Misconfigured, Refused."""
    service = declared()
    if not service.sagas:
        raise Refused(
            f"the service {service.name} declares no saga. Run it in the shell of the service that"
            " does"
        )
    try:
        config = settings.read_settings(settings.StoreSettings, command)
    except Misconfigured as error:
        where = f"Run it in the shell of {' or '.join(_with_store(service))}"
        raise Misconfigured(f"{error}. {where}") from error
    return Postgres(config.store, 1), service.sagas


def _with_store(service: Service) -> Sequence[str]:
    """The processes of a service that have its store and may append to it."""
    reactors = [each.name for each in service.projectors if isinstance(each.projection, Reactor)]
    return [f"{service.name}-service", *reactors]


def _read(opened: _Opened, saga_id: UUID) -> list[Instance]:
    """The sagas whose stream has this id: one of a kind."""
    store, sagas = opened
    found = []
    for each in sagas:
        stream = Stream(each.catalogue.aggregate_type, saga_id)
        events = [event for page in read_pages(store, stream) for event in page]
        if state := each.decider.fold(None, events):
            found.append(Instance(each, events, state))
    return found


def _require(opened: _Opened, saga_id: UUID) -> Instance:
    found = _read(opened, saga_id)
    if not found:
        raise Refused(f"there is no saga {saga_id} in the service {declared().name}")
    return found[0]
