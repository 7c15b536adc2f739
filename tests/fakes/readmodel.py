"""A read model in memory: the ReadModel port, with the same guard and no server."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

from eventcore.errors import CannotApply, ReadModelUnavailable
from eventcore.model.event import Json, Mark
from eventcore.model.projection import Document, version_of
from eventcore.readmodel.port import SLOTS, ReadModel
from eventcore.readmodel.records import (
    Checkpoint,
    Depth,
    Generation,
    Generations,
    Lease,
    Parked,
    Skip,
    Verification,
    Write,
)


@dataclass
class FakeReadModel:
    """Dictionaries; `away` makes every call fail."""

    collections: dict[str, dict[str, Document]] = field(default_factory=lambda: defaultdict(dict))
    checkpoints: dict[str, tuple[Lease, datetime, datetime | None]] = field(default_factory=dict)
    halts: dict[str, str] = field(default_factory=dict)
    parked_list: dict[tuple[str, str], Parked] = field(default_factory=dict)
    generation_numbers: dict[str, Generations] = field(default_factory=dict)
    skip_list: dict[tuple[str, str], Skip] = field(default_factory=dict)
    verifications: dict[str, Verification] = field(default_factory=dict)
    depths: dict[str, Depth] = field(default_factory=dict)
    written: dict[tuple[str, str], datetime] = field(default_factory=dict)
    away: bool = False

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """See ReadModel."""
        self._check()
        documents = self.collections[collection]
        return {each: copy.deepcopy(documents[each]) for each in ids if each in documents}

    def versions(self, collection: str, ids: Iterable[str]) -> dict[str, int]:
        """See ReadModel."""
        return {each: version_of(found) for each, found in self.find(collection, ids).items()}

    def projected_at(self, collection: str, ids: Iterable[str]) -> dict[str, datetime]:
        """See ReadModel."""
        written = {each: self.written[collection, each] for each in self.find(collection, ids)}
        return {each: at.replace(microsecond=at.microsecond // 1000 * 1000)
                for each, at in written.items()}  # fmt: skip

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
            and "removed" not in document
            and all(document.get(name) == value for name, value in where.items())
        ]
        return matching[:limit]

    def ranked(
        self, collection: str, by: str, after: tuple[Json, str] | None, limit: int
    ) -> list[Document]:
        """See ReadModel."""
        self._check()
        there = [each for each in self.collections[collection].values() if by in each]
        by_id = sorted(there, key=lambda each: str(each["_id"]))
        found: list[Any] = sorted(by_id, key=lambda each: each[by], reverse=True)
        if after is not None:
            value, id = after
            found = [
                each for each in found
                if each[by] < value or (each[by] == value and each["_id"] > id)
            ]  # fmt: skip
        return copy.deepcopy(found[:limit])

    def scan(self, collection: str, after: str, limit: int) -> list[Document]:
        """See ReadModel."""
        self._check()
        found = sorted(self.collections[collection].items())
        return [copy.deepcopy(document) for each, document in found if each > after][:limit]

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
                self.written[collection, key] = datetime.now(UTC)
            else:
                complete = False
        return complete

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        """See ReadModel."""
        self._check()

    def generations(self, projection: str) -> Generations:
        """See ReadModel."""
        self._check()
        return self.generation_numbers.get(projection, Generations())

    def begin_generation(self, projection: str) -> int:
        """See ReadModel."""
        known = self.generations(projection)
        self.generation_numbers[projection] = replace(known, newest=known.newest + 1)
        return known.newest + 1

    def switch(self, projection: str, serving: int, to: int) -> bool:
        """See ReadModel."""
        known = self.generations(projection)
        if known.serving != serving:
            return False
        self.generation_numbers[projection] = replace(known, serving=to, previous=serving)
        return True

    def drop(self, generation: Generation) -> None:
        """See ReadModel."""
        known = self.generations(generation.projection)
        if known.previous == generation.number:
            self.generation_numbers[generation.projection] = replace(known, previous=0)
        self.collections.pop(generation.collection, None)
        self.checkpoints.pop(generation.name, None)
        self.halts.pop(generation.name, None)
        for stream in self.parked(generation.name):
            del self.parked_list[generation.name, stream]

    def checkpoint(self, generation: str) -> Checkpoint:
        """See ReadModel."""
        self._check()
        if generation not in self.checkpoints:
            return Checkpoint()
        lease, _, covered_at = self.checkpoints[generation]
        halted = self.halts.get(generation, "")
        named = lease.store_epoch, halted, lease.event_id, lease.furthest
        return Checkpoint(lease.position, covered_at, *named)

    def take_lease(
        self,
        generation: str,
        holder: str,
        seconds: float,
        furthest: Mark = Mark(),  # noqa: B008
    ) -> Lease | None:
        """See ReadModel."""
        self._check()
        now = datetime.now(UTC)
        until = now + timedelta(seconds=seconds)
        lease, expires_at, covered_at = self.checkpoints.get(
            generation, (Lease(generation=generation), now, None)
        )
        furthest = max(lease.furthest, furthest, key=lambda mark: mark.position)
        lease = replace(lease, furthest=furthest)
        if lease.holder != holder:
            if lease.holder and expires_at >= now:
                self.checkpoints[generation] = (lease, expires_at, covered_at)
                return None
            lease = replace(lease, holder=holder, epoch=lease.epoch + 1)
        self.checkpoints[generation] = (lease, until, covered_at)
        return replace(lease, halted=self.halts.get(generation, ""))

    def release_lease(self, generation: str, holder: str) -> None:
        """See ReadModel."""
        self._check()
        lease, _, covered_at = self.checkpoints.get(generation, (None, None, None))
        if lease and lease.holder == holder:
            self.checkpoints[generation] = (lease, datetime(1970, 1, 1, tzinfo=UTC), covered_at)

    def halt(self, generation: str, reason: str) -> None:
        """See ReadModel."""
        self._check()
        self.halts[generation] = reason

    def move_checkpoint(self, lease: Lease, mark: Mark, covered_at: datetime | None) -> bool:
        """See ReadModel."""
        self._check()
        current, expires_at, known = self.checkpoints[lease.generation]
        if current.epoch != lease.epoch:
            return False
        moved = replace(current, store_epoch=lease.store_epoch)
        if mark.position > current.position or not current.event_id:
            moved = replace(moved, position=mark.position, event_id=mark.event_id)
        self.checkpoints[lease.generation] = (moved, expires_at, covered_at or known)
        return True

    def park(self, entries: Sequence[Parked]) -> list[str]:
        """See ReadModel."""
        self._check()
        new = []
        for parked in entries:
            key = (parked.generation, parked.stream)
            if key not in self.parked_list:
                new.append(parked.stream)
            known = self.parked_list.get(key, parked)
            highest = max(known.highest, parked.highest)
            self.parked_list[key] = replace(parked, highest=highest, when=known.when)
        return new

    def parked(self, generation: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        """See ReadModel."""
        self._check()
        wanted = None if streams is None else set(streams)
        return {
            stream: each
            for (name, stream), each in self.parked_list.items()
            if name == generation and (wanted is None or stream in wanted)
        }

    def parked_in(self, generation: str, slots: range) -> dict[str, Parked]:
        """See ReadModel."""
        found = self.parked(generation)
        return {s: each for s, each in found.items() if crc32(s.encode()) % SLOTS in slots}

    def count_parked(self, generation: str) -> int:
        """See ReadModel."""
        return len(self.parked(generation))

    def release(self, generation: str, versions: Mapping[str, int]) -> int:
        """See ReadModel."""
        known = self.parked(generation, versions)
        done = [s for s, version in versions.items() if s in known and known[s].highest <= version]
        for stream in done:
            del self.parked_list[generation, stream]
        return len(done)

    def skip(self, skip: Skip) -> None:
        """See ReadModel."""
        self._check()
        self.skip_list.setdefault((skip.projection, skip.event_id), skip)

    def skips(self, projection: str) -> list[Skip]:
        """See ReadModel."""
        self._check()
        return [each for each in self.skip_list.values() if each.projection == projection]

    def note_verification(self, found: Verification) -> None:
        """See ReadModel."""
        self._check()
        self.verifications[found.projection] = found

    def verification(self, projection: str) -> Verification | None:
        """See ReadModel."""
        self._check()
        return self.verifications.get(projection)

    def note_depth(self, found: Depth) -> None:
        """See ReadModel."""
        self._check()
        self.depths[found.projection] = found

    def depth(self, projection: str) -> Depth | None:
        """See ReadModel."""
        self._check()
        return self.depths.get(projection)

    def ping(self) -> None:
        """See ReadModel."""
        self._check()

    def _check(self) -> None:
        if self.away:
            raise ReadModelUnavailable("MongoDB cannot be reached: a test said so")


_is_a_read_model: ReadModel = FakeReadModel()
