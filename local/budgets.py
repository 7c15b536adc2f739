"""python -m local.budgets: whether the files and functions of services/ are short."""

import ast
import statistics
import sys
from collections.abc import Iterator

from local.services import ROOT

FILE, MEDIAN, FUNCTION = 300, 130, 30
"""Maximum lines of a file, of the median file, and of a function without its docstring."""


def over_budget(files: dict[str, str]) -> Iterator[str]:
    """One sentence for each file or function that is too long, which says what to do."""
    lengths = {name: len(text.splitlines()) for name, text in files.items()}
    for name, lines in lengths.items():
        if lines > FILE:
            yield f"{name}: {lines} lines, over {FILE}. Move one of its subjects to another file."
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.FunctionDef) and (length := _length(node)) > FUNCTION:
                says = f"{node.name} has {length} lines, over {FUNCTION}"
                step = "Make a function of each step that is worth a heading."
                yield f"{name}:{node.lineno}: {says}. {step}"
    if (median := statistics.median(filter(None, lengths.values()))) >= MEDIAN:
        yield f"The median file has {median:g} lines, not under {MEDIAN}. Split the longest."


def _length(node: ast.FunctionDef) -> int:
    first = node.body[0] if ast.get_docstring(node) is not None else None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if first else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


if __name__ == "__main__":
    paths = sorted((ROOT / "services").rglob("*.py"))
    found = over_budget({str(each.relative_to(ROOT)): each.read_text() for each in paths})
    sys.exit("\n".join(found) or None)
