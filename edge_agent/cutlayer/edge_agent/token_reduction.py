"""Fewer tokens before the cut: dropped at random, dropped by content, or merged.

A sample's result depends on that sample alone, and on the run's seed for `random`: so it is the same each time the
sample is visited, and a worker may keep it. The positions of the tokens that are left go with them, since the encoder
adds its position embeddings behind the cut. A sample that has fewer tokens than are to be left keeps what it has.

Axes: B samples, N tokens, K tokens that are left, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import TokenReduction

__all__ = ["reduce_present_tokens", "reduce_tokens"]


def reduce_tokens(
    spec: TokenReduction, tokens_BND: NDArray[np.float32], names: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Leave `spec.num_kept(N)` tokens of each sample.

    Args:
        spec: How.
        tokens_BND: Tokens, float32 (B, N, D).
        names: A name of each sample, from which `random` draws: the same name, the same tokens.

    Returns:
        tokens_BKD, float32 (B, K, D), and positions_BK: where each was among the N, ascending. A merged token stands
        at the first of the places that it was made from.
    """
    return _reduce(spec, tokens_BND, names, spec.num_kept(tokens_BND.shape[1]))


def reduce_present_tokens(
    spec: TokenReduction | None,
    tokens_BND: NDArray[np.float32],
    present_BN: NDArray[np.bool_],
    names: Sequence[str],
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Leave at most `spec.num_kept(N)` tokens of each sample, of those that are there.

    Args:
        spec: How; None leaves all that are there.
        tokens_BND: Tokens, float32 (B, N, D).
        present_BN: Which of them are there.
        names: As `reduce_tokens` takes them.

    Returns:
        tokens_BKD and positions_BK, as `reduce_tokens`; behind a sample's last token zeros, and N.
    """
    batch, num_tokens, width = tokens_BND.shape
    num_kept = num_tokens if spec is None else spec.num_kept(num_tokens)
    tokens_BKD = np.zeros((batch, num_kept, width), np.float32)
    positions_BK = np.full((batch, num_kept), num_tokens, np.intp)
    for row, present_N in enumerate(present_BN):
        places = np.flatnonzero(present_N)
        tokens_1ND = tokens_BND[row : row + 1, places]
        if spec is not None and len(places) > num_kept:
            tokens_1ND, kept_1K = _reduce(spec, tokens_1ND, names[row : row + 1], num_kept)
            places = places[kept_1K[0]]
        tokens_BKD[row, : len(places)] = tokens_1ND[0]
        positions_BK[row, : len(places)] = places
    return tokens_BKD, positions_BK


def _reduce(
    spec: TokenReduction, tokens_BND: NDArray[np.float32], names: Sequence[str], num_kept: int
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    if spec.kind == "merge":
        return _merge(tokens_BND, num_kept)
    if spec.kind == "random":
        num_tokens = tokens_BND.shape[1]
        drawn = [_rng(name).permutation(num_tokens)[:num_kept] for name in names]
        positions_BK = np.array(drawn, dtype=np.intp).reshape(len(names), num_kept)
    else:
        # What differs least from the sample's mean says least: in a scan that is the empty margin.
        centred_BND = tokens_BND - tokens_BND.mean(axis=1, keepdims=True)
        energy_BN = np.einsum("bnd,bnd->bn", centred_BND, centred_BND)
        positions_BK = np.argsort(-energy_BN, axis=1, kind="stable")[:, :num_kept]
    positions_BK = np.sort(positions_BK, axis=1)
    return np.take_along_axis(tokens_BND, positions_BK[:, :, None], axis=1), positions_BK


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little"))


def _merge(tokens_BND: NDArray[np.float32], num_kept: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Merge the most similar tokens until `num_kept` are left (ToMe, arXiv 2210.09461, section 3).

    In each round every second token looks for its most similar one (cosine) among the others, and the most similar
    pairs become their mean, weighted by how many tokens each stands for. At most half of them go in a round.
    """
    batch, num_tokens, width = tokens_BND.shape
    merged_BKD = np.empty((batch, num_kept, width), np.float32)
    positions_BK = np.empty((batch, num_kept), np.intp)
    for row, tokens_ND in enumerate(tokens_BND):
        sums_ND = tokens_ND.astype(np.float64)
        sizes_N = np.ones(num_tokens)
        places_N = np.arange(num_tokens)
        while len(places_N) > num_kept:
            num_merged = min(len(places_N) - num_kept, len(places_N) // 2)
            sums_ND, sizes_N, places_N = _merge_round(sums_ND, sizes_N, places_N, num_merged)
        merged_BKD[row] = sums_ND / sizes_N[:, None]
        positions_BK[row] = places_N
    return merged_BKD, positions_BK


def _merge_round(
    sums_ND: NDArray[np.float64], sizes_N: NDArray[np.float64], places_N: NDArray[np.intp], num_merged: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    sources, targets = np.arange(1, len(places_N), 2), np.arange(0, len(places_N), 2)
    norms_N1 = np.linalg.norm(sums_ND, axis=1, keepdims=True)
    unit_ND = np.divide(sums_ND, norms_N1, out=np.zeros_like(sums_ND), where=norms_N1 > 0)
    similarity = unit_ND[sources] @ unit_ND[targets].T
    best = similarity.argmax(axis=1)
    order = np.argsort(-similarity[np.arange(len(sources)), best], kind="stable")[:num_merged]
    chosen, into = sources[order], targets[best[order]]
    sums_ND, sizes_N = sums_ND.copy(), sizes_N.copy()
    np.add.at(sums_ND, into, sums_ND[chosen])
    np.add.at(sizes_N, into, sizes_N[chosen])
    places_N = places_N.copy()
    np.minimum.at(places_N, into, places_N[chosen])
    kept = np.setdiff1d(np.arange(len(places_N)), chosen)
    kept = kept[np.argsort(places_N[kept], kind="stable")]
    return sums_ND[kept], sizes_N[kept], places_N[kept]
