"""What a data set gives: batches of raw inputs with their targets. The seam between an agent and its data.

Axes: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import ModalitySpec

__all__ = ["SPLITS", "Batch", "Dataset", "Split", "Targets"]

Split = Literal["train", "test", "val"]
SPLITS: tuple[Split, ...] = ("train", "test")
"""What every data set has. `val` some have, and `validation.py` makes it of training samples where it is needed."""
Targets: TypeAlias = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, raw: they never leave the agent.

    Attributes:
        inputs: Raw samples of each modality, by its name; the form its tokenizer takes, first axis B.
        targets: What is true of each sample, in the form of the run's task. Classification: its class, int64 (B).
            Multi-label: 1 for each class that is there and 0 for each that is not, float32 (B, C); -1 where it is not
            known. Regression: the numbers in the user's units, float32 (B, C); NaN where one is missing.
        present: Which samples have a modality, bool (B); a modality that is not here, all of them have. Where a sample
            lacks it, its row of `inputs` may be anything.
    """

    inputs: dict[str, NDArray[Any]]
    targets: Targets
    present: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


class Dataset(Protocol):
    """One agent's own samples."""

    @property
    def name(self) -> str:
        """Name that `open_dataset` knows it by."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is learned, in the order of the outputs: classes, or the targets of a regression."""

    @property
    def modalities(self) -> Mapping[str, ModalitySpec]:
        """Specification of each modality that `batch` gives."""

    def num_samples(self, split: Split) -> int:
        """Return how many samples of `split` this agent has."""

    def batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Read samples; the same index always gives the same sample.

        Args:
            split: `train` or `test`.
            indices: Sample numbers within this agent's split, int64 (B), from 0.

        Raises:
            IndexError: When an index is outside the split.
        """
