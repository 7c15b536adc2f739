"""Read models in MongoDB: documents, checkpoints with their lease, and the parked list.

Prices are kept as Decimal128, exactly. A majority acknowledges every write, in its journal.

    <collection>   the documents of a generation: _id, version, the projection's own fields, and
                   projectedAt, when it was written, which `projected_at` alone shows
    generations    one a projection: the number of the generation that serves, and the newest one's
    checkpoints    one a generation: the event it stands on (position, eventId), the furthest event
                   that was folded, coveredAt, the epoch of the store, why it is halted, and who
                   holds the lease, with the lease's own epoch
    parked         one a stream that a generation has set aside: no payload, only where and why
    skips          one an event that all generations of a projection pass over
    verifications  one a projection: when it was last compared with the log, and the result
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, MongoClient, ReturnDocument, errors
from pymongo.operations import DeleteOne, InsertOne, UpdateOne
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from eventcore.clock import SYSTEM_CLOCK, Clock
from eventcore.errors import ReadModelUnavailable
from eventcore.model.event import START, Mark
from eventcore.model.projection import Document, version_of
from eventcore.observe.metrics import POOL_MAX, POOL_USED
from eventcore.readmodel.client import SOCKET_TIMEOUT, WRITE_TIMEOUT, to_url, translated
from eventcore.readmodel.documents import (
    EXACT,
    LONG_AGO,
    PROJECTED_AT,
    duplicates_of,
    record_to_document,
    to_checkpoint_fields,
    to_operation,
    to_parked_document,
    to_parked_entries,
    to_parked_update,
    to_record,
    without_bookkeeping,
)
from eventcore.readmodel.records import (
    Checkpoint,
    Generation,
    Generations,
    Lease,
    Parked,
    Skip,
    Verification,
    Write,
)
from eventcore.retry import CircuitBreaker
from eventcore.settings import Server

PASSWORD_TTL = 1.0
"""Seconds after which the password is read again from its file."""

AT_ONCE = 50
"""Documents that one request reads or writes, so that a slow server answers in time."""


class Mongo:
    """A ReadModel on one MongoDB database. Nothing is opened before the first call."""

    def __init__(self, server: Server, connections: int = 20, clock: Clock = SYSTEM_CLOCK) -> None:
        self._server = server
        self._connections = connections
        self._clock = clock
        self._database: Any = None
        self._password = ""  # nosec B105
        self._password_expires_at = 0.0
        self._connecting = threading.Lock()
        self._circuit = CircuitBreaker(clock.monotonic)
        self._in_use = POOL_USED.labels("MongoDB")

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        found = self._by_id(collection, ids)
        return {str(document["_id"]): without_bookkeeping(document) for document in found}

    def versions(self, collection: str, ids: Iterable[str]) -> dict[str, int]:
        found = self._by_id(collection, ids, {"version": 1}, of_majority=True)
        return {str(document["_id"]): version_of(document) for document in found}

    def projected_at(self, collection: str, ids: Iterable[str]) -> dict[str, datetime]:
        found = self._by_id(collection, ids, {PROJECTED_AT: 1})
        written = {str(each["_id"]): each.get(PROJECTED_AT) for each in found}
        return {each: at for each, at in written.items() if isinstance(at, datetime)}

    def page(
        self, collection: str, where: Mapping[str, str], before: str | None, limit: int
    ) -> list[Document]:
        query: dict[str, Any] = {**where, "removed": {"$exists": False}}
        if before is not None:
            query["_id"] = {"$lt": before}
        with self._operation():
            found = self._of(collection).find(query).sort("_id", DESCENDING).limit(limit)
            return [without_bookkeeping(document) for document in found]

    def scan(self, collection: str, after: str, limit: int) -> list[Document]:
        with self._operation():
            found = self._of(collection).find({"_id": {"$gt": after}})
            return [without_bookkeeping(each) for each in found.sort("_id", ASCENDING).limit(limit)]

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        now, written = self._clock.now(), 0
        for begin in range(0, len(writes), AT_ONCE):
            operations = [to_operation(write, now) for write in writes[begin : begin + AT_ONCE]]
            try:
                with self._operation():
                    result = self._of(collection).bulk_write(operations, ordered=False)
                written += result.inserted_count + result.matched_count
            except errors.BulkWriteError as error:
                duplicates_of(error)
        return written == len(writes)

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        with self._operation():
            for fields in indexes:
                keys = [(name, DESCENDING if name == "_id" else ASCENDING) for name in fields]
                self._of(collection).create_index(keys)
            self._of("parked").create_index([("generation", ASCENDING), ("slot", ASCENDING)])

    def generations(self, projection: str) -> Generations:
        with self._operation():
            found = self._of("generations").find_one({"_id": projection})
        return to_record(Generations, found) if found else Generations()

    def begin_generation(self, projection: str) -> int:
        with self._operation():
            generations, which = self._of("generations"), {"_id": projection}
            first = {"$setOnInsert": record_to_document(Generations())}
            generations.update_one(which, first, upsert=True)
            begun = generations.find_one_and_update(
                which, {"$inc": {"newest": 1}}, return_document=ReturnDocument.AFTER
            )
        return int(begun["newest"])

    def switch(self, projection: str, serving: int, to: int) -> bool:
        with self._operation():
            result = self._of("generations").update_one(
                {"_id": projection, "serving": serving},
                {"$set": {"serving": to, "previous": serving}},
            )
        return bool(result.matched_count == 1)

    def drop(self, generation: Generation) -> None:
        with self._operation():
            self._of("generations").update_one(
                {"_id": generation.projection, "previous": generation.number},
                {"$set": {"previous": 0}},
            )
            self._of(generation.collection).drop()
            self._of("parked").delete_many({"generation": generation.name})
            self._of("checkpoints").delete_one({"_id": generation.name})

    def checkpoint(self, generation: str) -> Checkpoint:
        with self._operation():
            found = self._of("checkpoints").find_one({"_id": generation})
        return Checkpoint(**to_checkpoint_fields(found)) if found else Checkpoint()

    def take_lease(
        self, generation: str, holder: str, seconds: float, furthest: Mark = START
    ) -> Lease | None:
        # By MongoDB's clock, so that no holder's own can be wrong.
        mine = {"$eq": ["$holder", {"$literal": holder}]}
        ends = {"$ifNull": ["$expiresAt", LONG_AGO]}
        is_over = {"$lt": [{"$toLong": ends}, {"$toLong": "$$NOW"}]}  # in milliseconds
        epoch = {"$ifNull": ["$epoch", 0]}

        def if_taken(then: object, otherwise: object) -> object:
            return {"$cond": [{"$or": [mine, is_over]}, then, otherwise]}

        take = {
            "holder": if_taken({"$literal": holder}, "$holder"),
            "expiresAt": if_taken({"$add": ["$$NOW", int(seconds * 1000)]}, "$expiresAt"),
            "epoch": {"$cond": [mine, epoch, if_taken({"$add": [epoch, 1]}, epoch)]},
            "position": {"$ifNull": ["$position", 0]},
        }
        if furthest.event_id:
            known = {"$ifNull": ["$furthest.position", 0]}
            noted = {"$literal": record_to_document(furthest)}
            take["furthest"] = {"$cond": [{"$gt": [furthest.position, known]}, noted, "$furthest"]}
        try:
            with self._operation():
                found = self._of("checkpoints").find_one_and_update(
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
        with self._operation():
            self._of("checkpoints").update_one(
                {"_id": generation, "holder": holder}, {"$set": {"expiresAt": LONG_AGO}}
            )

    def halt(self, generation: str, reason: str) -> None:
        with self._operation():
            self._of("checkpoints").update_one({"_id": generation}, {"$set": {"halted": reason}})

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
        with self._operation():
            result = self._of("checkpoints").update_one(
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
            with self._operation():
                self._of("parked").bulk_write(operations, ordered=False)
        except errors.BulkWriteError as error:
            return duplicates_of(error)
        return set()

    def parked(self, generation: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        if streams is not None:
            keys = (f"{generation}/{stream}" for stream in streams)
            found = self._by_id("parked", keys, of_majority=True)
        else:
            with self._operation():
                found = list(self._of("parked").find({"generation": generation}))
        return to_parked_entries(found)

    def parked_in(self, generation: str, slots: range) -> dict[str, Parked]:
        among = {"$gte": slots.start, "$lt": slots.stop}
        with self._operation():
            return to_parked_entries(
                self._of("parked").find({"generation": generation, "slot": among})
            )

    def count_parked(self, generation: str) -> int:
        with self._operation():
            return int(self._of("parked").count_documents({"generation": generation}))

    def release(self, generation: str, versions: Mapping[str, int]) -> int:
        deletions = [
            DeleteOne({"_id": f"{generation}/{stream}", "highest": {"$lte": version}})
            for stream, version in versions.items()
        ]
        with self._operation():
            return int(self._of("parked").bulk_write(deletions, ordered=False).deleted_count)

    def skip(self, skip: Skip) -> None:
        with self._operation():
            which = {"_id": f"{skip.projection}/{skip.event_id}"}
            self._of("skips").update_one(
                which, {"$setOnInsert": record_to_document(skip)}, upsert=True
            )

    def skips(self, projection: str) -> list[Skip]:
        with self._operation():
            found = self._of("skips").find({"projection": projection})
            return [to_record(Skip, each) for each in found]

    def note_verification(self, found: Verification) -> None:
        with self._operation():
            which = {"_id": found.projection}
            self._of("verifications").replace_one(which, record_to_document(found), upsert=True)

    def verification(self, projection: str) -> Verification | None:
        with self._operation():
            found = self._of("verifications").find_one({"_id": projection})
        return to_record(Verification, found) if found else None

    def ping(self) -> None:
        with self._operation():
            self._connected().command("ping")

    def close(self) -> None:
        """Give up all connections; the next call opens new ones."""
        if self._database is not None:
            self._database.client.close()
            self._database = None

    def _by_id(
        self,
        collection: str,
        ids: Iterable[str],
        fields: Mapping[str, int] | None = None,
        of_majority: bool = False,
    ) -> list[Document]:
        """Documents by their ids, some at a time: a long `$in` is slow on some servers."""
        wanted, found = list(ids), list[Document]()
        with self._operation():
            among = self._of(collection)
            if of_majority:
                among = among.with_options(read_concern=ReadConcern("majority"))
            for begin in range(0, len(wanted), AT_ONCE):
                some = wanted[begin : begin + AT_ONCE]
                which = some[0] if len(some) == 1 else {"$in": some}
                found += among.find({"_id": which}, fields)
        return found

    @contextmanager
    def _operation(self) -> Iterator[None]:
        # an operation holds one connection at a time, or waits for it
        with self._in_use.track_inprogress(), self._circuit.call(), translated():
            yield

    def _of(self, collection: str) -> Any:
        return self._connected()[collection]

    def _connected(self) -> Any:
        """The database; soon after the password in its file has changed, of a new client."""
        database = self._database
        if database is None or self._clock.monotonic() > self._password_expires_at:
            with self._connecting:  # threads that begin together share a client
                password = self._server.password.read()
                if self._database is None or password != self._password:
                    self.close()
                    self._database, self._password = self._open(password), password
                database = self._database
                self._password_expires_at = self._clock.monotonic() + PASSWORD_TTL
        return database

    def _open(self, password: str) -> Any:
        POOL_MAX.labels("MongoDB").set(self._connections)
        client: MongoClient[Document] = MongoClient(
            to_url(self._server, password),
            maxPoolSize=self._connections,
            serverSelectionTimeoutMS=1500,
            connectTimeoutMS=1500,
            socketTimeoutMS=SOCKET_TIMEOUT,
            waitQueueTimeoutMS=2000,
            heartbeatFrequencyMS=5000,
            appname="eventcore",
        )
        return client.get_database(
            self._server.name,
            codec_options=EXACT,
            write_concern=WriteConcern(w="majority", wtimeout=WRITE_TIMEOUT),
        )
