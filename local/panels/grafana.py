"""A dashboard as Grafana's JSON: rows of panels, each with its queries.

In a query `{*}` stands for the matchers that every selector has, and `[*]` for the range of a
rate. Colours come from thresholds: green below the first, then orange, then red.
"""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `thresholds` are the values from which it is orange, then red."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    thresholds: Sequence[float] = ()
    width: int = 8
    height: int = 8
    highest: float | None = None
    bars: bool = False


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
            "annotations": {"list": []},
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


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(panel, query, i) for i, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
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
    }


def _field(panel: Panel) -> Json:
    field: Json = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": _steps(panel.thresholds)},
    }
    if panel.highest is not None:
        field["max"] = panel.highest
    if panel.kind == "timeseries":
        field["min"] = 0
        field["custom"] = {
            "drawStyle": "bars" if panel.bars else "line",
            "fillOpacity": 60 if panel.bars else 10,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "thresholdsStyle": {"mode": "line" if panel.thresholds else "off"},
        }
    return field


def _steps(thresholds: Sequence[float]) -> list[Json]:
    colours = ("orange", "red") if len(thresholds) > 1 else ("red",)
    above = [{"color": c, "value": v} for c, v in zip(colours, thresholds, strict=False)]
    return [{"color": "green", "value": None}, *above]


_REDUCED = {"calcs": ["lastNotNull"], "fields": "", "values": False}

_OPTIONS: dict[str, Json] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": _REDUCED,
        "colorMode": "background",
        "graphMode": "area",
        "justifyMode": "auto",
        "textMode": "auto",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
}

_BARE = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
