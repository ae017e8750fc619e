"""What a data set gives: batches of raw inputs with labels. The seam between an agent and its data.

Axes: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import ModalitySpec

__all__ = ["SPLITS", "Batch", "Dataset", "Split"]

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, raw: they never leave the agent.

    Attributes:
        inputs: Raw samples of each modality, by its name; the form its tokenizer takes, first axis B.
        labels_B: Class of each sample, int64.
    """

    inputs: dict[str, NDArray[Any]]
    labels_B: NDArray[np.int64]


class Dataset(Protocol):
    """One agent's own samples."""

    @property
    def name(self) -> str:
        """Name that `open_dataset` knows it by."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""

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
