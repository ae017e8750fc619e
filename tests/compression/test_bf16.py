"""The bfloat16 codec: its bytes, its rounding and its clipping."""

import numpy as np
import pytest

from cutlayer.compression import NonFiniteDataError
from cutlayer.compression.bf16 import LARGEST_BF16, Bf16Codec

CODEC = Bf16Codec()
LARGEST = float(np.finfo(np.float32).max)


def test_golden_bytes_are_the_upper_halves_of_little_endian_float32_in_c_order() -> None:
    array = np.array([[1.0, -2.0], [2.0**-126, 0.0], [-0.0, 3.140625]], np.float32)
    golden = bytes.fromhex("803f 00c0 8000 0000 0080 4940")
    assert CODEC.encode(array) == golden
    np.testing.assert_array_equal(CODEC.decode(golden, (3, 2)).view(np.uint32), array.view(np.uint32))


def test_ties_round_to_even() -> None:
    array = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8)], np.float32)
    decoded = CODEC.decode(CODEC.encode(array), (3,))
    np.testing.assert_array_equal(decoded, np.array([1.0, 1 + 2.0**-6, -1.0], np.float32))


def test_every_bfloat16_comes_back_and_their_neighbours_round_to_the_nearest() -> None:
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    exact = bits[(bits & 0x7F800000) != 0x7F800000].view(np.float32)
    np.testing.assert_array_equal(CODEC.decode(CODEC.encode(exact), exact.shape).view(np.uint32), exact.view(np.uint32))
    for above in (0x7FFF, 0x8001):
        shifted = (exact.view(np.uint32) + np.uint32(above)).view(np.float32)
        decoded = CODEC.decode(CODEC.encode(shifted), shifted.shape).astype(np.float64)
        error = np.abs(decoded - shifted)
        assert (error <= np.abs(exact.astype(np.float64) - shifted)).all()


def test_elements_out_of_range_are_clipped_and_the_bound_says_by_how_much() -> None:
    array = np.array([LARGEST_BF16, 3.395e38, 3.4e38, LARGEST, -LARGEST], np.float32)
    decoded = CODEC.decode(CODEC.encode(array), (5,))
    np.testing.assert_array_equal(decoded, np.array([1, 1, 1, 1, -1], np.float32) * np.float32(LARGEST_BF16))
    excess = np.abs(array[1:].astype(np.float64)) - LARGEST_BF16
    np.testing.assert_array_equal(CODEC.error_bound(array)[1:], excess)


def test_bound_is_zero_for_zeros_and_a_256th_for_normal_numbers() -> None:
    bound = CODEC.error_bound(np.array([0.0, 1.0, -1024.0], np.float32))
    np.testing.assert_array_equal(bound, [0.0, 1 / 256, 4.0])


def test_a_tensor_of_several_chunks_equals_its_parts() -> None:
    array = np.random.default_rng(7).standard_normal(200_001).astype(np.float32)
    parts = [CODEC.encode(part) for part in np.array_split(array, 7)]
    assert CODEC.encode(array) == b"".join(parts)


@pytest.mark.parametrize("bits", ["807f", "80ff", "817f", "c0ff"])
def test_nan_and_inf_in_the_bytes_are_refused(bits: str) -> None:
    with pytest.raises(NonFiniteDataError, match="NaN or Inf among the elements"):
        CODEC.decode(bytes.fromhex("0000" + bits), (2,))
