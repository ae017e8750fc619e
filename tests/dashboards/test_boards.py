"""The boards show every metric of the catalogue and nothing else, and their panels fit together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import pytest

from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.broker_board import STANDARD_METRICS
from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.grafana import dashboard_json
from cutlayer.dashboards.metric_declaration import Kind
from cutlayer.dashboards.overview_board import OVERVIEW
from cutlayer.dashboards.panels import Board, Panel, Shape

NOT_SHOWN: Mapping[str, str] = {}
"""Metrics on no panel, and why."""

PANELS = [pytest.param(panel, id=f"{board.title}: {panel.title}") for board in BOARDS for panel in board.panels]


def test_every_metric_is_on_a_panel_or_left_out_for_a_reason() -> None:
    declared = {entry.name for entry in (*METRICS, *AGENT_METRICS)}
    shown = {name for board in BOARDS for panel in board.panels for name in panel.metrics}
    assert declared - shown == set(NOT_SHOWN)
    assert shown - declared <= set(STANDARD_METRICS)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_panels_fill_their_lines_and_none_lies_on_another(board: Board) -> None:
    panels = dashboard_json(board)["panels"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert {x for x, _ in cells} == set(range(24))
    lines = groupby(sorted(cells, key=lambda cell: cell[1]), key=lambda cell: cell[1])
    assert {y: len(list(line)) for y, line in lines if True} == dict.fromkeys({y for _, y in cells}, 24)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_titles_are_unique_on_a_board(board: Board) -> None:
    titles = [(panel.title, panel.shape) for panel in board.panels]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_explains_itself(panel: Panel) -> None:
    assert panel.title
    assert panel.title[0].isupper()
    assert panel.description.endswith((".", "!"))
    assert all(target.legend for target in panel.targets)


@pytest.mark.parametrize("panel", PANELS)
def test_only_histograms_have_quantiles_and_only_counters_have_rates(panel: Panel) -> None:
    kinds = {entry.name: entry.kind for entry in (*METRICS, *AGENT_METRICS)}
    for target in panel.targets:
        for part in _parts(target.query):
            kind = kinds.get(getattr(part, "name", ""))
            match type(part).__name__:
                case "Rate" | "Increase":
                    assert kind is Kind.COUNTER
                case "Mean" | "Quantile" | "Buckets" | "Within":
                    assert kind is Kind.HISTOGRAM
                case "Value":
                    assert kind in (Kind.GAUGE, Kind.COUNTER)


@pytest.mark.parametrize("panel", PANELS)
def test_several_lines_of_one_panel_have_different_names(panel: Panel) -> None:
    legends = [target.legend for target in panel.targets]
    assert len(legends) == len(set(legends))
    if panel.shape is Shape.HEATMAP:
        assert legends == ["{{le}}"]


def test_the_overview_fits_one_screen() -> None:
    """A screen of 1,080 lines shows 28 of Grafana's grid lines below its head; the last row may be below."""
    panels = dashboard_json(OVERVIEW)["panels"]
    last_row = max(panel["gridPos"]["y"] for panel in panels if panel["type"] == "row")
    assert last_row <= 28


def _parts(query: object) -> list[object]:
    inner = [getattr(query, name) for name in ("above", "below", "first", "second", "query") if hasattr(query, name)]
    return [query, *(part for each in inner for part in _parts(each))]
