"""Centers and scales of 16 bits: the grid reaches every element, whatever they lose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.compression.block_headers import fit_grid, read_headers, write_headers

LARGEST = float(np.finfo(np.float32).max)
SUBNORMAL = 2.0**-149
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_golden_bytes_are_centers_then_scales_and_of_symmetric_blocks_scales_alone() -> None:
    low, high = np.array([-8.0, 1.0], np.float32), np.array([7.0, 1.0], np.float32)
    grid = fit_grid(low, high, 4, is_symmetric=False)
    assert write_headers(grid, is_symmetric=False) == bytes.fromhex("0000 803f 007f 0000")
    symmetric = fit_grid(low, high, 4, is_symmetric=True)
    assert write_headers(symmetric, is_symmetric=True) == bytes.fromhex("257f 257c")


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("is_symmetric", [False, True])
@given(first=finite, second=finite)
def test_no_element_is_more_than_half_a_scale_beside_the_grid(
    bits: int, is_symmetric: bool, first: float, second: float
) -> None:
    low, high = np.array([min(first, second)], np.float32), np.array([max(first, second)], np.float32)
    grid = fit_grid(low, high, bits, is_symmetric=is_symmetric)
    center, scale = float(grid.center_N[0]), float(grid.scale_N[0])
    num_down, num_up = 2 ** (bits - 1) - is_symmetric, 2 ** (bits - 1) - 1
    beside = 0.5 * scale if scale > 3.39e38 else 1e-12 * scale
    assert center - num_down * scale <= float(low[0]) + beside
    assert center + num_up * scale >= float(high[0]) - beside
    assert (scale == 0) == (float(low[0]) == center == float(high[0]))
    read = read_headers(memoryview(write_headers(grid, is_symmetric=is_symmetric)), 1, is_symmetric=is_symmetric)
    np.testing.assert_array_equal(read, grid)


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(width=st.floats(1e-30, 1e30), center=st.floats(-2, 2))
def test_a_scale_is_hardly_larger_than_an_exact_one(bits: int, width: float, center: float) -> None:
    low = np.array([(center - 0.5) * width], np.float32)
    high = np.array([(center + 0.5) * width], np.float32)
    exact = (float(high[0]) - float(low[0])) / (2**bits - 1)
    scale = float(fit_grid(low, high, bits, is_symmetric=False).scale_N[0])
    # Rounding a center of at most 2.5 ranges errs by 2^-8 of it, which the levels above it make up for.
    center_error = 2.5 * 2.0**-8 * width / (2 ** (bits - 1) - 1)
    assert exact * (1 - 1e-9) <= scale <= (exact + center_error) * (1 + 2.0**-8 + 1e-6) + 2.0**-134


def test_the_grid_of_the_whole_range_of_float32_is_finite() -> None:
    low, high = np.array([-LARGEST, LARGEST, -LARGEST], np.float32), np.array([LARGEST, LARGEST, -LARGEST], np.float32)
    for is_symmetric in (False, True):
        for bits in (2, 4, 8):
            grid = fit_grid(low, high, bits, is_symmetric=is_symmetric)
            assert np.isfinite(grid.center_N).all()
            assert np.isfinite(grid.scale_N).all()


def test_the_smallest_range_has_a_scale() -> None:
    grid = fit_grid(np.zeros(1, np.float32), np.array([SUBNORMAL], np.float32), 8, is_symmetric=False)
    assert grid.scale_N[0] == np.float32(2.0**-134)
