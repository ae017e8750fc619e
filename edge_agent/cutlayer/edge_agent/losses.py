"""The loss, computed at the agent from outputs that came down and labels that never leave.

Axes: B samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import TaskSpec

__all__ = ["CrossEntropy", "LossResult", "Task", "task_from_spec"]


@dataclass(frozen=True, slots=True)
class LossResult:
    """A loss over some samples, summed and not averaged: the server divides once, at the commit.

    Attributes:
        loss_sum: Sum of the samples' losses, in nats.
        gradient_BC: Gradient of `loss_sum` with respect to the outputs, float32 (B, C).
        num_correct: Samples whose largest output is that of their label.
        num_samples: B.
    """

    loss_sum: float
    gradient_BC: NDArray[np.float32]
    num_correct: int
    num_samples: int


class Task(Protocol):
    """What outputs are compared with, and how."""

    @property
    def name(self) -> str:
        """The loss's name, for people."""

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], labels_B: NDArray[np.integer]) -> LossResult:
        """Return the summed loss and its gradient with respect to the outputs."""

    def metrics(self, outputs_BC: NDArray[np.float32], labels_B: NDArray[np.integer]) -> dict[str, float]:
        """Return means over the samples, by name; `loss` is always among them."""


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Softmax cross-entropy with one true class a sample: `-log softmax(outputs)[label]`.

    Computed in float64, since at B x C values that costs microseconds and the rounding error stays below
    float32's. Outputs that are not finite give a loss that is not finite, and no warning: the caller decides.
    """

    @property
    def name(self) -> str:
        """The loss's name, for people."""
        return "cross-entropy"

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], labels_B: NDArray[np.integer]) -> LossResult:
        """Return the summed loss and its gradient `softmax(outputs) - onehot(labels)`.

        Args:
            outputs_BC: Logits, any float dtype (B, C).
            labels_B: True classes, int (B), each 0 to C - 1.

        Raises:
            SettingsError: When the shapes do not fit each other, or a label is no class of the outputs.
        """
        _check(outputs_BC, labels_B)
        rows_B = np.arange(labels_B.size)
        with np.errstate(invalid="ignore"):
            shifted_BC = outputs_BC.astype(np.float64)
            shifted_BC -= shifted_BC.max(axis=1, keepdims=True)  # the largest exponential is then 1: no overflow
            exponentials_BC = np.exp(shifted_BC)
            normalizer_B1 = exponentials_BC.sum(axis=1, keepdims=True)
            loss_B = np.log(normalizer_B1[:, 0]) - shifted_BC[rows_B, labels_B]
            gradient_BC = exponentials_BC / normalizer_B1
        gradient_BC[rows_B, labels_B] -= 1.0
        return LossResult(
            loss_sum=float(loss_B.sum()),
            gradient_BC=gradient_BC.astype(np.float32),
            num_correct=int((outputs_BC.argmax(axis=1) == labels_B).sum()),
            num_samples=int(labels_B.size),
        )

    def metrics(self, outputs_BC: NDArray[np.float32], labels_B: NDArray[np.integer]) -> dict[str, float]:
        """Return `loss` (mean, nats) and `accuracy` (0 to 1) of these samples.

        Raises:
            SettingsError: As `loss_and_gradient`.
        """
        result = self.loss_and_gradient(outputs_BC, labels_B)
        return {
            "loss": result.loss_sum / result.num_samples,
            "accuracy": result.num_correct / result.num_samples,
        }


def task_from_spec(spec: TaskSpec) -> Task:
    """Return the task that a run manifest asks for."""
    return _TASKS[spec.kind]


_TASKS: dict[str, Task] = {"classification": CrossEntropy()}


def _check(outputs_BC: NDArray[np.float32], labels_B: NDArray[np.integer]) -> None:
    if outputs_BC.ndim != 2 or labels_B.shape != outputs_BC.shape[:1] or outputs_BC.size == 0:
        raise SettingsError(
            f"outputs of shape {outputs_BC.shape} and labels of shape {labels_B.shape} do not fit",
            "give outputs (B, C) and labels (B), B and C at least 1",
        )
    if not np.issubdtype(labels_B.dtype, np.integer):
        raise SettingsError(f"labels are {labels_B.dtype}, not integers", "give class numbers")
    if labels_B.min() < 0 or labels_B.max() >= outputs_BC.shape[1]:
        raise SettingsError(
            f"labels from {labels_B.min()} to {labels_B.max()} with {outputs_BC.shape[1]} outputs",
            f"number the classes from 0 to {outputs_BC.shape[1] - 1}, as the run manifest lists them",
        )
