"""Which samples a step holds: a function of the run's seed, the agent's topic and the step's number alone.

So a step means the same samples to every process that ever runs as this agent, and a step that was committed before
a crash is not trained on again after it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EpochPlan"]


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """An agent's training steps and evaluation batches.

    Attributes:
        seed: The run's seed.
        agent: The agent's topic.
        epochs: Passes over the training samples.
        num_train: Training samples.
        num_test: Test samples.
        microbatch_samples: Samples of a step; an epoch's last may have fewer.
        num_val: Validation samples.
    """

    seed: int
    agent: str
    epochs: int
    num_train: int
    num_test: int
    microbatch_samples: int
    num_val: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return -(-self.num_train // self.microbatch_samples)

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def train_indices(self, step: int) -> NDArray[np.int64]:
        """Return the samples of a training step, int64 (B): each epoch is a new permutation of all samples."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._rng("train", epoch).permutation(self.num_train)
        return order[place * self.microbatch_samples : (place + 1) * self.microbatch_samples]

    def test_batches(self, num_samples: int) -> list[NDArray[np.int64]]:
        """Return the batches of an evaluation on `num_samples` test samples (or all), the same ones each time."""
        return self._batches("test", self.num_test, num_samples)

    def val_batches(self, num_samples: int) -> list[NDArray[np.int64]]:
        """Return the batches that judge candidates, of `num_samples` validation samples (or all), always the same."""
        return self._batches("val", self.num_val, num_samples)

    def _batches(self, split: str, num_all: int, num_samples: int) -> list[NDArray[np.int64]]:
        order = self._rng(split, 0).permutation(num_all)[:num_samples]
        starts = range(0, len(order), self.microbatch_samples)
        return [order[start : start + self.microbatch_samples] for start in starts]

    def _rng(self, split: str, epoch: int) -> np.random.Generator:
        name = f"{self.seed}/{self.agent}/{split}/{epoch}".encode()
        return np.random.default_rng(int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "little"))
