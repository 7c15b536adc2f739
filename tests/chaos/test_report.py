"""The report of a run: the table in the file, and the figures of a soak."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos import report, soak
from tests.chaos.checker import Finding, Recovery
from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.run import Result

BEFORE = (
    "# Chaos\n<!-- run: begin -->\nold\n\nSeed 6: fine.\nAcknowledged 9.\n<!-- run: end -->\nrest\n"
    "<!-- earlier: begin -->\n- older\n<!-- earlier: end -->\n<!-- soak: begin -->\n"
)


def test_the_table_has_each_row_once_and_as_many_as_specified() -> None:
    rows = [fault.row for fault in FAULTS]
    assert len(set(rows)) == len(rows)
    assert {str(number) for number in range(1, 33)} | {"1b"} == set(rows)
    assert sum(fault.injections for fault in FAULTS) >= 184
    assert set(SHORT) < set(rows)


def test_a_run_replaces_its_own_part_of_the_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chaos.md"
    file.write_text(BEFORE)
    monkeypatch.setattr(report, "FILE", file)
    lost = Finding("A", Counter(lost=1, acknowledged=10), ["A lost: place 1 (ok)"])
    result = Result(FAULTS[0], [Recovery(0.5, None)], [lost])
    report.write([result], [lost], "7", 3, 40)
    text = file.read_text()
    assert text.split("rest")[0].count("old") == 0
    assert "- old Seed 6: fine. Acknowledged 9.\n- older\n<!-- earlier: end" in text
    assert "Seed 7: 1 injections, 2 violations." in text
    assert "Acknowledged 10, lost 1" in text
    assert "| 1 | SIGKILL of each process | A B E I | 1 | 1 | 0 |" in text
    assert "0.5 s (2) | - (5) |" in text
    assert "- Row 1: A lost: place 1 (ok)" in text
    assert text.endswith("<!-- earlier: end -->\n<!-- soak: begin -->\n")


def test_memory_that_grows_in_the_second_half_is_seen_as_a_slope() -> None:
    at = [60.0 * minute for minute in range(60)]
    grows = [100.0 + minute / 10 for minute in range(60)]
    fills = [100.0 + min(minute, 20) for minute in range(60)]
    slopes = soak.slopes(at, {"grows": grows, "fills": fills})
    assert slopes["grows"] == pytest.approx(6.0)
    assert slopes["fills"] == pytest.approx(0.0)
