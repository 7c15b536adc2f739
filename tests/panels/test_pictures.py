"""Pictures of the dashboards: small, of the boards as they are, and shown in the docs."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from local.page_pictures import VIEWS
from local.panels.boards import BOARDS
from local.panels.pictures import (
    DRAWING,
    FIRST_SCREEN,
    IMAGES,
    NOT_HERE,
    WIDTH,
    filled,
    height,
    here,
    legend,
    page,
    seen,
    top,
)
from local.panels.watch import Prometheus
from local.services import ROOT

PICTURES = {f"board-{name}.png": height(here(board.render())) for name, board in BOARDS.items()}
PICTURES |= dict.fromkeys(("board.png", "board-stopped.png"), top(FIRST_SCREEN))
"""Each picture, and how high it is."""

PAGES = {f"page-{view}.png" for view in VIEWS}
"""The pictures of the page's views."""

SIZE = 200_000
"""Bytes that a picture may have: it is in every clone."""


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_of_the_board_as_it_is(name: str) -> None:
    content = (IMAGES / name).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (WIDTH, PICTURES[name]), "make pictures"
    assert len(content) <= SIZE


def test_every_picture_is_shown_and_no_other_is_there() -> None:
    files = ("README.md", "docs/observing.md", "docs/page.md")
    pages = "".join((ROOT / file).read_text() for file in files)
    assert {file.name for file in IMAGES.glob("*.png")} == set(PICTURES) | PAGES
    assert all(f"images/{name})" in pages for name in {*PICTURES, *PAGES})


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_picture_of_the_page_is_small(name: str) -> None:
    assert len((IMAGES / name).read_bytes()) <= SIZE


def test_only_the_last_rows_of_a_board_are_left_out() -> None:
    for board in BOARDS.values():
        rows = [row.title for row in board.rows]
        left = [title for title in rows if title not in NOT_HERE]
        assert rows[: len(left)] == left


class Known(Prometheus):
    """Knows one series, of two samples at most."""

    def __init__(self) -> None:
        super().__init__("http://nowhere")
        self.asked: list[str] = []

    def query(self, promql: str, **more: str) -> list[dict[str, Any]]:
        self.asked.append(promql)
        return [{"metric": {"alertname": "ShopDeadLetters"}, "value": [0, "1"]}]

    def query_range(
        self, promql: str, start: float, end: float, step: float
    ) -> list[dict[str, Any]]:
        self.asked.append(promql)
        return [{"metric": {"store": "<user>"}, "values": [[start, "1"], [end, "NaN"]]}]


def test_every_query_is_asked_with_grafanas_variables_filled_in() -> None:
    server = Known()
    for board in BOARDS.values():
        seen(server, board.render(), 0, 300)
    queries = [
        query for board in BOARDS.values() for each in board.panels for query in each.queries
    ]
    assert len(server.asked) == len(queries)
    assert not [promql for promql in server.asked if "$" in promql]
    assert filled(queries[0].promql) == server.asked[0]


def test_a_series_has_a_value_for_each_time_or_none() -> None:
    board = seen(Known(), BOARDS["event-flow"].render(), 0, 300)
    (panel, *_) = (each for each in board["panels"] if each["type"] == "timeseries")
    (series,) = panel["seen"]
    assert len(series["values"]) == len(board["times"])
    assert series["values"][0] == 1
    assert series["values"][-1] is None, "what is no number is not drawn"


def test_legends_are_made_of_labels() -> None:
    labels = {"store": "user", "job": "shop"}
    assert legend("{{store}} p99", labels) == "user p99"
    assert legend("{{projection}} p99", labels) == " p99"
    assert legend("__auto", labels) == "store=user, job=shop"


def test_a_page_holds_the_board_and_no_label_can_end_its_script(tmp_path: Path) -> None:
    for name in ("uPlot.min.css", "uPlot.iife.min.js"):
        (tmp_path / name).write_text(f"/* {name} */")
    board = seen(Known(), BOARDS["overview"].render(), 0, 300)
    text = page(board, tmp_path)
    written = re.search(r"^const board = (.*);$", text, re.MULTILINE)
    assert written
    assert json.loads(written[1]) == board
    assert "<user>" not in text
    assert "/* uPlot.iife.min.js */" in text


def test_the_page_can_draw_every_kind_of_panel_in_every_unit() -> None:
    text = (DRAWING / "page.html").read_text()
    (kinds,) = re.findall(r"^const KINDS = \{(.*)\};$", text, re.MULTILINE)
    (units,) = re.findall(r"const UNITS = \{(.*?)\n\};", text, re.DOTALL)
    for board in BOARDS.values():
        for panel in board.panels:
            assert re.search(rf"\b{panel.kind}\b", kinds), panel.kind
            assert re.search(rf"\b{panel.unit}:", units), panel.unit


def test_what_draws_them_is_pinned() -> None:
    wanted = json.loads((DRAWING / "package.json").read_text())["dependencies"]
    locked = json.loads((DRAWING / "package-lock.json").read_text())["packages"]
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert all(each["integrity"] for name, each in locked.items() if name)
