"""Documents and records in MongoDB's form, and back."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zlib import crc32

from bson.codec_options import CodecOptions, TypeEncoder, TypeRegistry
from bson.decimal128 import Decimal128
from pymongo import errors
from pymongo.operations import InsertOne, ReplaceOne, UpdateOne

from eventcore.errors import CannotApply, ReadModelUnavailable
from eventcore.model.event import Mark
from eventcore.model.projection import Document
from eventcore.readmodel.port import SLOTS
from eventcore.readmodel.records import (
    Checkpoint,
    Depth,
    Generations,
    Parked,
    Record,
    Skip,
    Verification,
    Write,
)

PROJECTED_AT = "projectedAt"
"""The field that says when a document was written."""


class _DecimalEncoder(TypeEncoder):
    """A Decimal is written as a Decimal128: 0.10 stays 0.10. See `_exact` for the way back.

    pymongo has a decoder as well; where there is one, it decodes all documents the slow way.
    """

    python_type = Decimal

    def transform_python(self, value: Decimal) -> Decimal128:
        return Decimal128(value)


LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

EXACT: CodecOptions[Document] = CodecOptions(
    tz_aware=True, tzinfo=UTC, type_registry=TypeRegistry([_DecimalEncoder()])
)


def to_operation(write: Write, now: datetime) -> InsertOne[Document] | ReplaceOne[Document]:
    document = {**write.document, PROJECTED_AT: now}
    if write.replaces == 0:
        return InsertOne(document)
    return ReplaceOne({"_id": document["_id"], "version": write.replaces}, document)


def without_bookkeeping(document: Document) -> Document:
    """As the projection has folded it."""
    document.pop(PROJECTED_AT, None)
    return {name: _exact(value) for name, value in document.items()}


def _exact(value: Any) -> Any:
    """With Decimals again, however deep they are."""
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, dict):
        return {name: _exact(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_exact(each) for each in value]
    return value


def duplicates_of(error: errors.BulkWriteError) -> set[int]:
    """The numbers of the operations whose `_id` was there already; raises for all other errors.

    A duplicate in another unique index is no race: the document cannot be stored.
    """
    numbers = set()
    for each in error.details.get("writeErrors", ()):
        if each.get("code") != 11000 or "_id" not in each.get("keyPattern", {"_id": 1}):
            raise CannotApply(str(each.get("errmsg", each))[:300]) from error
        numbers.add(each["index"])
    if error.details.get("writeConcernErrors"):
        raise ReadModelUnavailable("MongoDB did not confirm a write by its majority") from error
    return numbers


def to_parked_document(entry: Parked) -> Document:
    key, slot = f"{entry.generation}/{entry.stream}", crc32(entry.stream.encode()) % SLOTS
    return {"_id": key, "slot": slot, **record_to_document(entry)}


def to_parked_update(entry: Parked) -> UpdateOne:
    document = to_parked_document(entry)
    which = {"_id": document.pop("_id")}
    highest, when = {"highest": document.pop("highest")}, {"when": document.pop("when")}
    update = {"$set": document, "$max": highest, "$setOnInsert": when}
    return UpdateOne(which, update, upsert=True)


def to_parked_entries(found: Iterable[Document]) -> dict[str, Parked]:
    return {str(each["stream"]): to_record(Parked, each) for each in found}


def _camel(name: str) -> str:
    """A name as documents have it: event_id is eventId."""
    return re.sub("_([a-z])", lambda m: m[1].upper(), name)


def record_to_document(
    record: Depth | Generations | Mark | Parked | Skip | Verification,
) -> Document:
    return {_camel(name): value for name, value in asdict(record).items()}


def to_record(kind: type[Record], found: Mapping[str, Any]) -> Record:
    """The inverse of `record_to_document`."""
    return kind(**{each.name: found[_camel(each.name)] for each in fields(kind)})


def to_checkpoint_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Checkpoint; an older version did not keep all of them."""
    names = {each.name: _camel(each.name) for each in fields(Checkpoint)}
    known = {name: found[key] for name, key in names.items() if found.get(key)}
    if "furthest" in known:
        known["furthest"] = Mark(known["furthest"]["position"], known["furthest"]["eventId"])
    return known
