"""The benchmark's own judgement: turns, disturbed rounds, ratios, and what is written down."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from eventcore.errors import ReadModelAway
from tests.bench import report, rows
from tests.bench.rows import Figure, Measured, Outcome, Row, Values, measure


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share that others take in each round to come; none when it is empty."""
    shares: list[float] = []

    class Load:
        def share(self) -> float:
            return shares.pop(0) if shares else 0.0

    monkeypatch.setattr(rows, "OtherLoad", Load)
    return shares


def row(values: Iterator[float], beside: Iterator[float] | None = None) -> Row:
    ceiling = (lambda: (next(beside),)) if beside else None
    return Row("P0", "ours", lambda: (next(values),), (Figure(reach=0.5),), "bare", ceiling)


def test_ours_and_the_ceiling_take_turns_and_begin_in_turn(foreign: list[float]) -> None:
    said: list[str] = []

    def say(word: str) -> Values:
        said.append(word)
        return (1.0,)

    measure(Row("P0", "", lambda: say("ours"), ceiling=lambda: say("bare")), 3, 0)
    assert said == ["ours", "bare", "bare", "ours", "ours", "bare"]


def test_a_disturbed_round_is_thrown_away_and_measured_again(foreign: list[float]) -> None:
    foreign += [0.01, 0.4, 0.02]
    outcome = measure(row(iter([1.0, 99.0, 2.0])), rounds=2, patience=5)
    assert outcome.ours == [(1.0,), (2.0,)]
    assert outcome.thrown_away == 1
    assert outcome.is_quiet


def test_when_patience_is_over_disturbed_rounds_count_and_the_outcome_says_so(
    foreign: list[float],
) -> None:
    foreign += [0.4, 0.4, 0.4]
    outcome = measure(row(iter([1.0, 2.0, 3.0])), rounds=2, patience=1)
    assert outcome.ours == [(2.0,), (3.0,)]
    assert not outcome.is_quiet


def test_a_server_too_slow_to_answer_under_other_load_is_asked_again(foreign: list[float]) -> None:
    foreign += [0.9, 0.0]
    failures = [True, False]

    def once_away() -> Values:
        if failures.pop(0):
            raise ReadModelAway("too slow")
        return (1.0,)

    outcome = measure(Row("P0", "", once_away), 1, 5)
    assert outcome.ours == [(1.0,)]


def test_a_server_that_fails_on_a_quiet_machine_fails_the_run(foreign: list[float]) -> None:
    def away() -> Values:
        raise ReadModelAway("gone")

    with pytest.raises(ReadModelAway):
        measure(Row("P0", "", away), 1, 5)


@pytest.mark.parametrize(
    ("ours", "bare", "overlaps"),
    [([10, 11, 12], [20, 21, 22], False), ([10, 11, 12], [12, 13, 14], True), ([10], [], False)],
)
def test_intervals_overlap_where_one_value_of_ours_reaches_into_theirs(
    ours: list[float], bare: list[float], overlaps: bool
) -> None:
    assert Measured(Figure(), ours, bare).overlaps is overlaps


def test_a_target_is_about_the_ratio_where_there_is_a_ceiling_and_else_about_the_median() -> None:
    assert Measured(Figure(reach=0.5), [50.0], [100.0]).is_reached is True
    assert Measured(Figure(reach=0.6), [50.0], [100.0]).is_reached is False
    assert Measured(Figure("ms", reach=60, at_most=True), [50.0], []).is_reached is True
    assert Measured(Figure("ms", reach=40, at_most=True), [50.0], []).is_reached is False
    assert Measured(Figure(), [50.0], []).is_reached is None


def test_the_page_keeps_its_text_and_has_the_new_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    outcome = Outcome(row(iter([])), [(50.0,)] * 5, [(100.0,)] * 5, [0.2] * 5)
    report.write([outcome], ["Commit: abc"], is_short=False)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "- Commit: abc" in text
    assert "| P0 † | ours / bare | 50/s (50 to 50) | 100/s (100 to 100) | 0.50 | ≥ 0.5 |" in text
