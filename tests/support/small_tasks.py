"""Small runs of every task: samples whose brightness and loudness are drawn apart, and what is true of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split, Targets
from cutlayer.server_worker.settings import RunSettings
from support.small_run import AUDIO, IMAGE, small_settings

__all__ = ["LABELS", "NUMBERS", "ONE_NUMBER", "TASKS", "task_dataset", "task_settings"]

BRIGHT = TargetSpec(name="brightness", mean=500.0, std=300.0, unit="lux")
LOUD = TargetSpec(name="loudness", mean=50.0, std=30.0, unit="dB")
LABELS = MultiLabelSpec(classes=("bright", "loud", "both"), positive_weights=(1.0, 1.0, 2.0))
ONE_NUMBER = RegressionSpec(targets=(BRIGHT,))
NUMBERS = RegressionSpec(targets=(BRIGHT, LOUD), huber_delta=1.0)
TASKS: dict[str, TaskSpec] = {
    "classification": ClassificationSpec(classes=("dark", "bright")),
    "multi-label": LABELS,
    "regression": ONE_NUMBER,
    "regression of two, Huber": NUMBERS,
}


def task_settings(task: TaskSpec, telemetry_s: float = 1.0, **sections: dict[str, object]) -> RunSettings:
    """Return settings of a small run of a task."""
    return small_settings(telemetry_s, **sections).model_copy(update={"task": task})


def task_dataset(
    task: TaskSpec, seed: int, num_train: int = 16, num_test: int = 40, *, missing_share: float = 0.0
) -> ArrayDataset:
    """Return samples of a task; of some, labels or targets are not known."""
    rng = np.random.default_rng(seed)

    def split(num_samples: int) -> Batch:
        bright_B, loud_B = rng.random(num_samples), rng.random(num_samples)
        images = np.clip(rng.normal(30.0 + 190.0 * bright_B[:, None, None, None], 10.0, (num_samples, 4, 4, 1)), 0, 255)
        waves = np.clip((0.02 + 0.5 * loud_B[:, None]) * rng.normal(size=(num_samples, AUDIO.num_samples)), -1, 1)
        inputs: dict[str, NDArray[Any]] = {"image": images.astype(np.uint8), "audio": waves.astype(np.float32)}
        return Batch(inputs, _targets(task, bright_B, loud_B, rng.random((num_samples, 3)) < missing_share))

    splits: dict[Split, Batch] = {"train": split(num_train), "test": split(num_test)}
    return ArrayDataset("small", task.output_names, {"audio": AUDIO, "image": IMAGE}, splits)


def _targets(task: TaskSpec, bright_B: np.ndarray, loud_B: np.ndarray, is_missing: np.ndarray) -> Targets:
    is_bright_B, is_loud_B = bright_B > 0.5, loud_B > 0.5
    if isinstance(task, ClassificationSpec):
        return is_bright_B.astype(np.int64)
    if isinstance(task, MultiLabelSpec):
        labels_BC = np.stack([is_bright_B, is_loud_B, is_bright_B & is_loud_B], axis=1).astype(np.float32)
        labels_BC[is_missing] = -1.0
        return labels_BC
    numbers_BC = np.stack([1_000.0 * bright_B, 100.0 * loud_B], axis=1)[:, : task.num_outputs].astype(np.float32)
    numbers_BC[is_missing[:, : task.num_outputs]] = np.nan
    return numbers_BC
