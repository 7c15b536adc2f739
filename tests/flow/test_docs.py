"""The docs are true: examples are written and used, tables are complete, links lead somewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eventcore.__main__ import main
from tests.environment import variables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
EXTENDING = (DOCS / "extending.md").read_text()
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / ".github").glob("*.md")]


@pytest.fixture
def services(tmp_path: Path) -> Path:
    """A copy of the services with all that the page about extending adds to them."""
    copied = shutil.copytree(ROOT / "services", tmp_path / "services")
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", EXTENDING, re.S):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(text)
    for name, text in re.findall(r"<!-- edit: (\S+) -->\n```diff\n(.*?)```", EXTENDING, re.S):
        edit(tmp_path / name, text)
    return copied


def edit(file: Path, diff: str) -> None:
    """Applies a diff whose hunks are told apart by @@; raises AssertionError where one is not."""
    text = file.read_text()
    for hunk in re.split(r"^@@\n", diff, flags=re.M):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if not line.startswith("+"))
        new = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, f"{file.name} has not once:\n{old}"
        text = text.replace(old, new)
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
from order.service import SERVICE
from tests.fakes.shop import FakeShop, projector

shop = FakeShop()
user_id = shop.create_user()
kept, cancelled = shop.place_order(user_id), shop.place_order(user_id)
shop.orders.post(f"/orders/{cancelled}/cancel", json={"reason": "too late"})
[added] = [each for each in SERVICE.projections if each.name == "cancellations"]
new = projector(added, shop.readmodel, shop.order_store, shop.broker)
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
from eventcore.broker.port import Queue
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
    table = (DOCS / "settings.md").read_text()
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
    calls = (DOCS / "api.md").read_text()
    sources = [file for s in ("user", "order") for file in (ROOT / "services" / s).rglob("*.py")]
    routes = r'"(/(?:users|orders|queries)[^" ]*)"'
    paths = {path for file in sources for path in re.findall(routes, file.read_text())}
    assert len(paths) >= 6
    assert [path for path in sorted(paths) if path not in calls] == []


def test_every_tool_is_in_the_table() -> None:
    tools = set(main.commands) - {"serve", "relay", "project"}
    rows = [row for row in (DOCS / "operating.md").read_text().splitlines() if row[:3] == "| `"]
    told = {word for row in rows for word in re.findall(r"`([a-z-]+)[^`]*`", row.split("|")[1])}
    assert sorted(tools - told) == []


def test_every_file_and_package_of_the_architecture_page_exists() -> None:
    page = (DOCS / "architecture.md").read_text()
    services, core = ROOT / "services", ROOT / "services" / "eventcore"
    named = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", page))
    assert len(named) > 20
    missing = [
        each for each in sorted(named) if not ((core / each).exists() or (services / each).exists())
    ]
    assert missing == []
    packages = {each.parent.name for each in core.glob("*/__init__.py")}
    assert {each for each in packages if f"`{each}/`" not in page} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"^    make ([a-z0-9-]+)|`make ([a-z0-9-]+)", page.read_text(), re.M))
    assert {in_block or in_line for in_block, in_line in named} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 200
    pages = {f"docs/{file.name}" for file in DOCS.glob("*.md")}
    assert sorted(page for page in pages if f"]({page})" not in README) == []


def test_the_readme_has_the_figures_of_the_last_run_with_faults() -> None:
    run = (DOCS / "chaos.md").read_text()
    injected, violations = re.findall(r"(\d+) injections, (\d+) violations", run)[0]
    acknowledged, lost, duplicated = re.findall(
        r"Acknowledged (\d+), lost (\d+), duplicated (\d+)", run
    )[0]
    [diverged] = re.findall(r"Documents compared \d+, diverged (\d+), missing 0, extra 0", run)[:1]
    assert violations == "0"
    assert f"[{injected} injected faults]" in README
    assert f"{acknowledged} acknowledged commands" in README
    assert f"lost {lost}, duplicated {duplicated}." in README
    assert f"diverged from the log: {diverged}." in README
