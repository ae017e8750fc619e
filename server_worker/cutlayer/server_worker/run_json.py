"""The document that a run leaves behind, `run.json`: the agents' counters, the worker's own, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cutlayer.broker.process_usage import cpu_seconds, peak_rss_bytes
from cutlayer.broker.selection import Selection
from cutlayer.broker.task_metrics import metrics_of
from cutlayer.dashboards.metric_labels import AGENT_STAGES, OTHER, Side, Stage
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.run_book import RunBook, stage_times
from cutlayer.server_worker.versions import versions

__all__ = ["RUN_FORMAT", "run_json", "selection_json"]

RUN_FORMAT = 1


def run_json(
    book: RunBook,
    *,
    worker: str,
    windows: int,
    committed_samples: int,
    duration_s: float,
    training_s: float,
    reason: str,
    store: MetricStore | None = None,
) -> dict[str, Any]:
    """Return the content of `run.json`.

    Args:
        book: What the agents have counted.
        worker: The worker's name.
        windows: Windows committed.
        committed_samples: Training samples committed, each epoch's again.
        duration_s: Seconds from the start of training to the end of the run.
        training_s: Seconds of that until the last commit.
        reason: Why the run ended.
        store: The worker's metrics: the stages that it has timed, and the messages that it has not taken.
    """
    latest = book.latest()
    round_trips = book.round_trips()
    moved = book.bytes_moved()
    wire_bytes = moved["up"]["wire"] + moved["down"]["wire"]
    manifest = book.manifest
    processes: list[dict[str, Any]] = [
        {"role": "worker", "id": worker, "peak_rss_bytes": peak_rss_bytes(), "cpu_s": cpu_seconds()}
    ]
    processes += [
        {"role": "agent", "id": agent, "peak_rss_bytes": entry.peak_rss_bytes, "cpu_s": entry.cpu_s}
        for agent, entry in latest
    ]
    return {
        "format": RUN_FORMAT,
        "run_id": manifest.run_id,
        "reason": reason,
        "measures": [asdict(metric) for metric in metrics_of(manifest.task)],
        "metrics": book.metrics(),
        "accuracy": book.accuracy(),
        "history": book.history(),
        "bytes": moved,
        "bytes_per_sample": wire_bytes / committed_samples if committed_samples else None,
        "traffic": book.traffic(),
        "federated_averaging": book.federated_averaging(),
        "samples": committed_samples,
        "steps": sum({agent: entry.steps for agent, entry in latest}.values()),
        "windows": windows,
        "duration_s": duration_s,
        "training_s": training_s,
        "round_trip_s": {"p50": round_trips.quantile(0.5), "p95": round_trips.quantile(0.95)},
        "resends": sum(entry.resends for _, entry in latest),
        "duplicates": sum(entry.duplicates for _, entry in latest),
        "reconnects": sum(entry.reconnects for _, entry in latest),
        "rejects": {"agent": book.rejects(), "worker": _rejects_of(store)},
        "stages": _in_order_of_a_step({**book.stages(), **_stages_of(store)}),
        "processes": processes,
        "seed": manifest.seed,
        "manifest": manifest.model_dump(mode="json"),
        "versions": versions(),
    }


def selection_json(selection: Selection | None, book: RunBook) -> dict[str, Any]:
    """Return what `run.json` says of the weights that were judged; nothing where none were.

    Args:
        selection: What was judged and chosen.
        book: Has the other metrics.
    """
    if selection is None:
        return {}
    metrics = book.candidate_metrics()
    document = {key: value for key, value in selection.as_json().items() if key != "state"}
    rows = [{**row, "metrics": metrics.get(row["name"], {})} for row in document["candidates"]]
    return {"selection": {**document, "candidates": rows}}


def _stages_of(store: MetricStore | None) -> dict[str, dict[str, float]]:
    """Return the stages that a worker times itself; agents' own are in its metrics, too, in coarser buckets."""
    found = store.distributions() if store is not None else {}
    return {
        labels[0]: stage_times(times.count, times.total, times.quantile(0.5), times.quantile(0.95))
        for (name, labels), times in found.items()
        if name == "cutlayer_stage_seconds" and times.count and labels[0] not in AGENT_STAGES
    }


def _rejects_of(store: MetricStore | None) -> dict[str, int]:
    """Return the messages that a worker has not taken, by label."""
    found = store.numbers() if store is not None else {}
    return {
        labels[1]: int(count)
        for (name, labels), count in sorted(found.items())
        if name == "cutlayer_rejects_total" and labels[0] == Side.WORKER and count
    }


def _in_order_of_a_step(stages: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    names = [*(stage.value for stage in Stage), OTHER]
    return {name: stages[name] for name in names if name in stages}
