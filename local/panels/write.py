"""The files that the chart takes, as text, by their place below its folder `files`."""

import json

import yaml

from local.panels.alerts import rule_file
from local.panels.boards import BOARDS

_NOTE = "# Written by `make docs` from local/panels/alerts.py.\n"


def written() -> dict[str, str]:
    """Every file and what must be in it."""
    boards = {
        f"dashboards/{name}.json": json.dumps(board.render(), indent=2, ensure_ascii=False) + "\n"
        for name, board in BOARDS.items()
    }
    alerts = yaml.dump(rule_file(), Dumper=_Readable, sort_keys=False, width=10_000)
    return {**boards, "alerts.yaml": _NOTE + alerts}


class _Readable(yaml.SafeDumper):
    """Keeps the lines of a text that has several."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Readable.add_representer(str, _text)
