"""The table: fault by promise, printed row by row, and written to docs/chaos.md."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.checker import Finding
from tests.chaos.run import LETTERS, Result

FILE = Path(__file__).parents[2] / "docs" / "chaos.md"

EARLIER = 4
"""Runs before the last one that the file still tells of."""


def print_row(result: Result) -> None:
    """One row as soon as it is checked, with what was found wrong."""
    fault = result.fault
    verdicts = " ".join(f"{letter}{_mark(result, letter)}" for letter in LETTERS)
    print(
        f"{fault.row:>3} {fault.name:<52} n={len(result.times):<3} {verdicts}"
        f" first {_s(result.worst(lambda t: t.first))} lag {_s(result.worst(lambda t: t.lag))}"
        f" {result.seconds:.0f} s",
        flush=True,
    )
    if result.skipped:
        print(f"    skipped: {result.skipped}", flush=True)
    for text in result.wrong[:12]:
        print(f"    {text[:400]}", flush=True)
    for text in result.said[:8] if result.wrong else ():
        print(f"      {text[:1500]}", flush=True)
    counts = {letter: dict(result.counts(letter)) for letter in "ABG"}
    print(f"    {counts}", flush=True)


def print_summary(results: Sequence[Result], whole: Sequence[Finding], seed: str) -> None:
    """The verdict."""
    print("\n".join(summary(results, whole, seed)), flush=True)
    for finding in whole:
        for text in finding.wrong[:12]:
            print(f"  in the end: {text[:400]}", flush=True)


def summary(results: Sequence[Result], whole: Sequence[Finding], seed: str) -> list[str]:
    """Lines: the total queue's words over the whole run, and the bound."""
    counts = {letter: sum_of(whole, letter) for letter in LETTERS}
    injections = sum(len(result.times) for result in results)
    violations = sum(len(r.wrong) for r in results) + sum(len(f.wrong) for f in whole)
    a, b = counts["A"], counts["B"]
    return [
        f"Seed {seed}: {injections} injections, {violations} violations.",
        f"Acknowledged {a.get('acknowledged', 0)}, lost {a.get('lost', 0)}, duplicated"
        f" {a.get('duplicated', 0) + b.get('duplicated', 0)}, unexpected"
        f" {a.get('unexpected', 0) + b.get('unexpected', 0)}, torn"
        f" {a.get('torn', 0) + b.get('torn', 0)}, recovered {b.get('recovered', 0)} of"
        f" {b.get('unknown', 0)} unknown; keys sent again {a.get('replayed', 0)}.",
        f"Documents compared {counts['E'].get('documents', 0)}, diverged"
        f" {counts['E'].get('diverged', 0)}, missing {counts['E'].get('missing', 0)}, extra"
        f" {counts['E'].get('extra', 0)}; first deliveries {counts['D'].get('deliveries', 0)},"
        f" streams out of order {counts['D'].get('out of order', 0)}.",
        f"No failure in {injections} independent trials bounds the rate below"
        f" {300 / max(1, injections):.1f} % an injection, at 95 % (3/n).",
    ]


def sum_of(findings: Sequence[Finding], letter: str) -> dict[str, int]:
    """The counts of one invariant."""
    total: dict[str, int] = {}
    for finding in findings:
        if finding.invariant == letter:
            for name, count in finding.counts.items():
                total[name] = total.get(name, 0) + count
    return total


def write(
    results: Sequence[Result], whole: Sequence[Finding], seed: str, slack: float, rate: float
) -> None:
    """Replace the part of docs/chaos.md that a run writes."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}, {rate:g} requests a second from 8 clients.",
        "",
        *summary(results, whole, seed),
        "",
        "| row | fault | aims at | n | " + " | ".join(LETTERS) + " | first answer | lag < 1 s |",
        "| --- | --- | --- | --- |" + " --- |" * (len(LETTERS) + 2),
        *(_line(result) for result in results),
        "",
        *(
            f"- Row {result.fault.row}: {text}"
            for result in results
            for text in [*result.wrong[:5], *([result.skipped] if result.skipped else [])]
        ),
    ]
    if before := _part("run"):
        put(
            "earlier", [f"- {' '.join(before[:6]).replace('  ', ' ')}", *_part("earlier")][:EARLIER]
        )
    put("run", lines)


def _part(part: str) -> list[str]:
    """The lines of one part of the file, from the first to the last."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    return FILE.read_text().split(begin)[1].split(end)[0].strip().splitlines()


def put(part: str, lines: Sequence[str]) -> None:
    """Replace one part of the file, between its marks."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    text = FILE.read_text()
    before, rest = text.split(begin)
    FILE.write_text(before + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def commit() -> str:
    """Of the code that was run."""
    git = ["git", "describe", "--always", "--dirty"]
    said = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return said or "unknown"


def _line(result: Result) -> str:
    fault = result.fault
    first, lag = result.worst(lambda t: t.first), result.worst(lambda t: t.lag)
    cells = [
        fault.row, fault.name, fault.aims, str(len(result.times)) if result.times else "skipped",
        *(_mark(result, letter) for letter in LETTERS),
        f"{_s(first)} ({fault.first:g})", f"{_s(lag)} ({fault.lag:g})",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _mark(result: Result, letter: str) -> str:
    """0 or how many violations."""
    return str(sum(len(f.wrong) for f in result.findings if f.invariant == letter))


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
