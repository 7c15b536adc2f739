"""Lag of relays and projections, measured by the service, so that a stopped process is visible.

A service has its log and its read models. Of a projection, or a part of a view, of another
service's events it sees the checkpoint alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Event as Stop
from threading import Thread

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.model.event import Event
from eventcore.model.service import Service
from eventcore.model.view import AnyProjection, View
from eventcore.observe import metrics
from eventcore.observe.background import log_errors, repeat
from eventcore.reactor import Reactor
from eventcore.readmodel.port import Bookkeeping, ReadModel
from eventcore.readmodel.records import Checkpoint, Generation
from eventcore.readmodel.serving import Serving
from eventcore.store.feed import Feed, read_page
from eventcore.store.port import Store

INTERVAL = 2.0
"""Seconds between two updates: the maximum age of a metric."""

SWEEP_OVERDUE = 5.0
"""Seconds without a sweep after which the service measures a projection's lag itself."""

COUNT_SHARE = 20
"""Counting the parked list takes at most 1/20 of the time."""

PAGES = 20
"""Pages of heads that one update reads; the next update goes on there."""

_ANY = 2**62
"""A position past every feed's end."""


def _age(moment: datetime, now: datetime) -> float:
    return max(0.0, (now - moment).total_seconds())


@dataclass
class LogWatch:
    """A store's log and its relay: head, settled position, and what the relay has still to do."""

    name: str
    store: Store
    clock: Clock = SYSTEM_CLOCK
    note_epoch: Callable[[str], object] = lambda _: None
    _awaited: int = 0
    _since: float = 0.0

    def update(self) -> None:
        """Sets the metrics. Raises StoreUnavailable."""
        progress = self.store.progress(self.name)
        self.note_epoch(progress.epoch)
        if progress.settled >= self._awaited:
            self._awaited, self._since = progress.head, self.clock.monotonic()
        held = self.clock.monotonic() - self._since if progress.settled < self._awaited else 0.0
        waiting = max(0, progress.settled - progress.relayed)
        oldest = self.store.read_feed(progress.relayed, progress.settled, 1) if waiting else []
        age = _age(oldest[0].recorded_at, self.clock.now()) if oldest else 0
        metrics.HEAD.labels(self.name).set(progress.head)
        metrics.SETTLED.labels(self.name).set(progress.settled)
        metrics.UNSETTLED.labels(self.name).set(held)
        metrics.CHECKPOINT.labels(self.name).set(progress.relayed)
        metrics.RELAY_HALTED.labels(self.name).set(1 if progress.relay_halted else 0)
        metrics.RELAY_LAG.labels(self.name).set(waiting if oldest else 0)
        metrics.RELAY_LAG_SECONDS.labels(self.name).set(age)


@dataclass(frozen=True)
class DeadlineWatch:
    """The deadlines of a store that nobody fires, and its stuck sagas, by aggregate type."""

    store: Store
    aggregate_types: Sequence[str]

    def update(self) -> None:
        """Sets the metrics. Raises StoreUnavailable."""
        for kind, seconds in self.store.overdue(self.aggregate_types).items():
            metrics.OVERDUE.labels(kind).set(seconds)
        for kind, count in self.store.count_stuck(self.aggregate_types).items():
            metrics.STUCK.labels(kind).set(count)


@dataclass
class CheckpointWatch:
    """A projection as its read model shows it: checkpoint, staleness, parked streams."""

    projection: AnyProjection
    readmodel: Bookkeeping
    clock: Clock = SYSTEM_CLOCK
    _count_at: float = 0.0

    def __post_init__(self) -> None:
        self._serving = Serving(self.projection, self.readmodel)

    def update(self) -> None:
        """Sets the metrics. Raises ReadModelUnavailable."""
        name, parts = self.projection.name, self._serving.parts()
        for part in parts:
            checkpoint = self.readmodel.checkpoint(part.name)
            metrics.GENERATION.labels(part.label).set(part.number)
            metrics.POSITION.labels(part.label).set(checkpoint.position)
            metrics.HALTED.labels(part.label).set(1 if checkpoint.halted else 0)
            if checkpoint.covered_at:
                age = _age(checkpoint.covered_at, self.clock.now())
                metrics.STALENESS.labels(part.label).set(age)
        if found := self.readmodel.verification(name):
            metrics.VERIFIED.labels(name).set(found.when.timestamp())
            metrics.WRONG.labels(name).set(found.wrong)
        if (begun := self.clock.monotonic()) >= self._count_at:
            try:
                for part in parts:
                    parked = self.readmodel.count_parked(part.name)
                    metrics.PARKED.labels(part.label).set(parked)
            finally:
                ended = self.clock.monotonic()
                self._count_at = ended + COUNT_SHARE * (ended - begun)


@dataclass
class LagWatch:
    """Exports the lag of a projection: from the oldest event neither applied nor parked.

    While sweeps move the checkpoint, the lag is 0 without a query. Otherwise compares heads with
    documents; does not compare again what was already applied.
    """

    projection: AnyProjection
    readmodel: ReadModel
    feed: Feed
    clock: Clock = SYSTEM_CLOCK
    store: str = ""
    """The store whose part of a view it is."""
    _checkpoint: Checkpoint | None = None
    _since: float = 0.0
    _applied: int = 0

    def __post_init__(self) -> None:
        self._serving = Serving(self.projection, self.readmodel)

    def update(self) -> None:
        """Sets the metrics. Raises Unavailable."""
        generation = next(each for each in self._serving.parts() if each.store == self.store)
        self._name = generation.label
        checkpoint = self.readmodel.checkpoint(generation.name)
        if checkpoint != self._checkpoint:
            if self._checkpoint and checkpoint.position < self._checkpoint.position:
                self._applied = 0  # a rebuild began
            self._checkpoint, self._since = checkpoint, self.clock.monotonic()
        if self.clock.monotonic() - self._since < SWEEP_OVERDUE:
            self._export(0, 0)
            return
        self._applied = max(self._applied, checkpoint.position)
        behind = Backlog(self.projection, self.readmodel, self.feed, generation)
        for _ in range(PAGES):
            oldest, reached, settled = behind.first_of_page(self._applied)
            if oldest:
                age = _age(oldest.recorded_at, self.clock.now())
                self._export(settled - oldest.position + 1, age)
                return
            self._applied = max(self._applied, reached)
            if reached >= settled:
                self._export(0, 0)
                return

    def _export(self, events: int, seconds: float) -> None:
        metrics.LAG.labels(self._name).set(events)
        metrics.LAG_SECONDS.labels(self._name).set(seconds)


@dataclass(frozen=True)
class Backlog:
    """Finds the oldest event that a generation has neither applied nor on a parked stream.

    A view has applied or parked what is not above its checkpoint, and nothing else.
    """

    projection: AnyProjection
    readmodel: ReadModel
    feed: Feed
    generation: Generation

    def first_of_page(self, after: int) -> tuple[Event | None, int, int]:
        """The oldest such event in one page of the log above `after`; where the page ends; and
        what is settled. Raises Unavailable.
        """
        page = self.feed.heads(after, _ANY)
        until = page.end.position
        if isinstance(self.projection, View):
            oldest = next(iter(read_page(self.feed, after, page) if page.heads else ()), None)
        else:
            oldest = self._oldest(page.heads, after, until)
        return oldest, until, page.settled.position

    def oldest(self, after: int) -> tuple[Event | None, int]:
        """The oldest such event anywhere above `after`, and what is settled. Raises Unavailable."""
        while True:
            found, reached, settled = self.first_of_page(after)
            if found or reached >= settled or reached == after:
                return found, settled
            after = reached

    def _oldest(self, heads: Mapping[str, int], after: int, until: int) -> Event | None:
        versions = self.readmodel.versions(self.generation.collection, heads)
        behind = {stream for stream, head in heads.items() if versions.get(stream, 0) < head}
        if behind:
            behind -= set(self.readmodel.parked(self.generation.name, behind))
        for event in self.feed.between(after, until) if behind else ():
            stream = str(event.aggregate_id)
            if stream in behind and event.version > versions.get(stream, 0):
                return event
        return None


def watch(updates: Iterable[Callable[[], object]], stop: Stop, every: float = INTERVAL) -> Thread:
    """Calls each of `updates` every few seconds, in a background thread, until `stop` is set."""
    updates = tuple(updates)

    def turn() -> None:
        for update in updates:
            with log_errors("watch"):
                update()

    return repeat(turn, "watch", every, stop)


def watch_service(
    service: Service, store: Store, readmodel: ReadModel, feeds: Mapping[str, Feed],
    note_epoch: Callable[[str], object],
) -> list[Callable[[], object]]:  # fmt: skip
    """The functions that measure a service's log, relay, deadlines, sagas, read models, their lag.

    `feeds` has a feed for each aggregate type in the store. `note_epoch` gets the epoch of the log
    each time.
    """
    log_watch = LogWatch(service.name, store, note_epoch=note_epoch)
    updates: list[Callable[[], object]] = [log_watch.update]
    reactors = [each for each in service.projections if isinstance(each, Reactor)]
    if kinds := [each.deadline_type for each in reactors if each.deadlines]:
        updates.append(DeadlineWatch(store, kinds).update)
    for projection in service.projections:
        updates.append(CheckpointWatch(projection, readmodel).update)
        for each in feeds.keys() & set(projection.stores):
            part = each if isinstance(projection, View) else ""
            updates.append(LagWatch(projection, readmodel, feeds[each], store=part).update)
    return updates
