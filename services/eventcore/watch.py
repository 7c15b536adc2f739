"""What is known of those that work behind a service, whether they run or not.

A relay or a projector that is stopped says nothing, so how far each is behind is told by who
can see both ends: the service has the log and its read models. Of a projection of another
service's events it sees the checkpoint alone.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Event as Stop
from threading import Thread
from time import monotonic

from eventcore.background import repeat, surviving
from eventcore.event import Event
from eventcore.feed import Feed
from eventcore.observe import (
    CHECKPOINT,
    GENERATION,
    HALTED,
    HEAD,
    LAG,
    LAG_SECONDS,
    PARKED,
    POSITION,
    RELAY_HALTED,
    RELAY_LAG,
    RELAY_LAG_SECONDS,
    SETTLED,
    STALENESS,
    UNSETTLED,
    VERIFIED,
    WRONG,
)
from eventcore.projection import Projection
from eventcore.query import Serving
from eventcore.readmodel import Checkpoint, Generation, ReadModel
from eventcore.store import Store

EVERY = 2.0
"""Seconds between two looks; a metric is that old at most."""

UNSWEPT = 5.0
"""Seconds without a sweep after which the service looks for a projection's lag itself."""

REST = 20
"""Counting the parked list takes one part of the time in so many, however long the list is."""

PAGES = 20
"""Pages of heads that one look goes through; what it did not reach, the next one does."""

_ANY = 2**62
"""A position past every feed's end."""


class LogWatch:
    """A store's log and its relay: head, settled position, and what the relay has still to do."""

    def __init__(
        self,
        name: str,
        store: Store,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._name = name
        self._store = store
        self._clock = clock
        self._timer = timer
        self._awaited = 0
        self._since = 0.0

    def look(self) -> None:
        """Look once, and set the metrics. Raises StoreAway."""
        progress = self._store.progress(self._name)
        if progress.settled >= self._awaited:
            self._awaited, self._since = progress.head, self._timer()
        held = self._timer() - self._since if progress.settled < self._awaited else 0.0
        waiting = max(0, progress.settled - progress.relayed)
        oldest = self._store.read_feed(progress.relayed, progress.settled, 1) if waiting else []
        HEAD.labels(self._name).set(progress.head)
        SETTLED.labels(self._name).set(progress.settled)
        UNSETTLED.labels(self._name).set(held)
        CHECKPOINT.labels(self._name).set(progress.relayed)
        RELAY_HALTED.labels(self._name).set(1 if progress.relay_halted else 0)
        RELAY_LAG.labels(self._name).set(waiting if oldest else 0)
        RELAY_LAG_SECONDS.labels(self._name).set(_age(oldest[0], self._clock()) if oldest else 0)


class CheckpointWatch:
    """A projection as its read model shows it: checkpoint, staleness, parked streams."""

    def __init__(
        self,
        projection: Projection,
        readmodel: ReadModel,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._name = projection.name
        self._serving = Serving(projection, readmodel)
        self._readmodel = readmodel
        self._clock = clock
        self._timer = timer
        self._count_at = 0.0

    def look(self) -> None:
        """Look once, and set the metrics. Raises ReadModelAway."""
        generation = self._serving.now()
        checkpoint = self._readmodel.checkpoint(generation.name)
        GENERATION.labels(self._name).set(generation.number)
        POSITION.labels(self._name).set(checkpoint.position)
        HALTED.labels(self._name).set(1 if checkpoint.halted else 0)
        if checkpoint.covered_at:
            age = (self._clock() - checkpoint.covered_at).total_seconds()
            STALENESS.labels(self._name).set(max(0.0, age))
        if found := self._readmodel.verification(self._name):
            VERIFIED.labels(self._name).set(found.when.timestamp())
            WRONG.labels(self._name).set(found.wrong)
        if (begun := self._timer()) >= self._count_at:
            try:
                PARKED.labels(self._name).set(self._readmodel.count_parked(generation.name))
            finally:
                self._count_at = self._timer() + REST * (self._timer() - begun)


class LagWatch:
    """How far a projection is behind the feed: from the oldest event not applied nor parked.

    While sweeps go on they tell it, at no cost. Where they do not, this compares heads with
    documents as they would, and each stretch of the feed until it has seen it applied once.
    """

    def __init__(
        self,
        projection: Projection,
        readmodel: ReadModel,
        feed: Feed,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        timer: Callable[[], float] = monotonic,
    ) -> None:
        self._projection = projection
        self._serving = Serving(projection, readmodel)
        self._readmodel = readmodel
        self._feed = feed
        self._clock = clock
        self._timer = timer
        self._checkpoint: Checkpoint | None = None
        self._since = 0.0
        self._applied = 0

    def look(self) -> None:
        """Look once, and set the metrics. Raises Away."""
        checkpoint = self._readmodel.checkpoint(self._serving.now().name)
        if checkpoint != self._checkpoint:
            if self._checkpoint and checkpoint.position < self._checkpoint.position:
                self._applied = 0  # it is being folded anew
            self._checkpoint, self._since = checkpoint, self._timer()
        if self._timer() - self._since < UNSWEPT:
            self._tell(0, 0)
            return
        self._applied = max(self._applied, checkpoint.position)
        behind = Behind(self._projection, self._readmodel, self._feed, self._serving.now())
        for _ in range(PAGES):
            oldest, reached, settled = behind.look(self._applied)
            if oldest:
                self._tell(settled - oldest.position + 1, _age(oldest, self._clock()))
                return
            self._applied = max(self._applied, reached)
            if reached >= settled:
                self._tell(0, 0)
                return

    def _tell(self, events: int, seconds: float) -> None:
        LAG.labels(self._projection.name).set(events)
        LAG_SECONDS.labels(self._projection.name).set(seconds)


class Behind:
    """Finds the oldest event that a generation has neither applied nor on a parked stream."""

    def __init__(
        self, projection: Projection, readmodel: ReadModel, feed: Feed, generation: Generation
    ) -> None:
        self._projection = projection
        self._readmodel = readmodel
        self._feed = feed
        self._generation = generation

    def look(self, after: int) -> tuple[Event | None, int, int]:
        """That event, in one page of the log above `after`; where the page ends; what is settled.

        Raises Away.
        """
        page = self._feed.heads(after, _ANY)
        heads = {str(head.aggregate_id): head.version for head in page.heads}
        return self._oldest(heads, after, page.until), page.until, page.settled

    def oldest(self, after: int) -> tuple[Event | None, int]:
        """That event anywhere above `after`, and what is settled. Raises Away."""
        while True:
            found, reached, settled = self.look(after)
            if found or reached >= settled or reached == after:
                return found, settled
            after = reached

    def _oldest(self, heads: dict[str, int], after: int, until: int) -> Event | None:
        versions = self._readmodel.versions(self._generation.collection, heads)
        behind = {stream for stream, head in heads.items() if versions.get(stream, 0) < head}
        behind -= set(self._readmodel.parked(self._generation.name, behind)) if behind else set()
        if not behind:
            return None
        for event in self._feed.between(after, until):
            stream = str(event.aggregate_id)
            if stream in behind and event.version > versions.get(stream, 0):
                return event
        return None


def _age(event: Event, now: datetime) -> float:
    return max(0.0, (now - event.recorded_at).total_seconds())


def watch(looks: Iterable[Callable[[], object]], stop: Stop, every: float = EVERY) -> Thread:
    """Calls each of `looks` every few seconds, in a background thread, until `stop` is set."""
    looks = tuple(looks)

    def turn() -> None:
        for look in looks:
            with surviving("watch"):
                look()

    return repeat(turn, "watch", every, stop)


def watch_service(
    name: str, store: Store, readmodel: ReadModel, feed: Feed, projections: Iterable[Projection]
) -> list[Callable[[], object]]:
    """What a service looks at: its log and relay, its read models, the lag of its own events'."""
    looks: list[Callable[[], object]] = [LogWatch(name, store).look]
    for projection in projections:
        looks.append(CheckpointWatch(projection, readmodel).look)
        if projection.aggregate_type == name:
            looks.append(LagWatch(projection, readmodel, feed).look)
    return looks
