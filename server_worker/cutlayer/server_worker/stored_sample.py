"""A sample as a store has it, and how a microbatch is taken apart into samples and put together again.

Axes: b samples, K tokens, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fetched", "StoredSample", "assemble", "require_sound", "split_samples"]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a store had of the samples that were asked for, in their order.

    Attributes:
        tokens: (b, K, D) by modality; the rows of missing samples are zeros. (b, 0, 0) where all are missing.
        positions: (b, K) by modality, only where some sample's tokens were reduced or ragged: which of the original
            tokens each one is.
        visits: (b,) as they were put; 0 for missing samples.
        is_missing: (b,) whether the store lacks a sample, or one of the wanted modalities of it.
    """

    tokens: dict[str, NDArray[np.float32]]
    positions: dict[str, NDArray[np.intp]]
    visits: NDArray[np.uint8]
    is_missing: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One sample as a store has it.

    Attributes:
        tokens: (K, D) by modality.
        positions: (K,) by modality, where tokens were reduced or ragged.
        visits: How often it was sent.
    """

    tokens: Mapping[str, NDArray[np.float32]]
    positions: Mapping[str, NDArray[np.intp]]
    visits: int

    @property
    def num_bytes(self) -> int:
        """What its arrays take."""
        num_bytes = sum(tokens_KD.nbytes for tokens_KD in self.tokens.values())
        return num_bytes + sum(positions_K.nbytes for positions_K in self.positions.values())


def require_sound(
    samples: NDArray[np.int64],
    tokens: Mapping[str, NDArray[np.float32]],
    positions: Mapping[str, NDArray[np.intp]],
    visits: NDArray[np.uint8] | None,
) -> None:
    """Check what is to be put.

    Raises:
        ValueError: The shapes or dtypes do not fit together.
    """
    if samples.ndim != 1 or samples.dtype != np.int64:
        raise ValueError(f"samples: {samples.dtype} {samples.shape}, want int64 of one axis")
    if not tokens:
        raise ValueError("tokens: no modality, want at least one")
    b = len(samples)
    for name, tokens_bKD in tokens.items():
        if tokens_bKD.ndim != 3 or len(tokens_bKD) != b or tokens_bKD.dtype != np.float32:
            raise ValueError(f"tokens of {name}: {tokens_bKD.dtype} {tokens_bKD.shape}, want float32 ({b}, K, D)")
    for name, positions_bK in positions.items():
        if name not in tokens:
            raise ValueError(f"positions of {name}: there are no tokens of it")
        if positions_bK.shape != tokens[name].shape[:2]:
            raise ValueError(f"positions of {name}: {positions_bK.shape}, want {tokens[name].shape[:2]}")
        if positions_bK.size and positions_bK.min() < 0:
            raise ValueError(f"positions of {name}: {positions_bK.min()} is negative")
    if visits is not None and (visits.shape != (b,) or visits.dtype != np.uint8):
        raise ValueError(f"visits: {visits.dtype} {visits.shape}, want uint8 ({b},)")


def split_samples(
    samples: NDArray[np.int64],
    tokens: Mapping[str, NDArray[np.float32]],
    positions: Mapping[str, NDArray[np.intp]],
    visits: NDArray[np.uint8] | None,
) -> Iterator[tuple[int, StoredSample | None]]:
    """Yield a microbatch sample by sample: its number, and views of it, or None where it is not finite."""
    is_finite = np.ones(len(samples), bool)
    for tokens_bKD in tokens.values():
        is_finite &= np.isfinite(tokens_bKD).all(axis=(1, 2))
    for row, number in enumerate(samples.tolist()):
        if not is_finite[row]:
            yield number, None
            continue
        yield (
            number,
            StoredSample(
                {name: tokens_bKD[row] for name, tokens_bKD in tokens.items()},
                {name: positions_bK[row] for name, positions_bK in positions.items()},
                0 if visits is None else int(visits[row]),
            ),
        )


def assemble(stored: Sequence[StoredSample | None], names: Sequence[str]) -> Fetched:
    """Join samples to a microbatch.

    Args:
        stored: The samples in order, None where there is none.
        names: The modalities that are wanted.
    """
    forms = [None if sample is None else _form(sample, names) for sample in stored]
    # The commonest, not the first: one odd sample shall not make the agent send all others again.
    commonest = Counter(form for form in forms if form is not None).most_common(1)
    form = commonest[0][0] if commonest else tuple((0, 0) for _ in names)
    b = len(stored)
    fetched = Fetched(
        {name: np.zeros((b, *shape), np.float32) for name, shape in zip(names, form, strict=True)},
        {},
        np.zeros(b, np.uint8),
        np.ones(b, bool),
    )
    for row, sample in enumerate(stored):
        if sample is None or forms[row] != form:
            continue
        fetched.is_missing[row] = False
        fetched.visits[row] = sample.visits
        for name in names:
            fetched.tokens[name][row] = sample.tokens[name]
            if name in sample.positions:
                # Samples without positions beside some with them have all tokens.
                whole_bK = np.tile(np.arange(len(sample.tokens[name]), dtype=np.intp), (b, 1))
                fetched.positions.setdefault(name, whole_bK)[row] = sample.positions[name]
    for positions_bK in fetched.positions.values():
        positions_bK[fetched.is_missing] = 0
    return fetched


_Form = tuple[tuple[int, ...], ...]


def _form(sample: StoredSample, names: Sequence[str]) -> _Form | None:
    """What must be equal for samples to go into one microbatch: the shapes."""
    if any(name not in sample.tokens for name in names):
        return None
    return tuple(sample.tokens[name].shape for name in names)
