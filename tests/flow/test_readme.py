"""What the README shows is followed here, to the letter: its files are written, then used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import variables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def services(tmp_path: Path) -> Path:
    """A copy of the services with all that the README adds to them."""
    copied = shutil.copytree(ROOT / "services", tmp_path / "services")
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.S):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    for name, text in re.findall(r"<!-- edit: (\S+) -->\n```diff\n(.*?)```", README, re.S):
        edit(tmp_path / name, text)
    return copied


def edit(file: Path, diff: str) -> None:
    """Replace each line that begins with - by the one after it, which begins with +."""
    text = file.read_text()
    lines = diff.splitlines()
    for old, new in zip(lines[::2], lines[1::2], strict=True):
        assert f"{old[1:]}\n" in text, f"{file.name} has no line {old[1:]!r}"
        text = text.replace(f"{old[1:]}\n", f"{new[1:]}\n")
    file.write_text(text)


def run(services: Path, script: str) -> None:
    path = os.pathsep.join([str(services), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_added_projection_folds_every_order_there_has_ever_been(services: Path) -> None:
    run(
        services,
        """
from order.main import PROJECTIONS
from tests.fakes.shop import FakeShop, projector

shop = FakeShop()
user_id = shop.create_user()
kept, cancelled = shop.place_order(user_id), shop.place_order(user_id)
shop.orders.post(f"/orders/{cancelled}/cancel", json={"reason": "too late"})
new = projector(PROJECTIONS[-1], shop.readmodel, shop.order_store, shop.broker)
new.sweep(), new.sweep()
documents = shop.readmodel.collections["cancellations"]
assert documents[kept]["cancelled"] is False
assert documents[cancelled]["reason"] == "too late", documents
""",
    )


def test_the_added_aggregate_travels_the_whole_way(services: Path) -> None:
    run(
        services,
        """
from threading import Event
from eventcore.broker import Queue
from eventcore.query import Views
from eventcore.relay import Pump
from parcel.api import routes
from parcel.projections.parcels import PROJECTION
from tests.fakes.broker import FakeBroker
from tests.fakes.readmodel import FakeReadModel
from tests.fakes.shop import projector, web_app
from tests.fakes.store import FakeStore

store, readmodel, broker = FakeStore(), FakeReadModel(), FakeBroker()
client = web_app(store, routes(store, Views(PROJECTION, readmodel, store)), "parcel").test_client()
answer = client.post("/parcels", json={"to": "Paris"})
assert answer.status_code == 202, answer.text
parcel_id = answer.get_json()["parcelId"]
Pump("parcel", store, broker.publisher([Queue(PROJECTION.queue, PROJECTION.binding)], 9)).turn()
projector(PROJECTION, readmodel, store, broker).consume(Event(), wait=0)
document = readmodel.collections["parcels"][parcel_id]
assert (document["version"], document["to"]) == (1, "Paris")
shown = client.get(f"/parcels/{parcel_id}").get_json()
assert shown == {"_id": parcel_id, "parcelId": parcel_id, "to": "Paris"}
""",
    )


def test_every_setting_is_in_the_table() -> None:
    table = README[README.index("## Settings") : README.index("## Troubleshooting")]
    rows = [row for row in table.splitlines() if row.startswith("| `")]

    def is_told(name: str) -> bool:
        prefix, _, part = name.partition("_")
        return f"`{name}`" in table or any(
            row.startswith(f"| `{prefix}_") and f"_{part}" in row for row in rows
        )

    assert len(rows) > 10
    without_meaning = {"POSTGRES_OPTIONS", "RABBITMQ_OPTIONS"}
    assert [name for name in sorted(variables() - without_meaning) if not is_told(name)] == []


def test_every_call_is_in_the_table() -> None:
    calls = README[README.index("## Calls") : README.index("## Add a projection")]
    source = "".join((ROOT / "services" / s / "api.py").read_text() for s in ("user", "order"))
    paths = set(re.findall(r'"(/(?:users|orders|queries)[^" ]*)"', source))
    assert len(paths) >= 6
    assert [path for path in sorted(paths) if path not in calls] == []


def test_every_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^    make ([a-z0-9-]+)|`make ([a-z0-9-]+)", README, re.M))
    assert {in_block or in_line for in_block, in_line in named} <= targets
