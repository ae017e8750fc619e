"""How a data set that everybody holds is divided over agents, without a word between them.

Every agent computes the whole partition from the labels and the seed, and keeps the part that its shard names.
The generator is therefore NumPy's legacy `RandomState`: its streams are frozen for ever (NEP 19), whereas those
of `Generator` may change between releases, and two agents with different releases would then overlap.

Axes: B samples of the whole data set, S samples of one shard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError

__all__ = ["MAX_SHARDS", "Shard", "partition"]

MAX_SHARDS = 100_000
"""Shards that a data set may be divided into."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One agent's part of a data set.

    Attributes:
        index: Which part, from 0.
        count: Parts in all.

    Raises:
        SettingsError: When `index` or `count` is out of range.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_SHARDS:
            raise SettingsError(
                f"shard {self}: {self.count} parts", f"divide the data into 1 to {MAX_SHARDS} parts, as in 0/4"
            )
        if not 0 <= self.index < self.count:
            raise SettingsError(
                f"shard {self}: part {self.index} does not exist", f"name a part from 0 to {self.count - 1}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `INDEX/COUNT`, counted from 0: `0/4` is the first of four parts.

        Raises:
            SettingsError: When `text` has another form, or names a part that does not exist.
        """
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
        if match is None:
            raise SettingsError(f"shard {text!r} is not INDEX/COUNT", "write 0/4 for the first of four parts")
        return cls(index=int(match[1]), count=int(match[2]))


def partition(
    labels_B: NDArray[np.integer], num_shards: int, *, seed: int, alpha: float | None = None
) -> list[NDArray[np.int64]]:
    """Divide samples over shards whose sizes differ by one at most.

    With `alpha`, each shard draws its class proportions q ~ Dirichlet(alpha * p), p being those of the whole data
    set, and takes its samples by q without replacement; a class that is used up leaves q, which is normalized
    again. Small `alpha` gives shards of few classes, large `alpha` approaches IID. (Hsu, Qi and Brown,
    "Measuring the Effects of Non-Identical Data Distribution", arXiv 1909.06335, section 3.) Some libraries give
    each of the C classes a concentration a instead of alpha * p: their a is about an alpha of a * C here. Since
    the sizes are fixed beforehand, no shard is empty.

    Args:
        labels_B: Class of every sample, int, 0 or more.
        num_shards: Shards, 1 to B.
        seed: The same at every agent; 0 or more.
        alpha: Concentration, above 0; None for IID.

    Returns:
        For each shard the ascending sample numbers, int64 (S). Every sample is in exactly one.

    Raises:
        SettingsError: When there are fewer samples than shards, or `alpha` is not positive and finite.
    """
    if num_shards > labels_B.size:
        raise SettingsError(
            f"{labels_B.size} samples do not fill {num_shards} shards", "use fewer shards or more samples"
        )
    if alpha is not None and not (np.isfinite(alpha) and alpha > 0):
        raise SettingsError(f"alpha {alpha} is not a positive number", "use 0.1 for strong skew, 100 for little")
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, num_shards])))
    sizes = [part.size for part in np.array_split(labels_B, num_shards)]
    if alpha is None:
        order_B = rng.permutation(labels_B.size).astype(np.int64)
        return [np.sort(shard_S) for shard_S in np.split(order_B, np.cumsum(sizes)[:-1])]
    return _dirichlet_partition(labels_B, sizes, alpha, rng)


def _dirichlet_partition(
    labels_B: NDArray[np.integer], sizes: list[int], alpha: float, rng: np.random.RandomState
) -> list[NDArray[np.int64]]:
    num_classes = int(labels_B.max()) + 1
    pools = [rng.permutation(np.flatnonzero(labels_B == label)) for label in range(num_classes)]
    left_C = np.array([pool.size for pool in pools], dtype=np.int64)
    prior_C = left_C / left_C.sum()
    shards = []
    for size in sizes:
        wanted_C = _take_counts(size, left_C, _dirichlet(alpha * prior_C, prior_C, rng), rng)
        left_C -= wanted_C
        parts = [
            pool[left : left + wanted] for pool, left, wanted in zip(pools, left_C, wanted_C, strict=True) if wanted
        ]
        shards.append(np.sort(np.concatenate(parts)).astype(np.int64))
    return shards


def _dirichlet(
    concentration_C: NDArray[np.float64], prior_C: NDArray[np.float64], rng: np.random.RandomState
) -> NDArray[np.float64]:
    """Draw class proportions; in the limit of no concentration, one class alone."""
    gamma_C: NDArray[np.float64] = rng.standard_gamma(concentration_C)
    total = float(gamma_C.sum())
    if total > 0.0:
        return gamma_C / total
    # Below a concentration of about 0.001 every gamma variate underflows to zero.
    return rng.multinomial(1, prior_C).astype(np.float64)


def _take_counts(
    size: int, left_C: NDArray[np.int64], proportions_C: NDArray[np.float64], rng: np.random.RandomState
) -> NDArray[np.int64]:
    """Choose how many samples of each class make up a shard of `size`, at most `left_C` of each."""
    taken_C = np.zeros_like(left_C)
    while (missing := size - int(taken_C.sum())) > 0:
        available_C = left_C - taken_C
        weights_C = np.where(available_C > 0, proportions_C, 0.0)
        if weights_C.sum() <= 0.0:
            weights_C = available_C.astype(np.float64)
        drawn_C = rng.multinomial(missing, weights_C / weights_C.sum())
        taken_C += np.minimum(drawn_C, available_C)
    return taken_C
