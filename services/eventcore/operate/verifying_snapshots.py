"""Verify snapshots: compares each with the fold of its stream's events, from the first one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from eventcore.model.decider import Decider, StreamState
from eventcore.snapshots import restored, unusable
from eventcore.store.port import PAGE, Snapshot, Store, Stream, read_pages


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of a comparison: the reason for each stream whose snapshot is wrong.

    Snapshots that other code has folded are counted only: no command uses them.
    """

    checked: int
    of_other_code: int
    wrong: dict[Stream, str]


def compare_snapshots(store: Store, decider: Decider[Any, Any, Any]) -> Compared:
    """Compares all snapshots of a decider's streams; raises StoreUnavailable."""
    reasons = {
        stream: _difference(store, decider, stream, snapshot)
        for stream, snapshot in _all(store, decider.aggregate_type)
    }
    others = sum(reason == "other_code" for reason in reasons.values())
    wrong = {s: reason for s, reason in reasons.items() if reason not in ("", "other_code")}
    return Compared(len(reasons), others, wrong)


def _all(store: Store, aggregate_type: str) -> Iterator[tuple[Stream, Snapshot]]:
    after: UUID | None = None
    while page := store.read_snapshots(aggregate_type, after, PAGE):
        yield from page
        after = page[-1][0].aggregate_id


def _difference(
    store: Store, decider: Decider[Any, Any, Any], stream: Stream, snapshot: Snapshot
) -> str:
    """Why a snapshot is not used, or must not be; "": it equals the fold."""
    if reason := unusable(decider, stream, snapshot):
        return reason
    try:
        found = restored(decider, snapshot)
    except Exception as error:  # noqa: BLE001 - whatever a function of the decider raises
        return f"unreadable: {type(error).__name__}"
    state, last = decider.initial, None
    for page in read_pages(store, stream, 0, found.version):
        state, last = decider.fold(state, page), page[-1]
    if last is None or (last.version, last.event_id) != (found.version, found.event_id):
        return "other_event: the log does not have the event on which it stands"
    folded = StreamState(state, found.version, 0, found.event_id)
    return "" if folded == found else "it differs from the fold of the events"
