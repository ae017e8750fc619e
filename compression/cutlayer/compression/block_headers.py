"""The two numbers that a block of codes shares: its center and its scale, 16 bits each.

An element is center + scale x level, with level an integer from -2^(bits-1) to 2^(bits-1) - 1. The center is a
bfloat16. The scale, which has no sign, keeps one more bit of the significand: a float32 whose lowest 15 bits are
zero, without its sign. Both have float32's range, down to its subnormal numbers.

So scale x level is exact in float32, and adding the center rounds once: every machine decodes the same number.

Suffixes: N blocks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.bf16 import LARGEST_BF16, bf16_bits, bf16_values

_SCALE_SHIFT = np.uint32(15)
_LARGEST_SCALE_BITS = np.uint32(0xFEFF)
HEADER_NUMBER_BYTES = 2
"""Bytes of a center, and of a scale."""


class Grid(NamedTuple):
    """The values that codes stand for.

    Args:
        center_N: float32; what level 0 decodes to.
        scale_N: float32, not negative; the distance of two levels.
    """

    center_N: NDArray[np.float32]
    scale_N: NDArray[np.float32]


def fit_grid(lowest_N: NDArray[np.float32], highest_N: NDArray[np.float32], bits: int, *, is_symmetric: bool) -> Grid:
    """Fit a grid that reaches from the lowest to the highest element of each block.

    The center is rounded first, and the scale then fitted to what came out, and rounded up. So no element lies
    more than half a scale beside the grid, whatever the center lost; only a scale beyond the largest that the
    header holds, 0.2 % below the largest float32, is clipped, by far less than half of it.

    Args:
        lowest_N: The least element of each block, finite.
        highest_N: The greatest.
        bits: Bits of a code, 2 to 8.
        is_symmetric: Whether level 0 is zero, and levels reach as far up as down.

    Returns:
        The grid, with both numbers as the header holds them. The scale is 0 exactly if all elements of a block
        equal its center.
    """
    num_down, num_up = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    # In float64, as the range of a block may be twice the largest float32.
    low_N, high_N = lowest_N.astype(np.float64), highest_N.astype(np.float64)
    # Underflow is stated in the bound; no caller's floating-point settings shall turn it into an error.
    with np.errstate(under="ignore"):
        if is_symmetric:
            center_N = np.zeros(lowest_N.shape, np.float32)
            exact_N = np.maximum(-low_N, high_N) / num_up
        else:
            level_0_N = low_N + (high_N - low_N) * (num_down / (num_down + num_up))
            center_N = bf16_values(bf16_bits(np.clip(level_0_N, -LARGEST_BF16, LARGEST_BF16).astype(np.float32)))
            exact_N = np.maximum((center_N - low_N) / num_down, (high_N - center_N) / num_up)
        # The greater of two zeros may be the negative one, and a scale has no sign.
        scale_N = np.abs(exact_N).astype(np.float32)
        np.nextafter(scale_N, np.float32(np.inf), out=scale_N, where=scale_N < exact_N)
    bits_N = (scale_N.view(np.uint32) + np.uint32(0x7FFF)) >> _SCALE_SHIFT
    return Grid(center_N, _scales(np.minimum(bits_N, _LARGEST_SCALE_BITS)))


def write_headers(grid: Grid, *, is_symmetric: bool) -> bytes:
    """Write all centers, unless they are zero by agreement, then all scales."""
    scales = (grid.scale_N.view(np.uint32) >> _SCALE_SHIFT).astype("<u2").tobytes()
    return scales if is_symmetric else bf16_bits(grid.center_N).astype("<u2").tobytes() + scales


def read_headers(view: memoryview, num_blocks: int, *, is_symmetric: bool) -> Grid:
    """Read what `write_headers` wrote; the numbers may be NaN or infinite, the scales are not negative.

    Args:
        view: Bytes from anyone; what follows the headers is left alone.
        num_blocks: How many blocks there are.
        is_symmetric: As in `write_headers`.
    """
    start = 0 if is_symmetric else num_blocks * HEADER_NUMBER_BYTES
    scale_N = _scales(np.frombuffer(view, "<u2", count=num_blocks, offset=start).astype(np.uint32))
    if is_symmetric:
        return Grid(np.zeros(num_blocks, np.float32), scale_N)
    return Grid(bf16_values(np.frombuffer(view, "<u2", count=num_blocks)), scale_N)


def _scales(bits_N: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Turn the bits of scales into numbers."""
    return (bits_N << _SCALE_SHIFT).view(np.float32)
