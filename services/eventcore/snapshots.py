"""Snapshots: the state of a stream at a version, so that a command reads only the events after it.

A snapshot is a cache, and used only if all of this holds: its checksum fits (no byte of it has
changed), its digest fits (the code that would fold the events now is the code that did), and the
log has the event on which it stands. Otherwise the events are folded from the first one.
"""

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from hashlib import sha256
from importlib.util import resolve_name
from pathlib import Path
from queue import Full, Queue
from threading import Lock
from typing import Any, TypeVar
from uuid import UUID

from eventcore import jsontext
from eventcore.errors import Misconfigured
from eventcore.model.decider import Decider, StreamState
from eventcore.observe.background import repeat
from eventcore.observe.metrics import SNAPSHOT_READS, SNAPSHOT_WRITES
from eventcore.store.port import Snapshot, Store, Stream

State = TypeVar("State")

AnyDecider = Decider[Any, Any, Any]

WAITING = 100  # snapshots that wait to be written at most

FORMAT = ("eventcore.model.decider", "eventcore.jsontext")
"""Modules that every snapshot depends on, beside those of its decider."""


def usable(
    store: Store, decider: Decider[Any, State, Any], stream: Stream
) -> StreamState[State] | None:
    """The state of a stream's snapshot, at position 0; None, and counted, if there is none of use.

    Whether the log has its event is left to the caller, who reads on from there.
    """
    found = store.read_snapshot(stream)
    outcome = unusable(decider, stream, found) if found else "none"
    if not outcome and found:
        try:
            return restored(decider, found)
        except Exception:  # noqa: BLE001 - whatever a function of the decider raises
            outcome = "unreadable"
    count_read(decider, outcome)
    return None


def unusable(decider: AnyDecider, stream: Stream, snapshot: Snapshot) -> str:
    """Why a snapshot must not be read: "damaged", or folded by "other_code"; "": it may be."""
    if snapshot.checksum != checksum_of(stream, snapshot):
        return "damaged"
    return "" if snapshot.digest == digest_of(decider) else "other_code"


def restored(decider: Decider[Any, State, Any], snapshot: Snapshot) -> StreamState[State]:
    """The state that a snapshot holds; raises whatever a function of the decider raises."""
    assert decider.state_from_json
    state = decider.state_from_json(jsontext.parse(snapshot.state))
    return StreamState(state, snapshot.version, 0, UUID(snapshot.event_id))


def count_read(decider: AnyDecider, outcome: str) -> None:
    SNAPSHOT_READS.labels(decider.aggregate_type, outcome).inc()


# ── writing ───────────────────────────────────────────────────────────────────────────────


class Writer:
    """Writes snapshots on one background thread, which starts with the first of them."""

    def __init__(self, waiting: int = WAITING) -> None:
        self._queue = Queue[Callable[[], None]](waiting)
        self._lock = Lock()
        self._started = False

    def offer(
        self, store: Store, decider: AnyDecider, stream: Stream, found: StreamState[Any]
    ) -> None:
        """Has a snapshot written if so many events were folded; never waits, never raises."""
        if not 0 < decider.snapshot_every <= found.folded:
            return
        with self._lock:
            if not self._started:
                repeat(self._write_next, "snapshots")
                self._started = True
        try:
            self._queue.put_nowait(partial(_write, store, decider, stream, found))
        except Full:
            SNAPSHOT_WRITES.labels(decider.aggregate_type, "dropped").inc()

    def flush(self) -> None:
        """Waits until all that was offered is written, or has failed."""
        self._queue.join()

    def _write_next(self) -> None:
        write = self._queue.get()
        try:
            write()
        finally:
            self._queue.task_done()


WRITER = Writer()
"""The writer of this process."""


def _write(store: Store, decider: AnyDecider, stream: Stream, found: StreamState[Any]) -> None:
    try:
        store.write_snapshot(stream, to_snapshot(decider, stream, found))
    except Exception:
        SNAPSHOT_WRITES.labels(decider.aggregate_type, "failed").inc()
        raise
    SNAPSHOT_WRITES.labels(decider.aggregate_type, "written").inc()


def to_snapshot(decider: AnyDecider, stream: Stream, found: StreamState[Any]) -> Snapshot:
    """The snapshot of a state; raises Misconfigured if the state does not come back from it."""
    assert decider.state_to_json
    text = jsontext.render(decider.state_to_json(found.state)).decode()
    digest = digest_of(decider)
    snapshot = Snapshot(found.version, str(found.event_id), digest, "", text)
    if restored(decider, snapshot).state != found.state:
        raise Misconfigured(f"the state of {stream} does not come back from its JSON")
    return Snapshot(found.version, str(found.event_id), digest, checksum_of(stream, snapshot), text)


def checksum_of(stream: Stream, snapshot: Snapshot) -> str:
    """SHA-256 of all of a snapshot's row but the checksum."""
    row = (stream, snapshot.version, snapshot.event_id, snapshot.digest, snapshot.state)
    return sha256("\n".join(map(str, row)).encode()).hexdigest()


# ── the code that folds ───────────────────────────────────────────────────────────────────


def digest_of(decider: AnyDecider) -> str:
    """SHA-256 of the modules that fold the decider's events, and of all that they import of ours.

    Raises Misconfigured if one of its functions is none that a module defines.
    """
    catalogue = decider.catalogue
    return _digest((
        decider.evolve, decider.state_to_json, decider.state_from_json,
        *catalogue.types.values(), *catalogue.upcasters.values(),
    ))  # fmt: skip


@cache
def _digest(parts: tuple[Any, ...]) -> str:
    for each in parts:
        if not (inspect.isfunction(each) or inspect.isclass(each)):
            raise Misconfigured(f"a decider with snapshots takes functions of a module, not {each}")
    seeds = {each.__module__ for each in parts} | set(FORMAT)
    ours = {name.partition(".")[0] for name in seeds}
    found, new = set[str](), seeds
    while new:
        found |= new
        names = {name for each in new for name in _imports(each)} & sys.modules.keys() - found
        new = {name for name in names if name.partition(".")[0] in ours}
    code = sha256("\n".join(f"{p.__module__}.{p.__qualname__}" for p in parts).encode())
    for name in sorted(found):
        code.update(f"{name}\n{sha256(_source(name)).hexdigest()}\n".encode())
    return code.hexdigest()


def _imports(module: str) -> Iterator[str]:
    """The names of the modules that a module imports, wherever in it."""
    package = sys.modules[module].__package__
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            yield origin
            yield from (f"{origin}.{each.name}" for each in node.names)


def _source(module: str) -> bytes:
    return Path(str(sys.modules[module].__file__)).read_bytes()
