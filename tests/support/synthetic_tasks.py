"""Made-up runs of tasks other than classification: the synthetic run's agents, with other sums."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import MetricSums, Telemetry
from cutlayer.broker.tasks import MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_json import run_json
from support.synthetic_run import synthetic_manifest, synthetic_telemetry

__all__ = ["AGE", "AGE_AND_DOSE", "FINDINGS", "task_manifest", "task_run", "task_telemetry"]

FINDINGS = MultiLabelSpec(classes=("nodule", "effusion", "fracture"))
AGE = RegressionSpec(targets=(TargetSpec(name="age", mean=48.0, std=12.0, unit="years"),))
AGE_AND_DOSE = RegressionSpec(targets=(*AGE.targets, TargetSpec(name="dose", mean=0.2, std=0.05, unit="mg")))


def task_manifest(task: TaskSpec) -> Manifest:
    """Return the manifest of a made-up run of a task."""
    return synthetic_manifest().model_copy(update={"task": task})


def task_telemetry(task: TaskSpec, epoch: int) -> Telemetry:
    """Return what an agent says after some epochs: it errs by `1 / epoch` standard deviations, or in that share."""
    made = synthetic_telemetry(epoch)
    return replace(
        made,
        train=_sums(task, 320, epoch),
        recent=_sums(task, 320, epoch),
        evaluations=tuple(replace(each, sums=_sums(task, 256, each.epoch)) for each in made.evaluations),
    )


def task_run(task: TaskSpec) -> dict[str, Any]:
    """Return the content of a made-up run's `run.json`, as read from a file."""
    book = RunBook(task_manifest(task), num_client_parameters=11_000)
    for name in ("clinic/00", "clinic/01"):
        assert book.take(name, task_telemetry(task, 8))
    content = run_json(
        book,
        worker="worker-0",
        windows=200,
        committed_samples=25_600,
        duration_s=96.4,
        training_s=88.2,
        reason="all is done",
    )
    run: dict[str, Any] = json.loads(json.dumps(content))
    return run


def _sums(task: TaskSpec, count: int, epoch: int) -> MetricSums:
    if isinstance(task, MultiLabelSpec):
        wrong = count // epoch
        named: dict[str, float] = {"true_positives": count, "wrong": wrong}
        return MetricSums(0.1 * count, count - wrong, count, tuple(named.items()))
    assert isinstance(task, RegressionSpec)
    suffixes = [""] if task.num_outputs == 1 else [f".{index}" for index in range(task.num_outputs)]
    sums: dict[str, float] = {}
    for suffix in suffixes:
        sums |= {
            f"count{suffix}": count,
            f"absolute{suffix}": count / epoch,
            f"squared{suffix}": count / epoch**2,
            f"target_count{suffix}": count,
            f"target{suffix}": 0.0,
            f"target_squared{suffix}": float(count),
        }
    return MetricSums(count / epoch**2, 0, count, tuple(sorted(sums.items())))
