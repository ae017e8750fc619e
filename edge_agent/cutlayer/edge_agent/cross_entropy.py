"""Classification: one true class a sample.

Axes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.loss_result import LossResult

__all__ = ["CrossEntropy"]


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

    def batch(self, samples: Sequence[Targets]) -> NDArray[np.int64]:
        """Return the classes of some samples, int64 (B)."""
        return np.array(samples, dtype=np.int64)

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], targets: Targets) -> LossResult:
        """Return the summed loss and its gradient `softmax(outputs) - onehot(labels)`.

        Args:
            outputs_BC: Logits, any float dtype (B, C).
            targets: True classes, int (B), each 0 to C - 1.

        Raises:
            SettingsError: When the shapes do not fit each other, or a label is no class of the outputs.
        """
        labels_B = _checked(outputs_BC, targets)
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


def _checked(outputs_BC: NDArray[np.float32], targets: Targets) -> NDArray[np.integer]:
    if outputs_BC.ndim != 2 or targets.shape != outputs_BC.shape[:1] or outputs_BC.size == 0:
        raise SettingsError(
            f"outputs of shape {outputs_BC.shape} and labels of shape {targets.shape} do not fit",
            "give outputs (B, C) and labels (B), B and C at least 1",
        )
    if not np.issubdtype(targets.dtype, np.integer):
        raise SettingsError(f"labels are {targets.dtype}, not integers", "give class numbers")
    labels_B = targets.astype(np.int64, copy=False)
    if labels_B.min() < 0 or labels_B.max() >= outputs_BC.shape[1]:
        raise SettingsError(
            f"labels from {labels_B.min()} to {labels_B.max()} with {outputs_BC.shape[1]} outputs",
            f"number the classes from 0 to {outputs_BC.shape[1] - 1}, as the run manifest lists them",
        )
    return labels_B
