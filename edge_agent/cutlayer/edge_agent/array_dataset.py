"""Samples that are already arrays in memory: for small data, for tests and for simulations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ModalitySpec
from cutlayer.edge_agent.batches import Batch, Split

__all__ = ["ArrayDataset"]


@dataclass(frozen=True)
class ArrayDataset:
    """A data set over arrays.

    Args:
        name: For people.
        classes: Names of what is learned, in the order of the outputs.
        modalities: Specification of each modality.
        splits: A batch of all samples for `train` and for `test`, and for `val` if there are any.

    Raises:
        SettingsError: When a split is missing or its arrays differ in length.
    """

    name: str
    classes: tuple[str, ...]
    modalities: Mapping[str, ModalitySpec]
    splits: Mapping[Split, Batch]

    def __post_init__(self) -> None:
        splits: tuple[Split, ...] = ("train", "test", "val") if "val" in self.splits else ("train", "test")
        for split in splits:
            batch = self.splits.get(split)
            if batch is None:
                raise SettingsError(f"{self.name} has no split {split!r}", "give 'train' and 'test'")
            sizes = {name: len(values) for name, values in batch.inputs.items()} | {"targets": len(batch.targets)}
            sizes |= {f"present {name}": len(present_B) for name, present_B in batch.present.items()}
            if len(set(sizes.values())) > 1:
                raise SettingsError(
                    f"{self.name}, {split}: lengths differ: {sizes}", "give one row a sample everywhere"
                )

    @property
    def num_val(self) -> int:
        """How many validation samples there are."""
        return self.num_samples("val") if "val" in self.splits else 0

    def num_samples(self, split: Split) -> int:
        """Return how many samples a split has."""
        return len(self.splits[split].targets)

    def batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Read samples.

        Raises:
            IndexError: When an index is outside the split.
        """
        whole = self.splits[split]
        inputs: dict[str, NDArray[Any]] = {name: values[indices] for name, values in whole.inputs.items()}
        present = {name: present_B[indices] for name, present_B in whole.present.items()}
        return Batch(inputs, whole.targets[indices], present)
