"""The picture of the system, made of the services' states: lanes, branches, events. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gateway.page.filters import counted
from gateway.page.watch import Sample, States, log_of

SWEPT = timedelta(seconds=5)
"""Age of a checkpoint after which its projector is taken to be away: more than two sweeps."""

FRESH = timedelta(seconds=3.8)
"""Age of an event up to which it is shown as it travels: a poll, and the age of a state."""

SOON = timedelta(seconds=1)
"""Age of an event from which it counts as waiting."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One projection of a lane: queue, projector and read model, and how they are."""

    label: str
    projection: str
    service: str
    process: str
    queue: str
    is_reactor: bool
    state: str
    """ok, behind, parked, away, halted, or unknown: the read model cannot be asked."""
    says: str
    waiting: int
    checkpoint: int
    generation: int
    found: Mapping[str, Any]
    rebuild: "Rebuild | None"
    travelling: int
    """Fresh events that it reads."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A generation that is folded beside the one that serves; `left` in seconds."""

    generation: int
    position: int
    settled: int
    rate: float | None

    @property
    def left(self) -> float | None:
        """Seconds until it has caught up; None: not known, or it stands still."""
        return (self.settled - self.position) / self.rate if self.rate else None


@dataclass(frozen=True, slots=True)
class Lane:
    """The way of one service's events, from its store to every read model."""

    service: str
    log: Mapping[str, Any] | None
    state: str
    """Of the store: ok or away."""
    relay: str
    """ok, behind, away, halted or unknown."""
    relay_says: str
    behind: int
    rate: float | None
    relay_rate: float | None
    branches: Sequence[Branch]
    travelling: int
    is_serving: bool


def lanes(sample: Sample, now: datetime) -> list[Lane]:
    """A lane for each service, in the order of the services."""
    return [_lane(sample, service, now) for service in sample.states]


def _lane(sample: Sample, service: str, now: datetime) -> Lane:
    state, log = sample.states[service], log_of(sample.states, service)
    recent = state["recent"] if state else ()
    relay, says, behind = _relay(log, recent, now)

    def position(name: str, states: States) -> int | None:
        found = log_of(states, service)
        return found[name] if found else None

    return Lane(
        service,
        log,
        "ok" if log else "away",
        relay,
        says,
        behind,
        sample.rate(lambda states: position("head", states)),
        sample.rate(lambda states: position("relayed", states)),
        [*_branches(sample, service, recent, now)],
        len(_fresh(recent, now)),
        state is not None,
    )


def _relay(
    log: Mapping[str, Any] | None, recent: Sequence[Mapping[str, Any]], now: datetime
) -> tuple[str, str, int]:
    """The state of a relay, in a sentence, and the positions that it has still to publish."""
    if log is None:
        return "unknown", "The store cannot be asked.", 0
    behind = max(0, log["settled"] - log["relayed"])
    if log["relayHalted"]:
        return "halted", log["relayHalted"], behind
    if not log["isRelayed"]:
        return "away", "No relay holds the lock of the store: it does not run.", behind
    late = [e for e in recent if e["position"] > log["relayed"] and _is_old(e, now)]
    if late:
        return "behind", f"Not confirmed by the broker yet: {counted(behind, 'position')}.", behind
    return "ok", "Everything is confirmed by the broker.", 0


def _fresh(recent: Sequence[Mapping[str, Any]], now: datetime) -> list[Mapping[str, Any]]:
    return [each for each in recent if not _is_old(each, now, FRESH)]


def _is_old(event: Mapping[str, Any], now: datetime, age: timedelta = SOON) -> bool:
    return now - moment(event["recordedAt"]) > age


def _branches(
    sample: Sample, owner: str, recent: Sequence[Mapping[str, Any]], now: datetime
) -> Iterator[Branch]:
    log = log_of(sample.states, owner)
    published = min(log["settled"], log["relayed"]) if log else 0
    its = [each for each in recent if each["position"] <= published]
    for service, part in _parts(sample, owner):
        yield _branch(sample, service, part, published, its, now)


def _parts(sample: Sample, owner: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The projections of the events of a service, each with the service whose read model it is."""
    for service, state in sample.states.items():
        for part in state["projections"] if state else ():
            if part["owner"] == owner:
                yield service, part


def _branch(
    sample: Sample, service: str, part: Mapping[str, Any], published: int,
    recent: Sequence[Mapping[str, Any]], now: datetime,
) -> Branch:  # fmt: skip
    found, label = part["state"], part["label"]
    waiting = _waiting(part, recent, published, now) if found else 0
    state, says = _standing(part, waiting, now)

    def rebuilt(states: States) -> int | None:
        its = (states.get(service) or {"projections": ()})["projections"]
        known = next((each["rebuild"] for each in its if each["label"] == label), None)
        return known["position"] if known else None

    begun = part["rebuild"]
    rebuild = begun and Rebuild(
        begun["generation"], begun["position"], published, sample.rate(rebuilt)
    )
    return Branch(
        label, part["projection"], service, part["process"], part["queue"], part["isReactor"],
        state, says, waiting, found["checkpoint"] if found else 0, part["generation"],
        found or {}, rebuild, sum(e["aggregateType"] in part["types"] for e in _fresh(recent, now)),
    )  # fmt: skip


def _waiting(
    part: Mapping[str, Any], recent: Sequence[Mapping[str, Any]], published: int, now: datetime
) -> int:
    """How many events it has not applied that it should have: exactly, if they are few."""
    found = part["state"]
    late = [e for e in recent if not is_applied(part, e) and _is_late(part, e, now)]
    its = [each for each in recent if each["aggregateType"] in part["types"]]
    is_swept = bool(found["coveredAt"]) and now - moment(found["coveredAt"]) < SWEPT
    if late and not is_swept and len(late) == len(its):
        return max(len(late), published - int(found["checkpoint"]))
    return len(late)


def _is_late(part: Mapping[str, Any], event: Mapping[str, Any], now: datetime) -> bool:
    """Documents tell at once what is applied; a checkpoint tells it some seconds later."""
    known = part["state"]["versions"] is not None
    parked = {each["stream"] for each in part["state"]["parked"]}
    is_parked: bool = event["stream"] in parked
    return not is_parked and _is_old(event, now, SOON if known else SWEPT)


def is_applied(part: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Whether a projection has applied an event, or does not read it."""
    found = part["state"]
    if event["aggregateType"] not in part["types"] or event["position"] <= found["checkpoint"]:
        return True
    reached: int = (found["versions"] or {}).get(event["stream"], 0)
    return reached >= int(event["version"])


def _standing(part: Mapping[str, Any], waiting: int, now: datetime) -> tuple[str, str]:
    """The state of a projection, and a sentence about it."""
    found = part["state"]
    if found is None:
        return "unknown", "The read model cannot be asked."
    if found["halted"]:
        return "halted", found["halted"]
    if not found["coveredAt"] or now - moment(found["coveredAt"]) > SWEPT:
        since = f"{found['coveredAt'][11:19]} UTC" if found["coveredAt"] else "ever"
        return "away", f"{part['process']} has not swept since {since}."
    if found["parkedCount"]:
        return "parked", f"Parked until it is fixed: {counted(found['parkedCount'], 'stream')}."
    if waiting:
        return "behind", f"Not applied yet: {counted(waiting, 'event')}."
    return "ok", "Everything is applied."


def journeys(sample: Sample, now: datetime, most: int = 10) -> list[dict[str, Any]]:
    """The newest events of all logs, and how far each has come."""
    found = []
    for service, state in sample.states.items():
        log = log_of(sample.states, service)
        if not state or not log:
            continue
        parts = [part for _, part in _parts(sample, service) if part["state"]]
        for event in state["recent"]:
            stages = {"relay": _stage(event["position"] <= log["relayed"], _is_old(event, now))}
            for part in parts:
                if event["aggregateType"] in part["types"]:
                    is_late = event["position"] <= log["relayed"] and _is_late(part, event, now)
                    stages[part["label"]] = _stage(is_applied(part, event), is_late)
            is_fresh = not _is_old(event, now, FRESH)
            found.append({**event, "service": service, "stages": stages, "fresh": is_fresh})
    found.sort(key=lambda each: each["recordedAt"], reverse=True)
    return found[:most]


def _stage(is_there: bool, is_late: bool) -> str:
    """How a stage is shown: it may be reached already, where a checkpoint tells it later."""
    return "there" if is_there else "not-there" if is_late else "soon"


def moment(text: str) -> datetime:
    """The time that a text of RFC 3339 names."""
    return datetime.fromisoformat(text)
