"""Multi-label: any number of true classes a sample, some of which may not be known.

Axes: B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import MultiLabelSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.loss_result import LossResult

__all__ = ["BinaryCrossEntropy"]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy with logits, a class at a time, over the number of classes.

    A class that is not known of a sample adds nothing to its loss, so what is known weighs the same everywhere. The
    logarithms are those of `1 + exp(x)` with the larger exponent taken out, so that no output overflows. An output
    above 0 says that the class is there.

    Args:
        spec: The task.
    """

    spec: MultiLabelSpec

    @property
    def name(self) -> str:
        """The loss's name, for people."""
        return "binary cross-entropy"

    def batch(self, samples: Sequence[Targets]) -> NDArray[np.float32]:
        """Return which classes some samples have, float32 (B, C)."""
        return np.array(samples, dtype=np.float32).reshape(len(samples), self.spec.num_outputs)

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], targets: Targets) -> LossResult:
        """Return the summed loss and its gradient.

        Args:
            outputs_BC: Logits, any float dtype (B, C).
            targets: 1 where a class is there, 0 where it is not, -1 where that is not known, (B, C).

        Raises:
            SettingsError: When the shapes do not fit each other, or there is another value.
        """
        is_there_BC, is_known_BC = self._checked(outputs_BC, targets)
        logits_BC = outputs_BC.astype(np.float64)
        weights = self.spec.positive_weights
        positive_BC = np.where(is_there_BC, 1.0 if weights is None else np.array(weights), 0.0)
        negative_BC = (is_known_BC & ~is_there_BC).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            log_there_BC = -np.logaddexp(0.0, -logits_BC)  # log sigmoid(x)
            log_absent_BC = -np.logaddexp(0.0, logits_BC)  # log(1 - sigmoid(x))
            loss_BC = -np.where(is_there_BC, positive_BC * log_there_BC, negative_BC * log_absent_BC)
            gradient_BC = negative_BC * np.exp(log_there_BC) - positive_BC * np.exp(log_absent_BC)
        loss_BC, gradient_BC = (np.where(is_known_BC, values, 0.0) for values in (loss_BC, gradient_BC))
        is_found_BC = outputs_BC > 0
        is_wrong_BC = is_known_BC & (is_found_BC != is_there_BC)
        has_any_B = is_known_BC.any(axis=1)
        return LossResult(
            loss_sum=float(loss_BC.sum()) / self.spec.num_outputs,
            gradient_BC=(gradient_BC / self.spec.num_outputs).astype(np.float32),
            num_correct=int((has_any_B & ~is_wrong_BC.any(axis=1)).sum()),
            num_samples=int(has_any_B.sum()),
            sums={
                "true_positives": float((is_found_BC & is_there_BC).sum()),
                "wrong": float(is_wrong_BC.sum()),
            },
        )

    def _checked(
        self, outputs_BC: NDArray[np.float32], targets: Targets
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which classes are there, and of which it is known."""
        if outputs_BC.ndim != 2 or targets.shape != outputs_BC.shape or outputs_BC.size == 0:
            raise SettingsError(
                f"outputs of shape {outputs_BC.shape} and labels of shape {targets.shape} do not fit",
                f"give a label for each of the {self.spec.num_outputs} classes of each sample",
            )
        is_there_BC, is_absent_BC = targets == 1, targets == 0
        is_known_BC = is_there_BC | is_absent_BC
        is_other_BC = ~is_known_BC & (targets != -1)
        if is_other_BC.any():
            raise SettingsError(
                f"a label is {targets[is_other_BC][0]}",
                "give 1 for a class that is there, 0 for one that is not, -1 where that is not known",
            )
        return is_there_BC, is_known_BC
