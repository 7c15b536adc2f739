"""A read model in memory: the ReadModel port, with the same guard and no server."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from eventcore.errors import CannotApply, ReadModelAway
from eventcore.projection import Document, version_of
from eventcore.readmodel import Checkpoint, Lease, Parked, ReadModel, Write


@dataclass
class FakeReadModel:
    """Dictionaries; `away` makes every call fail."""

    collections: dict[str, dict[str, Document]] = field(default_factory=lambda: defaultdict(dict))
    checkpoints: dict[str, tuple[Lease, datetime, datetime | None]] = field(default_factory=dict)
    parked_list: dict[tuple[str, str], Parked] = field(default_factory=dict)
    away: bool = False

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """See ReadModel."""
        self._check()
        documents = self.collections[collection]
        return {each: copy.deepcopy(documents[each]) for each in ids if each in documents}

    def versions(self, collection: str, ids: Iterable[str]) -> dict[str, int]:
        """See ReadModel."""
        return {each: version_of(found) for each, found in self.find(collection, ids).items()}

    def page(
        self, collection: str, where: Mapping[str, str], before: str | None, limit: int
    ) -> list[Document]:
        """See ReadModel."""
        self._check()
        found = sorted(self.collections[collection].items(), reverse=True)
        matching = [
            document
            for each, document in found
            if (before is None or each < before)
            and all(document.get(name) == value for name, value in where.items())
        ]
        return matching[:limit]

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        """See ReadModel."""
        self._check()
        complete = True
        for write in writes:
            if any(isinstance(v, int) and abs(v) >= 2**63 for v in write.document.values()):
                raise CannotApply("MongoDB cannot store the document: 8-byte ints only")
            key = str(write.document["_id"])
            if version_of(self.collections[collection].get(key)) == write.replaces:
                self.collections[collection][key] = copy.deepcopy(write.document)
            else:
                complete = False
        return complete

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        """See ReadModel."""
        self._check()

    def checkpoint(self, projection: str) -> Checkpoint:
        """See ReadModel."""
        self._check()
        if projection not in self.checkpoints:
            return Checkpoint(0, None)
        lease, _, covered_at = self.checkpoints[projection]
        return Checkpoint(lease.position, covered_at)

    def take_lease(self, projection: str, holder: str, seconds: float) -> Lease | None:
        """See ReadModel."""
        self._check()
        now = datetime.now(UTC)
        until = now + timedelta(seconds=seconds)
        lease, expires_at, covered_at = self.checkpoints.get(
            projection, (Lease(projection, "", 0, 0), now, None)
        )
        if lease.holder != holder:
            if lease.holder and expires_at >= now:
                return None
            lease = replace(lease, holder=holder, epoch=lease.epoch + 1)
        self.checkpoints[projection] = (lease, until, covered_at)
        return lease

    def release_lease(self, projection: str, holder: str) -> None:
        """See ReadModel."""
        self._check()
        lease, _, covered_at = self.checkpoints.get(projection, (None, None, None))
        if lease and lease.holder == holder:
            self.checkpoints[projection] = (lease, datetime(1970, 1, 1, tzinfo=UTC), covered_at)

    def move_checkpoint(self, lease: Lease, position: int, covered_at: datetime | None) -> bool:
        """See ReadModel."""
        self._check()
        current, expires_at, known = self.checkpoints[lease.projection]
        if current.epoch != lease.epoch:
            return False
        moved = replace(current, position=max(position, current.position))
        covered = max((at for at in (covered_at, known) if at), default=None)
        self.checkpoints[lease.projection] = (moved, expires_at, covered)
        return True

    def park(self, parked: Parked) -> None:
        """See ReadModel."""
        self._check()
        key = (parked.projection, parked.stream)
        known = self.parked_list.get(key, parked)
        highest = max(known.highest, parked.highest)
        self.parked_list[key] = replace(parked, highest=highest, when=known.when)

    def parked(self, projection: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        """See ReadModel."""
        self._check()
        wanted = None if streams is None else set(streams)
        return {
            stream: each
            for (name, stream), each in self.parked_list.items()
            if name == projection and (wanted is None or stream in wanted)
        }

    def release(self, projection: str, stream: str, version: int) -> bool:
        """See ReadModel."""
        self._check()
        known = self.parked_list.get((projection, stream))
        if known is None or known.highest > version:
            return False
        del self.parked_list[projection, stream]
        return True

    def ping(self) -> None:
        """See ReadModel."""
        self._check()

    def _check(self) -> None:
        if self.away:
            raise ReadModelAway("MongoDB cannot be reached: a test said so")


_is_a_read_model: ReadModel = FakeReadModel()
