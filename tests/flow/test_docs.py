"""The docs are true: tables are complete, links lead somewhere, figures are those of the runs."""

import re
from pathlib import Path

import pytest

from eventcore.__main__ import main
from local.services import SERVICES
from tests.environment import variables

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / ".github").glob("*.md")]


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
    of_each_service = {f"IDENTITY_{name.upper()}_TOKEN" for name in SERVICES}
    assert is_told("IDENTITY_USER_TOKEN")
    names = sorted(variables() - without_meaning - of_each_service)
    assert [name for name in names if not is_told(name)] == []


def test_every_call_is_in_the_table() -> None:
    calls = (DOCS / "api.md").read_text()
    paths = {path for service in SERVICES.values() for path in service.paths}
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
