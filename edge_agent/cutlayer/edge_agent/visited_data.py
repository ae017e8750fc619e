"""The data of a visit: all rows that are asked for, in order, as samples for testing; none for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import Manifest, ModalitySpec
from cutlayer.edge_agent.batches import SPLITS, Batch, Dataset, Split, Targets
from cutlayer.edge_agent.data_request import Rows
from cutlayer.edge_agent.data_samples import UserDataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.edge_agent.row_names import RowNames

__all__ = ["VisitedDataset", "open_visited"]


class VisitedDataset:
    """A data set that knows training and testing, as a visit sees it.

    Args:
        dataset: The data.
        rows: Which of its splits.

    Raises:
        SettingsError: When it has none of these.

    Attributes:
        names: What each sample is called.
    """

    def __init__(self, dataset: Dataset, rows: Rows) -> None:
        self._dataset = dataset
        wanted = SPLITS if rows == "all" else tuple(split for split in SPLITS if split == rows)
        self._parts = [(split, dataset.num_samples(split)) for split in wanted if dataset.num_samples(split)]
        if not self._parts:
            raise SettingsError(f"{dataset.name} has no sample for {rows!r}", "choose others: --split all")
        counts = [count for _, count in self._parts]
        self._starts = np.cumsum([0, *counts])
        names = [f"{split}/{index}" for split, count in self._parts for index in range(count)]
        self.names = RowNames(np.arange(1, len(names) + 1), {"sample": names})

    @property
    def name(self) -> str:
        """Name that `open_dataset` knows it by."""
        return self._dataset.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is learned, in the order of the outputs."""
        return self._dataset.classes

    @property
    def modalities(self) -> Mapping[str, ModalitySpec]:
        """Specification of each modality that `batch` gives."""
        return self._dataset.modalities

    def num_samples(self, split: Split) -> int:
        """Return how many samples there are: none for training."""
        return int(self._starts[-1]) if split == "test" else 0

    def batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Read samples.

        Raises:
            IndexError: When an index is outside the split.
        """
        num_samples = self.num_samples(split)
        if indices.size and not 0 <= indices.min() <= indices.max() < num_samples:
            raise IndexError(f"{split} has {num_samples} samples, asked for {indices.min()} to {indices.max()}")
        places_B = np.searchsorted(self._starts, indices, side="right") - 1
        order_B = np.argsort(places_B, kind="stable")
        batches = [
            self._dataset.batch(self._parts[place][0], indices[places_B == place] - self._starts[place])
            for place in np.unique(places_B)
        ]
        back_B = np.argsort(order_B)
        inputs: dict[str, NDArray[Any]] = {}
        present: dict[str, NDArray[np.bool_]] = {}
        for name in batches[0].inputs:
            inputs[name] = np.concatenate([batch.inputs[name] for batch in batches])[back_B]
            if any(name in batch.present for batch in batches):
                whole = [batch.present.get(name, np.ones(len(batch.targets), np.bool_)) for batch in batches]
                present[name] = np.concatenate(whole)[back_B]
        targets: Targets = np.concatenate([batch.targets for batch in batches])[back_B]
        return Batch(inputs, targets, present)


def open_visited(
    name: str, manifest: Manifest, rows: Rows, *, shard: Shard, options: Mapping[str, object], wants_targets: bool
) -> tuple[Dataset, RowNames]:
    """Open data for a visit.

    Args:
        name: What `--data` says.
        manifest: The run.
        rows: Which rows.
        shard: Which part of them.
        options: The data set's own options.
        wants_targets: Whether it is told how good the model is; without, there need be no targets.

    Returns:
        The data, and what each of its samples is called.

    Raises:
        SettingsError: As `open_dataset`, and when there are no such rows.
    """
    dataset = open_dataset(
        name,
        shard=shard,
        seed=manifest.seed,
        options=options,
        manifest=manifest,
        rows=rows,
        wants_targets=wants_targets,
    )
    if isinstance(dataset, UserDataset):
        return dataset, dataset.row_names
    visited = VisitedDataset(dataset, rows)
    return visited, visited.names
