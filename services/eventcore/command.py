"""One command: read its stream, fold, decide, append; again on a conflict."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, TypeVar
from uuid import UUID

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import Conflict, StaleVersion, StoreUnavailable
from eventcore.ids import new_id
from eventcore.model.decider import Decider, StreamState
from eventcore.model.event import Data, NewEvent, tag_of
from eventcore.model.token import SEEN_HEADER, Token, token_of
from eventcore.observe.metrics import APPENDS, CONFLICTS, CONFLICTS_LOST, count_appended
from eventcore.snapshots import WRITER
from eventcore.state import read_existing, read_state
from eventcore.store.port import (
    Answer,
    Append,
    Deadline,
    Idempotency,
    Store,
    Stream,
)

State = TypeVar("State")

Command = TypeVar("Command")

DomainEvent = TypeVar("DomainEvent")

ATTEMPTS = 8  # how often a command is decided while others keep changing its stream first

_LOCK_WAIT = 1.0  # seconds; then a command goes on without the lock: the store keeps the order

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """The context of a command: its ids, its idempotency key and its condition."""

    metadata: Data
    idempotency: Idempotency | None = None
    if_match: tuple[str, ...] = ()

    def expects(self, tag: str) -> bool:
        """True if If-Match is absent or contains this tag or its version."""
        return not self.if_match or tag in self.if_match or tag.split(".")[0] in self.if_match


_STREAM_LOCKS = tuple(threading.Lock() for _ in range(1024))
"""Locks for commands, chosen by the hash of store and stream. Commands in one process wait;
commands in other processes conflict and retry."""


@contextmanager
def _one_at_a_time(stream: object) -> Iterator[None]:
    lock = _STREAM_LOCKS[hash(stream) % len(_STREAM_LOCKS)]
    taken = lock.acquire(timeout=_LOCK_WAIT)
    try:
        yield
    finally:
        if taken:
            lock.release()


def handle(
    store: Store,
    decider: Decider[Command, State, DomainEvent],
    aggregate_id: UUID,
    command: Command,
    call: Call,
    answer: Callable[[State, int], Answer],
    *,
    creates: bool = False,
    also: Callable[[State, State], Sequence[Append]] | None = None,
    deadline: Callable[[State], Deadline] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    new_id: Callable[[], UUID] = new_id,
) -> Answer:
    """Carries out `command`, exactly once where the call has an idempotency key.

    `answer` makes the answer from the new state and version; its ETag and token are added. A
    command that `creates` has an id of its own making, so there is no stream to read. `also` makes
    appends to other streams, of the state before and after, and `deadline` the deadline of the
    stream, of the state after; they share the transaction. A command without events sets no
    deadline. Raises NotFound, StaleVersion, Conflict, KeyReused, the refusals of `decide`,
    StoreUnavailable and Overloaded; then nothing was written. A refused command may be a repeat of
    a successful one: see answered_before. Raises OutcomeUnknown if it is not known whether it was
    written.
    """
    stream = Stream(decider.aggregate_type, aggregate_id)
    once = partial(_once, store, decider, stream, command, call, answer, creates, also, deadline)
    for attempt in range(ATTEMPTS):
        try:
            with nullcontext() if creates else _one_at_a_time((id(store), aggregate_id)):
                return once(new_id)
        except Conflict as conflict:
            CONFLICTS.labels(decider.aggregate_type).inc()
            log.info("conflict, deciding again", extra={"stream": str(stream), "attempt": attempt})
            if (creates and (not also or 0 in conflict.versions)) or attempt == ATTEMPTS - 1:
                CONFLICTS_LOST.labels(decider.aggregate_type).inc()
                raise Conflict(
                    f"{stream} is being changed by others; nothing was written"
                ) from conflict
            clock.sleep(clock.uniform(0, 0.002 * 2**attempt))  # full jitter, 0.25 s at most
    raise AssertionError("unreachable")


def append_of(
    store: Store,
    decider: Decider[Command, State, DomainEvent],
    aggregate_id: UUID,
    command: Command,
    *,
    creates: bool = False,
    deadline: Callable[[State], Deadline] | None = None,
    new_id: Callable[[], UUID] = new_id,
) -> Sequence[Append]:
    """The append that a command makes to its stream, for `also` of another command.

    A stream that the command leaves as it is must not change either before the commit; none if it
    does not exist. `creates` and `deadline` as for `handle`. Raises the refusals of `decide`, and
    StoreUnavailable.
    """
    stream = Stream(decider.aggregate_type, aggregate_id)
    found = StreamState(decider.initial) if creates else read_state(store, decider, stream)
    if decider.snapshot_every:
        WRITER.offer(store, decider, stream, found)
    append, _ = _to_append(decider, stream, found, command, deadline, new_id)
    return [append] if found.version or append.events else []


def begin_many(
    store: Store,
    decider: Decider[Command, State, DomainEvent],
    commands: Mapping[UUID, Command],
    call: Call,
    given: Answer,
    *,
    also: Callable[[UUID], Sequence[Append]] | None = None,
    new_id: Callable[[], UUID] = new_id,
) -> Answer:
    """Carries out commands that each begin a stream, by its id: all or none, in one transaction.

    `given` is the answer; its token is added, which names the newest of these streams. `also` makes
    the appends to other streams that belong to an id. Raises as `handle`.
    """
    kind, new = decider.aggregate_type, StreamState(decider.initial)
    appends = [
        _to_append(decider, Stream(kind, id), new, command, None, new_id)[0]
        for id, command in commands.items()
    ]
    token = Token({
        (decider.aggregate_type, str(each.stream.aggregate_id)): len(each.events)
        for each in reversed(appends)
    })  # fmt: skip
    given = replace(given, headers={**given.headers, SEEN_HEADER: str(token)})
    others = [append for id in commands for append in also(id)] if also else []
    return _append_all(store, [*appends, *others], call, given)


def _to_append(
    decider: Decider[Command, State, DomainEvent],
    stream: Stream,
    before: StreamState[State],
    command: Command,
    deadline: Callable[[State], Deadline] | None,
    new_id: Callable[[], UUID],
) -> tuple[Append, State]:
    """The append that a command makes to its stream in a state, and the state after it."""
    decided = decider.decide(command, before.state)
    events = [decider.to_new_event(event, new_id()) for event in decided]
    state = reduce(decider.evolve, decided, before.state)
    due = deadline(state) if deadline and events else None
    return Append(stream, before.version, events, due), state


def answered_before(store: Store, call: Call) -> Answer | None:
    """The earlier answer under this call's key, if there is one.

    An append finds that out by itself, so this is needed only before a request waits or is
    refused: the same request, earlier, may be the reason. Raises KeyReused, StoreUnavailable.
    """
    earlier = store.recorded_answer(call.idempotency) if call.idempotency else None
    return _to_replay(store, earlier) if earlier else None


def _to_replay(store: Store, earlier: Answer) -> Answer:
    replay = replace(earlier, headers={**earlier.headers, "Idempotency-Replayed": "true"})
    return _with_position(store, replay) if SEEN_HEADER in earlier.headers else replay


def _with_position(store: Store, given: Answer) -> Answer:
    """An answer to a command with the position of the newest event of its token, read again.

    It is left out if the store cannot be read: the command has been carried out.
    """
    token = Token.parse(str(given.headers[SEEN_HEADER]))
    (kind, id), version = next(iter(token.streams.items()))
    with suppress(StoreUnavailable):
        for event in store.read_stream(Stream(kind, UUID(id)), version - 1, 1):
            token.positions[kind] = event.position
    return replace(given, headers={**given.headers, SEEN_HEADER: str(token)})


def _once(
    store: Store,
    decider: Decider[Command, State, DomainEvent],
    stream: Stream,
    command: Command,
    call: Call,
    answer: Callable[[State, int], Answer],
    creates: bool,
    also: Callable[[State, State], Sequence[Append]] | None,
    deadline: Callable[[State], Deadline] | None,
    new_id: Callable[[], UUID],
) -> Answer:
    before = StreamState(decider.initial) if creates else read_existing(store, decider, stream)
    _require_expected(call, stream, before)
    append, state = _to_append(decider, stream, before, command, deadline, new_id)
    events, reached = append.events, before.version + len(append.events)
    tag = tag_of(reached, events[-1].event_id) if events else before.tag
    given = _with_version(answer(state, reached), stream, reached, 0, tag)
    others = also(before.state, state) if also else []
    if others or append.deadline:
        done = _append_all(store, [append, *others], call, given)
    else:
        done = _append_one(store, append, call, given, before.position, tag)
    if decider.snapshot_every:
        WRITER.offer(store, decider, stream, before)
    return done


def _append_one(
    store: Store, append: Append, call: Call, given: Answer, position: int, tag: str
) -> Answer:
    """Appends to one stream, and returns the answer with its position, or the earlier one."""
    stream, version, events = append.stream, append.expected_version, append.events
    with APPENDS.labels(stream.aggregate_type).time():
        appended = store.append(stream, version, events, call.metadata, call.idempotency, given)
    if appended.replayed:
        return _to_replay(store, appended.replayed)
    _note_appended(stream, events)
    return _with_version(given, stream, appended.version, appended.position or position, tag)


def _append_all(store: Store, appends: Sequence[Append], call: Call, given: Answer) -> Answer:
    """Appends to several streams, and returns the answer with its position, or the earlier one."""
    with APPENDS.labels(appends[0].stream.aggregate_type).time():
        replayed = store.append_many(appends, call.metadata, call.idempotency, given)
    if replayed:
        return _to_replay(store, replayed)
    for each in appends:
        _note_appended(each.stream, each.events)
    return _with_position(store, given)


def _with_version(given: Answer, stream: Stream, version: int, position: int, tag: str) -> Answer:
    """The answer with its ETag and its token; the web layer adds the epoch to the token."""
    token = token_of(stream.aggregate_type, stream.aggregate_id, version, position)
    return replace(given, headers={**given.headers, "ETag": f'"{tag}"', SEEN_HEADER: token})


def _require_expected(call: Call, stream: Stream, found: StreamState[Any]) -> None:
    if not call.expects(found.tag):
        raise StaleVersion(
            f"The {stream.aggregate_type} is at version {found.version}, and not as If-Match says."
            " Nothing was written. Read it again, then repeat the change.",
            found.tag,
            token_of(stream.aggregate_type, stream.aggregate_id, found.version, found.position),
        )


def _note_appended(stream: Stream, events: Sequence[NewEvent]) -> None:
    for event in events:
        count_appended(stream.aggregate_type, event.event_type, event.data)
        log.info(
            f"{stream.aggregate_type.title()} Event [{event.event_type}] saved to Postgres",
            extra={"id": str(stream.aggregate_id), "event_id": str(event.event_id)},
        )
