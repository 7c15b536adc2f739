"""The example for Alertmanager is valid, knows our alerts, and sends each one somewhere."""

import re
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from local.packages import alertmanager_programs
from local.panels.alerts import Alert, alerts
from tests.chart.render import ROOT

FILE = ROOT / "k8s" / "alerting" / "alertmanager.yaml"
CONFIG: dict[str, Any] = yaml.safe_load(FILE.read_text())
NAMES = {each.name for each in alerts()}

RECEIVERS = {"critical": "pager", "warning": "chat", "info": "nobody"}


@cache
def amtool(*arguments: str) -> str:
    """Runs amtool, which must be content; returns its output."""
    program = str(alertmanager_programs() / "amtool")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def matches(matchers: list[str], labels: dict[str, str]) -> bool:
    """Whether an alert with these labels is meant, as Alertmanager reads matchers."""
    for each in matchers:
        found = re.fullmatch(r'(\w+)(=~|=)"(.*)"', each)
        assert found, f"{each}: not a form that this test reads"
        name, operator, value = found.groups()
        text = labels.get(name, "")
        if not (re.fullmatch(value, text) if operator == "=~" else text == value):
            return False
    return True


def labels(alert: Alert) -> dict[str, str]:
    return {"alertname": alert.name, "severity": alert.severity, "namespace": "shop"}


def silences(source: Alert, target: Alert) -> bool:
    """Whether the first alert inhibits the second."""
    return any(
        matches(rule["source_matchers"], labels(source))
        and matches(rule["target_matchers"], labels(target))
        and all(labels(source).get(each) == labels(target).get(each) for each in rule["equal"])
        for rule in CONFIG["inhibit_rules"]
    )


def test_alertmanager_takes_it() -> None:
    said = amtool("check-config", str(FILE))
    assert "SUCCESS" in said
    assert f"{len(CONFIG['inhibit_rules'])} inhibit rules" in said
    assert f"{len(CONFIG['receivers'])} receivers" in said


@pytest.mark.parametrize("severity", RECEIVERS)
def test_each_severity_goes_to_one_receiver(severity: str) -> None:
    told = ("--config.file", str(FILE), f"severity={severity}", "alertname=ShopServiceDown")
    assert amtool("config", "routes", "test", *told).split() == [RECEIVERS[severity]]
    assert severity in {each.severity for each in alerts()}


def test_every_alert_that_it_names_is_one_of_ours() -> None:
    for rule in CONFIG["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            name, _, pattern = matcher.partition('="' if '="' in matcher else '=~"')
            if name == "alertname":
                for each in pattern.removesuffix('"').split("|"):
                    assert any(re.fullmatch(each, known) for known in NAMES), each


def test_a_dead_server_calls_once() -> None:
    by_name = {each.name: each for each in alerts()}
    effects = {
        "ShopPostgresDown": {"ShopDependencyDown", "ShopRelayIdle", "ShopBudgetBurnsFast"},
        "ShopMongoDown": {"ShopDependencyDown", "ShopProjectionStuck"},
        "ShopFeedStalled": {"ShopProjectionLagHigh"},
    }
    for source, targets in effects.items():
        for target in targets:
            assert silences(by_name[source], by_name[target]), (source, target)


def test_no_alert_silences_itself_and_no_two_each_other() -> None:
    every = list(alerts())
    for one in every:
        for other in every:
            if one.name != other.name and silences(one, other):
                assert not silences(other, one), (one.name, other.name)
    for one in every:
        if one.severity == "critical":
            assert not silences(one, one)


def test_a_cause_is_known_by_the_namespace() -> None:
    assert all("namespace" in rule["equal"] for rule in CONFIG["inhibit_rules"])


def test_no_key_and_no_address_is_in_the_file() -> None:
    text = FILE.read_text()
    assert "http" not in text
    assert set(re.findall(r"_file: (\S+)", text)) == {"/secrets/pager-key", "/secrets/chat-url"}
