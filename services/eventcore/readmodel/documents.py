"""The documents of read models, in MongoDB."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, errors

from eventcore.model.event import Json
from eventcore.model.projection import Document, version_of
from eventcore.readmodel.connection import AT_ONCE, Connection
from eventcore.readmodel.conversion import (
    PROJECTED_AT,
    duplicates_of,
    to_operation,
    without_bookkeeping,
)
from eventcore.readmodel.records import Write


class MongoDocuments(Connection):
    """The Documents of one database."""

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        found = self.by_id(collection, ids)
        return {str(document["_id"]): without_bookkeeping(document) for document in found}

    def versions(self, collection: str, ids: Iterable[str]) -> dict[str, int]:
        found = self.by_id(collection, ids, {"version": 1}, of_majority=True)
        return {str(document["_id"]): version_of(document) for document in found}

    def projected_at(self, collection: str, ids: Iterable[str]) -> dict[str, datetime]:
        found = self.by_id(collection, ids, {PROJECTED_AT: 1})
        written = {str(each["_id"]): each.get(PROJECTED_AT) for each in found}
        return {each: at for each, at in written.items() if isinstance(at, datetime)}

    def page(
        self, collection: str, where: Mapping[str, str], before: str | None, limit: int
    ) -> list[Document]:
        query: dict[str, Any] = {**where, "removed": {"$exists": False}}
        if before is not None:
            query["_id"] = {"$lt": before}
        with self.operation():
            found = self.of(collection).find(query).sort("_id", DESCENDING).limit(limit)
            return [without_bookkeeping(document) for document in found]

    def ranked(
        self, collection: str, by: str, after: tuple[Json, str] | None, limit: int
    ) -> list[Document]:
        query: dict[str, Any] = {by: {"$exists": True}}
        if after is not None:
            value, id = after
            query = {"$or": [{by: {"$lt": value}}, {by: value, "_id": {"$gt": id}}]}
        with self.operation():
            found = self.of(collection).find(query).sort([(by, DESCENDING), ("_id", ASCENDING)])
            return [without_bookkeeping(document) for document in found.limit(limit)]

    def scan(self, collection: str, after: str, limit: int) -> list[Document]:
        with self.operation():
            found = self.of(collection).find({"_id": {"$gt": after}})
            return [without_bookkeeping(each) for each in found.sort("_id", ASCENDING).limit(limit)]

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        now, written = self._clock.now(), 0
        for begin in range(0, len(writes), AT_ONCE):
            operations = [to_operation(write, now) for write in writes[begin : begin + AT_ONCE]]
            try:
                with self.operation():
                    result = self.of(collection).bulk_write(operations, ordered=False)
                written += result.inserted_count + result.matched_count
            except errors.BulkWriteError as error:
                duplicates_of(error)
        return written == len(writes)
