"""The files that a request enters are those of docs/architecture.md, and none is entered often."""

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from uuid import uuid4

import pytest
from werkzeug.test import Client

from eventcore.web.overload import Overload
from tests.fakes.shop import FakeShop

ROOT = Path(__file__).parents[2]
SERVICES = str(ROOT / "services") + "/"

MOST = 2
"""How often a request may enter one file."""

STAND_INS = {
    str(ROOT / "tests/fakes/store.py"): "store/postgres.py",
    str(ROOT / "tests/fakes/readmodel.py"): "readmodel/mongo.py",
}
"""The file that each fake stands in for."""

VALUES = (
    "errors.py", "ids.py", "jsontext.py", "clock.py", "model/", "readmodel/records.py",
    "web/inputs.py", "web/openapi.py", "web/caller.py", "observe/",
)  # fmt: skip
"""Files that are not counted, since a call of theirs decides nothing of the way: values and their
forms, which pydantic and msgspec call for each field, and the records of what happened."""


def entered(act: Callable[[], object]) -> list[str]:
    """The files that are entered while `act` runs: by a call from another file of ours, or from a
    library. To return into a file is not to enter it.
    """
    found: list[str] = []

    def place(frame: FrameType | None) -> str | None:
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(SERVICES) or name in STAND_INS:
                return name
            frame = frame.f_back
        return None

    def note(frame: FrameType, event: str, _argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and place(frame) == name != place(frame.f_back):
            short = STAND_INS.get(name) or name.removeprefix(SERVICES).removeprefix("eventcore/")
            if not short.startswith(VALUES):
                found.append(short)

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return found


def listed(*steps: str) -> list[str]:
    """The files that the steps of the page name, in its order."""
    page = (ROOT / "docs/architecture.md").read_text()
    files: list[str] = []
    for step in steps:
        match = re.search(rf"^\d+\. \*\*{step}\.\*\* (.*)$", page, re.M)
        assert match, f"the page has no step {step}"
        files += re.findall(r"`([a-z_/]+\.py)`", match[1])
    return files


def without_repeats(files: list[str]) -> list[str]:
    """A file that is entered again at once is one stay for a reader."""
    return [each for each, before in zip(files, [None, *files], strict=False) if each != before]


@pytest.fixture
def shop() -> FakeShop:
    return FakeShop()


@pytest.fixture
def client(shop: FakeShop) -> Client:
    """The order service as gunicorn sees it, after a first request, which imports modules and
    reads the epoch of the log.
    """
    shop.orders.post(f"/orders/{uuid4()}/cancel")
    return Client(Overload(shop.orders.application, 8))


def test_a_command_goes_through_the_files_of_the_page(shop: FakeShop, client: Client) -> None:
    body = {"userId": shop.create_user(), "item": "Laptop", "price": 1}
    statuses = list[int]()
    files = entered(lambda: statuses.append(client.post("/orders", json=body).status_code))
    assert statuses == [200]
    assert without_repeats(files) == listed("Request", "Command", "Append")
    assert {file: times for file, times in Counter(files).items() if times > MOST} == {}


def test_a_query_goes_through_the_files_of_the_page(shop: FakeShop, client: Client) -> None:
    order = shop.place_order(shop.create_user())
    shop.settle()
    statuses = list[int]()
    path = f"/queries/orders/{order}"
    files = entered(lambda: statuses.append(client.get(path).status_code))
    assert statuses == [200]
    assert without_repeats(files) == listed("Request", "Query")
    assert {file: times for file, times in Counter(files).items() if times > MOST} == {}
