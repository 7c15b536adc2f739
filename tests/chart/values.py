"""The values that the chart documents, those of the servers' charts under their names."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml

from tests.chart.render import CHART, Object, over

Path = tuple[str, ...]


@cache
def documented() -> Object:
    """All values with their defaults; not to be changed."""
    own: Object = yaml.safe_load((CHART / "values.yaml").read_text())
    for file in CHART.glob("charts/*/values.yaml"):
        own = over(own, {file.parent.name: yaml.safe_load(file.read_text())})
    return own


def leaves(values: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value that holds no others, by its path; a list is one, and an empty map."""
    if isinstance(values, dict) and values:
        for key, below in values.items():
            yield from leaves(below, (*path, key))
    else:
        yield path, values


def maps(values: Any, path: Path = ()) -> Iterator[Path]:
    """The path of each map of values, the whole included."""
    if isinstance(values, dict):
        yield path
        for key, below in values.items():
            yield from maps(below, (*path, key))


def at(path: Path, value: Any) -> Object:
    """Values that say only this one."""
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value
