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

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from time import monotonic
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, quote_plus
from zlib import crc32

from bson.codec_options import CodecOptions, TypeEncoder, TypeRegistry
from bson.decimal128 import Decimal128
from bson.errors import BSONError
from pymongo import ASCENDING, DESCENDING, MongoClient, ReturnDocument, errors
from pymongo.operations import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from eventcore.errors import CannotApply, Misconfigured, ReadModelAway
from eventcore.event import START, Mark
from eventcore.observe import POOL_MAX, POOL_USED
from eventcore.projection import Document, Projection, version_of
from eventcore.retry import CircuitBreaker
from eventcore.settings import Server

SCANNED = 500
"""Documents of one page, where all are looked at."""

PROJECTED_AT = "projectedAt"
"""The field that says when a document was written."""

NOTICED = 1.0
"""Seconds after which a new password in its file has been noticed."""

SLOTS = 65536
"""A parked stream has one of so many slots, by which a part of the list can be read."""

IDS_AT_ONCE = 50
"""Ids in one `$in`; on the server of `make run` a longer one takes longer than several."""

PARKED_AT_ONCE = 200
"""Entries of the parked list in one write, so that a slow server answers in time."""

SOCKET_TIMEOUT, WRITE_TIMEOUT = 4000, 2500
"""Milliseconds that an answer may take, and that a majority may take to confirm a write: less, so
that a lagging secondary is an answer of the server and not a lost connection."""


@dataclass(frozen=True, slots=True)
class Write:
    """A document that replaces the one at version `replaces` (0: there is none yet)."""

    document: Document
    replaces: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One build of a projection: it has documents, a checkpoint and a parked list of its own.

    Other generations are folded beside the one that serves, and may take its place.
    """

    projection: str
    number: int
    collection: str

    @property
    def name(self) -> str:
        """What its checkpoint and its parked list are kept under."""
        return self.projection if self.number == 1 else f"{self.projection}.{self.number}"


def generation_of(projection: Projection, number: int = 1) -> Generation:
    """A generation of a projection; the first has its collection's plain name."""
    collection = projection.collection if number == 1 else f"{projection.collection}.{number}"
    return Generation(projection.name, number, collection)


@dataclass(frozen=True, slots=True)
class Generations:
    """The numbers of a projection's generations; `previous` served before (0: none is kept)."""

    serving: int = 1
    previous: int = 0
    newest: int = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to `position`, where `event_id` is, every event is applied or parked.

    That had settled at `covered_at`. `furthest` is the furthest event that a delivery has brought.
    `store_epoch` names the life of the log that the generation is folded from; "": not yet known.
    `halted` says why nothing more is applied: the log is not the one it was folded from.
    """

    position: int = 0
    covered_at: datetime | None = None
    store_epoch: str = ""
    halted: str = ""
    event_id: str = ""
    furthest: Mark = START

    @property
    def marks(self) -> tuple[Mark, Mark]:
        """The events that the log must have."""
        return Mark(self.position, self.event_id), self.furthest


@dataclass(frozen=True, slots=True)
class Lease(Checkpoint):
    """A generation's checkpoint, and the right to move it, until someone has a higher epoch."""

    generation: str = ""
    holder: str = ""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Parked:
    """A stream that one generation has set aside at `version`; `highest` is known to exist."""

    generation: str
    stream: str
    version: int
    highest: int
    error: str
    when: datetime


@dataclass(frozen=True, slots=True)
class Skip:
    """The decision that a projection passes over one event, for good: by whom, why and when."""

    projection: str
    stream: str
    version: int
    event_id: str
    who: str
    why: str
    when: datetime


@dataclass(frozen=True, slots=True)
class Verification:
    """What a comparison of a projection with the log found, and when: streams."""

    projection: str
    when: datetime
    checked: int
    wrong: int


Record = TypeVar("Record", Generations, Parked, Skip, Verification)
"""A record that is kept beside the documents, field by field."""


class ReadModel(Protocol):
    """The port; every method may raise ReadModelAway."""

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        """The documents that exist among `ids`."""

    def versions(self, collection: str, ids: Iterable[str]) -> dict[str, int]:
        """The versions of the documents that exist among `ids`; no failover takes them back."""

    def projected_at(self, collection: str, ids: Iterable[str]) -> dict[str, datetime]:
        """When the documents among `ids` were written, by their writer's clock; milliseconds.

        A document that an older version wrote is left out.
        """

    def page(
        self, collection: str, where: Mapping[str, str], before: str | None, limit: int
    ) -> list[Document]:
        """Up to `limit` documents by descending `_id`, below `before`, that match `where`.

        Removed ones are left out.
        """

    def scan(self, collection: str, after: str, limit: int) -> list[Document]:
        """Up to `limit` documents, removed ones too, by ascending `_id`, above `after`."""

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        """Write each document if it still is at the version it replaces; False: some were not.

        Raises CannotApply if a document cannot be stored at all; then some may be.
        """

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        """Make a collection's indexes; again at any time."""

    def generations(self, projection: str) -> Generations:
        """Which generations of a projection there are; at first there is one."""

    def begin_generation(self, projection: str) -> int:
        """The number of a new generation, which nobody else gets."""

    def switch(self, projection: str, serving: int, to: int) -> bool:
        """Let `to` serve in place of `serving`, which becomes the previous one; False: it did not
        serve any more.
        """

    def drop(self, generation: Generation) -> None:
        """Delete a generation that does not serve: documents, checkpoint and parked list."""

    def checkpoint(self, generation: str) -> Checkpoint:
        """How far a generation has come; position 0 at first."""

    def take_lease(
        self, generation: str, holder: str, seconds: float, furthest: Mark = START
    ) -> Lease | None:
        """Take or renew the lease; None while another holder has it. A new holder, a new epoch.

        In any case note `furthest`, an event that this replica has folded.
        """

    def release_lease(self, generation: str, holder: str) -> None:
        """Let another holder have the lease at once, if `holder` has it."""

    def halt(self, generation: str, reason: str) -> None:
        """Note why a generation must not go on, for all its projectors; "": it may."""

    def move_checkpoint(self, lease: Lease, mark: Mark, covered_at: datetime | None) -> bool:
        """Move forwards to an event, if the lease's epoch is still the newest; False: it is not.

        A checkpoint without an event, of an older version, is moved in any case. `covered_at` says
        when `mark` had settled, and may go back; None: unknown, the known one stays. The lease's
        `store_epoch` is kept with it.
        """

    def park(self, entries: Sequence[Parked]) -> list[str]:
        """Puts streams on the parked list, or renews their entries; returns those that are new.

        `highest` only grows.
        """

    def parked(self, generation: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        """The parked streams of a generation, all or those among `streams`."""

    def parked_in(self, generation: str, slots: range) -> dict[str, Parked]:
        """The parked streams of a generation that have these slots, of SLOTS."""

    def count_parked(self, generation: str) -> int:
        """The number of parked streams of a generation."""

    def release(self, generation: str, versions: Mapping[str, int]) -> int:
        """Takes off the list the streams whose version has reached `highest`; returns how many."""

    def skip(self, skip: Skip) -> None:
        """Record that an event is passed over; the first who said so is kept."""

    def skips(self, projection: str) -> list[Skip]:
        """All events that a projection passes over."""

    def note_verification(self, found: Verification) -> None:
        """Keep what a comparison found, in place of what the one before found."""

    def verification(self, projection: str) -> Verification | None:
        """What the last comparison found; None: there was none."""

    def ping(self) -> None:
        """Return if the server answers."""


class Mongo:
    """A ReadModel on one MongoDB database. Nothing is opened before the first call."""

    def __init__(self, server: Server, connections: int = 20) -> None:
        self._server = server
        self._connections = connections
        self._database: Any = None
        self._password = ""  # nosec B105
        self._look_at = 0.0
        self._connecting = threading.Lock()
        self._circuit = CircuitBreaker()
        self._in_use = POOL_USED.labels("MongoDB")

    def find(self, collection: str, ids: Iterable[str]) -> dict[str, Document]:
        found = self._by_id(collection, ids)
        return {str(document["_id"]): _shown(document) for document in found}

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
        with self._reaching():
            found = self._of(collection).find(query).sort("_id", DESCENDING).limit(limit)
            return [_shown(document) for document in found]

    def scan(self, collection: str, after: str, limit: int) -> list[Document]:
        with self._reaching():
            found = self._of(collection).find({"_id": {"$gt": after}})
            return [_shown(each) for each in found.sort("_id", ASCENDING).limit(limit)]

    def write(self, collection: str, writes: Sequence[Write]) -> bool:
        now = datetime.now(UTC)
        operations = [_operation(write, now) for write in writes]
        try:
            with self._reaching():
                result = self._of(collection).bulk_write(operations, ordered=False)
        except errors.BulkWriteError as error:
            _duplicates(error)
            return False
        return bool(result.inserted_count + result.matched_count == len(operations))

    def prepare(self, collection: str, indexes: Sequence[Sequence[str]]) -> None:
        with self._reaching():
            for fields in indexes:
                keys = [(name, DESCENDING if name == "_id" else ASCENDING) for name in fields]
                self._of(collection).create_index(keys)
            self._of("parked").create_index([("generation", ASCENDING), ("slot", ASCENDING)])

    def generations(self, projection: str) -> Generations:
        with self._reaching():
            found = self._of("generations").find_one({"_id": projection})
        return _record(Generations, found) if found else Generations()

    def begin_generation(self, projection: str) -> int:
        with self._reaching():
            generations, which = self._of("generations"), {"_id": projection}
            first = {"$setOnInsert": _to_document(Generations())}
            generations.update_one(which, first, upsert=True)
            begun = generations.find_one_and_update(
                which, {"$inc": {"newest": 1}}, return_document=ReturnDocument.AFTER
            )
        return int(begun["newest"])

    def switch(self, projection: str, serving: int, to: int) -> bool:
        with self._reaching():
            result = self._of("generations").update_one(
                {"_id": projection, "serving": serving},
                {"$set": {"serving": to, "previous": serving}},
            )
        return bool(result.matched_count == 1)

    def drop(self, generation: Generation) -> None:
        with self._reaching():
            self._of("generations").update_one(
                {"_id": generation.projection, "previous": generation.number},
                {"$set": {"previous": 0}},
            )
            self._of(generation.collection).drop()
            self._of("parked").delete_many({"generation": generation.name})
            self._of("checkpoints").delete_one({"_id": generation.name})

    def checkpoint(self, generation: str) -> Checkpoint:
        with self._reaching():
            found = self._of("checkpoints").find_one({"_id": generation})
        return Checkpoint(**_standing(found)) if found else Checkpoint()

    def take_lease(
        self, generation: str, holder: str, seconds: float, furthest: Mark = START
    ) -> Lease | None:
        # By MongoDB's clock, so that no holder's own can be wrong.
        mine = {"$eq": ["$holder", {"$literal": holder}]}
        ends = {"$ifNull": ["$expiresAt", _LONG_AGO]}
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
            noted = {"$literal": _to_document(furthest)}
            take["furthest"] = {"$cond": [{"$gt": [furthest.position, known]}, noted, "$furthest"]}
        try:
            with self._reaching():
                found = self._of("checkpoints").find_one_and_update(
                    {"_id": generation}, [{"$set": take}],
                    upsert=True, return_document=ReturnDocument.AFTER,
                )  # fmt: skip
        except errors.DuplicateKeyError:
            return None
        if found["holder"] != holder:
            return None
        standing = _standing(found)
        return Lease(**standing, generation=generation, holder=holder, epoch=found["epoch"])

    def release_lease(self, generation: str, holder: str) -> None:
        with self._reaching():
            self._of("checkpoints").update_one(
                {"_id": generation, "holder": holder}, {"$set": {"expiresAt": _LONG_AGO}}
            )

    def halt(self, generation: str, reason: str) -> None:
        with self._reaching():
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
        with self._reaching():
            result = self._of("checkpoints").update_one(
                {"_id": lease.generation, "epoch": lease.epoch}, [{"$set": reached}]
            )
        return bool(result.matched_count == 1)

    def park(self, entries: Sequence[Parked]) -> list[str]:
        new = list[str]()
        for begin in range(0, len(entries), PARKED_AT_ONCE):
            some = entries[begin : begin + PARKED_AT_ONCE]
            known = self._park([InsertOne(_stored(each)) for each in some])  # most are new
            if known and self._park([_renewal(some[number]) for number in known]):
                raise ReadModelAway("another replica parks the same streams")
            new += [each.stream for number, each in enumerate(some) if number not in known]
        return new

    def _park(self, operations: Sequence[InsertOne[Document] | UpdateOne]) -> set[int]:
        """The numbers of the operations that are refused: another has inserted the entry."""
        try:
            with self._reaching():
                self._of("parked").bulk_write(operations, ordered=False)
        except errors.BulkWriteError as error:
            return _duplicates(error)
        return set()

    def parked(self, generation: str, streams: Iterable[str] | None = None) -> dict[str, Parked]:
        if streams is not None:
            keys = (f"{generation}/{stream}" for stream in streams)
            found = self._by_id("parked", keys, of_majority=True)
        else:
            with self._reaching():
                found = list(self._of("parked").find({"generation": generation}))
        return _entries(found)

    def parked_in(self, generation: str, slots: range) -> dict[str, Parked]:
        among = {"$gte": slots.start, "$lt": slots.stop}
        with self._reaching():
            return _entries(self._of("parked").find({"generation": generation, "slot": among}))

    def count_parked(self, generation: str) -> int:
        with self._reaching():
            return int(self._of("parked").count_documents({"generation": generation}))

    def release(self, generation: str, versions: Mapping[str, int]) -> int:
        deletions = [
            DeleteOne({"_id": f"{generation}/{stream}", "highest": {"$lte": version}})
            for stream, version in versions.items()
        ]
        with self._reaching():
            return int(self._of("parked").bulk_write(deletions, ordered=False).deleted_count)

    def skip(self, skip: Skip) -> None:
        with self._reaching():
            which = {"_id": f"{skip.projection}/{skip.event_id}"}
            self._of("skips").update_one(which, {"$setOnInsert": _to_document(skip)}, upsert=True)

    def skips(self, projection: str) -> list[Skip]:
        with self._reaching():
            found = self._of("skips").find({"projection": projection})
            return [_record(Skip, each) for each in found]

    def note_verification(self, found: Verification) -> None:
        with self._reaching():
            which = {"_id": found.projection}
            self._of("verifications").replace_one(which, _to_document(found), upsert=True)

    def verification(self, projection: str) -> Verification | None:
        with self._reaching():
            found = self._of("verifications").find_one({"_id": projection})
        return _record(Verification, found) if found else None

    def ping(self) -> None:
        with self._reaching():
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
        with self._reaching():
            among = self._of(collection)
            if of_majority:
                among = among.with_options(read_concern=ReadConcern("majority"))
            for begin in range(0, len(wanted), IDS_AT_ONCE):
                some = wanted[begin : begin + IDS_AT_ONCE]
                which = some[0] if len(some) == 1 else {"$in": some}
                found += among.find({"_id": which}, fields)
        return found

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        # an operation holds one connection at a time, or waits for it
        with self._in_use.track_inprogress(), self._circuit.call(), _translated():
            yield

    def _of(self, collection: str) -> Any:
        return self._connected()[collection]

    def _connected(self) -> Any:
        """The database; soon after the password in its file has changed, of a new client."""
        database = self._database
        if database is None or monotonic() > self._look_at:
            with self._connecting:  # threads that begin together share a client
                password = self._server.password.read()
                if self._database is None or password != self._password:
                    self.close()
                    self._database, self._password = self._open(password), password
                database = self._database
                self._look_at = monotonic() + NOTICED
        return database

    def _open(self, password: str) -> Any:
        POOL_MAX.labels("MongoDB").set(self._connections)
        client: MongoClient[Document] = MongoClient(
            _url(self._server, password),
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
            codec_options=_EXACT,
            write_concern=WriteConcern(w="majority", wtimeout=WRITE_TIMEOUT),
        )


class _DecimalEncoder(TypeEncoder):
    """A Decimal is written as a Decimal128: 0.10 stays 0.10. See `_exact` for the way back.

    pymongo has a decoder as well; where there is one, it decodes all documents the slow way.
    """

    python_type = Decimal

    def transform_python(self, value: Decimal) -> Decimal128:
        return Decimal128(value)


_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_EXACT: CodecOptions[Document] = CodecOptions(
    tz_aware=True, tzinfo=UTC, type_registry=TypeRegistry([_DecimalEncoder()])
)


def _operation(write: Write, now: datetime) -> InsertOne[Document] | ReplaceOne[Document]:
    document = {**write.document, PROJECTED_AT: now}
    if write.replaces == 0:
        return InsertOne(document)
    return ReplaceOne({"_id": document["_id"], "version": write.replaces}, document)


def _shown(document: Document) -> Document:
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


def _duplicates(error: errors.BulkWriteError) -> set[int]:
    """The numbers of the operations whose `_id` was there already; raises for all other errors.

    A duplicate in another unique index is no race: the document cannot be stored.
    """
    numbers = set()
    for each in error.details.get("writeErrors", ()):
        if each.get("code") != 11000 or "_id" not in each.get("keyPattern", {"_id": 1}):
            raise CannotApply(str(each.get("errmsg", each))[:300]) from error
        numbers.add(each["index"])
    if error.details.get("writeConcernErrors"):
        raise ReadModelAway("MongoDB did not confirm a write by its majority") from error
    return numbers


def _stored(entry: Parked) -> Document:
    key, slot = f"{entry.generation}/{entry.stream}", crc32(entry.stream.encode()) % SLOTS
    return {"_id": key, "slot": slot, **_to_document(entry)}


def _renewal(entry: Parked) -> UpdateOne:
    document = _stored(entry)
    which = {"_id": document.pop("_id")}
    highest, when = {"highest": document.pop("highest")}, {"when": document.pop("when")}
    update = {"$set": document, "$max": highest, "$setOnInsert": when}
    return UpdateOne(which, update, upsert=True)


def _entries(found: Iterable[Document]) -> dict[str, Parked]:
    return {str(each["stream"]): _record(Parked, each) for each in found}


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the driver's errors into ours; duplicate keys pass, they are answers."""
    try:
        yield
    except (errors.BulkWriteError, errors.DuplicateKeyError):
        raise
    except (errors.DocumentTooLarge, BSONError, OverflowError) as error:
        raise CannotApply(f"MongoDB cannot store the document: {error}") from error
    except (errors.ConnectionFailure, errors.ExecutionTimeout, errors.WTimeoutError) as error:
        raise ReadModelAway(f"MongoDB cannot be reached: {_short(error)}") from error
    except errors.OperationFailure as error:
        raise ReadModelAway(f"MongoDB refused an operation: {_short(error)}") from error
    except errors.PyMongoError as error:
        raise ReadModelAway(f"MongoDB failed: {_short(error)}") from error
    except OSError as error:
        raise Misconfigured(f"MONGODB_CA_FILE cannot be used: {error}") from error


def _short(error: Exception) -> str:
    return str(error).split(", Timeout:")[0].split(", full error:")[0][:300]


def _url(server: Server, password: str) -> str:
    who = f"{quote_plus(server.user)}:{quote_plus(password)}@" if server.user else ""
    options = [option for option in (server.options, "tls=true" if server.tls else "") if option]
    if server.tls and server.ca_file:
        options.append(f"tlsCAFile={quote_plus(server.ca_file)}")
    return f"mongodb://{who}{server.host}:{server.port}/{server.name}?{'&'.join(options)}"


def make_login(admin: Server, database: str, user: str, password: str, role: str) -> None:
    """Make or mend a login that has one of MongoDB's built-in roles in `database`.

    `admin` may manage users. The login is kept in the `authSource` of the options, or else in the
    database itself. Raises ReadModelAway.
    """
    home = dict(parse_qsl(admin.options)).get("authSource", database)
    client: MongoClient[Document] = MongoClient(
        _url(admin, admin.password.read()), serverSelectionTimeoutMS=1500, socketTimeoutMS=6000
    )
    with _translated(), client:
        users = client[home].command("usersInfo", user)["users"]
        act = "updateUser" if users else "createUser"
        client[home].command(act, user, pwd=password, roles=[{"role": role, "db": database}])


def _camel(name: str) -> str:
    """A name as documents have it: event_id is eventId."""
    return re.sub("_([a-z])", lambda m: m[1].upper(), name)


def _to_document(record: Generations | Mark | Parked | Skip | Verification) -> Document:
    return {_camel(name): value for name, value in asdict(record).items()}


def _record(kind: type[Record], found: Mapping[str, Any]) -> Record:
    """The inverse of `_to_document`."""
    return kind(**{each.name: found[_camel(each.name)] for each in fields(kind)})


def _standing(found: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Checkpoint; an older version did not keep all of them."""
    names = {each.name: _camel(each.name) for each in fields(Checkpoint)}
    known = {name: found[key] for name, key in names.items() if found.get(key)}
    if "furthest" in known:
        known["furthest"] = Mark(known["furthest"]["position"], known["furthest"]["eventId"])
    return known
