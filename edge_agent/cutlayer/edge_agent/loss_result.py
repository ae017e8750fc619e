"""What a loss gives, and the seam of a task: all that the agent has to know of it.

Axes: B samples, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import Targets

__all__ = ["NO_RESULT", "LossResult", "PartSums", "Task"]


@dataclass(frozen=True, slots=True)
class PartSums:
    """Sums over those samples of a batch that have a certain target: a part of the loss that is reported by itself.

    Attributes:
        num_values: Samples that have it.
        loss_sum: Their part of the batch's loss.
        sums: What its metrics are made of, by the name in reports.
        target_sums: The same of the targets alone, whatever the model says of them.
    """

    num_values: int
    loss_sum: float
    sums: Mapping[str, float]
    target_sums: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class LossResult:
    """A loss over some samples, summed and not averaged: the server divides once, at the commit.

    Attributes:
        loss_sum: Sum of the samples' losses, in nats for cross-entropy.
        gradient_BC: Gradient of `loss_sum` with respect to the outputs, float32 (B, C).
        num_correct: Samples whose outputs are right.
        num_samples: Samples of which anything is known: B where no target is missing.
        sums: What else the task's metrics are made of, by the name in reports.
        parts: The sums of each target, where some samples may have one and lack another; empty where `sums` is all.
        embeddings_BC: Outputs that an evaluation judges all together, at its end; None where each sample is judged by
            itself.
    """

    loss_sum: float
    gradient_BC: NDArray[np.float32]
    num_correct: int
    num_samples: int
    sums: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[PartSums, ...] = ()
    embeddings_BC: NDArray[np.float32] | None = None


NO_RESULT = LossResult(0.0, np.zeros((0, 0), np.float32), 0, 0)
"""Of no samples."""


class Task(Protocol):
    """What outputs are compared with, and how."""

    @property
    def name(self) -> str:
        """The loss's name, for people."""

    def batch(self, samples: Sequence[Targets]) -> Targets:
        """Return what is true of some samples, each as a row of `Batch.targets`, as one array."""

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], targets: Targets) -> LossResult:
        """Return the summed loss and its gradient with respect to the outputs.

        Raises:
            SettingsError: When the targets do not fit the outputs or the task.
        """
