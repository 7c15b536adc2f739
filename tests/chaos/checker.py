"""The nine invariants, A to I, each a function of what was recorded. Pure: no server is asked here.

A  an acknowledged command is in the log exactly once    F  what is not concerned goes on
B  any other: at most once, all of its events or none    G  answers are bounded and right
C  versions 1..n, no gap and no double                   H  recovery within the given time
D  order of each stream in first deliveries              I  memory, descriptors, connections,
E  every document is the fold of the log, none besides      locks and queues back to baseline
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from eventcore.model.event import Event
from eventcore.model.projection import Document, Projection
from eventcore.model.view import View, fold
from eventcore.settings import SOCKET_THREADS
from tests.chaos.journal import GROUPS, Entry

SHOWN = 5
"""Violations of a kind that are written out; all are counted."""


@dataclass
class Finding:
    """The counts and the violations of a check."""

    invariant: str
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def violates(self, kind: str, text: str) -> None:
        """Count a violation, and keep the words of the first few."""
        self.counts[kind] += 1
        self.wrong.append(f"{self.invariant} {kind}: {text}")


def once(entries: Iterable[Entry], events: Iterable[Event]) -> tuple[Finding, Finding]:
    """A and B: the clients' journal against the log, by command id.

    acknowledged  answered with success             recovered   unknown, and in the log whole
    lost          acknowledged, not in the log      unexpected  in the log, and refused or not asked
    duplicated    in the log more than once         torn        only some of its events
    """
    a, b = Finding("A"), Finding("B")
    known = {entry.id: entry for entry in entries if entry.events}
    found: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[str(event.metadata.get("causationId"))].append(event)
    for entry in known.values():
        _judge(entry, found.get(entry.id, []), a if entry.outcome == "ok" else b)
    for command in found.keys() - known.keys():
        b.violates("unexpected", f"{found[command][0].event_type} by {command}, which nobody asked")
    for finding in (a, b):
        for kind in ("lost", "duplicated", "unexpected", "torn", "recovered"):
            finding.counts.setdefault(kind, 0)
    return a, b


def _judge(entry: Entry, events: Sequence[Event], finding: Finding) -> None:
    """One command: how often it was carried out, and whether as it was asked."""
    finding.counts["acknowledged" if entry.outcome == "ok" else entry.outcome] += 1
    name, count = f"{entry.kind} {entry.id} ({entry.outcome})", len(events)
    if entry.outcome == "ok" and count == 0:
        finding.violates("lost", name)
    elif count > entry.events or len({e.aggregate_id for e in events}) > 1:
        finding.violates("duplicated", f"{name}: {count} events, not {entry.events}")
    elif 0 < count < entry.events:
        finding.violates("torn", f"{name}: {count} events of {entry.events}")
    elif count and entry.outcome == "refused":
        finding.violates("unexpected", f"{name}: it was refused, and is in the log")
    elif count:
        finding.counts["recovered"] += entry.outcome == "unknown"
        _compare(entry, events, finding)
    for replay in entry.replays:
        finding.counts["replayed"] += 1
        if replay != "same":
            finding.violates("duplicated", f"{name}: the same key was answered {replay}")


def _compare(entry: Entry, events: Sequence[Event], finding: Finding) -> None:
    """The log has what was requested, under the ids that were answered."""
    said = {key: str(value) for event in events for key, value in event.data.items()}
    for key, value in entry.says.items():
        if not _same(said.get(key), value):
            finding.violates("altered", f"{entry.kind} {entry.id}: {key} is {said.get(key)}")
    if entry.subject and str(events[0].aggregate_id) != entry.subject:
        finding.violates("altered", f"{entry.kind} {entry.id} is in {events[0].aggregate_id}")


def _same(found: str | None, wanted: str) -> bool:
    if found == wanted or found is None:
        return found == wanted
    try:
        return float(found) == float(wanted)
    except ValueError:
        return False


def contiguous(events: Iterable[Event], heads: Mapping[str, int]) -> Finding:
    """C: each stream's versions are 1..n in the order of positions, and n is what its head says."""
    finding = Finding("C")
    streams: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        streams[stream_of(event)].append(event)
    for stream, its in streams.items():
        finding.counts["streams"] += 1
        versions = [event.version for event in sorted(its, key=lambda event: event.position)]
        if versions != list(range(1, len(versions) + 1)):
            finding.violates("broken", f"{stream} has versions {versions[:20]}")
        elif heads.get(stream) != len(versions):
            finding.violates("broken", f"{stream} is at {heads.get(stream)}, has {len(versions)}")
    for stream in heads.keys() - streams.keys():
        finding.violates("broken", f"{stream} has a head and no events")
    return finding


def in_order(first_deliveries: Mapping[str, Sequence[int]]) -> Finding:
    """D: no stream's event was delivered for the first time after a later one of it."""
    finding = Finding("D", Counter({"out of order": 0}))
    for stream, versions in first_deliveries.items():
        finding.counts["streams"] += 1
        finding.counts["deliveries"] += len(versions)
        if list(versions) != sorted(versions):
            finding.violates("out of order", f"{stream}: {list(versions)[:20]}")
    return finding


def folded(
    projection: Projection,
    events: Iterable[Event],
    documents: Mapping[str, Document],
    skips: Mapping[str, Sequence[int]],
    parked: Iterable[str] = (),
) -> Finding:
    """E: each document is, field by field, what its stream folds to; none is missing or extra."""
    finding = Finding("E", Counter({"diverged": 0, "missing": 0, "extra": 0}))
    streams: defaultdict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda event: event.position):
        if event.aggregate_type == projection.aggregate_type:
            streams[str(event.aggregate_id)].append(event)
    for stream in parked:
        finding.violates("parked", f"{projection.name} {stream}")
        streams.pop(stream, None)
    for stream, its in streams.items():
        finding.counts["documents"] += 1
        wanted = projection.fold(its, skips.get(stream, ()))
        found = documents.get(stream)
        if found is None:
            finding.violates("missing", f"{projection.name} {stream}")
        elif found != wanted:
            finding.violates("diverged", f"{projection.name}: {found} is not {wanted}")
    for stream in documents.keys() - streams.keys() - set(parked):
        finding.violates("extra", f"{projection.name} {stream}")
    return finding


def viewed(
    view: View,
    events: Iterable[Event],
    documents: Mapping[str, Document],
    parked: Iterable[str] = (),
) -> Finding:
    """E of a view: its documents are what both logs fold to; none is missing or extra."""
    finding = Finding("E", Counter({"diverged": 0, "missing": 0, "extra": 0}))
    wanted = fold(view, events)
    finding.counts["documents"] += len(wanted)
    for key in parked:
        finding.violates("parked", f"{view.name} {key}")
    for key in wanted.keys() | documents.keys():
        if key not in documents or key not in wanted:
            kind = "missing" if key in wanted else "extra"
            finding.violates(kind, f"{view.name} {key}")
        elif documents[key] != wanted[key]:
            finding.violates("diverged", f"{view.name}: {documents[key]} is not {wanted[key]}")
    return finding


def goes_on(entries: Iterable[Entry], began: float, ended: float, groups: Iterable[str]) -> Finding:
    """F: of each group that is not concerned there were good answers between two moments.

    Times are seconds; of a fault that is shorter than four nothing can be told. Up to a fifth may
    fail, those that were on their way.
    """
    finding = Finding("F")
    good: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    for entry in entries:
        for tried in entry.tries:
            if began + 1 <= tried.at and tried.at + tried.took <= ended:
                counter = good if 200 <= tried.status < 300 else bad
                counter[GROUPS[entry.kind]] += 1
    for group in groups:
        finding.counts["good"] += good[group]
        finding.counts["failed"] += bad[group]
        if ended - began >= 4 and bad[group] > max(2, good[group] / 4):
            finding.violates("stopped", f"{group}: {good[group]} good, {bad[group]} failed")
    return finding


def bounded(entries: Iterable[Entry], limit: float, no_answer: bool, failures: bool) -> Finding:
    """G: every answer is a right one, with Retry-After where it is 503, within `limit` seconds.

    `no_answer`: the caller's own connection may break; `failures`: a request may fail at all.
    """
    finding = Finding("G", Counter({"false 404": 0, "late": 0, "wrong": 0}))
    worst = 0.0
    for entry in entries:
        for tried in entry.tries:
            finding.counts["answers"] += 1
            worst = max(worst, tried.took)
            if not 200 <= tried.status < 300:
                finding.counts["failed"] += 1
                if not failures:
                    finding.violates("wrong", f"{entry.kind} failed ({tried.status})")
            _judge_answer(entry, tried.status, tried.retry_after, no_answer, finding)
            if tried.took > limit:
                finding.violates("late", f"{entry.kind}: {tried.status} after {tried.took:.1f} s")
    finding.counts["worst ms"] = int(worst * 1000)
    return finding


def _judge_answer(
    entry: Entry, status: int, retry_after: bool, no_answer: bool, finding: Finding
) -> None:
    name = f"{entry.kind} {entry.id} about {entry.subject}"
    if status in (404, 422):  # our clients ask only about what they were given
        finding.violates("false 404", f"{name} was answered {status}")
    elif status == 503 and not retry_after:
        finding.violates("wrong", f"{name}: 503 without Retry-After")
    elif status not in (0, 200, 202, 409, 502, 503, 504):
        finding.violates("wrong", f"{name} was answered {status}")
    elif status == 0 and not no_answer:
        finding.violates("wrong", f"{name} was not answered")


@dataclass(frozen=True)
class Recovery:
    """Seconds from healing to the first good answer, and until what is written is readable in 1 s.

    None: it did not come in the time that was given.
    """

    first: float | None
    lag: float | None


def recovered(times: Sequence[Recovery], first: float, lag: float) -> Finding:
    """H: both within their limits, after each injection; limits are seconds."""
    finding = Finding("H", Counter({"late": 0}))
    for time in times:
        finding.counts["injections"] += 1
        for name, took, limit in (("answer", time.first, first), ("lag", time.lag, lag)):
            if took is None or took > limit:
                text = "not at all" if took is None else f"{took:.1f} s"
                finding.violates("late", f"{name}: {text}, limit {limit:g} s")
    return finding


@dataclass(frozen=True)
class Resources:
    """The resources held at one moment. By process: MB, descriptors, threads; by login: sessions.

    `stuck` counts locks that are waited for and transactions left open, `queued` messages.
    """

    memory: Mapping[str, float]
    descriptors: Mapping[str, int]
    threads: Mapping[str, int]
    sessions: Mapping[str, int]
    locks: int
    stuck: int
    queued: int


def at_baseline(before: Resources, after: Resources) -> Finding:
    """I: nothing is held that was not held before, but for some room to breathe."""
    finding = Finding("I")

    def compare(what: str, was: Mapping[str, float], now: Mapping[str, float], room: float) -> None:
        for name, value in now.items():
            finding.counts["compared"] += 1
            if value > was.get(name, 0) + room:
                finding.violates("leaked", f"{name}: {value:.0f} {what}, {was.get(name, 0):.0f}")

    compare("MB", before.memory, after.memory, room=60)
    compare("descriptors", before.descriptors, after.descriptors, room=25)
    pooled = {
        name: max(held, SOCKET_THREADS) for name, held in before.threads.items() if _serves(name)
    }
    compare("threads", {**before.threads, **pooled}, after.threads, room=12)
    compare("sessions", before.sessions, after.sessions, room=18)  # the pools, when full
    if after.locks != before.locks:
        finding.violates("leaked", f"{after.locks} relay locks, {before.locks} before")
    if after.stuck:
        finding.violates("leaked", f"{after.stuck} locks waited for or transactions open")
    if after.queued:
        finding.violates("leaked", f"{after.queued} messages left in the queues")
    return finding


def _serves(process: str) -> bool:
    """Whether a process has gunicorn's thread pool, which keeps each thread that it has started."""
    return process == "gateway" or process.endswith("-service")


def stream_of(event: Event) -> str:
    """A stream's name, as the message and the log have it."""
    return f"{event.aggregate_type} {event.aggregate_id}"
