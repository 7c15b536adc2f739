"""The calls of the README, as somebody pastes them."""

import json
import re
import subprocess

import pytest

from local.services import ROOT
from local.shop import Shop


@pytest.fixture
def calls(shop: Shop) -> str:
    """The lines below "By hand", to this shop."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"By hand:\n\n((?:    .*\n)+)", readme)
    assert found
    gateway = shop.url("gateway").removeprefix("http://")
    return re.sub("^    ", "", found[1], flags=re.M).replace("localhost:3000", gateway)


def pasted(lines: str) -> str:
    return subprocess.run(
        ["bash", "-c", lines], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def test_the_calls_by_hand_end_in_a_list_with_the_order(calls: str) -> None:
    [order] = json.loads(pasted(calls))["orders"]
    assert order["item"] == "Laptop"


def test_the_list_by_hand_waits_for_the_order(shop: Shop, calls: str) -> None:
    shop.stop("order-projector")
    try:
        answer = pasted(calls.replace('curl "', 'curl -i "'))
    finally:
        shop.start("order-projector")
    assert "Answered-From: stale; reason=behind" in answer
