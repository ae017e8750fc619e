"""What a run has reached: the metrics of its task, pooled over the samples of all agents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cutlayer.broker.messages import Evaluation, MetricSums, Telemetry
from cutlayer.broker.task_metrics import ACCURACY, is_plausible, mean_loss, metric_values, pooled
from cutlayer.broker.tasks import TaskSpec

__all__ = [
    "JOINT",
    "Evaluated",
    "candidate_metrics",
    "final_metrics",
    "history",
    "only_accuracy",
    "tells_what_can_be",
]

JOINT = "joint"
"""Given all modalities."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation of one agent.

    Attributes:
        agent: Its topic.
        given: The modality given, or `joint` for all.
        evaluation: What it said.
        wire_bytes: Bytes that all its processes had moved until then.
    """

    agent: str
    given: str
    evaluation: Evaluation
    wire_bytes: int


def final_metrics(task: TaskSpec, evaluations: Iterable[Evaluated]) -> dict[str, dict[str, float]]:
    """Return the metrics of the finished model by name, given all modalities and given each alone.

    Args:
        task: What is learned.
        evaluations: Of every agent, in order: one that came back evaluates the same samples again, and the last
            time counts.
    """
    by_given: dict[str, dict[str, MetricSums]] = defaultdict(dict)
    for each in evaluations:
        if each.evaluation.final:
            by_given[each.given][each.agent] = each.evaluation.sums
    values = {given: metric_values(task, pooled(by_given[given].values())) for given in sorted(by_given)}
    return {given: metrics for given, metrics in values.items() if metrics}


def history(task: TaskSpec, evaluations: Iterable[Evaluated]) -> list[dict[str, Any]]:
    """Return metrics and loss on test samples after each epoch that was evaluated, and the bytes moved until then.

    Args:
        task: What is learned.
        evaluations: Of every agent, in order.
    """
    epochs: dict[int, dict[str, Evaluated]] = defaultdict(dict)
    for each in evaluations:
        if each.given == JOINT and not each.evaluation.candidate:
            epochs[each.evaluation.epoch][each.agent] = each
    rows = []
    for epoch, by_agent in sorted(epochs.items()):
        sums = pooled(each.evaluation.sums for each in by_agent.values())
        metrics = metric_values(task, sums)
        if metrics:
            rows.append(
                {
                    "epoch": epoch,
                    **only_accuracy(metrics),
                    "metrics": metrics,
                    "loss": mean_loss(sums),
                    "samples": sums.num_samples,
                    "agents": len(by_agent),
                    "wire_bytes": sum(each.wire_bytes for each in by_agent.values()),
                }
            )
    return rows


def candidate_metrics(task: TaskSpec, evaluations: Iterable[Evaluated]) -> dict[str, dict[str, float]]:
    """Return the metrics of each candidate on validation samples, by its name and theirs.

    Args:
        task: What is learned.
        evaluations: Of every agent, in order: of what it has evaluated twice the last time counts.
    """
    found: dict[str, dict[str, MetricSums]] = defaultdict(dict)
    for each in evaluations:
        if each.evaluation.candidate:
            found[each.evaluation.candidate][each.agent] = each.evaluation.sums
    return {name: metric_values(task, pooled(by_agent.values())) for name, by_agent in found.items()}


def only_accuracy(metrics: dict[str, float]) -> dict[str, float]:
    """Return the accuracy among metrics: `run.json` has it apart, as it had before there were others."""
    return {name: value for name, value in metrics.items() if name == ACCURACY.name}


def tells_what_can_be(task: TaskSpec, telemetry: Telemetry) -> bool:
    """Return whether an agent's sums could be those of any samples."""
    sums = [telemetry.train, telemetry.recent, *(evaluation.sums for evaluation in telemetry.evaluations)]
    return all(is_plausible(task, entry) for entry in sums)
