"""A model of MongoDB, and the real read model on top of it.

Each operation on one document is atomic; a bulk is not. A request or its answer may be lost, and
what a process sent before it died may take effect after its death.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import AutoReconnect, BulkWriteError, DuplicateKeyError

from eventcore.clock import Clock
from eventcore.model.projection import Document
from eventcore.readmodel.conversion import PROJECTED_AT
from eventcore.readmodel.mongo import Mongo
from eventcore.settings import Secret, Server
from tests.sim.judge import Judge
from tests.sim.world import Crash, World

Result = TypeVar("Result")

NOWHERE = Server("nowhere", 0, "nothing", "nobody", Secret(""))


class FakeMongo:
    """The server: collections of documents by their ids."""

    def __init__(self, world: World, judge: Judge, documents: str) -> None:
        self.world = world
        self.judge = judge
        self.documents = documents
        self.collections: dict[str, dict[str, Document]] = {}
        self.away_until = 0.0
        self.restarts = 0

    def restart(self, seconds: float) -> None:
        """Be away, and forget what was still to be done."""
        self.away_until = self.world.now + seconds
        self.restarts += 1

    def of(self, name: str) -> dict[str, Document]:
        """A collection's documents."""
        return self.collections.setdefault(name, {})

    def folds(self) -> dict[str, Document]:
        """The projection's documents, as far as they are folds."""
        return {key: _own(document) for key, document in self.of(self.documents).items()}

    def call(self, what: str, act: Callable[[], Result], *, reads: bool = False) -> Result:
        """Carry out one operation on behalf of the running process."""
        try:
            self.world.point(f"mongo {what}")
        except Crash:
            if not reads and self.world.random.random() < 0.5:
                self._later(act)
            raise
        self._require_up()
        if self.world.chance("mongo cut"):
            raise AutoReconnect("connection closed")
        result = act()
        if not reads:
            self.world.point(f"mongo {what} done")
        if self.world.chance("mongo answer lost") or self.world.now < self.away_until:
            if not reads:
                self.world.reach("a write to MongoDB has an unknown outcome")
            raise AutoReconnect("connection closed")
        return result

    def bulk(self, what: str, acts: Sequence[Callable[[], object]]) -> None:
        """Carry out a bulk, in whatever order, others in between; raises in the middle."""
        waiting = list(acts)
        self.world.random.shuffle(waiting)
        try:
            self.world.point(f"mongo {what}")
            self._require_up()
            if self.world.chance("mongo cut"):
                raise AutoReconnect("connection closed")
            while waiting:
                waiting.pop()()
                if waiting and self.world.random.random() < 0.4:
                    self.world.point(f"mongo in {what}")
                    if self.world.chance("mongo bulk cut") or self.world.now < self.away_until:
                        self.world.reach("a bulk is done in part")
                        raise AutoReconnect("connection closed")
            self.world.point(f"mongo {what} done")
        except (Crash, AutoReconnect):
            if waiting and self.world.random.random() < 0.5:
                for act in waiting:
                    self._later(act)
            raise
        if self.world.chance("mongo answer lost") or self.world.now < self.away_until:
            self.world.reach("a bulk's outcome is unknown")
            raise AutoReconnect("connection closed")

    def _later(self, act: Callable[[], object]) -> None:
        restarts = self.restarts

        def take_effect() -> None:
            if self.restarts == restarts:
                self.world.reach("a write takes effect after its process has given it up")
                try:
                    act()
                except DuplicateKeyError:
                    self.world.note("too late")

        self.world.later(self.world.latency() * 30, take_effect)

    def _require_up(self) -> None:
        if self.world.now < self.away_until:
            raise AutoReconnect("connection refused")


class SimMongo(Mongo):
    """The real read model, on simulated collections."""

    def __init__(self, server: FakeMongo, clock: Clock | None = None) -> None:
        super().__init__(NOWHERE, clock=clock or server.world.clock)
        self._fake = server

    def of(self, collection: str) -> Any:
        return FakeCollection(self._fake, collection)


class FakeCollection:
    """The operations of a collection that the read model uses."""

    def __init__(self, server: FakeMongo, name: str) -> None:
        self._server = server
        self._name = name

    @property
    def _documents(self) -> dict[str, Document]:
        return self._server.of(self._name)

    # ── reading ───────────────────────────────────────────────────────────────────────────

    def with_options(self, **_: object) -> "FakeCollection":
        """There is one server, so one reads what a majority has."""
        return self

    def find(
        self, where: Mapping[str, Any], fields: Mapping[str, int] | None = None
    ) -> "list[Document] | Found":
        """What matches."""

        def read() -> list[Document]:
            wanted = where.get("_id")
            if isinstance(wanted, dict) and "$in" in wanted:
                some = (self._documents.get(each) for each in wanted["$in"])
                return [dict(each) for each in some if each is not None]
            return [dict(each) for each in self._documents.values() if matches(each, where)]

        return Found(self._server.call(f"find {self._name}", read, reads=True))

    def find_one(self, where: Mapping[str, Any]) -> Document | None:
        """The first that matches."""
        found = self.find(where)
        return next(iter(found), None)

    def count_documents(self, where: Mapping[str, Any]) -> int:
        """The number of documents that match."""
        return len(self.find(where))

    # ── writing ───────────────────────────────────────────────────────────────────────────

    def bulk_write(self, operations: Sequence[Any], ordered: bool) -> Any:
        """Inserts and replacements, unordered."""
        counts = SimpleNamespace(inserted_count=0, matched_count=0, deleted_count=0)
        errors: list[dict[str, Any]] = []
        for each in operations:
            values = each._doc.values() if isinstance(each, InsertOne | ReplaceOne) else ()
            if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
                raise OverflowError("MongoDB can only handle up to 8-byte ints")

        def insert(index: int, document: Document) -> None:
            if str(document["_id"]) in self._documents:
                errors.append({"index": index, "code": 11000, "errmsg": "duplicate key"})
                return
            self._put(document)
            counts.inserted_count += 1

        def replace(where: Mapping[str, Any], document: Document, upsert: bool) -> None:
            found = self._documents.get(where["_id"])
            if (found is None and upsert) or (found is not None and matches(found, where)):
                self._put(document)
                counts.matched_count += 1

        def act(index: int, one: Any) -> Callable[[], object]:
            if isinstance(one, InsertOne):
                return partial(insert, index, one._doc)
            if isinstance(one, DeleteOne):
                return lambda: setattr(
                    counts, "deleted_count", counts.deleted_count + self._delete(one._filter)
                )
            if isinstance(one, UpdateOne):
                return partial(self._update, one._filter, one._doc, bool(one._upsert))
            return partial(replace, one._filter, one._doc, bool(one._upsert))

        is_of_documents = self._name == self._server.documents
        kind = "delete" if isinstance(operations[0], DeleteOne) else "update"
        what = "bulk" if is_of_documents else f"{kind} {self._name}"
        self._server.bulk(what, [act(index, one) for index, one in enumerate(operations)])
        if is_of_documents and counts.inserted_count + counts.matched_count < len(operations):
            self._server.world.reach("a replica was faster with a document")
        if errors:
            raise BulkWriteError({"writeErrors": errors})
        return counts

    def insert_one(self, document: Document) -> None:
        """Insert; raises DuplicateKeyError."""

        def insert() -> None:
            if str(document["_id"]) in self._documents:
                raise DuplicateKeyError("duplicate key")
            self._put(document)

        self._server.call(f"insert {self._name}", insert)

    def update_one(
        self, where: Mapping[str, Any], update: Mapping[str, Any], upsert: bool = False
    ) -> Any:
        """Update the first that matches."""
        found = self._server.call(
            f"update {self._name}", lambda: self._update(where, update, upsert)
        )
        return SimpleNamespace(matched_count=int(found is not None))

    def find_one_and_update(
        self, where: Mapping[str, Any], update: Any, return_document: object, upsert: bool = False
    ) -> Document | None:
        """Update the first that matches, and answer what it is then."""
        return self._server.call(f"take {self._name}", lambda: self._update(where, update, upsert))

    def delete_one(self, where: Mapping[str, Any]) -> Any:
        """Delete the first that matches."""
        deleted = self._server.call(f"delete {self._name}", lambda: self._delete(where))
        return SimpleNamespace(deleted_count=deleted)

    def delete_many(self, where: Mapping[str, Any]) -> None:
        """Delete all that match."""

        def delete() -> None:
            for key in [k for k, each in self._documents.items() if matches(each, where)]:
                del self._documents[key]

        self._server.call(f"delete {self._name}", delete)

    def replace_one(self, where: Mapping[str, Any], document: Document, upsert: bool) -> None:
        """Put a document in the place of another, or of none."""
        self._server.call(f"replace {self._name}", lambda: self._put({**where, **document}))

    def create_index(self, keys: Sequence[tuple[str, int]]) -> None:
        """Indexes change nothing but the time."""
        self._server.call(f"index {self._name}", lambda: None, reads=True)

    def drop(self) -> None:
        """Delete all."""
        self._server.call(f"drop {self._name}", self._documents.clear)

    # ── within the server ─────────────────────────────────────────────────────────────────

    def _delete(self, where: Mapping[str, Any]) -> int:
        found = self._documents.get(where["_id"])
        if found is None or not matches(found, where):
            return 0
        del self._documents[where["_id"]]
        if self._name == "parked":
            judge = self._server.judge
            judge.taken_off(str(found["stream"]), found["highest"])
            judge.released(str(found["stream"]))
        return 1

    def _update(self, where: Mapping[str, Any], update: Any, upsert: bool) -> Document | None:
        found = self._documents.get(where["_id"])
        if found is None and upsert:
            changed = {**where, **({} if isinstance(update, list) else update["$setOnInsert"])}
        elif found is None or not matches(found, where):
            if found is not None and self._name == "checkpoints" and "epoch" in where:
                self._server.world.reach("who lost the lease cannot move the checkpoint")
            return None
        else:
            changed = dict(found)
        if isinstance(update, list):
            update = {"$set": self._computed(update, changed)}
        changed.update(update.get("$set", {}))
        for name, value in update.get("$max", {}).items():
            changed[name] = max(changed.get(name, value), value)
        for name, value in update.get("$inc", {}).items():
            changed[name] = changed.get(name, 0) + value
        self._put(changed)
        return dict(changed)

    def _computed(self, stages: Sequence[Mapping[str, Any]], document: Document) -> Document:
        """What a pipeline of one $set makes of a document, by the server's clock."""
        [stage] = stages
        given = {**document, "$NOW": self._server.world.utc()}
        return {name: value_of(wanted, given) for name, wanted in stage["$set"].items()}

    def _put(self, document: Document) -> None:
        old = self._documents.get(str(document["_id"]))
        self._documents[str(document["_id"])] = dict(document)
        judge, world = self._server.judge, self._server.world
        if self._name == self._server.documents:
            world.note(f"{str(document['_id'])[-4:]} is at version {document['version']}")
            judge.document_written(old, _own(document))
        elif self._name == "parked":
            self._parked(old, document)
        elif self._name == "checkpoints":
            self._checkpoint(old or {}, document)

    def _parked(self, old: Document | None, new: Document) -> None:
        world = self._server.world
        world.note(f"{str(new['stream'])[-4:]} is parked at {new['version']}, to {new['highest']}")
        self._server.judge.parks(str(new["stream"]))
        world.reach("a stream is parked")
        if old and new["highest"] != old["highest"]:
            world.reach("later events of a parked stream arrive")

    def _checkpoint(self, old: Document, new: Document) -> None:
        world = self._server.world
        if new["position"] != old.get("position", 0):
            world.note(f"the checkpoint is {new['position']}")
            self._server.judge.swept(new["position"], str(new["holder"]), str(new["_id"]))
        if old and new["holder"] != old["holder"]:
            kind = "a live" if world.named(str(old["holder"])) else "a dead"
            world.reach(f"the lease is taken over from {kind} holder")


class Found(list[Document]):
    """What a query found, as a cursor."""

    def sort(self, field: str, direction: int) -> "Found":  # type: ignore[override]
        """By one field."""
        return Found(sorted(self, key=lambda d: str(d[field]), reverse=direction < 0))

    def limit(self, number: int) -> "Found":
        """The first of them."""
        return Found(self[:number])


def value_of(wanted: Any, document: Mapping[str, Any]) -> Any:
    """The value of an expression of MongoDB's, of those that the read model uses."""
    if isinstance(wanted, str) and wanted.startswith("$"):
        return document.get(wanted[1:])
    if not isinstance(wanted, dict):
        return wanted
    [(operator, given)] = wanted.items()
    if operator == "$literal":
        return given
    if operator == "$toLong":
        return int(value_of(given, document).timestamp() * 1000)
    first, *others = (partial(value_of, each, document) for each in given)
    if operator == "$cond":
        return others[0]() if first() else others[1]()
    if operator == "$or":
        return first() or others[0]()
    if operator == "$max":
        return max(each for each in (first(), others[0]()) if each is not None)
    one, other = first(), others[0]()
    if operator == "$ifNull":
        return other if one is None else one
    if operator == "$add":
        return one + (timedelta(milliseconds=other) if isinstance(one, datetime) else other)
    if operator == "$gt":
        return one > other
    return {"$eq": one == other, "$lt": operator == "$lt" and one < other}[operator]


def matches(document: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether a document has what a filter asks for."""
    return all(_fits(document.get(name), name in document, asked) for name, asked in where.items())


def _fits(value: Any, there: bool, asked: Any) -> bool:
    if not isinstance(asked, dict):
        return bool(there and value == asked)
    checks: dict[str, Callable[[Any], bool]] = {
        "$lt": lambda limit: there and value < limit,
        "$lte": lambda limit: there and value <= limit,
        "$gt": lambda limit: there and value > limit,
        "$gte": lambda limit: there and value >= limit,
        "$exists": lambda wanted: there is wanted,
        "$in": lambda some: value in some,
    }
    return all(checks[name](limit) for name, limit in asked.items())


def _own(document: Document) -> Document:
    """Without what the read model notes beside the fold."""
    return {name: value for name, value in document.items() if name != PROJECTED_AT}


def by_stream(parked: Iterable[Document]) -> dict[str, Document]:
    """Parked entries by their streams."""
    return {str(each["stream"]): each for each in parked}
