"""The chart as a release publishes it: it knows its repository, its images and its runbooks."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.render import CHART, HELMS, OPERATOR, ROOT, helm

REPOSITORY = "https://forge.example/somebody/shop"
REGISTRY = "registry.example/somebody/shop"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the chart, as the release workflow writes it."""
    chart = tmp_path / "shop"
    shutil.copytree(CHART, chart)
    subprocess.run(
        [ROOT / "local/release-chart", chart, REPOSITORY, "v0.2.0", REGISTRY], check=True
    )
    return chart


def test_the_workflow_writes_it_with_what_the_forge_tells() -> None:
    workflow = (ROOT / ".github/workflows/release.yml").read_text()
    assert (
        'local/release-chart charts/shop "$GITHUB_SERVER_URL/$GITHUB_REPOSITORY"'
        ' "$GITHUB_REF_NAME" "$REGISTRY"'
    ) in workflow


@pytest.mark.parametrize("program", HELMS)
def test_it_has_a_home_sources_and_an_icon_and_nothing_is_left_to_advise(
    published: Path, program: str
) -> None:
    done, said = helm("lint", "--strict", str(published), program=program)
    assert done, said
    assert "[INFO]" not in said, "without them it says: icon is recommended"
    chart = yaml.safe_load((published / "Chart.yaml").read_text())
    assert chart["home"] == REPOSITORY
    assert chart["sources"] == [REPOSITORY]
    path = chart["icon"].removeprefix(f"{REPOSITORY}/raw/v0.2.0/")
    assert (ROOT / path).is_file()


def test_pods_pull_from_the_registry_and_alerts_lead_to_the_runbooks(
    published: Path,
) -> None:
    told = {"auth": {"generate": "always"}, "alerts": {"prometheusRule": True}}
    done, text = helm("template", "shop", str(published), OPERATOR, given=told)
    assert done, text
    assert f"image: {REGISTRY}/shop-gateway:" in text
    assert f"{REPOSITORY}/blob/v0.2.0/docs/runbooks/ShopServiceDown.md" in text


def test_nothing_else_of_its_values_has_changed(published: Path) -> None:
    before, after = (
        (folder / "values.yaml").read_text().splitlines() for folder in (CHART, published)
    )
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new.split(":")[0].strip() for _, new in changed] == ["registry", "runbooks"]


def test_values_that_have_moved_are_refused(tmp_path: Path) -> None:
    chart = tmp_path / "shop"
    shutil.copytree(CHART, chart)
    values = chart / "values.yaml"
    values.write_text(values.read_text().replace("# -- registry of the images,", "# -- moved,"))
    done = subprocess.run(
        [ROOT / "local/release-chart", chart, REPOSITORY, "v0.2.0", REGISTRY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "does not have one value documented as" in done.stderr
