"""The bookkeeping of projections, in MongoDB."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, ReturnDocument, errors
from pymongo.operations import DeleteOne, InsertOne, UpdateOne

from eventcore.errors import ReadModelUnavailable
from eventcore.model.event import START, Mark
from eventcore.model.projection import Document
from eventcore.readmodel.connection import AT_ONCE, Connection
from eventcore.readmodel.conversion import (
    LONG_AGO,
    duplicates_of,
    record_to_document,
    to_checkpoint_fields,
    to_parked_document,
    to_parked_entries,
    to_parked_update,
    to_record,
)
from eventcore.readmodel.records import (
    Checkpoint,
    Depth,
    Generation,
    Generations,
    Lease,
    Parked,
    Skip,
    Verification,
)


class MongoBookkeeping(Connection):
    """The Bookkeeping of one database."""

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        with self.operation():
            for fields in indexes:
                keys = [(name, DESCENDING if name == "_id" else ASCENDING) for name in fields]
                self.of(collection).create_index(keys)
            self.of("parked").create_index([("generation", ASCENDING), ("slot", ASCENDING)])

    def generations(self, projection: str) -> Generations:
        with self.operation():
            found = self.of("generations").find_one({"_id": projection})
        return to_record(Generations, found) if found else Generations()

    def begin_generation(self, projection: str) -> int:
        with self.operation():
            generations, which = self.of("generations"), {"_id": projection}
            first = {"$setOnInsert": record_to_document(Generations())}
            generations.update_one(which, first, upsert=True)
            begun = generations.find_one_and_update(
                which, {"$inc": {"newest": 1}}, return_document=ReturnDocument.AFTER
            )
        return int(begun["newest"])

    def switch(self, projection: str, serving: int, to: int) -> bool:
        with self.operation():
            result = self.of("generations").update_one(
                {"_id": projection, "serving": serving},
                {"$set": {"serving": to, "previous": serving}},
            )
        return bool(result.matched_count == 1)

    def drop(self, generation: Generation) -> None:
        with self.operation():
            self.of("generations").update_one(
                {"_id": generation.projection, "previous": generation.number},
                {"$set": {"previous": 0}},
            )
            self.of(generation.collection).drop()
            self.of("parked").delete_many({"generation": generation.name})
            self.of("checkpoints").delete_one({"_id": generation.name})

    def checkpoint(self, generation: str) -> Checkpoint:
        with self.operation():
            found = self.of("checkpoints").find_one({"_id": generation})
        return Checkpoint(**to_checkpoint_fields(found)) if found else Checkpoint()

    def take_lease(
        self, generation: str, holder: str, seconds: float, furthest: Mark = START
    ) -> Lease | None:
        take = _lease_update(holder, seconds, furthest)
        try:
            with self.operation():
                found = self.of("checkpoints").find_one_and_update(
                    {"_id": generation}, [{"$set": take}],
                    upsert=True, return_document=ReturnDocument.AFTER,
                )  # fmt: skip
        except errors.DuplicateKeyError:
            return None
        if found["holder"] != holder:
            return None
        standing = to_checkpoint_fields(found)
        return Lease(**standing, generation=generation, holder=holder, epoch=found["epoch"])

    def release_lease(self, generation: str, holder: str) -> None:
        with self.operation():
            self.of("checkpoints").update_one(
                {"_id": generation, "holder": holder}, {"$set": {"expiresAt": LONG_AGO}}
            )

    def halt(self, generation: str, reason: str) -> None:
        with self.operation():
            self.of("checkpoints").update_one({"_id": generation}, {"$set": {"halted": reason}})

    def move_checkpoint(self, lease: Lease, mark: Mark, covered_at: datetime | None) -> bool:
        is_ahead = {"$gt": [mark.position, "$position"]}
        is_unnamed = {"$eq": [{"$ifNull": ["$eventId", ""]}, ""]}
        moves = {"$or": [is_ahead, is_unnamed]}
        reached: dict[str, Any] = {
            "position": {"$cond": [moves, mark.position, "$position"]},
            "eventId": {"$cond": [moves, {"$literal": mark.event_id}, "$eventId"]},
            "storeEpoch": {"$literal": lease.store_epoch},
        }
        if covered_at is not None:
            reached["coveredAt"] = {"$literal": covered_at}
        with self.operation():
            result = self.of("checkpoints").update_one(
                {"_id": lease.generation, "epoch": lease.epoch}, [{"$set": reached}]
            )
        return bool(result.matched_count == 1)

    def park(self, entries: Sequence[Parked]) -> list[str]:
        new = list[str]()
        for begin in range(0, len(entries), AT_ONCE):
            some = entries[begin : begin + AT_ONCE]
            # most are new
            known = self._park([InsertOne(to_parked_document(each)) for each in some])
            if known and self._park([to_parked_update(some[number]) for number in known]):
                raise ReadModelUnavailable("another replica parks the same streams")
            new += [each.stream for number, each in enumerate(some) if number not in known]
        return new

    def _park(self, operations: Sequence[InsertOne[Document] | UpdateOne]) -> set[int]:
        """The numbers of the operations that are refused: another has inserted the entry."""
        try:
            with self.operation():
                self.of("parked").bulk_write(operations, ordered=False)
        except errors.BulkWriteError as error:
            return duplicates_of(error)
        return set()

    def parked(self, generation: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        if streams is not None:
            keys = (f"{generation}/{stream}" for stream in streams)
            found = self.by_id("parked", keys, of_majority=True)
        else:
            with self.operation():
                found = list(self.of("parked").find({"generation": generation}))
        return to_parked_entries(found)

    def parked_in(self, generation: str, slots: range) -> dict[str, Parked]:
        among = {"$gte": slots.start, "$lt": slots.stop}
        with self.operation():
            return to_parked_entries(
                self.of("parked").find({"generation": generation, "slot": among})
            )

    def count_parked(self, generation: str) -> int:
        with self.operation():
            return int(self.of("parked").count_documents({"generation": generation}))

    def release(self, generation: str, versions: Mapping[str, int]) -> int:
        deletions = [
            DeleteOne({"_id": f"{generation}/{stream}", "highest": {"$lte": version}})
            for stream, version in versions.items()
        ]
        with self.operation():
            return int(self.of("parked").bulk_write(deletions, ordered=False).deleted_count)

    def skip(self, skip: Skip) -> None:
        with self.operation():
            which = {"_id": f"{skip.projection}/{skip.event_id}"}
            self.of("skips").update_one(
                which, {"$setOnInsert": record_to_document(skip)}, upsert=True
            )

    def skips(self, projection: str) -> list[Skip]:
        with self.operation():
            found = self.of("skips").find({"projection": projection})
            return [to_record(Skip, each) for each in found]

    def note_verification(self, found: Verification) -> None:
        with self.operation():
            which = {"_id": found.projection}
            self.of("verifications").replace_one(which, record_to_document(found), upsert=True)

    def verification(self, projection: str) -> Verification | None:
        with self.operation():
            found = self.of("verifications").find_one({"_id": projection})
        return to_record(Verification, found) if found else None

    def note_depth(self, found: Depth) -> None:
        with self.operation():
            which = {"_id": found.projection}
            self.of("depths").replace_one(which, record_to_document(found), upsert=True)

    def depth(self, projection: str) -> Depth | None:
        with self.operation():
            found = self.of("depths").find_one({"_id": projection})
        return to_record(Depth, found) if found else None


def _lease_update(holder: str, seconds: float, furthest: Mark) -> dict[str, object]:
    """The fields of a checkpoint after a try to take its lease.

    The conditions are evaluated by MongoDB's clock, so that no holder's own can be wrong.
    """
    mine = {"$eq": ["$holder", {"$literal": holder}]}
    ends = {"$ifNull": ["$expiresAt", LONG_AGO]}
    is_over = {"$lt": [{"$toLong": ends}, {"$toLong": "$$NOW"}]}  # in milliseconds
    epoch = {"$ifNull": ["$epoch", 0]}

    def if_taken(then: object, otherwise: object) -> object:
        return {"$cond": [{"$or": [mine, is_over]}, then, otherwise]}

    take: dict[str, object] = {
        "holder": if_taken({"$literal": holder}, "$holder"),
        "expiresAt": if_taken({"$add": ["$$NOW", int(seconds * 1000)]}, "$expiresAt"),
        "epoch": {"$cond": [mine, epoch, if_taken({"$add": [epoch, 1]}, epoch)]},
        "position": {"$ifNull": ["$position", 0]},
    }
    if furthest.event_id:
        known = {"$ifNull": ["$furthest.position", 0]}
        noted = {"$literal": record_to_document(furthest)}
        take["furthest"] = {"$cond": [{"$gt": [furthest.position, known]}, noted, "$furthest"]}
    return take
