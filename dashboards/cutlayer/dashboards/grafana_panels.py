"""A panel as Grafana's classic JSON: one function a shape, each with what Grafana's own editor would write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cutlayer.dashboards.catalogue import AGENT_METRICS
from cutlayer.dashboards.grafana_colours import COLOURS, STAGE_COLOURS
from cutlayer.dashboards.panels import Panel, Shape, Target, Unit
from cutlayer.dashboards.promql import promql
from cutlayer.dashboards.query import Top, metrics_of

__all__ = ["AGENT_SCRAPE_INTERVAL", "DATASOURCE", "Json", "panel_json"]

Json = dict[str, Any]
DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
AGENT_SCRAPE_INTERVAL: Final = "15s"
"""How often `/metrics/clients` is scraped (prometheus.yml). Rates look back four times as long."""

_AGENT_NAMES: Final = frozenset(entry.name for entry in AGENT_METRICS)
_UNITS: Final[Mapping[Unit, str]] = {Unit.PER_SECOND: "suffix:/s"}
"""Where Grafana's own text would be hard to read: it writes `c/s`."""
_LEGEND: Final[Json] = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
_REDUCE: Final[Json] = {"values": False, "calcs": ["lastNotNull"], "fields": ""}
_REF_IDS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def panel_json(panel: Panel, number: int, x: int, y: int) -> Json:
    """Return a panel.

    Args:
        panel: The panel.
        number: Its id on the dashboard.
        x: Column of its left edge.
        y: Line of its upper edge.
    """
    names = ", ".join(f"`{name}`" for name in panel.metrics)
    defaults: Json = {"unit": _unit(panel.unit), "thresholds": _thresholds(panel), **_drawn(panel)}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.empty_text:
        defaults["noValue"] = panel.empty_text
    return {
        "id": number,
        "type": _TYPES[panel.shape],
        "title": panel.title,
        "description": f"{panel.description} Metric: {names}.",
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(panel)},
        "options": _OPTIONS[panel.shape](panel),
        "targets": [_target(panel, target, ref_id) for target, ref_id in zip(panel.targets, _REF_IDS, strict=False)],
        "transformations": _transformations(panel),
    }


def _unit(unit: Unit) -> str:
    return _UNITS.get(unit, unit.value)


def _target(panel: Panel, target: Target, ref_id: str) -> Json:
    # Bars show the last value of the time shown, so that they outlive the run. The largest few are chosen anew at each
    # moment: over a range they would become more and more.
    is_instant = panel.shape is Shape.TABLE or (panel.shape is Shape.BARS and isinstance(target.query, Top))
    found: Json = {
        "refId": ref_id,
        "datasource": DATASOURCE,
        "expr": promql(target.query),
        "legendFormat": target.legend,
        "format": {Shape.TABLE: "table", Shape.HEATMAP: "heatmap"}.get(panel.shape, "time_series"),
        "instant": is_instant,
        "range": not is_instant,
        "editorMode": "code",
    }
    if metrics_of(target.query) & _AGENT_NAMES:
        found["interval"] = AGENT_SCRAPE_INTERVAL
    return found


def _thresholds(panel: Panel) -> Json:
    steps: list[Json] = [{"color": COLOURS[step.colour], "value": step.value} for step in panel.thresholds]
    if not steps:
        steps = [{"color": "text", "value": None}]
    steps[0]["value"] = None  # the first one reaches down without end
    return {"mode": "absolute", "steps": steps}


def _drawn(panel: Panel) -> Json:
    """Return the field options that say how lines, bars and points look."""
    match panel.shape:
        case Shape.NUMBER:
            colour = (
                {"mode": "thresholds"} if panel.thresholds else {"mode": "fixed", "fixedColor": _first_colour(panel)}
            )
            return {"color": colour}
        case Shape.LINES | Shape.STACK:
            is_stacked, is_mirrored = panel.shape is Shape.STACK, any(target.is_below for target in panel.targets)
            # Several filled areas that are not stacked mix to a colour that means nothing.
            fill = 40 if is_stacked else 15 if is_mirrored or _is_single(panel) else 0
            # Where nothing happens Grafana would draw an axis up to 100.
            soft = {"axisSoftMax": 1} if panel.unit in (Unit.PER_SECOND, Unit.COUNT) else {}
            return {
                "color": {"mode": "palette-classic"},
                **({} if is_mirrored else {"min": 0}),
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1 if is_stacked else 2,
                    "fillOpacity": fill,
                    "showPoints": "never",
                    "spanNulls": 60_000,
                    "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
                    "axisBorderShow": False,
                    **soft,
                },
            }
        case Shape.BARS:
            return {"color": {"mode": "fixed", "fixedColor": COLOURS["up"]}, "min": 0}
        case Shape.AGAINST:
            return {
                "color": {"mode": "palette-classic"},
                "custom": {"show": "points+lines", "pointSize": {"fixed": 4}, "lineWidth": 1},
            }
        case Shape.HEATMAP | Shape.TABLE:
            return {}


def _is_single(panel: Panel) -> bool:
    return len(panel.targets) == 1 and "{{" not in panel.targets[0].legend


def _first_colour(panel: Panel) -> str:
    colour = panel.targets[0].colour
    return COLOURS[colour] if colour else "text"


def _overrides(panel: Panel) -> list[Json]:
    found = []
    for target in panel.targets:
        properties: list[Json] = []
        if target.colour and panel.shape is not Shape.NUMBER:
            properties.append({"id": "color", "value": {"mode": "fixed", "fixedColor": COLOURS[target.colour]}})
        if target.is_below:
            properties.append({"id": "custom.transform", "value": "negative-Y"})
        if target.unit is not None:
            properties.append({"id": "unit", "value": _unit(target.unit)})
        if properties:
            found.append({"matcher": {"id": "byName", "options": target.legend}, "properties": properties})
        if target.legend == "{{stage}}":
            found += [
                {
                    "matcher": {"id": "byName", "options": stage},
                    "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
                }
                for stage, colour in STAGE_COLOURS.items()
            ]
    return found


def _transformations(panel: Panel) -> list[Json]:
    match panel.shape:
        case Shape.AGAINST:
            return [{"id": "joinByField", "options": {"byField": "Time", "mode": "outer"}}]
        case Shape.TABLE if len(panel.targets) > 1:
            renamed = {f"Value #{ref_id}": t.legend for t, ref_id in zip(panel.targets, _REF_IDS, strict=False)}
            return [
                {"id": "merge", "options": {}},
                {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": renamed}},
            ]
        case Shape.TABLE:
            return [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}, "renameByName": {}}}]
        case _:
            return []


def _number_options(_: Panel) -> Json:
    return {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": _REDUCE,
        "textMode": "value",
        "wideLayout": True,
    }


def _line_options(_: Panel) -> Json:
    return {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}}


def _bar_options(_: Panel) -> Json:
    return {
        "displayMode": "basic",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "maxVizHeight": 300,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": _REDUCE,
        "showUnfilled": True,
        "sizing": "auto",
        "text": {"titleSize": 14, "valueSize": 16},
        "valueMode": "color",
    }


def _heatmap_options(panel: Panel) -> Json:
    return {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "cps"},
        "color": {"mode": "scheme", "scheme": "Blues", "exponent": 0.5, "steps": 64, "reverse": False, "fill": "blue"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": panel.unit.value},
    }


def _against_options(panel: Panel) -> Json:
    x, *others = panel.targets
    series = [
        {
            "x": {"matcher": {"id": "byName", "options": x.legend}},
            "y": {"matcher": {"id": "byName", "options": target.legend}},
            "name": {"fixed": target.legend},
        }
        for target in others
    ]
    return {"mapping": "manual", "series": series, "legend": _LEGEND, "tooltip": {"mode": "single", "sort": "none"}}


def _table_options(_: Panel) -> Json:
    return {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "fields": ""}}


_TYPES: Final[Mapping[Shape, str]] = {
    Shape.NUMBER: "stat",
    Shape.LINES: "timeseries",
    Shape.STACK: "timeseries",
    Shape.BARS: "bargauge",
    Shape.HEATMAP: "heatmap",
    Shape.AGAINST: "xychart",
    Shape.TABLE: "table",
}
_OPTIONS: Final[Mapping[Shape, Callable[[Panel], Json]]] = {
    Shape.NUMBER: _number_options,
    Shape.LINES: _line_options,
    Shape.STACK: _line_options,
    Shape.BARS: _bar_options,
    Shape.HEATMAP: _heatmap_options,
    Shape.AGAINST: _against_options,
    Shape.TABLE: _table_options,
}
