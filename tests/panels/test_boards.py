"""The dashboards keep the rules of Grafana's dashboard-linter, and show every metric there is.

The rules are named as there; the numbers of its page of rules are not needed to read them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from eventcore.observe import metrics as all_metrics
from local.panels.alerts import alerts
from local.panels.objectives import records
from local.panels.pictures import FIRST_SCREEN
from local.panels.write import written
from tests.panels.test_alerts import promtool

FILES = Path(__file__).parents[2] / "charts" / "shop" / "files"
BOARDS = {
    file.stem: json.loads(file.read_text()) for file in sorted(FILES.glob("dashboards/*.json"))
}

UNITS = {"none", "s", "bytes", "percentunit", "cps", "ops", "reqps"}
"""Those of Grafana's units that are used here."""

AGGREGATED = {"ALERTS"} | {rule["record"] for rule in records()}
"""Series without job and instance: alerts and recorded ones aggregate over them."""

Object = dict[str, Any]


def panels(board: Object) -> list[Object]:
    return [each for each in board["panels"] if each["type"] != "row"]


PANELS = [
    pytest.param(name, panel, id=f"{name}: {panel['title']}")
    for name, board in BOARDS.items()
    for panel in panels(board)
]
EXPRESSIONS = [
    *(
        pytest.param(target["expr"], id=f"{name}: {panel['title']} {target['refId']}")
        for name, board in BOARDS.items()
        for panel in panels(board)
        for target in panel["targets"]
    ),
    *(
        pytest.param(each["target"]["expr"], id=f"{name}: annotation {each['name']}")
        for name, board in BOARDS.items()
        for each in board["annotations"]["list"]
        if "target" in each
    ),
]


def variables(board: Object) -> dict[str, Object]:
    return {each["name"]: each for each in board["templating"]["list"]}


def selectors(promql: str) -> Iterator[tuple[str, str, str, str]]:
    """Each selector: what stands before it, its metric, its matchers, what stands after."""
    for found in re.finditer(r"\b([a-zA-Z_:][\w:]*)\{([^}]*)\}", promql):
        yield promql[: found.start()], found[1], found[2], promql[found.end() :]


def metrics(promql: str) -> set[str]:
    """Every metric of an expression, with matchers or without."""
    bare = re.sub(r'"[^"]*"', "", promql)
    bare = re.sub(r"\b(by|on|group_left|group_right|ignoring|without) *\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    words = re.findall(r"\b[a-zA-Z_][\w:]*\b(?! *\()", bare)
    return set(words) - {"and", "or", "unless", "by", "on", "bool", "offset"}


def declared() -> dict[str, str]:
    """Our metrics as Prometheus has them, and the type of each."""
    families = [
        each.describe()[0] for each in vars(all_metrics).values() if hasattr(each, "_labelnames")
    ]
    return {
        f"{each.name}_total" if each.type == "counter" else each.name: each.type
        for each in families
    }


def own_name(metric: str) -> str:
    """A histogram's name, of one of its series."""
    return re.sub("_(bucket|count|sum)$", "", metric) if metric not in declared() else metric


@pytest.mark.parametrize("name", sorted(written()))
def test_the_files_are_what_the_source_says(name: str) -> None:
    assert (FILES / name).read_text() == written()[name], "make docs"


def test_nothing_else_is_among_the_dashboards() -> None:
    assert {f"dashboards/{name}.json" for name in BOARDS} == set(written()) - {"alerts.yaml"}


@pytest.mark.parametrize("name", BOARDS)
def test_uneditable_dashboard_and_stable_ids(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"shop-{name}"
    assert board["editable"] is False
    assert board["refresh"]
    assert board["description"]
    assert "id" not in board  # Grafana's own, another in each
    ids = [each["id"] for each in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_two_dashboards_are_one() -> None:
    assert len({each["uid"] for each in BOARDS.values()}) == len(BOARDS) == 4


@pytest.mark.parametrize("name", BOARDS)
def test_template_datasource_rule(name: str) -> None:
    source = variables(BOARDS[name])["datasource"]
    assert (source["type"], source["query"], source["label"]) == (
        "datasource",
        "prometheus",
        "Data source",
    )


@pytest.mark.parametrize("variable", ["namespace", "job", "instance"])
@pytest.mark.parametrize("name", BOARDS)
def test_template_job_and_instance_rules(name: str, variable: str) -> None:
    found = variables(BOARDS[name])[variable]
    assert found["type"] == "query"
    assert found["datasource"]["uid"] == "${datasource}"
    assert found["label"] == variable.title()
    assert found["multi"]
    assert found["includeAll"]
    assert found["current"]["value"] == ["$__all"]
    # Everything that is scraped has a job and an instance; a namespace only in Kubernetes.
    assert found["allValue"] == (".*" if variable == "namespace" else ".+")


@pytest.mark.parametrize("name", BOARDS)
def test_template_label_promql_and_time_reload_rules(name: str) -> None:
    for variable in variables(BOARDS[name]).values():
        if variable["type"] == "query":
            assert re.fullmatch(
                rf"label_values\(.+, {variable['name']}\)", variable["query"]["query"]
            )
            assert variable["refresh"] == 2


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_panel_rules(name: str, panel: Object) -> None:
    """Data source, title and description, units, and targets."""
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert target["expr"]
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_thresholds_have_colours_for_what_is_worse(name: str, panel: Object) -> None:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[0] == {"color": "green", "value": None}
    values = [each["value"] for each in steps[1:]]
    assert values == sorted(values)
    if panel["type"] == "stat" and panel["fieldConfig"]["defaults"]["unit"] != "cps":
        assert steps[1:], "only a rate is neither good nor bad"


STORED = ("eventstore_events_appended", "relay_events_confirmed", "projection_events_applied")


def test_the_first_screen_says_whether_events_flow() -> None:
    first = [
        panel
        for panel in panels(BOARDS["overview"])
        if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= FIRST_SCREEN
    ]
    cells = sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in first)
    rows = [each for each in BOARDS["overview"]["panels"] if each["type"] == "row"]
    headings = sum(each["gridPos"]["y"] < FIRST_SCREEN for each in rows)
    assert cells + headings * 24 == FIRST_SCREEN * 24, "no cell is empty"
    for metric in STORED:
        sparks = [
            panel
            for panel in first
            if panel["type"] == "stat" and metric in json.dumps(panel["targets"])
        ]
        assert [panel["options"]["graphMode"] for panel in sparks] == ["area"]
    (positions,) = (panel for panel in first if panel["title"] == "Positions")
    shown = {metric for target in positions["targets"] for metric in metrics(target["expr"])}
    assert shown == {
        "eventstore_head_position",
        "eventstore_settled_position",
        "relay_checkpoint_position",
        "projection_checkpoint_position",
    }


def test_what_is_0_or_1_has_names_for_its_values() -> None:
    switches = re.compile("dependency_up|relay_(active|halted)|projection_halted|(pg|mongodb)_up")
    for name, board in BOARDS.items():
        for panel in panels(board):
            expressions = " ".join(target["expr"] for target in panel["targets"])
            if switches.search(expressions) and panel["type"] != "stat":
                assert panel["type"] == "state-timeline", f"{name}: {panel['title']}"
            if panel["type"] == "state-timeline":
                (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
                assert {"0", "1"} <= set(mapping["options"])
                assert all(each["text"] for each in mapping["options"].values())


@pytest.mark.parametrize(("name", "panel"), PANELS)
def test_links_lead_to_runbooks_that_there_are_and_to_traces(name: str, panel: Object) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    for link in defaults["links"]:
        url = link["url"]
        if url.startswith("/explore"):
            panes = json.loads(url.partition("panes=")[2])
            assert panes["a"]["datasource"] == "${traces}"
        else:
            place = url.removeprefix("${runbooks}")
            assert place != url
            assert (FILES.parents[2] / place).is_file()


def test_every_alert_is_a_link_of_some_panel_or_of_the_table_of_alerts() -> None:
    (table,) = (p for p in panels(BOARDS["overview"]) if p["title"] == "Alerts that fire")
    (override,) = table["fieldConfig"]["overrides"]
    (link,) = override["properties"][0]["value"]
    assert link["url"] == "${runbooks}docs/runbooks/${__value.raw}.md"


def test_exemplars_are_asked_for_where_times_are_shown() -> None:
    for board in BOARDS.values():
        for panel in panels(board):
            if any(target["exemplar"] for target in panel["targets"]):
                assert "_bucket" in json.dumps(panel["targets"])
    times = [p for p in panels(BOARDS["overview"]) if p["title"].startswith("Time by")]
    assert all(target["exemplar"] for panel in times for target in panel["targets"])


@pytest.mark.parametrize("name", BOARDS)
def test_deploys_and_alerts_are_drawn_over_every_panel(name: str) -> None:
    drawn = {each["name"]: each for each in BOARDS[name]["annotations"]["list"] if "target" in each}
    assert set(drawn) == {"Deploys", "Alerts"}
    assert all(each["enable"] for each in drawn.values())


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", BOARDS)
def test_titles_tell_panels_apart(name: str) -> None:
    titles = [panel["title"] for panel in panels(BOARDS[name])]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("promql", EXPRESSIONS)
def test_target_job_and_instance_rules(promql: str) -> None:
    found = list(selectors(promql))
    for _, metric, matchers, _ in found:
        assert 'namespace=~"$namespace"' in matchers
        if metric not in AGGREGATED:
            assert 'job=~"$job"' in matchers
            assert 'instance=~"$instance"' in matchers
    assert metrics(promql) == {metric for _, metric, _, _ in found}


@pytest.mark.parametrize("promql", EXPRESSIONS)
def test_target_rate_interval_and_counter_rules(promql: str) -> None:
    for before, metric, _, after in selectors(promql):
        ranged = after.startswith("[")
        if ranged and before.endswith("last_over_time("):
            continue  # what was there within this time, whatever is shown
        if ranged and metric in AGGREGATED:
            assert after.startswith("[30d:5m])) / 8640"), "all five minutes of an objective's time"
            continue
        if ranged:
            assert after.startswith("[$__rate_interval]")
            assert re.search(r"\b(rate|irate|increase|changes)\($", before)
        of_counter = (
            re.search("_(total|count|sum|bucket)$", metric)
            and declared().get(metric) != "gauge"
            and not metric.startswith("pg_stat_activity")
        )
        assert ranged or not of_counter, f"{metric} only rises: it needs a rate"


def plain(promql: str) -> str:
    """Without Grafana's variables."""
    values = {"$__rate_interval": "1m", "$namespace": ".*", "$job": ".+", "$instance": ".+"}
    for name, value in values.items():
        promql = promql.replace(name, value)
    assert "$" not in promql
    return promql


def test_target_promql_rule(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": plain(each.values[0])}  # type: ignore[arg-type]
        for number, each in enumerate(EXPRESSIONS)
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "--lint=none", str(file))


def shown() -> dict[str, set[str]]:
    """Each metric that is used, and where."""
    used: dict[str, set[str]] = {}
    for name, board in BOARDS.items():
        for panel in panels(board):
            for target in panel["targets"]:
                for metric in metrics(target["expr"]):
                    used.setdefault(own_name(metric), set()).add(f"{name}: {panel['title']}")
    for alert in alerts():
        for metric in metrics(alert.expr):
            used.setdefault(own_name(metric), set()).add(alert.name)
    return used


def test_every_metric_is_shown_on_a_dashboard() -> None:
    on_boards = {
        metric
        for metric, places in shown().items()
        if any(not place.startswith("Shop") for place in places)
    }
    assert sorted(set(declared()) - on_boards) == []


def test_no_metric_is_used_that_nothing_has() -> None:
    prefixes = (
        "http_",
        "background_",
        "eventcore_",
        "eventstore_",
        "relay_",
        "projection_",
        "reactor_",
        "deadlines_",
        "saga_",
        "dependency_",
        "pool_",
        "rate_limit_",
    )
    ours = {metric for metric in shown() if metric.startswith(prefixes)}
    assert sorted(ours - set(declared())) == []
    theirs = {metric for metric in shown() if metric not in ours}
    cluster = "kube_(job|cronjob|pod|horizontalpodautoscaler)_.+"
    process = "process_(cpu_seconds_total|resident_memory_bytes|start_time_seconds)"
    known = re.compile(
        f"(rabbitmq|pg|mongodb|kubelet_volume_stats)_.+|{cluster}|{process}|up|ALERTS"
    )
    theirs -= {rule["record"] for rule in records()}
    assert [metric for metric in sorted(theirs) if not known.fullmatch(metric)] == []
