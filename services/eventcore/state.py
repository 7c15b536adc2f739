"""The state of a stream, folded from its events, or from a snapshot and the events after it."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

from eventcore.errors import NotFound
from eventcore.model.decider import Decider, StreamState
from eventcore.model.event import Event
from eventcore.observe.metrics import FOLDED
from eventcore.snapshots import count_read, usable
from eventcore.store.port import Store, Stream, read_pages

State = TypeVar("State")


def read_state(
    store: Store, decider: Decider[Any, State, Any], stream: Stream
) -> StreamState[State]:
    """The state of a stream; at version 0, the initial one, if the stream does not exist.

    Raises CannotApply, StoreUnavailable.
    """
    found = _from_snapshot(store, decider, stream) if decider.snapshot_every else None
    found = found or _fold(decider, StreamState(decider.initial), read_pages(store, stream))
    FOLDED.labels(decider.aggregate_type).observe(found.folded)
    return found


def read_existing(
    store: Store, decider: Decider[Any, State, Any], stream: Stream
) -> StreamState[State]:
    """As read_state; raises NotFound if the stream does not exist."""
    found = read_state(store, decider, stream)
    if not found.version:
        raise NotFound(f"There is no {stream.aggregate_type} {stream.aggregate_id}.")
    return found


def _from_snapshot(
    store: Store, decider: Decider[Any, State, Any], stream: Stream
) -> StreamState[State] | None:
    """The state by way of the stream's snapshot; None if there is none of use."""
    begin = usable(store, decider, stream)
    if begin is None:
        return None
    pages = read_pages(store, stream, begin.version - 1)
    page = next(pages, [])
    if not page or page[0].event_id != begin.event_id:
        count_read(decider, "other_event")
        return None
    count_read(decider, "used")
    return _fold(decider, replace(begin, position=page[0].position), chain([page[1:]], pages))


def _fold(
    decider: Decider[Any, State, Any], begin: StreamState[State], pages: Iterable[list[Event]]
) -> StreamState[State]:
    found = begin
    for page in filter(None, pages):
        state, last = decider.fold(found.state, page), page[-1]
        folded = found.folded + len(page)
        found = StreamState(state, last.version, last.position, last.event_id, folded)
    return found
