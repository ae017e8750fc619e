"""Rules for dashboards, most of them those of Grafana's own dashboard linter, and our own beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cutlayer.dashboards.boards import BOARDS
from cutlayer.dashboards.broker_board import STANDARD_METRICS
from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.grafana import dashboard_json
from cutlayer.dashboards.grafana_panels import AGENT_SCRAPE_INTERVAL
from cutlayer.dashboards.metric_declaration import Kind, Metric
from cutlayer.dashboards.metric_labels import Stage
from support.promql import metric_names, selectors, with_variables

UNITS = set((Path(__file__).parent / "grafana_units.txt").read_text(encoding="utf-8").split())
"""Every unit of Grafana 12.4 (@grafana/data), but for those that are made up of a prefix and a text."""
OWN_UNIT = re.compile(r"suffix:.+")

DASHBOARDS: list[dict[str, Any]] = [dashboard_json(board) for board in BOARDS]
PANELS = [
    pytest.param(panel, id=f"{dashboard['uid']}: {panel['title']}")
    for dashboard in DASHBOARDS
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
TARGETS = [
    pytest.param(panel.values[0], target, id=f"{panel.id} {target['refId']}")
    for panel in PANELS
    for target in panel.values[0]["targets"]  # type: ignore[index]
]
every_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard["uid"])
every_panel = pytest.mark.parametrize("panel", PANELS)
every_target = pytest.mark.parametrize(("panel", "target"), TARGETS)

NO_INSTANCE = {"ALERTS": "an alert may be of a whole run, not of one worker"}
"""Series whose selectors need not name job and worker, and why."""
TOTALS = {
    "cutlayer_broker_publish_dropped_total": "a single lost packet is of interest, however long ago",
    "cutlayer_pool_takeovers_total": "there are a few in a whole run",
    "cutlayer_agent_wire_bytes_total": "what a site has cost so far",
    "cutlayer_agent_raw_bytes_total": "what a site's codec has saved so far",
    "cutlayer_agent_steps_total": "how far a site is",
    "cutlayer_agent_resends_total": "a site's trouble so far",
}
"""Counters that may be shown as they stand, and why."""


def sample_names(entry: Metric) -> set[str]:
    """Return the names of a metric's series."""
    match entry.kind:
        case Kind.HISTOGRAM:
            return {entry.name + end for end in ("_bucket", "_sum", "_count")}
        case Kind.INFO:
            return {f"{entry.name}_info"}
        case _:
            return {entry.name}


EXPORTED = {name for entry in (*METRICS, *AGENT_METRICS) for name in sample_names(entry)}


def expression_of(target: dict[str, Any]) -> str:
    return with_variables(target["expr"])


def test_identifiers_are_stable_and_unique() -> None:
    assert [dashboard["uid"] for dashboard in DASHBOARDS] == [
        "cutlayer-overview",
        "cutlayer-communication",
        "cutlayer-latency",
        "cutlayer-sites",
        "cutlayer-broker",
    ]
    assert len({dashboard["title"] for dashboard in DASHBOARDS}) == len(DASHBOARDS)


@every_dashboard
def test_a_dashboard_can_be_provisioned_from_a_file(dashboard: dict[str, Any]) -> None:
    assert "id" not in dashboard
    assert "__inputs" not in dashboard
    assert 39 <= dashboard["schemaVersion"] <= 42
    assert "${DS_" not in json.dumps(dashboard)


@every_dashboard
def test_variables_lead_from_the_data_source_to_the_worker(dashboard: dict[str, Any]) -> None:
    variables = dashboard["templating"]["list"]
    assert [variable["name"] for variable in variables][:3] == ["datasource", "job", "worker"]
    by_name = {variable["name"]: variable for variable in variables}
    assert by_name["datasource"]["query"] == "prometheus"
    assert 'job=~"$job"' in by_name["worker"]["definition"]
    for variable in variables:
        assert variable["label"]
        if variable["type"] != "query":
            continue
        assert variable["datasource"]["uid"] == "${datasource}"
        found = re.fullmatch(r"label_values\((?P<selector>.+), (?P<label>\w+)\)", variable["definition"])
        assert found is not None
        assert metric_names(with_variables(found["selector"])) <= EXPORTED


@every_dashboard
def test_every_variable_is_used_and_every_one_used_is_there(dashboard: dict[str, Any]) -> None:
    named = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for p in dashboard["panels"] for t in p.get("targets", ()))))
    assert used - {"__rate_interval", "__range"} == named - {"datasource"}


@every_dashboard
def test_dashboards_lead_to_each_other_and_keep_what_was_chosen(dashboard: dict[str, Any]) -> None:
    assert dashboard["tags"] == ["cutlayer"]
    (link,) = dashboard["links"]
    assert link["tags"] == ["cutlayer"]
    assert link["keepTime"]
    assert link["includeVars"]
    assert (dashboard["refresh"], dashboard["time"]["from"], dashboard["graphTooltip"]) == ("5s", "now-15m", 1)


@every_dashboard
def test_marks_read_what_is_exported(dashboard: dict[str, Any]) -> None:
    marks = dashboard["annotations"]["list"]
    assert {mark["name"] for mark in marks} == {"Worker started again", "Alerts", "Phases", "Epochs"}
    for mark in marks:
        assert metric_names(with_variables(mark["expr"])) <= EXPORTED | set(STANDARD_METRICS)


@every_dashboard
def test_panels_have_identifiers_of_their_own(dashboard: dict[str, Any]) -> None:
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(identifiers) == len(set(identifiers))


@every_panel
def test_a_panel_says_what_it_shows_and_of_which_metrics(panel: dict[str, Any]) -> None:
    assert panel["title"]
    text, _, names = panel["description"].rpartition(" Metric: ")
    assert text.endswith(".")
    read = {name for target in panel["targets"] for name in metric_names(expression_of(target))}
    stems = {re.sub(r"_(bucket|sum|count|info)$", "", name) for name in read}
    assert set(re.findall(r"`(\w+)`", names)) == stems
    assert panel["datasource"]["uid"] == "${datasource}"


@every_panel
def test_every_unit_is_one_of_grafanas(panel: dict[str, Any]) -> None:
    overrides = panel["fieldConfig"]["overrides"]
    units = [panel["fieldConfig"]["defaults"]["unit"]]
    units += [prop["value"] for override in overrides for prop in override["properties"] if prop["id"] == "unit"]
    for unit in units:
        assert unit in UNITS or OWN_UNIT.fullmatch(unit), unit


@every_panel
def test_thresholds_begin_without_an_end_and_rise(panel: dict[str, Any]) -> None:
    first, *others = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert first is None
    assert others == sorted(others)


@every_panel
def test_overrides_meet_a_line_of_their_panel(panel: dict[str, Any]) -> None:
    legends = {target["legendFormat"] for target in panel["targets"]}
    if "{{stage}}" in legends:
        legends |= set(Stage)
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in legends


@every_panel
def test_queries_of_a_panel_have_names(panel: dict[str, Any]) -> None:
    names = [target["refId"] for target in panel["targets"]]
    assert all(names)
    assert len(names) == len(set(names)) > 0


@every_target
def test_a_query_is_promql_of_exported_metrics(panel: dict[str, Any], target: dict[str, Any]) -> None:
    assert target["datasource"] == panel["datasource"]
    names = metric_names(expression_of(target))
    assert names
    assert names <= EXPORTED | set(STANDARD_METRICS)


@every_target
def test_every_selector_goes_by_job_and_worker(panel: dict[str, Any], target: dict[str, Any]) -> None:
    del panel
    agent_names = {entry.name for entry in AGENT_METRICS}
    for selector in selectors(with_variables(target["expr"], job="J", worker="W")):
        if selector.name in NO_INSTANCE:
            continue
        matchers = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
        assert matchers["instance"] == "W"
        # Another job scrapes what is told agent by agent; both jobs have the same instances.
        assert (matchers.get("job") == "J") != (selector.name in agent_names)


@every_target
def test_rates_look_back_as_far_as_grafana_says(panel: dict[str, Any], target: dict[str, Any]) -> None:
    del panel
    for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
        assert window in ("$__rate_interval", "$__range")
    if metric_names(expression_of(target)) & {entry.name for entry in AGENT_METRICS}:
        assert target["interval"] == AGENT_SCRAPE_INTERVAL


@every_target
def test_counters_are_shown_as_rates(panel: dict[str, Any], target: dict[str, Any]) -> None:
    del panel
    bare = re.sub(r"(rate|increase)\([^)]*\)", "", expression_of(target))
    for name in re.findall(r"(\w+_total)\b", bare):
        assert name in TOTALS, name


@every_target
def test_the_largest_few_are_chosen_once_where_they_are_bars(panel: dict[str, Any], target: dict[str, Any]) -> None:
    """Over a range each moment's largest few would all be there at once."""
    assert target["instant"] != target["range"]
    if panel["type"] in ("bargauge", "table"):
        assert target["instant"] == (panel["type"] == "table" or target["expr"].startswith("topk"))


@every_target
def test_histograms_are_added_up_by_their_buckets(panel: dict[str, Any], target: dict[str, Any]) -> None:
    del panel
    if "histogram_quantile" in target["expr"]:
        assert re.search(r"sum by \(le[,)]", target["expr"])


def test_the_targets_of_the_round_trip_are_bounds_of_its_buckets() -> None:
    bounds = {
        repr(bound) for entry in METRICS if entry.name == "cutlayer_round_trip_seconds" for bound in entry.buckets
    }
    (slo,) = [v for d in DASHBOARDS for v in d["templating"]["list"] if v["name"] == "slo"]
    values = {option["value"] for option in slo["options"]}
    assert values <= bounds
    assert slo["current"]["value"] in values
    assert slo["query"] == ", ".join(f"{option['text']} : {option['value']}" for option in slo["options"])
