"""The profile: which part a stack is counted as, and what a table has."""

from pathlib import Path

from tests.bench.profile import shares, table


def test_a_stack_counts_as_the_innermost_part_that_is_known(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text(
        "run (gunicorn/app.py:1);append (eventcore/store/x.py:2);execute (sqlalchemy/x.py:3) 3\n"
        "run (gunicorn/app.py:1);append (eventcore/store/x.py:2);sorted (heapq.py:3) 4\n"
        "run (gunicorn/app.py:1) 2\n"
        "run (threading.py:1) 1\n"
    )
    assert shares(tmp_path / "stacks") == {
        "store (ours)": 0.4,
        "SQLAlchemy": 0.3,
        "gunicorn": 0.2,
        "the rest": 0.1,
    }


def test_a_table_adds_up() -> None:
    found = {"a": {"pika": 90, "the rest": 8, "metrics": 2}, "b": {"pika": 5}}
    assert table(found) == [
        "| a |  | b |  |",
        "| --- | --- | --- | --- |",
        "| pika | 90 | pika | 5 |",
        "| the rest | 10 | the rest | 0 |",
        "| **all** | 100 | **all** | 5 |",
    ]
