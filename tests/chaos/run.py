"""One run: a system under load, a fault after another, a drain after each row, and the checks."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from eventcore.model.event import Event
from local.child import CannotStart
from tests.chaos.checker import (
    Finding,
    Recovery,
    at_baseline,
    bounded,
    contiguous,
    goes_on,
    in_order,
    once,
    recovered,
)
from tests.chaos.fault import Fault, Scene, Skipped, Unmet
from tests.chaos.faults.processes import let_pass
from tests.chaos.journal import Entry, Journal
from tests.chaos.load import Caller, Load
from tests.chaos.system import PROJECTIONS, System, running
from tests.chaos.truth import Log, converged, resources, rests
from tests.chaos.witness import Witness

LETTERS = "ABCDEFGHI"
DRAIN = 60.0
"""Seconds within which every read model must be the fold of its log, once nothing is asked."""


@dataclass
class Result:
    """The result of one row."""

    fault: Fault
    times: list[Recovery] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    skipped: str = ""
    said: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[str]:
        """All violations, in words."""
        return [text for finding in self.findings for text in finding.wrong]

    def counts(self, letter: str) -> Counter[str]:
        """The counts of one invariant, all its findings together."""
        total: Counter[str] = Counter()
        for finding in self.findings:
            if finding.invariant == letter:
                total.update(finding.counts)
        return total

    def worst(self, of: Callable[[Recovery], float | None]) -> float | None:
        """The longest of the times that came to an end."""
        return max((t for each in self.times if (t := of(each)) is not None), default=None)


class Run:
    """Everything that one run works with. Times are judged by `slack` times their limits."""

    def __init__(self, system: System, seed: str, rate: float, clients: int, slack: float) -> None:
        self.system = system
        self.seed = seed
        self.slack = slack
        self.journal = Journal(system.folder / "journal")
        self.load = Load(system.shop.url("gateway"), self.journal, rate, clients, seed)
        self.witness = Witness(system)
        self.log = Log(system)
        self.probe = self.load.caller("probe")
        self._checked_at = 0.0

    def warm_up(self, seconds: float) -> None:
        """Let the load run for a while, and take what is held then as the baseline."""
        let_pass(seconds)
        self.system.require_links()
        self.load.rest()
        self.log.read()
        self._checked_at = time.monotonic()
        self.baseline = rests(self.system, None, lambda now: not now.queued and not now.stuck)
        self.load.go()

    def row(self, fault: Fault, injections: int) -> Result:
        """Strike so many times, then drain and check."""
        began, result = time.monotonic(), Result(fault)
        heard = {name: len(self.system.shop.log(name)) for name in self.system.shop.names}
        windows: list[tuple[float, float]] = []
        for number in range(injections):
            try:
                windows.append(self._strike(fault, number, result))
            except Skipped as skipped:
                result.skipped = str(skipped)
                break
            except Exception as error:  # noqa: BLE001 - a fault that fails is a finding
                text = f"{type(error).__name__}: {error}"
                result.findings.append(Finding("H", wrong=[f"H injection {number}: {text}"]))
                self._restore(result)
        self._restore(result)
        self._check(fault, windows, result)
        result.seconds = time.monotonic() - began
        for name, length in heard.items():
            lines = self.system.shop.log(name)[length:].splitlines()
            result.said += [f"{name}: {line}" for line in lines if '"level":"error"' in line]
        return result

    def _restore(self, result: Result) -> None:
        """Everything up again; what does not come up by itself is a finding, and starts anew."""
        try:
            self.system.restore()
        except CannotStart as problem:
            result.findings.append(Finding("H", wrong=[f"H stays down: {problem}"]))
            self.system.start_anew()

    def _strike(self, fault: Fault, number: int, result: Result) -> tuple[float, float]:
        chance = Random(f"{self.seed}/{fault.row}/{number}")
        scene = Scene(self.system, self.load, self.log, chance, number)
        struck_at = time.monotonic()
        with fault.strike(scene) as what:
            let_pass(chance.uniform(*fault.hold))
            ends_at = time.monotonic()
        healed_at = time.monotonic()
        result.struck.append(what)
        limits = fault.first * self.slack + 10, fault.lag * self.slack + 10
        result.times.append(recovers(self.system, self.probe, healed_at, *limits))
        return struck_at, ends_at

    def _check(self, fault: Fault, windows: Sequence[tuple[float, float]], result: Result) -> None:
        """Drain, then all processes."""
        self.load.rest()
        new = self.log.read()
        entries = self._concerned(new)
        touched = {str(event.aggregate_id) for event in new}
        result.findings += once(entries, new)
        result.findings += converged(self.system, self.log, touched, DRAIN).values()
        its = [e for e in self.log.all() if str(e.aggregate_id) in touched]
        heads = {s: v for s, v in self.log.heads().items() if s.split()[1] in touched}
        result.findings.append(contiguous(its, heads))
        result.findings.append(in_order(self.witness.first_deliveries()))
        asked = self.journal.since(self._checked_at)
        for began, ended in windows:
            result.findings.append(goes_on(asked, began, ended, fault.goes_on))
        limit = fault.answers * self.slack
        result.findings.append(bounded(asked, limit, fault.no_answer, fault.failures))
        limits = fault.first * self.slack, fault.lag * self.slack
        result.findings.append(recovered(result.times, *limits))
        now = rests(self.system, self.baseline, lambda r: not at_baseline(self.baseline, r).wrong)
        result.findings.append(at_baseline(self.baseline, now))
        self._checked_at = time.monotonic()
        self.load.go()

    def _concerned(self, new: Sequence[Event]) -> list[Entry]:
        """Requests, of any time, whose events came into the log since the last check."""
        asked = {entry.id: entry for entry in self.journal.since(self._checked_at)}
        for event in new:
            command = str(event.metadata.get("causationId"))
            if command in self.journal.entries:
                asked[command] = self.journal.entries[command]
        return list(asked.values())

    def whole(self) -> list[Finding]:
        """A to E once more, on everything there is, read anew."""
        self.load.rest()
        events = self.log.read(anew=True) and self.log.all()
        entries = self.journal.all()
        findings = [*once(entries, events), contiguous(events, self.log.heads())]
        findings.append(in_order(self.witness.first_deliveries()))
        findings += converged(self.system, self.log, None, DRAIN).values()
        return findings


def recovers(system: System, caller: Caller, since: float, first: float, lag: float) -> Recovery:
    """Ask until answers are good, then write until what is written is readable within a second."""
    answered = _answered(caller, since, first)
    if answered is None:
        return Recovery(None, None)
    while time.monotonic() - since < lag:
        began = time.monotonic()
        user, order = caller.ask("create user"), caller.ask("place")
        if user and order and user.outcome == order.outcome == "ok":
            written_at = time.monotonic()
            if _readable(system, user.subject, order.subject, written_at + 1):
                return Recovery(answered, began - since)
    return Recovery(answered, None)


def _answered(caller: Caller, since: float, limit: float) -> float | None:
    """Seconds until a command of each service and a query are answered well, one after another."""
    while True:
        at = time.monotonic() - since
        asked = [caller.ask(kind) for kind in ("create user", "place", "read order")]
        if all(entry is None or entry.outcome == "ok" for entry in asked):
            return at
        if at > limit:
            return None
        time.sleep(0.05)


def _readable(system: System, user: str, order: str, deadline: float) -> bool:
    """Whether all read models have them in time."""
    ids = {"users": user, "orders": order, "known-users": user, "customers": user}
    missing = [(projection, service) for projection, service, _ in PROJECTIONS]
    while missing:
        projection, service = missing[0]
        collection = system.serving(projection, service)
        if system.models[service].versions(collection, [ids[projection.name]]):
            missing.pop(0)
        elif time.monotonic() > deadline:
            return False
        else:
            time.sleep(0.01)
    return True


@contextmanager
def started(
    seed: str, rate: float = 40, clients: int = 8, slack: float = 3, warm_up: float = 10
) -> Iterator[Run]:
    """A system under load, warm, with its baseline taken."""
    with running() as system:
        run = Run(system, seed, rate, clients, slack)
        run.witness.start()
        run.witness.bound.wait(20)
        with run.load.running():
            run.warm_up(warm_up)
            try:
                yield run
            finally:
                run.load.rest()
                run.witness.stop()
        run.journal.close()


__all__ = ["Result", "Run", "Unmet", "resources", "started"]
