"""`make lint` names files and functions that are too long."""

from local.budgets import FILE, FUNCTION, MEDIAN, over_budget

SHORT = "x = 1\n"


def function(lines: int, docstring: str = "") -> str:
    return f"def f():\n{docstring}" + "    x = 1\n" * (lines - 1)


def test_what_is_within_all_budgets_is_not_named() -> None:
    docstring = '    """One.\n\n    Two.\n    """\n'
    files = {"a.py": function(FUNCTION, docstring), "b.py": SHORT * FILE, "c.py": SHORT}
    assert list(over_budget(files)) == []


def test_a_long_function_is_named_with_its_line_and_what_to_do() -> None:
    [line] = over_budget({"a.py": SHORT + function(FUNCTION + 1)})
    assert line.startswith(f"a.py:2: f has {FUNCTION + 1} lines")
    assert "Make a function of each step" in line


def test_a_long_file_and_a_high_median_are_named() -> None:
    long, median = over_budget({"a.py": SHORT * (FILE + 1), "b.py": ""})
    assert long.startswith(f"a.py: {FILE + 1} lines")
    assert f"not under {MEDIAN}" in median
