"""The process of a view: it folds the feeds of its stores, and the broker only wakes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from eventcore.broker.port import Consumer, Delivery
from eventcore.errors import FeedUnavailable, Unavailable
from eventcore.failpoints import failpoint
from eventcore.model.event import Event
from eventcore.project.projector import ProjectorLoop
from eventcore.project.sweep import LeasedSweep
from eventcore.project.view_applier import ViewApplier
from eventcore.readmodel.records import Lease
from eventcore.store.feed import HeadsPage, read_page

HINT_DELAY = 0.02
"""Seconds from a hint to the fold, in which more hints come."""

REST = 2
"""How often the time of a fold passes before the next one for hints. A fold takes a dozen calls of
servers and stores, which the other projections need at that moment."""

_ANY = 2**62
"""A position past every feed's end."""


@dataclass(eq=False)
class PartSweep(LeasedSweep[ViewApplier]):
    """Folds the feed of one store into a view."""

    def _page(self, lease: Lease) -> bool:
        feed = self.applier.feed
        page = feed.heads(lease.position, _ANY, lease.marks)
        lease = self._require_same_log(lease, page)
        events = read_page(feed, lease.position, page) if page.heads else []
        if not _are_of(page, events):
            raise FeedUnavailable(f"the log changed while {self._name} read it")
        self._export_lag(page.settled.position, next(iter(events), None))
        is_retrying = self._parked_scan.retry()
        self.applier.apply(events)
        failpoint("view:written")
        self._position = page.end.position
        is_behind = page.end.position < page.settled.position
        self._readmodel.move_checkpoint(lease, page.end, None if is_behind else page.at)
        return is_behind or is_retrying


def _are_of(page: HeadsPage, events: Sequence[Event]) -> bool:
    """Whether these events, read after the page of heads, are those of the page.

    The event at its end may be of another aggregate type, and so be missing.
    """
    heads = {str(each.aggregate_id): each.version for each in events}
    ends = {each.mark for each in events if each.position >= page.end.position}
    return heads == page.heads and ends <= {page.end}


@dataclass(eq=False)
class ViewSweep:
    """Folds the feeds of all stores of a view; the holder of the first one's lease does.

    `hinted` names the stores that the next `run` folds, instead of all.
    """

    parts: Sequence[PartSweep]
    caught_up = 0
    hinted: set[str] = field(default_factory=set)

    @property
    def is_holder(self) -> bool:
        """Whether this process folds the view."""
        return self.parts[0].is_holder

    def run(self) -> bool:
        """Folds a page of each store; True if there is more at once. Raises Unavailable."""
        more, problem = False, None
        hinted = [each for each in self.parts if each.applier.generation.store in self.hinted]
        self.hinted.clear()
        for part in hinted or self.parts:
            try:
                more |= part.run()
            except Unavailable as error:
                problem = error
            if not self.is_holder:
                break
        if problem:
            raise problem
        return more

    def release(self) -> None:
        """Lets a replica fold at once, rather than when the leases have run out."""
        for part in self.parts:
            part.release()


@dataclass(eq=False)
class ViewProjector(ProjectorLoop[ViewApplier]):
    """Folds a view soon after a delivery hints at something, and at each sweep.

    The holder of the lease alone consumes: a hint that another replica took would be lost.
    """

    sweeping: ViewSweep

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rested_at, self._all_at = 0.0, 0.0

    def _connected(self, wait: float) -> Consumer | None:
        consumer = super()._connected(wait)
        if consumer and self.sweeping.is_holder:
            consumer.resume()
        elif consumer:
            consumer.pause()
        return consumer

    def sweep(self) -> bool:
        began = self._clock.monotonic()
        if began >= self._all_at:
            self.sweeping.hinted.clear()
            self._all_at = began + self.sweep_interval
        try:
            return super().sweep()
        finally:
            ended = self._clock.monotonic()
            self._rested_at = ended + REST * (ended - began)

    def _handle(self, deliveries: Sequence[Delivery], consumer: Consumer) -> None:
        consumer.acknowledge(deliveries[-1])
        keys = {each.message.routing_key for each in deliveries}
        self.sweeping.hinted.update(key.partition(".")[0] for key in keys)
        due = max(self._clock.monotonic() + HINT_DELAY, self._rested_at)
        self._sweep_at = min(self._sweep_at, due)
