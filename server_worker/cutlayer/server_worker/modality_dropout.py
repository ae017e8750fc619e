"""Modality dropout: whole modalities of a training sample are hidden, so that the encoder does without any one.

As ModDrop (Neverova et al., arXiv 1501.00102). Axes: B samples of a microbatch, M modalities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

__all__ = ["draw_keep"]


def draw_keep(seed: int, key: Hashable, shape_BM: tuple[int, int], rate: float) -> NDArray[np.bool_]:
    """Draw which modalities of each sample the encoder may see.

    The draw depends on the seed and the microbatch's key alone. So it is the same whichever worker runs the
    microbatch, in whatever company, and again when it is run a second time.

    Args:
        seed: The run's seed.
        key: Names the microbatch; its `repr` has to be the same in every process (tuples of strings and numbers
            are, Python's own `hash` is not: it is salted anew in each process).
        shape_BM: Samples of the microbatch and modalities.
        rate: Probability that a modality of a sample is dropped, 0..1, 1 excluded.

    Returns:
        Bool, shape (B, M); each row keeps at least one modality.
    """
    digest = hashlib.blake2b(repr((seed, key)).encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    keep_BM = generator.random(shape_BM) >= rate
    spared_B = generator.integers(shape_BM[1], size=shape_BM[0])
    empty_B = ~keep_BM.any(axis=1)
    keep_BM[empty_B, spared_B[empty_B]] = True
    return keep_BM
