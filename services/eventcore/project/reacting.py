"""Reacts to events: the command first, the guarded write of the document after it.

Deadlines are fired beside that: a due stream is taken, its command is carried out.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from uuid import UUID

from eventcore import command as commands
from eventcore.errors import (
    Conflict,
    NotFound,
    ReadModelUnavailable,
    StoreSlow,
    StoreUnavailable,
    Unavailable,
)
from eventcore.failpoints import failpoint
from eventcore.model.decider import Command, Decider, DomainEvent, State
from eventcore.model.event import Event, ids_of
from eventcore.model.projection import Document
from eventcore.observe.health import HEARTBEAT
from eventcore.observe.metrics import DEADLINES, REACTIONS
from eventcore.project.applier import EventApplier
from eventcore.project.fold_result import FoldResult, Later
from eventcore.reactor import Reaction, Reactor
from eventcore.readmodel.records import Parked
from eventcore.state import read_state
from eventcore.store.port import (
    Answer,
    Append,
    Deadline,
    Due,
    Idempotency,
    Store,
    Stream,
)

log = logging.getLogger(__name__)

FIRED_AT_ONCE = 100
"""Deadlines that one sweep fires at most."""

HOLD = 10.0
"""Seconds after which a deadline is due again if its command was not carried out."""

_DONE = Answer(200, {}, {})


@dataclass(frozen=True)
class StoreCommands:
    """Commands on a store, all in the context of one call.

    If they fire a deadline, `late` is by how many seconds it was passed: the next one is so much
    sooner, unless nothing would be left. So the lateness of several attempts does not add up.
    """

    store: Store
    call: commands.Call
    amounts: Mapping[str, Decimal | None] = MappingProxyType({})
    late: float = 0.0

    def handle(
        self,
        decider: Decider[Command, State, DomainEvent],
        aggregate_id: UUID,
        command: Command,
        *,
        also: Callable[[State, State], Sequence[Append]] | None = None,
        deadline: Callable[[State], Deadline] | None = None,
    ) -> None:
        given = self.store, decider, aggregate_id, command, self.call, lambda _, __: _DONE
        due = deadline and (lambda state: self._sooner(deadline(state)))
        handle = partial(commands.handle, *given, also=also, deadline=due)
        stream = Stream(decider.aggregate_type, aggregate_id)
        try:
            handle()
        except NotFound:  # of the stream, which another process may begin now, or in `also`
            try:
                handle(creates=not self._exists(stream))
            except Conflict:
                if not self._exists(stream):
                    raise
                handle()

    def _exists(self, stream: Stream) -> bool:
        return bool(self.store.read_stream(stream, 0, 1))

    def _sooner(self, deadline: Deadline) -> Deadline:
        if deadline.seconds is None or deadline.seconds <= self.late:
            return deadline
        return Deadline(deadline.seconds - self.late)

    def amount(self, name: str) -> Decimal | None:
        return self.amounts.get(name)

    def append_of(
        self,
        decider: Decider[Command, State, DomainEvent],
        aggregate_id: UUID,
        command: Command,
        *,
        deadline: Callable[[State], Deadline] | None = None,
    ) -> Sequence[Append]:
        return commands.append_of(self.store, decider, aggregate_id, command, deadline=deadline)

    def read(
        self, decider: Decider[Command, State, DomainEvent], aggregate_id: UUID
    ) -> tuple[State, int]:
        found = read_state(self.store, decider, Stream(decider.aggregate_type, aggregate_id))
        return found.state, found.version


@dataclass(eq=False)
class ReactingApplier(EventApplier):
    """Applies events to a reactor's documents, and carries out its command before each write.

    A stream whose command cannot be carried out now stays where it is, and is left to the sweep;
    the other streams go on. If a server cannot be reached, that is raised once they are written.
    """

    projection: Reactor
    own: Store = field(kw_only=True)
    """The store of the reactor's service."""
    amounts: Mapping[str, Decimal | None] = field(default=MappingProxyType({}), kw_only=True)
    """The settings of its reactions, by the variable's name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reacted = set[UUID]()
        self._delay: Unavailable | None = None

    def _advance(
        self,
        streams: Mapping[str, Sequence[Event]],
        documents: Mapping[str, Document] | None = None,
        entries: Mapping[str, Parked] = MappingProxyType({}),
        is_log: bool = False,
    ) -> dict[str, FoldResult]:
        self._reacted.clear()
        self._delay = None
        folded = super()._advance(streams, documents, entries, is_log)
        if self._delay and self._delay.unreachable:
            raise self._delay
        return folded

    def why_behind(self, streams: int) -> Unavailable:
        return self._delay or super().why_behind(streams)

    def _must_read(self, stream: str, events: Sequence[Event]) -> bool:
        return True  # the guard would refuse a duplicate, but only after its command

    def _apply(self, document: Document | None, event: Event) -> Document:
        after = self.projection.apply(document, event)
        reaction = self.projection.on.get(event.event_type)
        # a batch is folded again where a replica was faster with one of its documents
        if reaction and event.event_id not in self._reacted:
            self._react(reaction, self.projection.catalogue.upcast(event))
            self._reacted.add(event.event_id)
            failpoint("reactor:reacted")
        return after

    def fold(self, events: Iterable[Event], skipped: Collection[int] = ()) -> Document | None:
        """The document of a whole stream, reacting to each event that is not in `skipped`.

        Raises Unavailable, and whatever parks the stream.
        """
        self._reacted.clear()
        document = None
        for event in events:
            step = self.projection.skip if event.version in skipped else self._apply
            try:
                document = step(document, event)
            except Later as later:
                raise self._delay or later from later
        return document

    def _react(self, reaction: Reaction, event: Event) -> None:
        """Carries out the command of an event. Raises Later, and whatever parks the stream."""
        HEARTBEAT.beat()
        name, outcome = self.projection.name, "failed"
        key = Idempotency(f"{name} {event.event_id}", str(event.event_id))  # no header has a space
        try:
            reaction(StoreCommands(self.own, _call(name, event, key), self.amounts), event)
            outcome = "done"
        except (Conflict, Unavailable) as error:
            outcome = "delayed"
            fields = {"projection": name, "id": str(event.aggregate_id), **ids_of(event)}
            log.info("Command delayed", extra={**fields, "reason": str(error)})
            self._delay = _to_delay(error)
            raise Later from error
        finally:
            REACTIONS.labels(name, outcome).inc()


def _to_delay(error: Conflict | Unavailable) -> Unavailable:
    """The error if a server cannot be reached; otherwise it is the stream alone that must wait."""
    if isinstance(error, StoreUnavailable | ReadModelUnavailable) and error.unreachable:
        return error
    return StoreSlow(str(error))


def fire_deadlines(
    reactor: Reactor, store: Store, amounts: Mapping[str, Decimal | None] = MappingProxyType({})
) -> bool:
    """Fires deadlines that have passed, FIRED_AT_ONCE at most; True if there may be more.

    One that fails is logged, counted, and due again after HOLD. Raises Unavailable if the store
    cannot be reached.
    """
    if not reactor.deadlines:
        return False
    kind = reactor.deadline_type
    taken = store.take_due(kind, FIRED_AT_ONCE, HOLD)
    for due in taken:
        HEARTBEAT.beat()
        outcome = "failed"
        try:
            [event] = store.read_stream(due.stream, due.version - 1, 1)
            call = _call(reactor.name, event)
            reactor.deadlines(StoreCommands(store, call, amounts, due.late), due)
            _end(store, due)
            outcome = "fired"
        except Exception as error:
            if isinstance(error, Unavailable) and error.unreachable:
                raise
            fields = {"stream": str(due.stream), "version": due.version}
            log.exception("Deadline failed", extra={"projection": reactor.name, **fields})
        finally:
            DEADLINES.labels(kind, outcome).inc()
    return len(taken) == FIRED_AT_ONCE


def _end(store: Store, due: Due) -> None:
    """Removes a deadline that led to nothing, or it would be due again after each HOLD."""
    if store.read_stream(due.stream, due.version, 1):
        return  # the command moved the stream on, and its deadline with it
    with suppress(Conflict):  # another command did, since
        store.append_many([Append(due.stream, due.version, [], Deadline(None))], {})


def _call(reactor: str, event: Event, key: Idempotency | None = None) -> commands.Call:
    """The context of the command that follows from an event."""
    metadata = {"causationId": str(event.event_id), "reactor": reactor}
    for name in ("correlationId", "traceparent", "actor"):
        if isinstance(value := event.metadata.get(name), str):
            metadata[name] = value
    return commands.Call(metadata, key)
