"""Each alert fires, is quiet while all is well, and ends: promtool plays it minute by minute."""

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.packages import prometheus_programs
from local.panels.alerts import Alert, alerts, rule_file
from local.panels.objectives import records
from tests.panels.cases import CASES, WELL, Case

ROOT = Path(__file__).parents[2]
FILE = ROOT / "charts" / "shop" / "files" / "alerts.yaml"
ALERTS: dict[tuple[str, str], Alert] = {(each.name, each.severity): each for each in alerts()}
NAMES = sorted({name for name, _ in ALERTS})

NAMESPACES = {"": "", "shop": 'namespace="shop", '}
"""Outside Kubernetes, where no series has a namespace, and inside."""


def promtool(*arguments: str) -> str:
    """What promtool prints; it must be content."""
    program = str(prometheus_programs() / "promtool")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def play(tmp_path: Path, *groups: dict[str, Any]) -> None:
    """Let promtool play these groups on our rules."""
    tests = {"rule_files": [str(FILE)], "evaluation_interval": "1m", "tests": list(groups)}
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(file))


def series(samples: dict[str, str], namespace: str) -> list[dict[str, str]]:
    found = {
        name.replace("{", "{" + NAMESPACES[namespace], 1): values
        for name, values in samples.items()
    }
    return [{"series": name, "values": values} for name, values in found.items()]


def group(case: Case, namespace: str) -> dict[str, Any]:
    """A case, as promtool reads it."""
    rule = ALERTS[case.alert, case.severity].rule()
    inside = f" in {namespace}" if namespace else ""
    # None at all is scraped, so none says its namespace.
    named = {"namespace": namespace} if namespace and "No process" not in case.description else {}
    expected = {
        "exp_labels": {"severity": case.severity, **case.labels, **named},
        "exp_annotations": {
            **rule["annotations"],
            "description": case.description.replace("{in}", inside),
        },
    }
    moments = {case.fires: [expected], **{minute: [] for minute in case.quiet}}
    return {
        "name": case.alert,
        "interval": "1m",
        "input_series": series(dict(case.series), namespace),
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": found}
            for minute, found in sorted(moments.items())
        ],
    }


def test_the_rules_are_valid() -> None:
    count = len(ALERTS) + len(list(records()))
    assert f"SUCCESS: {count} rules found" in promtool("check", "rules", str(FILE))


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.severity}")
def test_an_alert_fires_and_is_quiet_before_and_after(
    case: Case, namespace: str, tmp_path: Path
) -> None:
    assert any(minute < case.fires for minute in case.quiet)
    assert any(minute > case.fires for minute in case.quiet)
    play(tmp_path, group(case, namespace))


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("well", WELL)
def test_nothing_fires_while_all_is_well(well: str, namespace: str, tmp_path: Path) -> None:
    quiet = [
        {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": []}
        for name in NAMES
        for minute in (1, 30, 75, 200, 590)
    ]
    samples = series(dict(WELL[well]), namespace)
    play(tmp_path, {"interval": "1m", "input_series": samples, "alert_rule_test": quiet})


def test_every_alert_has_its_case() -> None:
    assert {(case.alert, case.severity) for case in CASES} == set(ALERTS)


def test_a_name_has_one_rule_of_each_severity() -> None:
    assert max(Counter((each.name, each.severity) for each in alerts()).values()) == 1


@pytest.mark.parametrize("rule", [each.rule() for each in alerts()], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_how_bad_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Shop")
    assert rule["alert"].isalpha()
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    told = rule["annotations"]
    assert "{{" not in told["summary"]
    assert told["summary"].endswith(".")
    assert "{{" in told["description"]
    assert (ROOT / told["runbook_url"]).is_file()
    assert told["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    assert told["dashboard_url"] in {f"/d/{uid}" for uid in UIDS}


UIDS = ("shop-overview", "shop-event-flow", "shop-projections", "shop-stores")


def test_the_file_is_what_the_source_says() -> None:
    assert yaml.safe_load(FILE.read_text()) == rule_file()
