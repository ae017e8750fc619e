"""Codes of a grid: to the nearest level, or up and down at random, and never outside."""

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.block_headers import Grid
from cutlayer.compression.content_noise import ContentNoise
from cutlayer.compression.rounding import dequantize, quantize

LARGEST = float(np.finfo(np.float32).max)


def grid(center: float, scale: float) -> Grid:
    return Grid(np.array([center], np.float32), np.array([scale], np.float32))


def codes_of(values: list[float], on: Grid, bits: int, noise: ContentNoise | None = None) -> NDArray[np.uint8]:
    array = np.array([values], np.float32)
    codes = np.empty(array.shape, np.uint8)
    quantize(array, on, bits, noise, codes)
    return codes.reshape(-1)


def values_of(codes: list[int], on: Grid, bits: int) -> NDArray[np.float32]:
    array = np.empty((1, len(codes)), np.float32)
    dequantize(np.array([codes], np.uint8), on, bits, array)
    return array.reshape(-1)


def test_elements_go_to_the_nearest_level_and_ties_up() -> None:
    values = [-6.0, -5.1, -4.9, 10.0, 10.9, 11.0, 14.0]
    np.testing.assert_array_equal(codes_of(values, grid(10.0, 2.0), 4), [0, 0, 1, 8, 8, 9, 10])


def test_codes_stand_for_center_plus_scale_times_level() -> None:
    np.testing.assert_array_equal(values_of([0, 1, 8, 15], grid(10.0, 2.0), 4), [-6.0, -4.0, 10.0, 24.0])
    np.testing.assert_array_equal(values_of([0, 127, 128, 255], grid(0.0, 0.5), 8), [-64.0, -0.5, 0.0, 63.5])


def test_at_random_elements_go_to_one_of_both_neighbours_as_often_as_they_are_near() -> None:
    codes = codes_of([0.25] * 10_000, grid(0.0, 1.0), 4, ContentNoise(np.ones(1, np.float32)))
    assert set(codes.tolist()) == {8, 9}
    # Five standard errors of a share of 10,000; the seed is fixed.
    assert abs((codes == 9).mean() - 0.25) < 5 * (0.25 * 0.75 / 10_000) ** 0.5


def test_at_random_a_level_stays_where_it_is_and_no_code_leaves_its_bits() -> None:
    for bits in (2, 4, 8):
        top = 2 ** (bits - 1) - 1
        values = [float(np.nextafter(np.float32(top), np.float32(np.inf)))] * 5000 + [-float(top + 1)] * 5000
        codes = codes_of(values, grid(0.0, 1.0), bits, ContentNoise(np.ones(bits, np.float32)))
        assert set(codes[:5000].tolist()) == {2**bits - 1}
        assert set(codes[5000:].tolist()) == {0}


def test_blocks_that_overflow_or_underflow_float32_are_exact_too() -> None:
    np.testing.assert_array_equal(codes_of([-LARGEST, 0.0, LARGEST], grid(0.0, LARGEST / 7), 4), [1, 8, 15])
    np.testing.assert_array_equal(codes_of([0.0, 2.0**-149 * 3], grid(0.0, 2.0**-149), 4), [8, 11])
    np.testing.assert_array_equal(
        values_of([0, 8, 15], grid(1e38, 3e38), 4), np.array([-LARGEST, 1e38, LARGEST], np.float32)
    )


def test_a_scale_of_zero_gives_the_code_of_the_center() -> None:
    np.testing.assert_array_equal(codes_of([3.0, 3.0], grid(3.0, 0.0), 2), [2, 2])


def test_a_block_wider_than_a_stripe_equals_its_parts() -> None:
    values = np.random.default_rng(7).uniform(-7, 7, 150_000).tolist()
    whole = codes_of(values, grid(0.0, 1.0), 4)
    np.testing.assert_array_equal(whole[140_000:], codes_of(values[140_000:], grid(0.0, 1.0), 4))
    decoded = values_of(whole.tolist(), grid(0.0, 1.0), 4)
    assert (np.abs(decoded.astype(np.float64) - values) <= 0.5001).all()
