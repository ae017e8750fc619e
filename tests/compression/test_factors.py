"""Factors: whole numbers come back as they are, directions have length one, and nothing is trusted."""

import struct

import numpy as np
import pytest

from cutlayer.compression import CorruptError, OversizedError, WrongLengthError
from cutlayer.compression.factors import (
    Factors,
    decode_factors,
    encode_factors,
    mean_step_ratio,
    tensor_of_factors,
    unit_directions,
)


def some_factors(rank: int, num_tokens: int, width: int, *, has_mean: bool) -> Factors:
    generator = np.random.default_rng(7)
    return Factors(
        np.float32(0.25),
        generator.integers(-9, 9, width) if has_mean else None,
        generator.integers(1, 30, (rank, width)),
        generator.integers(-50, 90, (rank, num_tokens)),
    )


@pytest.mark.parametrize("has_mean", [False, True])
@pytest.mark.parametrize(("rank", "num_tokens", "width"), [(0, 5, 3), (1, 1, 1), (3, 7, 4), (4, 4, 900)])
def test_whole_numbers_come_back(rank: int, num_tokens: int, width: int, has_mean: bool) -> None:
    factors = some_factors(rank, num_tokens, width, has_mean=has_mean)
    decoded = decode_factors(memoryview(encode_factors(factors, num_tokens, width)), num_tokens, width, "test")
    assert decoded.step == factors.step
    np.testing.assert_array_equal(decoded.directions_RD, factors.directions_RD)
    np.testing.assert_array_equal(decoded.coordinates_RN, factors.coordinates_RN)
    assert (decoded.mean_D is None) is not has_mean
    if decoded.mean_D is not None and factors.mean_D is not None:
        np.testing.assert_array_equal(decoded.mean_D, factors.mean_D)
    assert tensor_of_factors(decoded, num_tokens).shape == (num_tokens, width)


def test_directions_have_length_one_in_multiples_of_a_power_of_two() -> None:
    units_RD = unit_directions(np.random.default_rng(7).integers(-9, 9, (5, 64)).astype(np.float64))
    np.testing.assert_allclose(np.square(units_RD).sum(axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(units_RD * 2**14, np.rint(units_RD * 2**14))


@pytest.mark.parametrize(
    ("num_tokens", "ratio"), [(1, 1.0), (2, 0.5), (15, 0.25), (16, 0.25), (64, 0.125), (512, 2**-5)]
)
def test_the_mean_is_finer_by_about_the_root_of_the_number_of_tokens(num_tokens: int, ratio: float) -> None:
    assert mean_step_ratio(num_tokens) == ratio


def test_another_shape_and_a_rank_beyond_it_are_refused() -> None:
    encoded = encode_factors(some_factors(3, 7, 4, has_mean=False), 7, 4)
    with pytest.raises(CorruptError, match="another shape"):
        decode_factors(memoryview(encoded), 8, 4, "test")
    beyond = encoded[:7] + struct.pack("<H", 5) + encoded[9:]
    with pytest.raises(OversizedError):
        decode_factors(memoryview(beyond), 7, 4, "test")
    with pytest.raises(WrongLengthError):
        decode_factors(memoryview(encoded[:8]), 7, 4, "test")
