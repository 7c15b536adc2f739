"""The state now, read past the proxies: both logs, all documents, resources of processes."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from eventcore import jsontext
from eventcore.errors import Unavailable
from eventcore.model.event import Event
from eventcore.model.projection import Document
from eventcore.model.view import AnyProjection, View
from eventcore.readmodel.records import parts_of
from tests.bench.machine import family
from tests.chaos.checker import Finding, Resources, folded, viewed
from tests.chaos.system import PROJECTIONS, System

_LOG = (
    "select position, event_id::uuid, aggregate_type, aggregate_id, version, event_type,"
    " schema_version, data::text, metadata::text, recorded_at from events"
    " where position > %s order by position"
)


class Log:
    """Every event of both logs, in memory; read on from where it was, or anew."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.events: dict[str, list[Event]] = {"user": [], "order": []}

    def read(self, anew: bool = False) -> list[Event]:
        """The events since the last call; the log must be at rest."""
        new: list[Event] = []
        for service, known in self.events.items():
            if anew:
                known.clear()
            after = known[-1].position if known else 0
            rows = self._system.sql(f"{service}_event_db", _LOG, (after,))
            fresh = [_to_event(row) for row in rows]
            known += fresh
            new += fresh
        return new

    def heads(self) -> dict[str, int]:
        """The version of each stream, as its own row says."""
        heads: dict[str, int] = {}
        for service in self.events:
            statement = "select aggregate_type || ' ' || aggregate_id, version from streams"
            heads.update(self._system.sql(f"{service}_event_db", statement))
        return heads

    def all(self) -> list[Event]:
        """All events of both."""
        return [event for events in self.events.values() for event in events]


def _to_event(row: tuple[object, ...]) -> Event:
    from uuid import UUID

    position, event_id, kind, stream, version, name, schema, data, metadata, at = row
    ids = UUID(str(event_id)), kind, UUID(str(stream))
    content = jsontext.parse(str(data)), jsontext.parse(str(metadata))
    return Event(position, *ids, version, name, schema, *content, at)  # type: ignore[arg-type]


def documents(
    system: System, projection: AnyProjection, service: str, ids: Iterable[str] | None
) -> dict[str, Document]:
    """The documents of a read model, all, or those among `ids`."""
    model = system.models[service]
    collection = system.serving(projection, service)
    if ids is not None:
        return model.find(collection, ids)
    found: dict[str, Document] = {}
    after = ""
    while page := model.scan(collection, after, 500):
        found |= {str(each["_id"]): each for each in page}
        after = str(page[-1]["_id"])
    return found


def converged(
    system: System, log: Log, touched: set[str] | None, seconds: float
) -> dict[str, Finding]:
    """E for each projection, as soon as nothing is wrong, or when `seconds` are over.

    `touched`: the streams to look at; None: all documents there are. The logs must be at rest.
    """
    deadline = time.monotonic() + seconds
    findings: dict[str, Finding] = {}
    for projection, service, _ in PROJECTIONS:
        while True:
            try:
                finding = _compared(system, log, touched, projection, service)
            except Unavailable as away:
                finding = Finding("E", wrong=[f"E cannot be looked at: {away}"])
            findings[projection.name] = finding
            if not finding.wrong or time.monotonic() > deadline:
                break
            time.sleep(0.25)
    return findings


def _compared(
    system: System, log: Log, touched: set[str] | None, projection: AnyProjection, service: str
) -> Finding:
    """E for a projection, of the streams to look at; for a view, of all its documents.

    Raises Unavailable.
    """
    model = system.models[service]
    parts = parts_of(projection, model.generations(projection.name).serving)
    parked = [id for part in parts for id in model.parked(part.name)]
    if isinstance(projection, View):
        return viewed(projection, log.all(), documents(system, projection, service, None), parked)
    events = [
        event
        for event in log.events[projection.aggregate_type]
        if touched is None or str(event.aggregate_id) in touched
    ]
    ids = None if touched is None else {str(event.aggregate_id) for event in events}
    skips: dict[str, list[int]] = {}
    for skip in model.skips(projection.name):
        skips.setdefault(skip.stream, []).append(skip.version)
    found = documents(system, projection, service, ids)
    return folded(projection, events, found, skips, parked)


QUEUES = tuple(projection.queue for projection, _, _ in PROJECTIONS)


def resources(system: System) -> Resources:
    """The resources that processes and servers hold now."""
    memory: dict[str, float] = {}
    descriptors: dict[str, int] = {}
    threads: dict[str, int] = {}
    for name in system.shop.names:
        pids = family(system.shop.pid(name))
        memory[name] = sum(_status(pid, "VmRSS") for pid in pids) / 1024
        threads[name] = sum(_status(pid, "Threads") for pid in pids)
        descriptors[name] = sum(_count(Path(f"/proc/{pid}/fd")) for pid in pids)
    sessions = system.sql(
        "postgres",
        "select usename, count(*) from pg_stat_activity where usename <> 'postgres' group by 1",
    )
    locks = system.sql("postgres", "select count(*) from pg_locks where locktype = 'advisory'")
    stuck = system.sql(
        "postgres",
        "select (select count(*) from pg_locks where not granted) + (select count(*)"
        " from pg_stat_activity where state like 'idle in transaction%')",
    )
    with system.channel() as channel:
        queued = sum(channel.queue_declare(q, passive=True).method.message_count for q in QUEUES)
    return Resources(memory, descriptors, threads, dict(sessions), locks[0][0], stuck[0][0], queued)


def rests(system: System, was: Resources | None, is_well: Callable[[Resources], bool]) -> Resources:
    """The held resources, as soon as they are within bounds, or after half a minute."""
    deadline = time.monotonic() + 30
    now = resources(system)
    while not is_well(now) and time.monotonic() < deadline:
        time.sleep(0.5)
        now = resources(system)
    return now


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _count(folder: Path) -> int:
    try:
        return sum(1 for _ in folder.iterdir())
    except FileNotFoundError:
        return 0
