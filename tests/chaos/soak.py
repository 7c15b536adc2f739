"""The soak: a steady load for long, without any fault; nothing may grow, and nothing may fail."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.chaos.checker import Finding
from tests.chaos.faults.processes import let_pass
from tests.chaos.report import commit, put, summary
from tests.chaos.run import Run, recovers
from tests.chaos.truth import resources

EVERY = 15.0
"""Seconds between two looks."""

MEASURED = 20.0
"""Seconds in which the capacity is measured."""

GROWTH = 1.0
"""MB an hour that a process may grow by, once it is warm; less cannot be told in half an hour."""

SLOWER = 1.2
"""How much longer the 99th percentile of the last tenth may be than that of the first."""


@dataclass
class Soak:
    """A sample: the time, each process's memory, the delay until a write was readable."""

    at: list[float] = field(default_factory=list)
    memory: dict[str, list[float]] = field(default_factory=dict)
    descriptors: dict[str, list[int]] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)

    def look(self, run: Run, began: float) -> None:
        """One look more."""
        held = resources(run.system)
        self.at.append(time.monotonic() - began)
        for name, megabytes in held.memory.items():
            self.memory.setdefault(name, []).append(megabytes)
            self.descriptors.setdefault(name, []).append(held.descriptors[name])
        asked_at = time.monotonic()
        found = recovers(run.system, run.probe, asked_at, 10, 10)
        self.lags.append(time.monotonic() - asked_at if found.lag is not None else 10.0)


def capacity(run: Run) -> float:
    """Requests a second that are answered where each client sends the next one at once."""
    run.load.ask_for(math.inf)
    began = time.monotonic()
    let_pass(MEASURED)
    answers = sum(len(entry.tries) for entry in run.journal.since(began))
    return answers / (time.monotonic() - began)


def soak(run: Run, minutes: float) -> tuple[Soak, Finding]:
    """Let it run, and judge: memory, errors, and the last answers beside the first ones."""
    began = time.monotonic()
    seen, finding = Soak(), Finding("soak")
    while time.monotonic() - began < minutes * 60:
        let_pass(EVERY)
        seen.look(run, began)
    tries = [t for entry in run.journal.since(began) for t in entry.tries]
    tenth = max(1, len(tries) // 10)
    tries.sort(key=lambda t: t.at)
    finding.counts["answers"] = len(tries)
    finding.counts["failed"] = sum(not 200 <= t.status < 300 for t in tries)
    first, last = (percentile([t.took for t in part]) for part in (tries[:tenth], tries[-tenth:]))
    finding.counts["first p99 ms"], finding.counts["last p99 ms"] = int(first), int(last)
    if finding.counts["failed"]:
        finding.violates("failed", f"{finding.counts['failed']} of {len(tries)}")
    if last > SLOWER * first + 20:
        finding.violates("slower", f"{last:.0f} ms, {first:.0f} ms at first")
    for name, slope in slopes(seen.at, seen.memory).items():
        if slope > GROWTH + noise(seen.memory[name], minutes):
            finding.violates("grows", f"{name} by {slope:.1f} MB/h")
    return seen, finding


def slopes(at: Sequence[float], memory: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """MB an hour of the second half, by least squares: the first half fills caches."""
    half = len(at) // 2
    return {name: _slope(at[half:], values[half:]) * 3600 for name, values in memory.items()}


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    if len(xs) < 2:
        return 0.0
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread


def noise(values: Sequence[float], minutes: float) -> float:
    """MB an hour below which growth cannot be told from pages that come and go: 2 MB in all."""
    return 2.0 / (minutes / 120)


def percentile(seconds: Sequence[float]) -> float:
    """The 99th, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    return ordered[int(len(ordered) * 0.99)] * 1000


def lines(
    seen: Soak, finding: Finding, whole: Sequence[Finding], seed: str, minutes: float, most: float
) -> list[str]:
    """The text about it in docs/chaos.md."""
    counts, grown = finding.counts, slopes(seen.at, seen.memory)
    lags = sorted(seen.lags)
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {os.cpu_count()} cores: {minutes:g}"
        f" minutes at {most / 2:.0f} requests a second, half of the {most:.0f} that its 8 clients"
        " were answered when each sent the next one at once.",
        "",
        f"{counts['answers']} answers, {counts['failed']} failed; 99th percentile"
        f" {counts['first p99 ms']} ms in the first tenth, {counts['last p99 ms']} ms in the last."
        f" From three requests to their documents: median {lags[len(lags) // 2] * 1000:.0f} ms,"
        f" longest {lags[-1] * 1000:.0f} ms.",
        "",
        *summary([], whole, seed)[1:3],
        "",
        "| process | MB at first | MB at last | MB an hour, second half | descriptors |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {values[0]:.0f} | {values[-1]:.0f} | {grown[name]:+.1f} |"
            f" {seen.descriptors[name][0]} → {seen.descriptors[name][-1]} |"
            for name, values in seen.memory.items()
        ),
        "",
        *(f"- {text}" for text in finding.wrong),
    ]


def write(text: Sequence[str]) -> None:
    """Put it into docs/chaos.md."""
    put("soak", text)
