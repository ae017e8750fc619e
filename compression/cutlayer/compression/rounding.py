"""Elements to codes on a grid and back, to the nearest level or to one of the two neighbours at random.

Suffixes: N blocks, K elements of a block.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.block_headers import Grid
from cutlayer.compression.content_noise import ContentNoise

_STRIPE_ELEMENTS = 65536
"""Most elements of a block worked on at once, 256 KiB: temporaries stay in the second-level cache."""
_SMALLEST_NORMAL = np.float32(2.0**-126)
_LARGEST_PLAIN = np.float32(2.0**126)
_LARGEST_FLOAT32 = np.finfo(np.float32).max


def quantize(
    array_NK: NDArray[np.float32], grid: Grid, bits: int, noise: ContentNoise | None, out_NK: NDArray[np.uint8]
) -> None:
    """Write the code of each element: its level, plus 2^(bits-1) so that no code is negative.

    Adding one half and dropping the fraction rounds to the nearest level; adding a number drawn uniformly from 0
    to 1 rounds up with the fraction's probability, so that the mean of what is decoded is the element itself
    (QSGD, arXiv 1610.02132, section 3.1).

    Args:
        array_NK: Finite, within the grid.
        grid: That of the blocks.
        bits: Bits of a code, 2 to 8.
        noise: Where the random numbers come from; None rounds to nearest.
        out_NK: Where the codes go.
    """
    num_levels = 2**bits
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        largest_N = np.abs(grid.center_N) + np.float32(num_levels // 2) * grid.scale_N
        # A difference or an inverse would overflow, or is no normal number: once more in float64, exact enough for all.
        is_extreme_N = (grid.scale_N > 0) & ((grid.scale_N < _SMALLEST_NORMAL) | (largest_N > _LARGEST_PLAIN))
        inverse_N = np.where(grid.scale_N > 0, np.float32(1) / grid.scale_N, np.float32(0))
    for stripe in _stripes(array_NK.shape[1]):
        stripe_NK, codes_NK = array_NK[:, stripe], out_NK[:, stripe]
        added_NK = np.broadcast_to(np.float32(num_levels // 2 + 0.5), stripe_NK.shape)
        if noise is not None:
            added_NK = noise.draw(stripe_NK.size).reshape(stripe_NK.shape) + np.float32(num_levels // 2)
        # What overflows here is in an extreme block, and is replaced.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            steps_NK = stripe_NK - grid.center_N[:, None]
            steps_NK *= inverse_N[:, None]
            steps_NK += added_NK
            if noise is not None:
                np.minimum(steps_NK, np.float32(num_levels - 1), out=steps_NK)
            np.copyto(codes_NK, steps_NK, casting="unsafe")
        if is_extreme_N.any():
            exact_NK = stripe_NK[is_extreme_N].astype(np.float64) - grid.center_N[is_extreme_N, None]
            exact_NK /= grid.scale_N[is_extreme_N, None]
            exact_NK += added_NK[is_extreme_N]
            codes_NK[is_extreme_N] = np.clip(exact_NK, 0, num_levels - 1).astype(np.uint8)


def dequantize(codes_NK: NDArray[np.uint8], grid: Grid, bits: int, out_NK: NDArray[np.float32]) -> None:
    """Write the element of each code: center + scale * level, clipped to the largest finite float32.

    The product is exact, as a scale has 9 significant bits and a level 8; so the sum is the only rounding.

    Args:
        codes_NK: Each below 2^bits.
        grid: That of the blocks; finite, scales not negative.
        bits: Bits of a code, 2 to 8.
        out_NK: Where the elements go.
    """
    num_down = 2 ** (bits - 1)
    has_center = bool(grid.center_N.any())
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        is_extreme_N = ~np.isfinite(np.abs(grid.center_N) + np.float32(num_down) * grid.scale_N)
    for stripe in _stripes(codes_NK.shape[1]):
        # Wraps below zero, which viewed as signed is the level.
        levels_NK = (codes_NK[:, stripe] - np.uint8(num_down)).view(np.int8)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            np.multiply(levels_NK, grid.scale_N[:, None], out=out_NK[:, stripe])
            if has_center:
                out_NK[:, stripe] += grid.center_N[:, None]
        if is_extreme_N.any():
            exact_NK = levels_NK[is_extreme_N].astype(np.float64) * grid.scale_N[is_extreme_N, None]
            exact_NK += grid.center_N[is_extreme_N, None]
            out_NK[is_extreme_N, stripe] = np.clip(exact_NK, -_LARGEST_FLOAT32, _LARGEST_FLOAT32)


def _stripes(width: int) -> Iterator[slice]:
    """Cut blocks into runs of at most `_STRIPE_ELEMENTS` elements."""
    for start in range(0, width, _STRIPE_ELEMENTS):
        yield slice(start, start + _STRIPE_ELEMENTS)
