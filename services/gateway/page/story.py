"""The story of a stream or request: what each event changed, and why something lacks. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.page.filters import counted
from gateway.page.flow import Branch, Lane, moment

Row = Mapping[str, Any]

BOOKKEEPING = ("_id", "orderId", "userId", "version")
"""Fields of a document that every event changes, or none."""


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a stream, what it changed, and when its document was readable."""

    event: Row
    changes: Sequence[tuple[str, Any, Any]]
    readable: Sequence[tuple[str, float]] = ()
    """Names of projections, and milliseconds from the append to the write."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that is not as it should be: where, what, and the command that helps.

    `command` has the arguments of `python -m eventcore`.
    """

    place: str
    says: str
    command: Sequence[str] = ()
    process: str = ""
    link: str = ""


def tell(
    kind: str, events: Sequence[Row], documents: Mapping[int, Row], trace: Iterable[Row]
) -> list[Told]:
    """The events of a stream with the differences between the documents of their versions.

    `kind` is its aggregate type. What an event says itself is no difference.
    """
    written = [e for e in trace if e["what"] == "document" and e["aggregateType"] == kind]
    told = []
    for event in events:
        version = event["version"]
        after, before = documents.get(version), documents.get(version - 1, {})
        found = differences(before, after) if after is not None else ()
        said = event["data"]
        changes = [e for e in found if e[1] is not None or said.get(e[0]) != e[2]]
        told.append(Told(event, changes, [*_readable(event, written)]))
    return told


def _readable(event: Row, written: Sequence[Row]) -> Iterator[tuple[str, float]]:
    for each in written:
        if each.get("version") == event["version"] and each["at"]:
            late = moment(each["at"]) - moment(event["recordedAt"])
            yield each["projection"], max(0.0, late.total_seconds() * 1000)


def differences(before: Row, after: Row) -> Iterator[tuple[str, Any, Any]]:
    """Each field that differs, with its values; None where there is none."""
    for name in after:
        if name not in BOOKKEEPING and before.get(name) != after[name]:
            yield name, before.get(name), after[name]


def merge(traces: Iterable[Sequence[Row]]) -> list[dict[str, Any]]:
    """The entries of several services in order, each with milliseconds since the first.

    A reaction stands at its first event. Documents that were written before are left out.
    """
    entries = [dict(each) for trace in traces for each in trace if each["at"]]
    events = [each for each in entries if each["what"] == "event"]
    for each in entries:
        if each["what"] == "reaction":
            caused = [e["at"] for e in events if e["causationId"] == each["causationId"]]
            each["at"] = min(caused, default=each["at"])
    began = min((e["at"] for e in entries if e["what"] in ("request", "event")), default="")
    requests = {e["requestId"]: e for e in reversed(entries) if e["what"] == "request"}
    others = [e for e in entries if e["what"] != "request" and e["at"] >= began]
    placed = sorted([*requests.values(), *others], key=lambda e: (e["at"], e["what"] == "event"))
    return [*_with_times(placed)]


def _with_times(entries: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    first = moment(entries[0]["at"]) if entries else datetime.min
    whole = _ms(moment(entries[-1]["at"]), first) if entries else 0.0
    before = 0.0
    for each in entries:
        since = _ms(moment(each["at"]), first)
        share = 100 * since / whole if whole else 0.0
        begin = 100 * before / whole if whole else 0.0
        yield {**each, "since": since, "gap": since - before, "share": share, "begin": begin}
        before = since


def _ms(moment: datetime, first: datetime) -> float:
    return (moment - first).total_seconds() * 1000


def causes(
    trace: Iterable[Row], lanes: Sequence[Lane], sagas: Iterable[Row] = ()
) -> Iterator[Cause]:
    """Why a stream may not be what its user expects: what concerns it first, then its way."""
    entries = [*trace]
    for each in entries:
        if each["what"] == "parked":
            name, stream = each["projection"], each["stream"]
            at = each.get("version", each.get("position"))
            says = f"{name} parked it at {at}: {each['error']}"
            command = ("parked", "show", name.split("/")[0], stream)
            yield Cause("parked", says, command, _process(lanes, name), f"/page/projections#{name}")
        elif each["what"] == "skipped":
            yield Cause("skipped", _skipped(each))
    for saga in sagas:
        yield from _of_saga(saga)
    for lane in lanes:
        yield from _of_lane(lane)
        for branch in lane.branches:
            if branch.state not in ("ok", "parked"):
                yield _of_branch(branch)


def _skipped(entry: Row) -> str:
    who, why = entry.get("who", "somebody"), entry.get("why", "")
    return f"{entry['projection']} passes over version {entry['version']}: {who} said so: {why}"


def _process(lanes: Iterable[Lane], label: str) -> str:
    named = (branch for lane in lanes for branch in lane.branches if branch.label == label)
    return next((branch.process for branch in named), "")


def _of_saga(saga: Row) -> Iterator[Cause]:
    if saga["dueAt"] is None:
        command = ("saga", "show", saga["stream"])
        says = "Its saga is stuck: no attempt of a compensation was answered."
        yield Cause("saga", says, command, f"{saga['aggregateType'].split('_')[0]}-service")
    else:
        yield Cause("saga", f"Its saga waits for an answer until {saga['dueAt'][11:19]} UTC.")


def _of_lane(lane: Lane) -> Iterator[Cause]:
    service = f"{lane.service}-service"
    if not lane.is_serving:
        yield Cause("service", f"{service} does not answer.", link="/page/flow")
    elif lane.state != "ok":
        says = f"PostgreSQL of {service} is away: nothing can be written."
        yield Cause("store", says, ("lag",), service, "/page/flow")
    elif lane.relay != "ok":
        relay = f"{lane.service}-relay"
        says = f"{relay}: {lane.relay_says}"
        yield Cause("relay", says, ("lag",), relay, "/page/flow")


def _of_branch(branch: Branch) -> Cause:
    says = f"{branch.label}: {branch.says}"
    if branch.waiting and branch.state == "away":
        says += f" Not applied yet: {counted(branch.waiting, 'event')}."
    link = f"/page/projections#{branch.label}"
    return Cause(branch.state, says, ("lag",), branch.process, link)
