"""An agent's reports as metrics: growth only, bounded names, and bytes that add up to the connection's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutlayer.broker.messages import Direction, StageTime, Telemetry, Traffic
from cutlayer.broker.telemetry import LogHistogram, control_traffic
from cutlayer.broker.transport import WireCount
from cutlayer.dashboards.catalogue import LATENCY_BUCKETS_S
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.dashboards.telemetry_counts import add_growth, initialise_traffic
from support.message_values import TELEMETRY

CODECS = ("int8+zstd", "fp16")
WIRE = "cutlayer_wire_bytes_total"


def telemetry(*rows: Traffic, **changes: object) -> Telemetry:
    return replace(TELEMETRY, traffic=rows, **changes)  # type: ignore[arg-type]


def row(kind: str, codec: str, num_bytes: int, direction: Direction = Direction.UP) -> Traffic:
    return Traffic(direction, kind, codec, 1, 4 * num_bytes, num_bytes, num_bytes + 50)


def counted(*reports: Telemetry) -> MetricStore:
    store = MetricStore()
    for before, now in zip((None, *reports), reports, strict=False):
        add_growth(store, now, before, CODECS)
    return store


def test_only_what_has_grown_since_the_last_report_is_added() -> None:
    first = telemetry(row("Activations", "int8+zstd", 1_000), resends=2)
    second = telemetry(row("Activations", "int8+zstd", 1_500), row("Outputs", "fp16", 10, Direction.DOWN), resends=5)
    store = counted(first, second)
    assert store.value(WIRE, "up", "Activations", "int8+zstd") == 1_550
    assert store.value(WIRE, "down", "Outputs", "fp16") == 60
    assert store.value("cutlayer_raw_bytes_total", "up", "Activations", "int8+zstd") == 6_000
    assert store.value("cutlayer_resends_total") == 5


def test_codec_changes_and_waiting_for_the_uplink_grow_with_the_reports() -> None:
    store = counted(telemetry(codec_changes=2, paced_s=1.5), telemetry(codec_changes=5, paced_s=4.0))
    assert store.value("cutlayer_codec_changes_total") == 5
    assert store.value("cutlayer_paced_seconds_total") == 4.0


def test_report_that_has_shrunk_adds_nothing() -> None:
    store = counted(telemetry(row("Outputs", "fp16", 100)), telemetry(row("Outputs", "fp16", 60)))
    assert store.value(WIRE, "up", "Outputs", "fp16") == 150


def test_names_that_nobody_knows_share_one_series() -> None:
    store = counted(telemetry(*(row(f"Kind{index}", f"codec{index}", 10) for index in range(200))))
    assert store.value(WIRE, "up", "other", "other") == 200 * 60
    assert len([key for key in store.numbers() if key[0] == WIRE and "other" in key[1]]) == 1


def test_reasons_that_nobody_knows_count_as_unexpected() -> None:
    store = counted(telemetry(rejects_by=(("lease", 2), ("made up", 3))))
    assert store.value("cutlayer_rejects_total", "agent", "lease") == 2
    assert store.value("cutlayer_rejects_total", "agent", "unexpected") == 3


def test_latencies_go_into_the_bucket_of_their_middle() -> None:
    histogram = LogHistogram()
    for seconds in (0.0004, 0.03, 0.03, 7.0, 500.0):
        histogram.add(seconds)
    stage = StageTime("tokenize", 5, 507.0604, histogram.counts())
    store = counted(telemetry(round_trips=histogram.counts(), stages=(stage, StageTime("made up", 1, 1.0))))
    for key in (("cutlayer_round_trip_seconds", ()), ("cutlayer_stage_seconds", ("tokenize",))):
        distribution = store.distributions()[key]
        at = dict(zip((*LATENCY_BUCKETS_S, float("inf")), distribution.counts, strict=True))
        assert {bound: count for bound, count in at.items() if count} == {0.0005: 1, 0.05: 2, 10.0: 1, float("inf"): 1}
        assert distribution.total == pytest.approx(507.06, rel=0.03)
    assert ("cutlayer_stage_seconds", ("made up",)) not in store.distributions()


def test_bytes_of_a_direction_add_up_to_all_that_crossed_the_connection() -> None:
    wire = WireCount(sent_bytes=1_300, received_bytes=90, sent_publish_bytes=1_050, received_publish_bytes=60)
    rows = (row("Activations", "int8+zstd", 1_000), row("Outputs", "fp16", 10, Direction.DOWN), *control_traffic(wire))
    store = counted(telemetry(*rows))
    by_direction = {"up": 0.0, "down": 0.0}
    for (name, labels), value in store.numbers().items():
        if name == WIRE:
            by_direction[labels[0]] += value
    assert by_direction == {"up": 1_300, "down": 90}
    assert store.value(WIRE, "up", "mqtt", "none") == 250


def test_series_of_a_run_exist_before_anything_is_counted() -> None:
    store = MetricStore()
    initialise_traffic(store, {"Activations": "int8+zstd", "Outputs": "fp16"})
    assert store.numbers()[WIRE, ("up", "Activations", "int8+zstd")] == 0.0
    assert store.numbers()[WIRE, ("down", "Outputs", "fp16")] == 0.0
