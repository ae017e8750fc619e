"""The HTML report of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from cutlayer.dashboards.federated_comparison import federated_averaging_text
from cutlayer.dashboards.html_parts import flattened, folded, page, pair, section, table
from cutlayer.dashboards.plots import bytes_by_kind, metric_by_bytes, metric_by_epoch, metric_by_modality
from cutlayer.dashboards.run_record import JOINT, RunRecord, parse_run
from cutlayer.dashboards.run_record_parts import Selection
from cutlayer.dashboards.units import (
    bytes_text,
    count_text,
    duration_text,
    latency_text,
    metric_text,
    ratio_text,
)

__all__ = ["render_report"]


def render_report(run: Mapping[str, object]) -> str:
    """Return the report of a run as a self-contained HTML document; the same run gives the same bytes.

    Args:
        run: The content of its `run.json`.

    Raises:
        SettingsError: When a key is missing or has no usable value.
    """
    record = parse_run(run)
    return page(record.run_id, _parts(record))


def _parts(run: RunRecord) -> Iterable[str]:
    yield (
        f"<header><h1>{escape(run.run_id)}</h1><p>Parallel split learning: {_num_agents(run)}, "
        f"{count_text(run.windows)} windows, {count_text(run.samples)} training samples in "
        f"{duration_text(run.duration_s)}. It ended because: {escape(run.reason) or 'not said'}.</p></header>"
    )
    yield _headline(run)
    title = run.metric.title[:1].upper() + run.metric.title[1:]
    if run.curve:
        yield pair(
            section(f"{title} against epoch", metric_by_epoch(run)),
            section(f"{title} against bytes", metric_by_bytes(run)),
        )
    modalities = ""
    if run.scores:
        modalities = section(
            f"{title} by modality given",
            metric_by_modality(run),
            "One model, evaluated at the end on the agents' own test samples; labels never left them.",
        )
    kinds = section("Bytes by kind of message", bytes_by_kind(run)) if run.traffic else ""
    yield pair(modalities, kinds)
    if len(run.measures) > 1 and run.metrics:
        yield _measures_section(run)
    if run.selection is not None:
        yield _selection_section(run.selection)
    yield pair(_bytes_section(run), _round_trip_section(run))
    yield section("Federated averaging, for comparison", "", federated_averaging_text(run))
    if run.stages:
        yield _stages_section(run)
    yield _traffic_section(run)
    yield _processes_section(run)
    yield folded("Settings of the run", ("setting", "value"), flattened(run.manifest))
    if run.demo:
        yield folded("How the demo was called", ("setting", "value"), flattened(run.demo))
    yield folded("Versions", ("package", "version"), sorted(run.versions.items()))


def _headline(run: RunRecord) -> str:
    total = run.bytes.total
    numbers = [
        (metric_text(run.metric, run.scores.get(JOINT)), f"test {run.metric.title}, all modalities"),
        (bytes_text(total.wire), "on the wire, both directions"),
        (ratio_text(total.raw, total.wire), "raw bytes over wire bytes"),
        (bytes_text(run.bytes_per_sample), "per training sample"),
        (latency_text(run.round_trip_s.p50), "round trip, median"),
        (duration_text(run.duration_s), "duration"),
    ]
    cards = (f"<section><b>{escape(value)}</b><span>{escape(name)}</span></section>" for value, name in numbers)
    return f'<div class="numbers">{"".join(cards)}</div>'


def _measures_section(run: RunRecord) -> str:
    """Return all metrics of the task, those of single targets included."""
    given = sorted(run.metrics, key=lambda name: (name != JOINT, name))
    heads = ["all modalities" if name == JOINT else f"{name} alone" for name in given]
    rows = [
        (metric.title, metric.better, *(metric_text(metric, run.values(metric).get(name)) for name in given))
        for metric in run.measures
    ]
    note = "Over the test samples of all agents together."
    return section("Metrics of the trained model", table(("metric", "better", *heads), rows, num_names=2), note)


def _selection_section(selection: Selection) -> str:
    """Return which weights the run has ended with, and all that were judged."""
    rows = [
        (
            f"{row.epoch}{' (kept)' if row.epoch == selection.kept_epoch else ''}",
            "-" if row.value is None else f"{row.value:.4g}",
            "-" if row.loss is None else f"{row.loss:.4g}",
            count_text(row.num_samples),
        )
        for row in selection.candidates
    ]
    note = "Over the validation samples of all agents together; the test samples were evaluated once, at the end."
    if selection.kept_epoch is None:
        note += " The last weights are kept."
    return section("Which weights", table(("epoch", selection.metric, "loss", "samples"), rows), note)


def _bytes_section(run: RunRecord) -> str:
    directions = (("up", run.bytes.up), ("down", run.bytes.down), ("both", run.bytes.total))
    rows = [
        (
            name,
            bytes_text(moved.raw),
            bytes_text(moved.payload),
            bytes_text(moved.wire),
            ratio_text(moved.raw, moved.wire),
        )
        for name, moved in directions
    ]
    note = (
        "Raw: the tensors as float32. Payload: MQTT payloads. Wire: all that crossed the agents' connections, "
        "control packets included."
    )
    return section("Bytes moved", table(("direction", "raw", "payload", "wire", "ratio"), rows), note)


def _round_trip_section(run: RunRecord) -> str:
    rows = [
        ("round trip, median", latency_text(run.round_trip_s.p50)),
        ("round trip, 95th percentile", latency_text(run.round_trip_s.p95)),
        ("steps", count_text(run.steps)),
        ("messages sent again", count_text(run.resends)),
        ("messages received twice", count_text(run.duplicates)),
        ("time until the last commit", duration_text(run.training_s)),
    ]
    note = "Round trip: an agent's activations sent to its outputs received, waiting and arithmetic included."
    return section("Round trips", table(("", "value"), rows), note)


def _traffic_section(run: RunRecord) -> str:
    rows = [
        (
            row.kind,
            row.direction,
            row.codec or "-",
            count_text(row.messages),
            bytes_text(row.raw_bytes),
            bytes_text(row.payload_bytes),
            bytes_text(row.wire_bytes),
        )
        for row in sorted(run.traffic, key=lambda row: -row.wire_bytes)
    ]
    return section(
        "Messages", table(("kind", "direction", "codec", "messages", "raw", "payload", "wire"), rows, num_names=3)
    )


def _stages_section(run: RunRecord) -> str:
    rows = [
        (
            name,
            count_text(stage.count),
            latency_text(stage.mean_s),
            latency_text(stage.p50_s),
            latency_text(stage.p95_s),
        )
        for name, stage in run.stages.items()
    ]
    note = (
        "Tokenize, encode, network and loss are timed at the agents, a microbatch at a time; the others at the worker, "
        "where decode, forward, publish and backward are of a group of microbatches."
    )
    return section("Stages of a step", table(("stage", "times", "mean", "median", "95th percentile"), rows), note)


def _processes_section(run: RunRecord) -> str:
    rows = [
        (process.role, process.id, bytes_text(process.peak_rss_bytes), duration_text(process.cpu_s))
        for process in run.processes
    ]
    return section("Processes", table(("role", "id", "peak memory", "processor time"), rows, num_names=2))


def _num_agents(run: RunRecord) -> str:
    return f"{run.num_agents} agent{'' if run.num_agents == 1 else 's'}"
