"""The worker's events as metrics: every series from the start, bounded labels, and no agent's topic in them."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from cutlayer.broker import worker_reception, worker_roster, worker_steps
from cutlayer.broker.errors import WireError
from cutlayer.broker.manifest import CodecNames
from cutlayer.broker.messages import Direction, RunPhase, Traffic
from cutlayer.dashboards.catalogue import METRICS, metric
from cutlayer.dashboards.metric_declaration import Kind, Source
from cutlayer.dashboards.metric_labels import REFUSALS, Stage
from cutlayer.server_worker.broker_figures import FIGURES
from cutlayer.server_worker.events import (
    ActivationsAssembled,
    AgentCountChanged,
    BrokerReported,
    BudgetComputed,
    CheckpointSaved,
    ConnectionChanged,
    DuplicateReceived,
    Event,
    MessageRefused,
    PhaseChanged,
    RoundEnded,
    StageTimed,
    StateTakenOver,
    TelemetryTaken,
    TensorsMoved,
    WindowCommitted,
    WorkerSampled,
)
from cutlayer.server_worker.metrics import WorkerMetrics
from support.synthetic_run import synthetic_manifest, synthetic_telemetry
from support.synthetic_tasks import AGE, task_manifest, task_telemetry

WINDOW = WindowCommitted(
    7,
    96,
    3,
    version=7,
    gradient_norm=0.5,
    learning_rate=1e-3,
    live_samples=32,
    wanted_samples=128,
    staleness=(0, 2),
    waits_s=(0.03, 0.2),
)
SAMPLE = WorkerSampled(
    wire_sent_bytes=5_000,
    wire_received_bytes=90_000,
    traffic=(
        Traffic(Direction.UP, "Activations", "int8", 3, 4_000, 1_000, 1_100),
        Traffic(Direction.UP, "Activations", "fp16", 1, 400, 200, 220),
        Traffic(Direction.DOWN, "Welcome", "", 1, 0, 90, 120),
    ),
    open_samples=64,
    live_samples=48,
    credits_granted=8,
    credits_used=5,
    num_workers=2,
)
EVENTS: list[Event] = [
    ConnectionChanged(is_connected=True),
    AgentCountChanged(3),
    BudgetComputed(784_000, 196_000),
    PhaseChanged(RunPhase.TRAINING),
    *(MessageRefused(reason) for reason in REFUSALS),
    DuplicateReceived("Outputs"),
    *(StageTimed(stage, 0.01, 8) for stage in Stage),
    TensorsMoved(Direction.UP, "Activations", 67_000),
    WINDOW,
    SAMPLE,
    TelemetryTaken("clinic/07", synthetic_telemetry(2), None),
    CheckpointSaved(4, 0.2),
    RoundEnded(0.02, 2, failed=False),
    StateTakenOver(3),
    *(BrokerReported(name, 3.0) for name in FIGURES.values()),
]


@pytest.fixture
def metrics() -> WorkerMetrics:
    codecs = CodecNames(activations="int8+zstd:3")  # as the synthetic reports have it
    return WorkerMetrics("w0", synthetic_manifest(812_042).model_copy(update={"codecs": codecs}))


def value(metrics: WorkerMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, f"there is no {name}{labels}"
    return found


def series(metrics: WorkerMetrics) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def test_every_series_exists_at_the_start_but_those_of_which_0_would_be_a_claim(metrics: WorkerMetrics) -> None:
    before = series(metrics)
    for event in EVENTS:
        metrics(event)
    of_the_broker = {entry.name for entry in METRICS if entry.is_counted_elsewhere}
    new = {name for name, _ in series(metrics) - before}
    assert new <= {"cutlayer_accuracy_ratio", "cutlayer_loss"} | of_the_broker


def test_every_metric_of_the_catalogue_is_shown(metrics: WorkerMetrics) -> None:
    for event in EVENTS:
        metrics(event)
    of_regression = WorkerMetrics("w0", task_manifest(AGE))
    of_regression(TelemetryTaken("clinic/07", task_telemetry(AGE, 2), None))
    shown = {name for name, _ in series(metrics) | series(of_regression)}
    for entry in METRICS:
        suffix = {Kind.HISTOGRAM: "_count", Kind.INFO: "_info"}.get(entry.kind, "")
        assert entry.name + suffix in shown


def test_standard_metrics_of_a_process_are_shown(metrics: WorkerMetrics) -> None:
    shown = {name for name, _ in series(metrics)}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "python_gc_collections_total"} <= shown


def test_names_and_units_are_as_prometheus_wants_them(metrics: WorkerMetrics) -> None:
    for event in EVENTS:
        metrics(event)
    for family in metrics.registry.collect():
        if not family.name.startswith("cutlayer"):
            continue
        assert re.fullmatch(r"cutlayer(_[a-z]+)+", family.name), family.name
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent|count|sum|bucket)$", family.name), family.name
        totals = {sample.name for sample in family.samples if sample.name.endswith("_total")}
        assert bool(totals) == (family.type == "counter"), family.name


def test_no_label_grows_with_agents_steps_or_leases(metrics: WorkerMetrics) -> None:
    for event in EVENTS:
        metrics(event)
    allowed = {label for entry in METRICS for label in entry.labels} | {"le"}
    assert {label for name, labels in series(metrics) if name.startswith("cutlayer") for label, _ in labels} <= allowed
    assert b"clinic" not in generate_latest(metrics.registry)


def test_each_refusal_of_the_session_and_the_wire_has_a_series() -> None:
    parts = (worker_reception, worker_roster, worker_steps)
    source = "".join(inspect.getsource(module) for module in parts)
    labels = set(re.findall(r'Refused\(\s*"(\w+)"', source)) | {error.label for error in WireError.__subclasses__()}
    assert len(labels) > 6
    assert labels <= set(REFUSALS)


def test_refusal_with_an_unknown_label_is_counted_as_unexpected(metrics: WorkerMetrics) -> None:
    metrics(MessageRefused("whatever a peer has said"))
    assert value(metrics, "cutlayer_rejects_total", side="worker", reason="unexpected") == 1


def test_one_phase_at_a_time(metrics: WorkerMetrics) -> None:
    def phases() -> list[str]:
        return [phase for phase in RunPhase if value(metrics, "cutlayer_run_phase", phase=phase)]

    assert phases() == ["waiting"]
    metrics(PhaseChanged(RunPhase.EVALUATING))
    assert phases() == ["evaluating"]


def test_committed_windows_are_counted_with_their_content(metrics: WorkerMetrics) -> None:
    metrics(WINDOW)
    metrics(replace(WINDOW, window=8, version=8))
    assert value(metrics, "cutlayer_windows_total") == 2
    assert value(metrics, "cutlayer_steps_total") == 6
    assert value(metrics, "cutlayer_samples_total") == 192
    assert value(metrics, "cutlayer_weights_version") == 8
    assert value(metrics, "cutlayer_window_fill_ratio") == 0.75
    assert value(metrics, "cutlayer_staleness_versions_bucket", le="0.0") == 2
    assert value(metrics, "cutlayer_staleness_versions_sum") == 4
    assert value(metrics, "cutlayer_stage_seconds_sum", stage="wait") == pytest.approx(0.46)


def test_only_a_connection_that_was_there_before_is_made_again(metrics: WorkerMetrics) -> None:
    for is_connected in (True, False, False, True):
        metrics(ConnectionChanged(is_connected=is_connected))
    assert value(metrics, "cutlayer_reconnects_total", side="worker") == 1
    assert value(metrics, "cutlayer_broker_connected") == 1


def test_samples_are_counted_by_where_their_activations_came_from(metrics: WorkerMetrics) -> None:
    metrics(ActivationsAssembled(num_fresh=32, num_stored=0))
    metrics(ActivationsAssembled(num_fresh=2, num_stored=30))
    assert value(metrics, "cutlayer_activations_total", source="tensors") == 34
    assert value(metrics, "cutlayer_activations_total", source="store") == 30


def test_every_tensor_message_is_measured(metrics: WorkerMetrics) -> None:
    metrics(TensorsMoved(Direction.UP, "Activations", 67_000))
    metrics(TensorsMoved(Direction.UP, "OutputGradients", 400))
    metrics(TensorsMoved(Direction.DOWN, "Outputs", 300))
    assert value(metrics, "cutlayer_message_size_bytes_count", direction="up") == 2
    assert value(metrics, "cutlayer_message_size_bytes_sum", direction="down") == 300


def test_a_sample_sets_what_the_worker_itself_has_moved_and_holds(metrics: WorkerMetrics) -> None:
    metrics(SAMPLE)
    metrics(replace(SAMPLE, wire_received_bytes=95_000))
    assert value(metrics, "cutlayer_worker_wire_bytes_total", direction="up") == 95_000
    assert value(metrics, "cutlayer_worker_wire_bytes_total", direction="down") == 5_000
    assert value(metrics, "cutlayer_worker_payload_bytes_total", direction="up", kind="Activations") == 1_200
    assert value(metrics, "cutlayer_worker_payload_bytes_total", direction="down", kind="Welcome") == 90
    assert value(metrics, "cutlayer_credits", state="granted") == 8
    assert value(metrics, "cutlayer_credits", state="used") == 5
    assert value(metrics, "cutlayer_window_open_samples") == 64
    assert value(metrics, "cutlayer_live_samples") == 48
    assert value(metrics, "cutlayer_workers") == 2


def test_a_report_of_an_agent_reaches_counters_gauges_and_the_table(metrics: WorkerMetrics) -> None:
    telemetry = synthetic_telemetry(2)
    metrics(TelemetryTaken("clinic/07", telemetry, None))
    assert value(metrics, "cutlayer_messages_total", direction="up", kind="Hello", codec="none") == 1
    assert value(metrics, "cutlayer_run_bytes", direction="up", measure="wire") == telemetry.wire_sent_bytes
    assert metrics.agents.numbers()["cutlayer_agent_steps_total", ("clinic/07",)] == telemetry.steps


def test_what_the_broker_tells_is_shown_as_it_says_it(metrics: WorkerMetrics) -> None:
    assert value(metrics, "cutlayer_broker_reports") == 0
    metrics(BrokerReported("cutlayer_broker_received_bytes_total", 1e6))
    metrics(BrokerReported("cutlayer_broker_received_bytes_total", 20.0))  # it was started again
    assert value(metrics, "cutlayer_broker_received_bytes_total") == 20
    assert value(metrics, "cutlayer_broker_reports") == 1


def test_every_broker_metric_has_a_topic() -> None:
    of_the_broker = {entry.name for entry in METRICS if entry.source is Source.BROKER}
    assert set(FIGURES.values()) == of_the_broker - {"cutlayer_broker_reports"}
    assert all(metric(name).source is Source.BROKER for name in FIGURES.values())
