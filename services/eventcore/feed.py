"""The owner's feed, from its store and over HTTP. The only client of `/internal`.

A projector has no PostgreSQL credentials: it asks the owner for what the broker has not brought.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import urllib3
from urllib3.exceptions import HTTPError

from eventcore import jsontext
from eventcore.errors import FeedAway, NotAnEvent
from eventcore.event import Event, Mark, from_message
from eventcore.retry import CircuitBreaker
from eventcore.settings import Secret
from eventcore.store import PAGE, SPAN, Progress, Store, Stream

SWEEP_RANGE = SPAN  # positions that one page of heads covers, unless there is a larger gap
MANY = 50  # streams that may be asked for at once


@dataclass(frozen=True, slots=True)
class HeadsPage:
    """The last version of each stream that changed up to the event `end`, and the log as it is now:
    the settled event, the last position, and its epoch ("": the owner is too old to tell).

    Where `same` is false, the log does not have the events asked for: nothing else counts.
    `at` is when the owner asked what has settled: by its own clock, which makes the ids of new
    streams too, or by its database's if that is behind it. None: the owner is too old to tell.
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
        f" {page.head}, does not have: it is another log, or was put back. Nothing is applied until"
        " the right log is back, or until the projection is folded anew:"
        f" python -m eventcore rebuild {projection} --yes"
    )


class Feed(Protocol):
    """What a projector may ask the owner; every method may raise FeedAway."""

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


def whole(feed: Feed, aggregate_ids: Iterable[str]) -> dict[str, list[Event]]:
    """All events of each of these streams; none where there is no such stream. Raises FeedAway."""
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
    """A Feed straight from a store: what the owner itself serves."""

    def __init__(
        self,
        store: Store,
        aggregate_type: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self.aggregate_type = aggregate_type
        self._clock = clock

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
        at = min(self._clock(), self._store.clock())  # one that is ahead says nothing
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
        return self._store.progress(self.aggregate_type)


class HttpFeed:
    """A Feed from the owner at `url`, behind a circuit breaker, by its token, read at each call.

    A call takes `timeout` seconds at most.
    """

    def __init__(self, url: str, token: Secret, timeout: float = 5.0) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._circuit = CircuitBreaker()
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(total=timeout), retries=False, maxsize=4
        )

    def stream(self, aggregate_id: str, after: int) -> list[Event]:
        events: list[Event] = []
        while page := self._events("events", stream=aggregate_id, after=after):
            events += page
            after = page[-1].version
            if len(page) < PAGE:
                break
        return events

    def streams(self, after: Mapping[str, int]) -> dict[str, list[Event]]:
        versions = ",".join(map(str, after.values()))
        page = self._get("streams", ids=",".join(after), after=versions)["streams"]
        if not page:
            raise FeedAway(f"{self._url} answers none of the streams it was asked for")
        return {each: self._read(messages) for each, messages in page.items()}

    def heads(self, after: int, until: int, marks: Sequence[Mark] = ()) -> HeadsPage:
        known = ",".join(f"{mark.position}:{mark.event_id}" for mark in marks if mark.event_id)
        page = self._get("heads", after=after, until=until, marks=known)
        at = page.get("at")
        return HeadsPage(
            {each["id"]: each["version"] for each in page["heads"]},
            Mark(page["until"], page.get("eventId", "")),
            Mark(page["settled"], page.get("settledEventId", "")),
            page.get("head", 0),
            page.get("epoch", ""),
            datetime.fromisoformat(at) if at else None,
            page.get("same", True),
        )

    def between(self, after: int, until: int) -> list[Event]:
        return self._events("feed", after=after, until=until)

    def progress(self) -> Progress:
        log = self._get("log")
        return Progress(
            log["head"],
            log["settled"],
            log["relayed"],
            log["epoch"],
            log.get("eventId", ""),
            log.get("relayHalted", ""),
        )

    def aggregate_type(self) -> str:
        """What the owner's streams are about. Raises FeedAway."""
        return str(self._get("log")["aggregateType"])

    def _events(self, what: str, **query: str | int) -> list[Event]:
        return self._read(self._get(what, **query)["events"])

    def _read(self, messages: Sequence[Any]) -> list[Event]:
        try:
            return [from_message(message) for message in messages]
        except NotAnEvent as error:
            raise FeedAway(f"{self._url} answers what is no event: {error}") from error

    def _get(self, what: str, **query: str | int) -> Any:
        url = f"{self._url}/internal/{what}"
        fields = {name: str(value) for name, value in query.items()}
        with self._circuit.call():
            headers = {"Authorization": f"Bearer {self._token.read()}"}
            try:
                response = self._pool.request("GET", url, fields=fields, headers=headers)
                if response.status != 200:
                    raise FeedAway(f"{url} answered {response.status}: {response.data[:200]!r}")
                return jsontext.parse(response.data)
            except (HTTPError, ValueError) as error:
                raise FeedAway(f"{url} cannot be read: {error}") from error
