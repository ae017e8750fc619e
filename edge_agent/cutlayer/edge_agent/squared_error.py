"""Regression: a number or several a sample, some of which may be missing.

Axes: B samples, C targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.task_metrics import target_suffixes
from cutlayer.broker.tasks import RegressionSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.loss_result import LossResult, PartSums

__all__ = ["SquaredError"]

LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class SquaredError:
    """Squared error of standardized targets, or Huber's loss, over the number of targets.

    Targets come in the user's units and are standardized here, as outputs are: so the loss has no unit, and targets
    of any size weigh alike. A target that a sample lacks adds nothing to its loss.

    Args:
        spec: The task.
    """

    spec: RegressionSpec

    @property
    def name(self) -> str:
        """The loss's name, for people."""
        return "squared error" if self.spec.huber_delta is None else "Huber loss"

    def batch(self, samples: Sequence[Targets]) -> NDArray[np.float32]:
        """Return the targets of some samples, float32 (B, C)."""
        return np.array(samples, dtype=np.float32).reshape(len(samples), self.spec.num_outputs)

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], targets: Targets) -> LossResult:
        """Return the summed loss and its gradient.

        Args:
            outputs_BC: Standardized predictions, any float dtype (B, C).
            targets: What is true, in the user's units (B, C); NaN where it is missing.

        Raises:
            SettingsError: When the shapes do not fit each other, or a target is infinite.
        """
        self._check(outputs_BC, targets)
        means_C = np.array([target.mean for target in self.spec.targets])
        stds_C = np.array([target.std for target in self.spec.targets])
        is_known_BC = ~np.isnan(targets)
        true_BC = np.where(is_known_BC, (targets.astype(np.float64) - means_C) / stds_C, 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            error_BC = np.where(is_known_BC, outputs_BC.astype(np.float64) - true_BC, 0.0)
            loss_BC, slope_BC = self._loss(error_BC)
            loss_C = loss_BC.sum(axis=0) / self.spec.num_outputs
            # Twice the largest output would be infinite, which no codec takes.
            gradient_BC = np.clip(slope_BC / self.spec.num_outputs, -LARGEST, LARGEST).astype(np.float32)
            parts = [
                self._part(suffix, is_known_B, error_B, true_B, float(loss))
                for suffix, is_known_B, error_B, true_B, loss in zip(
                    target_suffixes(self.spec), is_known_BC.T, error_BC.T, true_BC.T, loss_C, strict=True
                )
            ]
        return LossResult(
            loss_sum=float(loss_C.sum()),
            gradient_BC=gradient_BC,
            num_correct=0,
            num_samples=int(is_known_BC.any(axis=1).sum()),
            parts=tuple(parts),
        )

    def _loss(self, error_BC: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the loss of each value and its derivative."""
        delta = self.spec.huber_delta
        if delta is None:
            return error_BC**2, 2.0 * error_BC
        size_BC = np.abs(error_BC)
        loss_BC = np.where(size_BC <= delta, 0.5 * error_BC**2, delta * (size_BC - 0.5 * delta))
        return loss_BC, np.clip(error_BC, -delta, delta)

    def _part(
        self,
        suffix: str,
        is_known_B: NDArray[np.bool_],
        error_B: NDArray[np.float64],
        true_B: NDArray[np.float64],
        loss_sum: float,
    ) -> PartSums:
        num_values = int(is_known_B.sum())
        return PartSums(
            num_values=num_values,
            loss_sum=loss_sum,
            sums={
                f"count{suffix}": float(num_values),
                f"absolute{suffix}": float(np.abs(error_B).sum()),
                f"squared{suffix}": float((error_B**2).sum()),
            },
            target_sums={
                f"target_count{suffix}": float(num_values),
                f"target{suffix}": float(true_B.sum()),
                f"target_squared{suffix}": float((true_B**2).sum()),
            },
        )

    def _check(self, outputs_BC: NDArray[np.float32], targets: Targets) -> None:
        if outputs_BC.ndim != 2 or targets.shape != outputs_BC.shape or outputs_BC.size == 0:
            raise SettingsError(
                f"outputs of shape {outputs_BC.shape} and targets of shape {targets.shape} do not fit",
                f"give a number for each of the {self.spec.num_outputs} targets of each sample",
            )
        if np.isinf(targets).any():
            name = self.spec.targets[int(np.isinf(targets).any(axis=0).argmax())].name
            raise SettingsError(f"a target {name!r} is infinite", "leave out what is not known: NaN, or an empty cell")
