"""Validation samples: those that the data name, or a share of the training samples that is set aside for a run.

Only where a run judges candidates. What is set aside follows from the run's seed, the agent's topic and the number of
its training samples, so that every process of an agent sets the same aside; test samples never are.

Axes: S training samples of the data, B samples of a batch.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest, ModalitySpec
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES
from cutlayer.edge_agent.batches import Batch, Dataset, Split

__all__ = ["HasGroups", "HasValidation", "SetAside", "num_set_aside", "num_validation_samples", "with_validation"]

log = logging.getLogger(__name__)


@runtime_checkable
class HasValidation(Protocol):
    """Data that know the split `val`."""

    @property
    def num_val(self) -> int:
        """How many samples `val` has; 0 for none."""


@runtime_checkable
class HasGroups(Protocol):
    """Data whose training samples belong together: those of a group must not be parted."""

    def train_groups(self) -> NDArray[np.int64]:
        """Return the group of each training sample, int64 (S)."""


class SetAside:
    """Data with some of their training samples set aside as the split `val`.

    Args:
        dataset: The data.
        is_val_S: Which of their training samples, bool (S).
    """

    def __init__(self, dataset: Dataset, is_val_S: NDArray[np.bool_]) -> None:
        self._dataset = dataset
        self._numbers: dict[Split, NDArray[np.int64]] = {
            "train": np.flatnonzero(~is_val_S).astype(np.int64),
            "val": np.flatnonzero(is_val_S).astype(np.int64),
        }

    @property
    def name(self) -> str:
        """Name that `open_dataset` knows it by."""
        return self._dataset.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is learned."""
        return self._dataset.classes

    @property
    def modalities(self) -> Mapping[str, ModalitySpec]:
        """Specification of each modality."""
        return self._dataset.modalities

    @property
    def num_val(self) -> int:
        """How many samples are set aside."""
        return self._numbers["val"].size

    def num_samples(self, split: Split) -> int:
        """Return how many samples a split has."""
        return self._dataset.num_samples("test") if split == "test" else self._numbers[split].size

    def batch(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Read samples.

        Args:
            split: `train`, `val` or `test`.
            indices: Sample numbers within the split, int64 (B), from 0.

        Raises:
            IndexError: When an index is outside the split.
        """
        if split == "test":
            return self._dataset.batch("test", indices)
        return self._dataset.batch("train", self._numbers[split][indices])


def num_validation_samples(dataset: Dataset) -> int:
    """Return how many validation samples judge candidates: none where they are so few that no sum may leave."""
    num_val = dataset.num_val if isinstance(dataset, HasValidation) else 0
    return num_val if num_val >= MIN_REPORTED_SAMPLES else 0


def num_set_aside(manifest: Manifest, num_train: int) -> int:
    """Return how many of so many training samples a run sets aside, where none of them belong together."""
    wanted = min(round(manifest.evaluation.val_ratio * num_train), num_train - 1) if manifest.evaluation.selects else 0
    return wanted if wanted >= MIN_REPORTED_SAMPLES else 0


def with_validation(dataset: Dataset, manifest: Manifest, agent: str) -> Dataset:
    """Return data with validation samples: their own, or some of their training samples.

    Args:
        dataset: The agent's data.
        manifest: The run.
        agent: The agent's topic.
    """
    named = dataset.num_val if isinstance(dataset, HasValidation) else 0
    if named:
        if named < MIN_REPORTED_SAMPLES:
            _say_too_few(f"{named} validation samples")
        else:
            log.info("%d validation samples of its own data judge which weights are kept", named)
        return dataset
    num_train = dataset.num_samples("train")
    wanted = round(manifest.evaluation.val_ratio * num_train)
    if not wanted:
        _say_too_few("no validation samples, and [evaluation] val_ratio sets none aside")
        return dataset
    groups_S = dataset.train_groups() if isinstance(dataset, HasGroups) else np.arange(num_train)
    is_val_S = _set_aside(groups_S, wanted, f"{manifest.seed}/{agent}/val")
    if is_val_S.sum() < MIN_REPORTED_SAMPLES:
        _say_too_few(f"too few training samples ({num_train}) to set any aside for validation")
        return dataset
    log.info(
        "%d of %d training samples are set aside: they judge which weights are kept", is_val_S.sum(), is_val_S.size
    )
    return SetAside(dataset, is_val_S)


def _set_aside(groups_S: NDArray[np.int64], wanted: int, seed: str) -> NDArray[np.bool_]:
    """Choose whole groups, at random, until there are so many samples; one at least is left for training."""
    digest = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    names, sizes = np.unique(groups_S, return_counts=True)
    order = rng.permutation(names.size)
    num_before = np.cumsum(sizes[order]) - sizes[order]
    chosen = names[order[:-1]][num_before[:-1] < wanted]
    return np.isin(groups_S, chosen)


def _say_too_few(what: str) -> None:
    log.warning(
        "this site has %s, and sums of fewer than %d samples never leave a site: it has no say in which weights are "
        "kept; fix: add rows with the split val, or without such rows raise evaluation.val_ratio in the run settings",
        what,
        MIN_REPORTED_SAMPLES,
    )
