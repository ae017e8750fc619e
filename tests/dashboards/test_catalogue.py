"""The table of metrics: Prometheus' naming, bounded labels, and series that exist from the start."""

from __future__ import annotations

import re

import pytest

from cutlayer.broker.messages import MESSAGE_TYPES
from cutlayer.broker.telemetry import MQTT_KIND
from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS, metric
from cutlayer.dashboards.metric_declaration import Kind, Metric
from cutlayer.dashboards.metric_labels import NO_CODEC, OTHER_KINDS, TENSOR_KINDS, Stage

ALL = (*METRICS, *AGENT_METRICS)
UNITS = ("bytes", "seconds", "ratio")
each = pytest.mark.parametrize("entry", ALL, ids=[entry.name for entry in ALL])


@each
def test_names_follow_prometheus(entry: Metric) -> None:
    assert re.fullmatch(r"cutlayer(_[a-z]+)+", entry.name)
    assert entry.name.endswith("_total") == (entry.kind is Kind.COUNTER)
    assert not re.search(r"_(count|sum|bucket|info)$", entry.name)
    for unit in UNITS:
        if f"_{unit}" in entry.name:
            assert re.search(rf"_{unit}(_total)?$", entry.name), "the unit stands last"


@each
def test_help_is_a_sentence_and_labels_have_names(entry: Metric) -> None:
    assert not entry.help[0].islower()
    assert entry.help.endswith(".")
    assert all(re.fullmatch(r"[a-z_]+", label) and label != "le" for label in entry.labels)
    assert bool(entry.buckets) == (entry.kind is Kind.HISTOGRAM)
    assert list(entry.buckets) == sorted(set(entry.buckets))


@each
def test_series_that_exist_from_the_start_have_every_label(entry: Metric) -> None:
    series = list(entry.initial())
    assert len(series) == len(set(series))
    assert all(len(labels) == len(entry.labels) for labels in series)
    if None not in entry.labels.values():
        assert bool(series) != entry.is_counted_elsewhere, "where all labels are known there are series from the start"


def test_an_agents_topic_is_a_label_of_the_metrics_for_few_agents_only() -> None:
    assert not [entry.name for entry in METRICS if "agent" in entry.labels]
    assert all("agent" in entry.labels for entry in AGENT_METRICS)


def test_every_message_that_an_agent_sends_or_receives_has_a_kind() -> None:
    names = {kind.__name__ for kind in MESSAGE_TYPES.values()}
    others = {"WindowState", "WorkerReport", "Probe", "ProbeAnswer"}  # never on an agent's connection
    assert set(TENSOR_KINDS) | set(OTHER_KINDS) == names - others | {MQTT_KIND}
    wire = {labels[:2] for labels in metric("cutlayer_wire_bytes_total").initial()}
    assert wire == {(direction, kind) for kind, directions in OTHER_KINDS.items() for direction in directions}
    assert {labels[2] for labels in metric("cutlayer_wire_bytes_total").initial()} == {NO_CODEC}


def test_every_stage_of_a_step_has_its_series() -> None:
    assert list(metric("cutlayer_stage_seconds").initial()) == [(stage.value,) for stage in Stage]


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        metric("cutlayer_made_up")
