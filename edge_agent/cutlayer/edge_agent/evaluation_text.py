"""What an evaluation has found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json

from rich.table import Table

from cutlayer.broker.task_metrics import Metric, mean_loss, metrics_of
from cutlayer.broker.transport import WireCount
from cutlayer.edge_agent.visit_evaluation import EvaluationVisit

__all__ = ["evaluation_as_json", "evaluation_table"]


def evaluation_table(visit: EvaluationVisit, wire: WireCount) -> Table:
    """Return a table: a row for all modalities and for each alone, a column a metric."""
    results = visit.results()
    shown = [metric for metric in metrics_of(visit.task) if any(metric.name in each.metrics for each in results)]
    table = Table(title=_title(visit), caption=f"{wire.sent_bytes:,} B sent, {wire.received_bytes:,} B received")
    table.add_column("given")
    for heading in ("samples", *(metric.with_unit for metric in shown), "loss"):
        table.add_column(heading, justify="right")
    for each in results:
        loss = mean_loss(each.sums)
        cells = [_cell(metric, each.metrics.get(metric.name)) for metric in shown]
        table.add_row(
            " + ".join(each.given), f"{each.sums.num_samples:,}", *cells, "-" if loss is None else f"{loss:.3f}"
        )
    return table


def evaluation_as_json(visit: EvaluationVisit, wire: WireCount, data: str, split: str) -> str:
    """Return the same as JSON, given all modalities under `joint` and each alone under its name."""
    results = visit.results()
    first, *alone = results
    content = {
        "run_id": visit.run_id,
        "weights_versions": list(visit.versions or ()),
        "data": data,
        "split": split,
        "task": visit.task.kind,
        "given": {"joint": first.as_json(), **{each.given[0]: each.as_json() for each in alone}},
        "bytes": {"up": wire.sent_bytes, "down": wire.received_bytes},
    }
    return json.dumps(content, indent=2) + "\n"


def _title(visit: EvaluationVisit) -> str:
    first, last = visit.versions or (0, 0)
    versions = f"version {first}" if first == last else f"versions {first} to {last}, since it is being trained"
    return f"{visit.run_id}, weights of {versions}"


def _cell(metric: Metric, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if metric.is_share else f"{value:.4g}"
