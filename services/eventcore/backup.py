"""Backup and restore of one event database, with every position as it was.

A backup is one gzip file: a line of JSON that says what it is, then each table as PostgreSQL
copies it, all of one snapshot, so that it is of one moment while events are appended. A restored
log begins a new epoch: projections that have read further than it goes know it by that.
"""

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from gzip import GzipFile
from pathlib import Path
from typing import Any

from eventcore.errors import Conflict, Invalid
from eventcore.settings import Server
from eventcore.store import SCHEMA_VERSION, connect, translated

TABLES = ("store_epochs", "streams", "events", "idempotency_keys", "checkpoints")
"""In the order they are restored."""

_FORMAT = "event store backup 1"
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, json.JSONDecodeError)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is of: which log, when, and how much of it."""

    format: str
    database: str
    schema_version: int
    epoch: str
    taken_at: str
    events: int
    head: int


def backup(owner: Server, file: Path) -> Manifest:
    """Write all of the database to `file`, which must not be there yet; appends go on meanwhile.

    It has its name only once it is whole, and only its owner may read it. Raises StoreAway,
    Conflict.
    """
    if file.exists():
        raise Conflict(f"{file} is there already; nothing was written")
    part = file.with_name(f"{file.name}.part")
    with _session(owner, "isolation level repeatable read read only") as cursor:
        manifest = _manifest(cursor, owner.name)
        descriptor = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with (
            os.fdopen(descriptor, "wb") as raw,
            gzip.open(raw, "wb", compresslevel=6) as out,
        ):
            out.write(json.dumps(asdict(manifest)).encode() + b"\n")
            for table in TABLES:
                _copy_out(cursor, table, out)
            raw.flush()
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.rename(file)
    return manifest


def restore(owner: Server, file: Path) -> Manifest:
    """Fill a database that has the schema and no events yet, in one transaction, and begin a
    new epoch.

    The relay's checkpoint comes along: what it had not confirmed at the time is published again.
    Raises Conflict for a database that has events, Invalid for a file that is damaged or newer
    than this code, StoreAway.
    """
    try:
        with gzip.open(file, "rb") as source, _session(owner) as cursor:
            manifest = _read_manifest(source.readline())
            cursor.execute("lock table events, store_epochs in exclusive mode")
            cursor.execute("select exists (select from events)")
            if cursor.fetchone()[0]:
                raise Conflict(f"{owner.name} has events already: restore into an empty database")
            cursor.execute("delete from store_epochs")
            for table in TABLES:
                _copy_in(cursor, table, source)
            _settle_in(cursor, manifest)
    except _DAMAGE as error:
        raise Invalid(f"{file} is damaged: {error}; nothing was restored") from error
    return manifest


@contextmanager
def _session(owner: Server, mode: str = "") -> Iterator[Any]:
    """A cursor in one transaction that may take its time."""
    with translated(), connect(owner).connect() as connection:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute("set statement_timeout = 0")
            cursor.execute("set idle_in_transaction_session_timeout = '10min'")
            cursor.execute(f"begin {mode}")
            yield cursor
            cursor.execute("commit")


def _manifest(cursor: Any, database: str) -> Manifest:
    cursor.execute(
        "select (select max(version) from schema_versions),"
        " (select epoch::text from store_epochs order by number desc limit 1),"
        " (select count(*) from events), (select head from settle())"
    )
    schema_version, epoch, events, head = cursor.fetchone()
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(_FORMAT, database, schema_version, epoch, taken_at, events, head)


def _read_manifest(line: bytes) -> Manifest:
    try:
        manifest = Manifest(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise Invalid(f"this is no backup of an event store: {error}") from error
    if manifest.format != _FORMAT or manifest.schema_version != SCHEMA_VERSION:
        raise Invalid(
            f"the backup is a {manifest.format!r} of schema version {manifest.schema_version};"
            f" this code restores {_FORMAT!r} of version {SCHEMA_VERSION}"
        )
    return manifest


def _copy_out(cursor: Any, table: str, out: GzipFile) -> None:
    """The table between two lines of JSON: its columns, and the hash of what came between."""
    cursor.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
        " and not attisdropped order by attnum",
        (table,),
    )
    columns = [row[0] for row in cursor.fetchall()]
    out.write(json.dumps({"table": table, "columns": columns}).encode() + b"\n")
    writer = _Lines(out)
    cursor.copy_expert(f"copy (select {', '.join(columns)} from {table}) to stdout", writer)  # nosec B608
    out.write(b"\\.\n")
    out.write(json.dumps({"rows": writer.rows, "sha256": writer.hash.hexdigest()}).encode() + b"\n")


class _Lines:
    """Counts and hashes what PostgreSQL writes."""

    def __init__(self, out: GzipFile) -> None:
        self._out = out
        self.rows = 0
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.rows += data.count(b"\n")
        self.hash.update(data)
        return self._out.write(data)


class _Table(io.RawIOBase):
    """Reads a table up to its end, counting and hashing."""

    def __init__(self, source: GzipFile) -> None:
        self._source = source
        self._left = b""
        self._ended = False
        self.rows = 0
        self.hash = hashlib.sha256()
        self.damage: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; a damage is noted, and ends the table, since the driver hides it."""
        while not self._ended and len(self._left) < max(size, 1):
            try:
                line = self._source.readline()
            except _DAMAGE as error:
                line, self.damage = b"", error
            if not line:
                self.damage = self.damage or EOFError("it ends within a table")
                self._ended = True
                break
            if line == b"\\.\n":
                self._ended = True
                break
            self._left += line
            self.rows += 1
            self.hash.update(line)
        some, self._left = self._left[:size], self._left[size:]
        return some


def _copy_in(cursor: Any, table: str, source: GzipFile) -> None:
    said = json.loads(source.readline() or b"{}")
    if said.get("table") != table:
        raise Invalid(f"the backup is damaged: {table} is missing; nothing was restored")
    rows = _Table(source)
    cursor.copy_expert(f"copy {table} ({', '.join(said['columns'])}) from stdin", rows)
    if rows.damage:
        raise rows.damage
    end = json.loads(source.readline() or b"{}")
    if end != {"rows": rows.rows, "sha256": rows.hash.hexdigest()}:
        raise Invalid(f"the backup is damaged in {table}; nothing was restored")


def _settle_in(cursor: Any, manifest: Manifest) -> None:
    """Positions go on after the last that was drawn; a new epoch says that this is another life."""
    cursor.execute(
        "select setval('events_position_seq', %s, %s)",
        (max(manifest.head, 1), manifest.head > 0),
    )
    cursor.execute(
        "select setval('store_epochs_number_seq', (select max(number) from store_epochs))"
    )
    reason = f"restored from the backup of {manifest.taken_at}, position {manifest.head}"
    cursor.execute("insert into store_epochs (reason) values (%s)", (reason,))
    cursor.execute("select count(*) from events")
    if cursor.fetchone()[0] != manifest.events:
        raise Invalid("the backup has not as many events as it says; nothing was restored")
