"""From the sums that agents report to the metrics of a task, whoever shows them.

Sums add up: those of several agents give the metrics of all their samples together, as if one had evaluated them. Which
sums a report has goes by the task:

    classification   none beside `num_correct`
    multi-label      true_positives (classes that are there and found), wrong (those found and not there, or there and
                     not found); num_correct counts samples without a wrong class
    regression       count, absolute and squared: values, and sums of their errors, in standard deviations;
                     of evaluations on all test samples also target_count, target and target_squared, which R2 needs.
                     With several targets each has its own: `absolute.0` is the first one's
    retrieval        forth.1, forth.5, forth.10, back.1 ...: samples whose partner is among the best so many of the
                     test samples that were evaluated with it; of evaluations given both modalities

Errors are summed in standard deviations and shown in the user's units.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from cutlayer.broker.reports import MetricSums
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, RetrievalSpec, TaskSpec

__all__ = [
    "ACCURACY",
    "NOTHING",
    "RECALL_AT",
    "Metric",
    "is_plausible",
    "mean_loss",
    "metric_values",
    "metrics_of",
    "pooled",
    "primary_metric",
    "target_suffixes",
]

NOTHING: Final = MetricSums(0.0, 0, 0)
"""Sums over no sample."""
MAX_LOSS: Final = 1e6
"""Mean loss of a sample; one beyond it is no measurement."""
STANDARD_DEVIATIONS: Final = "std"
"""Unit of errors over targets that each have another one."""


RECALL_AT: Final = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Metric:
    """How good a model is, as a number.

    Attributes:
        name: In `run.json` and in labels: `accuracy`, `micro_f1`, `mae` ...
        title: For people.
        better: Whether more of it is better, or less.
        unit: Of its values; empty where it has none.
        is_share: Whether it is a share of one, which people read in percent.
    """

    name: str
    title: str
    better: Literal["more", "less"]
    unit: str = ""
    is_share: bool = False

    @property
    def with_unit(self) -> str:
        """Title and unit, as beside an axis."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


ACCURACY: Final = Metric("accuracy", "accuracy", "more", is_share=True)
MICRO_F1: Final = Metric("micro_f1", "micro-F1", "more", is_share=True)
EXACT_MATCH: Final = Metric("exact_match", "exact match", "more", is_share=True)
R2: Final = Metric("r2", "R2", "more")


def metrics_of(task: TaskSpec) -> tuple[Metric, ...]:
    """Return the metrics of a task, the primary one first; those of single targets come last."""
    match task:
        case ClassificationSpec():
            return (ACCURACY,)
        case MultiLabelSpec():
            return (MICRO_F1, EXACT_MATCH)
        case RegressionSpec():
            unit = task.targets[0].unit if task.num_outputs == 1 else STANDARD_DEVIATIONS
            overall = (_mae("", unit), _rmse("", unit), R2)
            if task.num_outputs == 1:
                return overall
            single = [(_mae(each.name, each.unit), _rmse(each.name, each.unit)) for each in task.targets]
            return (*overall, *(metric for pair in single for metric in pair))
        case RetrievalSpec():
            return (*(_recall(best) for best in RECALL_AT), *_recalls_of(task).values())


def primary_metric(task: TaskSpec) -> Metric:
    """Return the metric that a task's models are compared by."""
    return metrics_of(task)[0]


def metric_values(task: TaskSpec, sums: MetricSums) -> dict[str, float]:
    """Return the metrics of some samples by name, those that their sums tell; none for no sample."""
    if not sums.num_samples:
        return {}
    match task:
        case ClassificationSpec():
            return {ACCURACY.name: sums.num_correct / sums.num_samples}
        case MultiLabelSpec():
            named = dict(sums.sums)
            # 2 TP / (2 TP + FP + FN): without a class that is there or found, nothing was to be found, and was not.
            found, wrong = 2 * named.get("true_positives", 0.0), named.get("wrong", 0.0)
            return {
                MICRO_F1.name: found / (found + wrong) if found + wrong else 1.0,
                EXACT_MATCH.name: sums.num_correct / sums.num_samples,
            }
        case RegressionSpec():
            return _regression(task, dict(sums.sums))
        case RetrievalSpec():
            return _retrieval(task, sums)


def mean_loss(sums: MetricSums) -> float | None:
    """Return the mean loss of a sample; None for no sample."""
    return sums.loss_sum / sums.num_samples if sums.num_samples else None


def pooled(entries: Iterable[MetricSums]) -> MetricSums:
    """Return the sums over the samples of all entries."""
    loss_sum, num_correct, num_samples = 0.0, 0, 0
    named: defaultdict[str, float] = defaultdict(float)
    for entry in entries:
        loss_sum += entry.loss_sum
        num_correct += entry.num_correct
        num_samples += entry.num_samples
        for name, value in entry.sums:
            named[name] += value
    return MetricSums(loss_sum, num_correct, num_samples, tuple(sorted(named.items())))


def is_plausible(task: TaskSpec, sums: MetricSums) -> bool:
    """Return whether sums could be those of any samples: a single one that could not would stay in the sums of all."""
    named = dict(sums.sums)
    if sums.num_correct > sums.num_samples or abs(sums.loss_sum) > MAX_LOSS * sums.num_samples:
        return False
    match task:
        case ClassificationSpec():
            return not named
        case MultiLabelSpec():
            is_known = named.keys() <= {"true_positives", "wrong"}
            return is_known and all(0 <= value <= sums.num_samples * task.num_outputs for value in named.values())
        case RegressionSpec():
            suffixes = target_suffixes(task)
            known = {f"{name}{suffix}" for name in (*_ERRORS, *_TARGETS) for suffix in suffixes}
            is_known = named.keys() <= known and (sums.num_samples > 0 or not named)
            return is_known and all(_is_plausible_target(named, suffix) for suffix in suffixes)
        case RetrievalSpec():
            is_known = named.keys() <= _recalls_of(task).keys()
            return is_known and all(0 <= value <= sums.num_samples for value in named.values())


def target_suffixes(task: RegressionSpec) -> tuple[str, ...]:
    """Return what the names of each target's sums end with."""
    return ("",) if task.num_outputs == 1 else tuple(f".{index}" for index in range(task.num_outputs))


_ERRORS: Final = ("count", "absolute", "squared")
_TARGETS: Final = ("target_count", "target", "target_squared")


def _is_plausible_target(named: dict[str, float], suffix: str) -> bool:
    count, absolute, squared = (named.get(f"{name}{suffix}", 0.0) for name in _ERRORS)
    num_targets, target, target_squared = (named.get(f"{name}{suffix}", 0.0) for name in _TARGETS)
    return (
        0 <= num_targets <= count
        and 0 <= absolute <= MAX_LOSS * count
        and 0 <= squared <= MAX_LOSS * count
        and abs(target) <= MAX_LOSS * num_targets
        and 0 <= target_squared <= MAX_LOSS * MAX_LOSS * num_targets
    )


def _recall(best: int, of: str = "") -> Metric:
    return Metric(_of(f"recall_{best}", of), _for(f"recall@{best}", of), "more", is_share=True)


def _recalls_of(task: RetrievalSpec) -> dict[str, Metric]:
    """Return the metrics of single directions by the names of their sums."""
    first, second = task.between
    ways = {"forth": f"{first}-to-{second}", "back": f"{second}-to-{first}"}
    return {f"{way}.{best}": _recall(best, title) for way, title in ways.items() for best in RECALL_AT}


def _retrieval(task: RetrievalSpec, sums: MetricSums) -> dict[str, float]:
    named = dict(sums.sums)
    values: dict[str, float] = {}
    for best in RECALL_AT:
        if f"forth.{best}" in named and f"back.{best}" in named:
            both = named[f"forth.{best}"] + named[f"back.{best}"]
            values[_recall(best).name] = both / (2 * sums.num_samples)
    of_ways = _recalls_of(task)
    return values | {of_ways[name].name: value / sums.num_samples for name, value in named.items() if name in of_ways}


def _mae(target: str, unit: str) -> Metric:
    return Metric(_of("mae", target), _for("mean absolute error", target), "less", unit)


def _rmse(target: str, unit: str) -> Metric:
    return Metric(_of("rmse", target), _for("root mean square error", target), "less", unit)


def _of(name: str, target: str) -> str:
    return f"{name}.{target}" if target else name


def _for(title: str, target: str) -> str:
    return f"{title} of {target}" if target else title


def _regression(task: RegressionSpec, named: dict[str, float]) -> dict[str, float]:
    absolute: list[float] = []
    squared: list[float] = []
    explained: list[float] = []
    values: dict[str, float] = {}
    for target, suffix in zip(task.targets, target_suffixes(task), strict=True):
        count, absolute_sum, squared_sum = (named.get(f"{name}{suffix}", 0.0) for name in _ERRORS)
        if not count:
            continue
        absolute.append(absolute_sum / count)
        squared.append(max(squared_sum, 0.0) / count)  # sums that others were subtracted from are rounded
        if task.num_outputs > 1:
            values[_of("mae", target.name)] = absolute[-1] * target.std
            values[_of("rmse", target.name)] = math.sqrt(squared[-1]) * target.std
        num_targets, target_sum, target_squared = (named.get(f"{name}{suffix}", 0.0) for name in _TARGETS)
        spread = target_squared - target_sum * target_sum / num_targets if num_targets else 0.0
        # Where some agent has not told of its targets, the spread is not that of what the errors are of.
        if num_targets == count and spread > 1e-9 * target_squared:
            explained.append(1 - squared_sum / spread)
    if not absolute:
        return {}
    std = task.targets[0].std if task.num_outputs == 1 else 1.0
    overall = {"mae": std * _mean(absolute), "rmse": std * math.sqrt(_mean(squared))}
    if len(explained) == len(absolute):
        overall[R2.name] = _mean(explained)
    return {**overall, **values}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
