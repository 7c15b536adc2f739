"""A dashboard as Grafana's JSON: rows of panels, each with its queries.

In a query `{*}` stands for the matchers that every selector has, and `[*]` for the range of a
rate. Colours come from thresholds: green below the first, then orange, then red.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

WIDTH = 24
"""Columns of Grafana's grid."""

SCOPE = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and the legend of what it gives."""

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        """As Grafana takes it, with its variables."""
        scoped = self.expr.replace("{*", "{" + SCOPE).replace("[*]", "[$__rate_interval]")
        return " ".join(scoped.split())


Colour = Literal["green", "orange", "red", "blue"]

States = Mapping[int, tuple[str, Colour]]
"""The text and the colour of each value."""

UP_OR_DOWN: States = {0: ("down", "red"), 1: ("up", "green")}

HALTED: States = {0: ("goes on", "green"), 1: ("halted", "red")}

RUNBOOK = "${runbooks}docs/runbooks/%s.md"
"""Where a runbook is; `runbooks` is a variable of each board, which the chart sets."""

TRACES = (
    '/explore?schemaVersion=1&orgId=1&panes={"a":{"datasource":"${traces}","queries":[{"refId":"A",'
    '"datasource":{"type":"jaeger","uid":"${traces}"},"queryType":"search","service":"gateway"}],'
    '"range":{"from":"${__from}","to":"${__to}"}}}'
)
"""Traces of the time that is shown, in Grafana's Explore."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `thresholds` are the values from which it is orange, then red.

    `states` give each value of a state timeline its name. `runbooks` are the alerts that watch
    what is shown; `traced` links to the traces. Of a stat, `spark` is the curve behind the number.
    """

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Literal["timeseries", "stat", "table", "state-timeline"] = "timeseries"
    thresholds: Sequence[float] = ()
    width: int = 8
    height: int = 8
    highest: float | None = None
    bars: bool = False
    states: States | None = None
    runbooks: Sequence[str] = ()
    traced: bool = False
    spark: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. `known_by` is a metric's name, or a pattern of some, that its namespaces,
    jobs and instances are found by.
    """

    uid: str
    title: str
    description: str
    known_by: str
    rows: Sequence[Row]

    @property
    def panels(self) -> list[Panel]:
        """All panels, in their order."""
        return [panel for row in self.rows for panel in row.panels]

    def render(self) -> Json:
        """The dashboard, as Grafana imports it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["shop"],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "timezone": "",
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "annotations": {"list": [_OF_GRAFANA, *map(_annotation, _ANNOTATIONS)]},
            "links": [_LINK],
            "templating": {"list": list(self._variables())},
            "panels": list(self._placed()),
        }

    def _variables(self) -> Iterator[Json]:
        yield {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
            "hide": 0,
        }
        yield {
            "name": "traces",
            "label": "Traces",
            "type": "datasource",
            "query": "jaeger",
            "current": {},
            "hide": 2,
        }
        yield {"name": "runbooks", "type": "constant", "query": "RUNBOOKS", "hide": 2}
        narrowed = ""
        for name in ("namespace", "job", "instance"):
            pattern = '{__name__=~"' + self.known_by + '"' + narrowed + "}"
            yield _variable(name, f"label_values({pattern}, {name})")
            narrowed += f', {name}=~"${name}"'

    def _placed(self) -> Iterator[Json]:
        number, top = 1, 0
        for row in self.rows:
            yield {
                "id": number,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
            }
            number, top, left, tallest = number + 1, top + 1, 0, 0
            for panel in row.panels:
                if left + panel.width > WIDTH:
                    top, left, tallest = top + tallest, 0, 0
                place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
                yield {"id": number, "gridPos": place, **_panel(panel)}
                number, left = number + 1, left + panel.width
                tallest = max(tallest, panel.height)
            top += tallest


_LINK = {
    "type": "dashboards",
    "title": "Shop",
    "tags": ["shop"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
}


def _variable(name: str, query: str) -> Json:
    """All of them unless somebody chooses. A namespace may be missing: outside Kubernetes there
    is none.
    """
    return {
        "name": name,
        "label": name.title(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*" if name == "namespace" else ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


_OF_GRAFANA = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "blue",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}
"""The annotations that somebody makes in Grafana."""

_VERSIONS = "max by (service, version, revision) (eventcore_build_info{*}%s)"

_ANNOTATIONS = (
    (
        "Deploys",
        "blue",
        _VERSIONS % "" + " unless " + _VERSIONS % " offset 5m",
        "{{service}} {{version}}",
        "The first five minutes of a version, of the commit {{revision}}.",
    ),
    (
        "Alerts",
        "red",
        'max by (alertname, severity) (ALERTS{namespace=~"$namespace", alertname=~"Shop.*",'
        ' alertstate="firing"})',
        "{{alertname}}",
        "{{severity}}",
    ),
)
"""The annotations over every panel: name, colour, query, title and text of each."""


def _annotation(told: tuple[str, str, str, str, str]) -> Json:
    name, colour, expr, title, text = told
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "iconColor": colour,
        "target": {"refId": "Anno", "expr": Query(expr).promql, "interval": "60s"},
        "titleFormat": title,
        "textFormat": text,
        "useValueForTime": False,
    }


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(panel, query, i) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
        **({"transformations": _BARE} if panel.kind == "table" else {}),
    }


def _target(panel: Panel, query: Query, number: int) -> Json:
    at_once = panel.kind == "table"
    return {
        "refId": chr(ord("A") + number),
        "datasource": SOURCE,
        "expr": query.promql,
        "legendFormat": query.legend or "__auto",
        "instant": at_once,
        "range": not at_once,
        "format": "table" if at_once else "time_series",
        "exemplar": panel.kind == "timeseries" and panel.traced,
    }


def _field(panel: Panel) -> Json:
    field: Json = {
        "unit": panel.unit,
        "color": _colour(panel),
        "thresholds": {"mode": "absolute", "steps": _steps(panel.thresholds)},
        "links": list(_links(panel)),
    }
    if panel.highest is not None:
        field["max"] = panel.highest
    if panel.states:
        known = {
            str(value): {"text": text, "color": colour, "index": value}
            for value, (text, colour) in panel.states.items()
        }
        field["mappings"] = [{"type": "value", "options": known}]
    if panel.kind == "table":
        field["noValue"] = "none"
    if panel.kind == "timeseries":
        field["min"] = 0
        field["custom"] = {
            "drawStyle": "bars" if panel.bars else "line",
            "fillOpacity": 60 if panel.bars else 0,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "thresholdsStyle": {"mode": "line" if panel.thresholds else "off"},
        }
    if panel.kind == "state-timeline":
        field["custom"] = {"fillOpacity": 80, "lineWidth": 0}
    return field


def _colour(panel: Panel) -> Json:
    if panel.kind == "stat" and not panel.thresholds:
        return {"mode": "fixed", "fixedColor": "blue"}
    return {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}


def _links(panel: Panel) -> Iterator[Json]:
    for name in panel.runbooks:
        yield {"title": f"Runbook {name}", "url": RUNBOOK % name, "targetBlank": True}
    if panel.traced:
        yield {"title": "Traces of this time", "url": TRACES, "targetBlank": True}


def _overrides(panel: Panel) -> list[Json]:
    """Each alert of a table links to its runbook."""
    link = {"title": "Runbook", "url": RUNBOOK % "${__value.raw}", "targetBlank": True}
    by_name = {
        "matcher": {"id": "byName", "options": "alertname"},
        "properties": [{"id": "links", "value": [link]}],
    }
    return [by_name] if panel.kind == "table" else []


def _steps(thresholds: Sequence[float]) -> list[Json]:
    colours = ("orange", "red") if len(thresholds) > 1 else ("red",)
    above = [{"color": c, "value": v} for c, v in zip(colours, thresholds, strict=False)]
    return [{"color": "green", "value": None}, *above]


_REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}

_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {
            "displayMode": "table",
            "placement": "right",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED,
        "justifyMode": "auto",
        "textMode": "value",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "state-timeline": {
        "mergeValues": True,
        "showValue": "auto",
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "single", "sort": "none"},
    },
}


def _options(panel: Panel) -> Json:
    options = dict(_OPTIONS[panel.kind])
    if panel.kind == "stat":
        options["colorMode"] = "background" if panel.thresholds else "value"
        options["graphMode"] = "area" if panel.spark else "none"
    if panel.kind == "timeseries" and panel.width <= 8:
        options["legend"] = {**options["legend"], "displayMode": "list", "placement": "bottom"}
    return options


_BARE = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
