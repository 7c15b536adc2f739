"""Compares the log with the documents, and catches up."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from eventcore.errors import ReadModelUnavailable, StoreRestored
from eventcore.failpoints import failpoint
from eventcore.model.event import Event
from eventcore.observe import metrics
from eventcore.project.applier import EventApplier
from eventcore.project.fold_result import by_stream
from eventcore.project.folding import Folding
from eventcore.readmodel.port import SLOTS
from eventcore.readmodel.records import Checkpoint, Lease, Parked
from eventcore.store.feed import HeadsPage, halted_by

log = logging.getLogger(__name__)

SCANNED_PER_SWEEP = 100
"""Approximate number of entries of the parked list that one sweep reads."""


RETRIED_PAGES = 4
"""Pages of the log that one sweep reads again for parked streams."""


class ParkedScan:
    """Reads a parked list, some entries at each sweep, and tries those again that are due.

    An entry is due once for this process, since new code may know what the old did not, and again
    where its document has gone past the version at which it stopped: a replica that is slow, or
    whose code is older, may have put it on the list too late.
    """

    def __init__(self, applier: Folding[Any]) -> None:
        self._applier = applier
        self._slot, self._width = 0, SLOTS // 64
        self._met: dict[str, int] = {}
        self._tried: dict[str, int] = {}
        self._due: dict[str, Parked] = {}
        self._pages: Iterator[object] | None = None
        self._is_complete = False

    def retry(self) -> bool:
        """Retries entries that are due, with RETRIED_PAGES at most; True if there is more at once.

        Raises Unavailable; then the entries stay due.
        """
        self._due = self._due or self._find()
        pages, self._pages = self._pages or self._applier.retry_by_page(self._due), None
        if any(next(pages, self) is self for _ in range(RETRIED_PAGES)):
            self._due = {}
        else:
            self._pages = pages
        return bool(self._due) or not self._is_complete

    def _find(self) -> dict[str, Parked]:
        """The entries that are due, among about SCANNED_PER_SWEEP. Raises ReadModelUnavailable."""
        seen: dict[str, Parked] = {}
        readmodel, name = self._applier.readmodel, self._applier.generation.name
        while len(seen) < SCANNED_PER_SWEEP // 2 and self._slot < SLOTS:
            until = min(self._slot + self._width, SLOTS)
            found = readmodel.parked_in(name, range(self._slot, until))
            seen |= found
            self._slot = until
            if len(found) < SCANNED_PER_SWEEP // 2:
                self._width = min(2 * self._width, SLOTS)
            elif len(found) > SCANNED_PER_SWEEP:
                self._width = max(1, self._width // 2)
        reached = self._applier.reached(seen) if seen else {}
        due = {
            stream: each
            for stream, each in seen.items()
            if each.version not in (self._tried.get(stream), self._met.get(stream))
            or reached.get(stream, 0) >= each.version
        }
        self._met |= {stream: each.version for stream, each in seen.items()}
        if self._slot == SLOTS:
            self._slot, self._tried, self._met, self._is_complete = 0, self._met, {}, True
        return due


Applier = TypeVar("Applier", bound=Folding[Any])


class Sweeping(Protocol):
    """The port through which a projector sweeps."""

    caught_up: int
    """How many events the last `run` had to bring."""

    def run(self) -> bool:
        """Sweeps one page; True if there is more to sweep at once. Raises Unavailable."""

    def release(self) -> None:
        """Lets a replica sweep at once, rather than when the lease has run out."""


@dataclass(eq=False)
class LeasedSweep(ABC, Generic[Applier]):
    """Goes through the feed from the checkpoint on, a page at a time, while it has the lease."""

    applier: Applier
    holder: str
    lease_seconds: float

    def __post_init__(self) -> None:
        self._readmodel = self.applier.readmodel
        self.caught_up = 0
        self.is_holder = False
        """Whether it had the lease at the last `run`."""
        self._begin()

    def checkpoint(self) -> Checkpoint:
        """Its checkpoint now; raises ReadModelUnavailable."""
        return self._readmodel.checkpoint(self.applier.generation.name)

    def _begin(self) -> None:
        """Nothing is known yet of the generation that the applier has now."""
        self._generation = self.applier.generation
        self._name = self._generation.label
        self._epoch, self._position = 0, 0
        self._parked_scan = ParkedScan(self.applier)

    @abstractmethod
    def _page(self, lease: Lease) -> bool:
        """Goes through one page; True if there is more at once. Raises Unavailable."""

    def _wait_for_lease(self) -> None:
        """Forgets what it has seen: another one has the lease."""

    def run(self) -> bool:
        """Sweeps one page; True if there is more to sweep at once.

        Raises Unavailable. Raises StoreRestored; the projection is then marked halted for all
        replicas.
        """
        self.caught_up = 0
        self.applier.follow()
        if self.applier.generation != self._generation:
            self.release()
            self._begin()
        lease = self._readmodel.take_lease(
            self._generation.name, self.holder, self.lease_seconds, self.applier.furthest
        )
        self.is_holder = lease is not None
        if lease is None:
            self._wait_for_lease()
            self._export_lag(0, None)  # the holder of the lease exports it
            if reason := self._readmodel.checkpoint(self._generation.name).halted:
                raise StoreRestored(reason)
            return False
        self._follow(lease)
        return self._page(lease)

    def release(self) -> None:
        try:
            self._readmodel.release_lease(self._generation.name, self.holder)
        except ReadModelUnavailable as error:
            log.warning("Lease left to run out", extra={"reason": str(error)})

    def _follow(self, lease: Lease) -> None:
        """Forgets what this process has applied, and makes the indexes, if the lease is new.

        It is also new if the read model was lost or restored: then documents are missing.
        """
        if lease.epoch != self._epoch or lease.position < self._position:
            self.applier.applied_versions.clear()
            self._parked_scan = ParkedScan(self.applier)
            indexes = self.applier.projection.indexes
            self._readmodel.prepare(self._generation.collection, indexes)
        self._epoch, self._position = lease.epoch, lease.position

    def _require_same_log(self, lease: Lease, page: HeadsPage) -> Lease:
        """The lease, with the epoch of its log. Raises StoreRestored if this is another one.

        A halt is lifted where the log has the checkpoint's events, whatever else it has.
        """
        if reason := halted_by(self._name, lease.position, lease.store_epoch, page):
            self._readmodel.halt(lease.generation, reason)
            raise StoreRestored(reason)
        if lease.halted:
            self._readmodel.halt(lease.generation, "")
        return replace(lease, store_epoch=page.epoch)

    def _export_lag(self, settled: int, oldest: Event | None) -> None:
        """Sets the lag: from the oldest event that should be applied by now, None: all are."""
        age = (self.applier.clock.now() - oldest.recorded_at).total_seconds() if oldest else 0.0
        metrics.LAG.labels(self._name).set(settled - oldest.position + 1 if oldest else 0)
        metrics.LAG_SECONDS.labels(self._name).set(max(0.0, age))


@dataclass(eq=False)
class Sweep(LeasedSweep[EventApplier]):
    """Compares the feed with the documents, and applies what they lack.

    It looks only at what had settled when it looked the last time, so that it does not do
    again what the broker is about to bring.
    """

    def _begin(self) -> None:
        super()._begin()
        self._seen: tuple[int, datetime | None] | None = None

    def _wait_for_lease(self) -> None:
        self._seen = None

    def _page(self, lease: Lease) -> bool:
        until, covered_at = self._seen or (0, None)
        page = self.applier.feed.heads(lease.position, until, lease.marks)
        lease = self._require_same_log(lease, page)
        is_retrying = self._parked_scan.retry()
        self._catch_up(lease.position, page)
        failpoint("sweep:caught-up")
        self._position = page.end.position
        if page.end.position < until:
            self._readmodel.move_checkpoint(lease, page.end, None)
            return True
        self._seen = (page.settled.position, page.at)
        self._readmodel.move_checkpoint(lease, page.end, covered_at)
        return is_retrying

    def _catch_up(self, position: int, page: HeadsPage) -> None:
        """Applies what the streams lack whose document is behind their head on this page.

        Raises Unavailable if one is neither applied nor parked then: the checkpoint must not
        pass it.
        """
        behind = self._behind(page.heads)
        if not behind:
            self._export_lag(page.settled.position, None)
            return
        versions = self._readmodel.versions(self._generation.collection, behind)
        events = [
            event
            for event in self.applier.feed.between(position, page.end.position)
            if (stream := str(event.aggregate_id)) in behind
            and event.version > versions.get(stream, 0)
        ]
        metrics.CAUGHT_UP.labels(self._name).inc(len(events))
        self.caught_up = len(events)
        self._export_lag(page.settled.position, next(iter(events), None))
        self.applier.apply(by_stream(events))
        if still := self._behind(behind):
            raise self.applier.why_behind(len(still))

    def _behind(self, heads: Mapping[str, int]) -> dict[str, int]:
        """The streams whose document is behind; of those that are parked the entry is renewed."""
        unsure = {s: v for s, v in heads.items() if self.applier.applied_versions.get(s, 0) < v}
        versions = self._readmodel.versions(self._generation.collection, unsure)
        behind = {s: v for s, v in unsure.items() if versions.get(s, 0) < v}
        parked = self._readmodel.parked(self._generation.name, behind)
        stopped = [e for stream, e in parked.items() if versions.get(stream, 0) < e.version]
        self.applier.renew([(entry, behind.pop(entry.stream)) for entry in stopped])
        return behind
