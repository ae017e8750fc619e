"""Boards as Grafana dashboards, in the classic JSON that Grafana 10 to 13 read.

Written by hand rather than exported: an export carries a numeric `id`, `__inputs` and whatever the editor's defaults
were, and file provisioning stumbles over the first two.
"""

from __future__ import annotations

import json
from typing import Final

from cutlayer.dashboards.grafana_panels import DATASOURCE, Json, panel_json
from cutlayer.dashboards.grafana_variables import time_marks, variables
from cutlayer.dashboards.panels import Board, Panel, Row

__all__ = ["SCHEMA_VERSION", "TAG", "dashboard_json", "dashboard_text"]

SCHEMA_VERSION: Final = 39
"""Of Grafana 10.x: later ones migrate it, earlier ones could not read a later one."""
TAG: Final = "cutlayer"
NUM_COLUMNS: Final = 24


def dashboard_text(board: Board) -> str:
    """Return a board as the text of a file that Grafana provisions."""
    return json.dumps(dashboard_json(board), indent=2, sort_keys=True) + "\n"


def dashboard_json(board: Board) -> Json:
    """Return a board as a Grafana dashboard."""
    return {
        "uid": board.uid,
        "title": f"Cutlayer / {board.title}",
        "description": board.description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "links": [_links()],
        "annotations": {"list": time_marks()},
        "templating": {"list": variables(board)},
        "panels": _panels(board),
    }


def _links() -> Json:
    return {
        "type": "dashboards",
        "title": "Cutlayer",
        "tags": [TAG],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "icon": "external link",
        "targetBlank": False,
        "tooltip": "",
        "url": "",
    }


def _panels(board: Board) -> list[Json]:
    found: list[Json] = []
    y = 0
    for row in board.rows:
        if row.title:
            found.append(_row(row, len(found) + 1, y))
            y += 1
        for line in _lines(row.panels):
            x = 0
            for panel in line:
                found.append(panel_json(panel, len(found) + 1, x, y))
                x += panel.width
            y += max(panel.height for panel in line)
    return found


def _row(row: Row, number: int, y: int) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "datasource": DATASOURCE,
        "gridPos": {"h": 1, "w": NUM_COLUMNS, "x": 0, "y": y},
        "panels": [],
    }


def _lines(panels: tuple[Panel, ...]) -> list[list[Panel]]:
    """Break panels into lines, as a text is broken into lines."""
    lines: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(other.width for other in lines[-1]) + panel.width > NUM_COLUMNS:
            lines.append([])
        lines[-1].append(panel)
    return lines
