"""What all tasks do alike: a generator of their own, samples by number, and one site's part of what was loaded.

Axes: B samples of the whole data set, S samples of one site.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.edge_agent.partition import Shard, partition
from cutlayer.server_worker.settings import RunSettings, load_run_settings

__all__ = ["divide", "draws", "held_out", "run_file", "run_of", "samples"]


def run_file(name: str) -> Path:
    """Return a task's file of run settings."""
    return Path(__file__).with_name(f"{name.replace('-', '_')}.toml")


@functools.cache
def run_of(name: str) -> RunSettings:
    """Return a task's run settings: its modalities and classes are written down there and nowhere else."""
    return load_run_settings(run_file(name))


def draws(seed: int, purpose: str) -> np.random.RandomState:
    """Return a generator that gives every site the same draws, with every release of NumPy (NEP 19)."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, *purpose.encode()])))


def held_out(names: list[str], share: float, seed: int) -> set[str]:
    """Draw which of some names (people, texts, things) are for testing only.

    Args:
        names: Each once, in an order that is the same everywhere.
        share: Of them, 0 to 1; at least one is drawn.
        seed: The run's.
    """
    chosen = draws(seed, "held out").permutation(len(names))[: max(round(share * len(names)), 1)]
    return {names[number] for number in chosen}


def samples(batch: Batch, rows_S: NDArray[np.integer]) -> Batch:
    """Return some samples of a batch."""
    return Batch({name: values[rows_S] for name, values in batch.inputs.items()}, batch.targets[rows_S])


def divide(
    name: str, train: Batch, test: Batch, kinds_B: NDArray[np.integer], shard: Shard, seed: int, alpha: float | None
) -> ArrayDataset:
    """Return one site's part: training samples by kind, test samples IID.

    Args:
        name: The task's, in `TASKS`.
        train: All samples for training.
        test: All samples for testing.
        kinds_B: What the skew divides training samples by, int (B), from 0.
        shard: Which part.
        seed: The run's.
        alpha: Concentration of the Dirichlet partition of `kinds_B`; None for IID.

    Raises:
        SettingsError: When there are more sites than samples, or `alpha` is not positive.
    """
    train_parts = partition(kinds_B, shard.count, seed=seed, alpha=alpha)
    test_parts = partition(np.zeros(len(test.targets), np.int64), shard.count, seed=seed)
    run = run_of(name)
    return ArrayDataset(
        name=name,
        classes=run.task.output_names,
        modalities=run.modalities,
        splits={
            "train": samples(train, train_parts[shard.index]),
            "test": samples(test, test_parts[shard.index]),
        },
    )
