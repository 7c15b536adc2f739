"""The port of the owner's feed, and the feed on the owner's own store.

A projector has no PostgreSQL credentials: it asks the owner for events that the broker has lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.model.event import Event, Mark
from eventcore.store.port import PAGE, SPAN, Progress, Store, Stream

SWEEP_RANGE = SPAN  # positions that one page of heads covers, unless there is a larger gap

MANY = 50  # streams that may be asked for at once

ANNOUNCEMENT = "Event-Versions"
"""The header by which a running consumer says which event versions it can take."""


@dataclass(frozen=True, slots=True)
class HeadsPage:
    """The last version of each stream that changed up to the event `end`, and the log as it is now:
    the settled event, the last position, and its epoch ("" from an owner of an older version).

    If `same` is false, the log lacks an event of the request, and the other fields mean nothing.
    `at` is the time of the settled position: the earlier of the owner's clock and the database's
    clock at that time; None from an owner of an older version.
    """

    heads: Mapping[str, int]
    end: Mark
    settled: Mark
    head: int
    epoch: str
    at: datetime | None
    same: bool = True


def halted_by(projection: str, position: int, epoch: str, page: HeadsPage) -> str:
    """Why a projection must apply nothing of this log, and what to do; "": it may.

    `position` and `epoch` are its checkpoint's; it asked for `page` with the checkpoint's marks.
    """
    if page.same and epoch in ("", page.epoch):
        return ""
    return (
        f"{projection}, at position {position}, has folded events that this log, which goes to"
        f" {page.head}, does not have: it was restored to an earlier state, or is another log."
        " Nothing is applied until the right log is back, or until the projection is rebuilt:"
        f" python -m eventcore rebuild {projection} --yes"
    )


class Feed(Protocol):
    """The port through which a projector asks the owner; every method may raise FeedUnavailable."""

    def stream(self, aggregate_id: str, after: int) -> list[Event]:
        """Events of one stream above version `after`, oldest first: all, or a page of them."""

    def streams(self, after: Mapping[str, int]) -> dict[str, list[Event]]:
        """The next events of each stream above its version, a page of them; MANY streams at most.

        A stream without such events has none. One that is left out is to be asked for again.
        """

    def heads(self, after: int, until: int, marks: Sequence[Mark] = ()) -> HeadsPage:
        """The streams that changed above position `after`, up to `until` or a page's end.

        The owner reads them in the same statement by which it looks whether its log has `marks`.
        """

    def between(self, after: int, until: int) -> list[Event]:
        """All events above position `after` up to `until`, the end of a page of heads."""

    def progress(self) -> Progress:
        """How far the log goes now, and how far its relay has come."""


def read_page(feed: Feed, after: int, page: HeadsPage) -> list[Event]:
    """The events of a page of heads that begins above `after`; across a gap, its end alone."""
    end = page.end.position
    return feed.between(max(after, end - SWEEP_RANGE), end)


def read_whole_streams(feed: Feed, aggregate_ids: Iterable[str]) -> dict[str, list[Event]]:
    """All events of each of these streams; none for an unknown stream. Raises FeedUnavailable."""
    after = dict.fromkeys(aggregate_ids, 0)
    found: dict[str, list[Event]] = {aggregate_id: [] for aggregate_id in after}
    while after:
        for aggregate_id, events in feed.streams(after).items():
            found[aggregate_id] += events
            if len(events) < PAGE:
                del after[aggregate_id]
            else:
                after[aggregate_id] = events[-1].version
    return found


class StoreFeed:
    """A Feed of one aggregate type straight from a store: what the owner itself serves.

    `owner` is the name of the service and of its relay; "": that of the aggregate type.
    """

    def __init__(
        self, store: Store, aggregate_type: str, clock: Clock = SYSTEM_CLOCK, owner: str = ""
    ) -> None:
        self._store = store
        self.aggregate_type = aggregate_type
        self._clock = clock
        self._relay = owner or aggregate_type

    def stream(self, aggregate_id: str, after: int) -> list[Event]:
        return self._store.read_stream(Stream(self.aggregate_type, UUID(aggregate_id)), after)

    def streams(self, after: Mapping[str, int]) -> dict[str, list[Event]]:
        found: dict[str, list[Event]] = {}
        for aggregate_id, version in after.items():
            found[aggregate_id] = self.stream(aggregate_id, version)
            if sum(map(len, found.values())) >= PAGE:
                break
        return found

    def heads(self, after: int, until: int, marks: Sequence[Mark] = ()) -> HeadsPage:
        at = min(self._clock.now(), self._store.clock())  # one that is ahead says nothing
        self._store.settled()  # waits for writers
        log = self.progress()
        until = min(until, log.settled)
        found = self._store.read_changes(self.aggregate_type, after, until, log.mark, marks)
        if found is None:
            return HeadsPage({}, Mark(after), log.mark, log.head, log.epoch, at, same=False)
        return HeadsPage(found.heads, found.end, log.mark, log.head, log.epoch, at)

    def between(self, after: int, until: int) -> list[Event]:
        events = self._store.read_feed(after, min(until, after + SWEEP_RANGE), SWEEP_RANGE)
        return [event for event in events if event.aggregate_type == self.aggregate_type]

    def progress(self) -> Progress:
        return self._store.progress(self._relay)
