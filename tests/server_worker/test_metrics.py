from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from cutlayer.broker import worker_roster, worker_session, worker_steps
from cutlayer.broker.errors import WireError
from cutlayer.broker.messages import Direction, MetricSums, RunPhase, Telemetry, Traffic
from cutlayer.server_worker.events import (
    AgentCountChanged,
    BudgetComputed,
    CheckpointSaved,
    ConnectionChanged,
    DuplicateReceived,
    Event,
    MessageRefused,
    PhaseChanged,
    StageTimed,
    TelemetryTaken,
    WindowCommitted,
)
from cutlayer.server_worker.metrics import REFUSALS, STAGES, WorkerMetrics
from support.synthetic_run import synthetic_telemetry

EVENTS: list[Event] = [
    ConnectionChanged(is_connected=True),
    AgentCountChanged(3),
    BudgetComputed(784_000, 196_000),
    PhaseChanged(RunPhase.TRAINING),
    *(MessageRefused(reason) for reason in REFUSALS),
    DuplicateReceived("Outputs"),
    *(StageTimed(stage, 0.01, 8) for stage in STAGES),
    WindowCommitted(4, 128, 4, version=4, gradient_norm=0.5, learning_rate=1e-3, live_samples=32),
    TelemetryTaken("clinic/07", synthetic_telemetry(2), None),
    CheckpointSaved(4, 0.2),
]


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics("w0", "vit_tiny")


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


def test_every_series_exists_at_the_start_and_none_is_added_later(metrics: WorkerMetrics) -> None:
    before = series(metrics)
    for event in EVENTS:
        metrics(event)
    assert series(metrics) == before


def test_names_and_units_are_as_prometheus_wants_them(metrics: WorkerMetrics) -> None:
    for family in metrics.registry.collect():
        assert re.fullmatch(r"cutlayer(_[a-z]+)+", family.name), family.name
        assert family.documentation.endswith(".")
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent|count|sum|bucket)$", family.name), family.name
        totals = {sample.name for sample in family.samples if sample.name.endswith("_total")}
        assert bool(totals) == (family.type == "counter"), family.name


def test_no_label_grows_with_agents_steps_or_leases(metrics: WorkerMetrics) -> None:
    for event in EVENTS:
        metrics(event)
    labels = {label for _, labels in series(metrics) for label, _ in labels}
    assert labels == {"direction", "le", "model", "phase", "reason", "result", "stage", "version", "worker"}
    assert b"clinic" not in generate_latest(metrics.registry)


def test_each_refusal_of_the_session_and_the_wire_has_a_series() -> None:
    sessions = (worker_session, worker_roster, worker_steps)
    source = "".join(inspect.getsource(module) for module in sessions)
    labels = set(re.findall(r'Refused\(\s*"(\w+)"', source)) | {error.label for error in WireError.__subclasses__()}
    assert len(labels) > 6
    assert labels <= set(REFUSALS)


def test_refusal_with_an_unknown_label_is_counted_as_unexpected(metrics: WorkerMetrics) -> None:
    metrics(MessageRefused("whatever a peer has said"))
    assert value(metrics, "cutlayer_messages_refused_total", reason="unexpected") == 1


def test_one_phase_at_a_time(metrics: WorkerMetrics) -> None:
    def phases() -> list[str]:
        return [phase for phase in RunPhase if value(metrics, "cutlayer_run_phase", phase=phase)]

    assert phases() == ["waiting"]
    metrics(PhaseChanged(RunPhase.EVALUATING))
    assert phases() == ["evaluating"]


def test_committed_windows_are_counted_with_their_content(metrics: WorkerMetrics) -> None:
    window = WindowCommitted(7, 96, 3, version=7, gradient_norm=0.5, learning_rate=1e-3, live_samples=32)
    metrics(window)
    metrics(replace(window, window=8, version=8))
    assert value(metrics, "cutlayer_windows_total") == 2
    assert value(metrics, "cutlayer_steps_total") == 6
    assert value(metrics, "cutlayer_samples_total") == 192
    assert value(metrics, "cutlayer_weights_version") == 8


def wire(metrics: WorkerMetrics, direction: Direction) -> float:
    return value(metrics, "cutlayer_wire_bytes_total", direction=direction.value)


def telemetry(sent: int, *, incarnation: int = 1, resends: int = 0, recent: MetricSums | None = None) -> Telemetry:
    traffic = (Traffic(Direction.UP, "Activations", "fp16", 1, 4 * sent, 2 * sent, 3 * sent),)
    return replace(
        synthetic_telemetry(1, incarnation=incarnation),
        wire_sent_bytes=3 * sent,
        wire_received_bytes=sent,
        traffic=traffic,
        resends=resends,
        recent=recent or MetricSums(0.0, 0, 0),
    )


def test_telemetry_adds_what_is_new_since_the_report_before(metrics: WorkerMetrics) -> None:
    first, second = telemetry(100, resends=1), telemetry(150, resends=4)
    metrics(TelemetryTaken("clinic/07", first, None))
    metrics(TelemetryTaken("clinic/07", second, first))
    assert (wire(metrics, Direction.UP), wire(metrics, Direction.DOWN)) == (450, 150)
    assert value(metrics, "cutlayer_raw_bytes_total", direction="up") == 600
    assert value(metrics, "cutlayer_payload_bytes_total", direction="up") == 300
    assert value(metrics, "cutlayer_resends_total") == 4


def test_process_that_was_started_anew_counts_from_zero(metrics: WorkerMetrics) -> None:
    metrics(TelemetryTaken("clinic/07", telemetry(100), None))
    metrics(TelemetryTaken("clinic/07", telemetry(10, incarnation=2), None))
    assert wire(metrics, Direction.UP) == 330


def test_counters_never_fall(metrics: WorkerMetrics) -> None:
    before = telemetry(100, resends=5)
    metrics(TelemetryTaken("clinic/07", before, None))
    metrics(TelemetryTaken("clinic/07", telemetry(50), before))
    assert wire(metrics, Direction.UP) == 300


def test_loss_is_the_mean_over_the_last_reports_of_all_agents(metrics: WorkerMetrics) -> None:
    metrics(TelemetryTaken("clinic/07", telemetry(1, recent=MetricSums(64.0, 32, 64)), None))
    metrics(TelemetryTaken("clinic/08", telemetry(1, recent=MetricSums(96.0, 16, 32)), None))
    metrics(TelemetryTaken("clinic/08", telemetry(2), None))  # nothing to report since
    assert value(metrics, "cutlayer_training_loss") == pytest.approx(160 / 96)
    assert value(metrics, "cutlayer_training_accuracy_ratio") == pytest.approx(0.5)
