"""Spoken and written digits: `demo:digits` as the agents know it. Stands for video with sound."""

from __future__ import annotations

from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.edge_agent.partition import Shard

__all__ = ["open_digits"]


def open_digits(shard: Shard, seed: int, alpha: float | None) -> Dataset:
    """Open one site's digits.

    Raises:
        SettingsError: When scikit-learn or espeakng-loader is not installed.
    """
    return open_dataset("demo:digits", shard=shard, seed=seed, options={} if alpha is None else {"alpha": alpha})
