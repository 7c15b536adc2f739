"""Write the table of values into the chart's README: `make docs`.

A comment that begins with `# --` describes the value below it, whole if it is a map. Every value
needs one, its own or that of a map around it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).parent.parent / "charts" / "shop"
README = CHART / "README.md"
BEGIN, END = "<!-- values: written by `make docs` -->\n", "<!-- end of values -->\n"


class Undescribed(Exception):
    """Values without a description; the message names them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value: its name as --set takes it, what it is for, and its default."""

    name: str
    description: str
    default: str

    def __str__(self) -> str:
        cells = (f"`{self.name}`", self.description, f"`{self.default}`" if self.default else "")
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def described(chart: Path) -> list[Row]:
    """Every value of a chart and of the charts within it, in the order of their files.

    Raises Undescribed.
    """
    rows = _rows(chart / "values.yaml")
    for file in sorted(chart.glob("charts/*/values.yaml")):
        prefix = f"{file.parent.name}."
        last = max((i for i, row in enumerate(rows) if row.name.startswith(prefix)), default=-1)
        rows[last + 1 : last + 1] = _rows(file, prefix)
    wrong = [row.name for row in rows if not row.description]
    if wrong:
        raise Undescribed(f"no description, in a comment `# -- ...` above it: {', '.join(wrong)}")
    return rows


def with_table(text: str, rows: list[Row]) -> str:
    """The text with the table of values between its markers."""
    table = "| Value | What it is | Default |\n| --- | --- | --- |\n"
    table += "".join(f"{row}\n" for row in rows)
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"no lines {BEGIN.strip()} and {END.strip()}")
    return f"{before}{BEGIN}{table}{END}{after}"


def _rows(file: Path, prefix: str = "") -> list[Row]:
    text = file.read_text()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    return list(_below(root, prefix, text.splitlines()))


def _below(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Row]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        description = _comment(lines, key.start_mark.line, key.start_mark.column)
        if not description and isinstance(value, yaml.MappingNode) and value.value:
            yield from _below(value, f"{name}.", lines)
        else:
            yield Row(name, description, _default(value))


def _default(node: yaml.Node) -> str:
    value = yaml.SafeLoader("").construct_object(node, deep=True)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _comment(lines: list[str], line: int, indent: int) -> str:
    """The description right above a line, which must be as far indented."""
    found: list[str] = []
    for above in reversed(lines[:line]):
        match = re.fullmatch(rf" {{{indent}}}#(?: (?:(--) )?(.*))?", above)
        if not match:
            return ""
        found.insert(0, (match[2] or "").strip())
        if match[1]:
            return " ".join(found)
    return ""


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(), described(CHART)))
