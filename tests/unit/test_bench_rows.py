"""The benchmark's rounds and its table."""

from collections.abc import Iterator

from tests.bench.rows import Outcome, Row, Values, measure


def test_rows_take_turns_and_a_row_and_its_ceiling_begin_in_turn() -> None:
    said: list[str] = []

    def say(word: str) -> Values:
        said.append(word)
        return (1.0,)

    rows = [Row("P1", "", lambda: say("ours"), ceiling=lambda: say("bare")),
            Row("P2", "", lambda: say("other"))]  # fmt: skip
    measure(rows, 2, lambda _: None)
    assert said == ["ours", "bare", "other", "bare", "ours", "other"]


def test_a_row_has_medians_with_the_least_and_the_greatest_and_their_ratio() -> None:
    values: Iterator[Values] = iter([(40.0, 3.0), (60.0, 2.0), (50.0, 1.0)])
    bare: Iterator[Values] = iter([(100.0, 4.0), (90.0, 4.0), (1200.0, 4.0)])
    row = Row("P0", "ours", lambda: next(values), ("/s", " ms"), "bare", lambda: next(bare))
    [outcome] = measure([row], 3, lambda _: None)
    assert list(outcome.lines()) == [
        "| P0 | ours / bare | 50/s (40 to 60) | 100/s (90 to 1,200) | 0.50 |",
        "| P0 | ours / bare | 2 ms (1 to 3) | 4 ms (4 to 4) | 0.50 |",
    ]


def test_a_row_without_a_ceiling_has_no_ratio() -> None:
    assert list(Outcome(Row("P0", "ours", tuple), [(5.0,)]).lines()) == [
        "| P0 | ours | 5/s (5 to 5) |  |  |"
    ]
