"""The half-precision codec: its bytes, its rounding and its clipping."""

import numpy as np
import pytest

from cutlayer.compression import NonFiniteDataError
from cutlayer.compression.fp16 import Fp16Codec

CODEC = Fp16Codec()


def test_golden_bytes_are_little_endian_binary16_in_c_order() -> None:
    array = np.array([[1.0, -2.0], [65504.0, 0.0]], np.float32)
    golden = bytes.fromhex("003c 00c0 ff7b 0000")
    assert CODEC.encode(array) == golden
    np.testing.assert_array_equal(CODEC.decode(golden, (2, 2)), array)


def test_ties_round_to_even() -> None:
    array = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11], np.float32)
    decoded = CODEC.decode(CODEC.encode(array), (2,))
    np.testing.assert_array_equal(decoded, np.array([1.0, 1 + 2.0**-9], np.float32))


def test_elements_out_of_range_are_clipped_and_the_bound_says_by_how_much() -> None:
    array = np.array([65519.0, 65520.0, 1e9, -3e38], np.float32)
    decoded = CODEC.decode(CODEC.encode(array), (4,))
    np.testing.assert_array_equal(decoded, np.array([65504.0, 65504.0, 65504.0, -65504.0], np.float32))
    np.testing.assert_array_equal(CODEC.error_bound(array), np.abs(array.astype(np.float64)) - 65504)


def test_bound_is_zero_for_zeros_and_a_2048th_for_normal_numbers() -> None:
    bound = CODEC.error_bound(np.array([0.0, 1.0, -1024.0], np.float32))
    np.testing.assert_array_equal(bound, [0.0, 1 / 2048, 0.5])


def test_underflow_is_silent_even_where_floating_point_errors_raise() -> None:
    array = np.array([1e-30, 1e-7], np.float32)
    with np.errstate(all="raise"):
        decoded = CODEC.decode(CODEC.encode(array), (2,))
    assert decoded[0] == 0.0


@pytest.mark.parametrize("bits", ["007c", "00fc", "007e", "01fc"])
def test_nan_and_inf_in_the_bytes_are_refused(bits: str) -> None:
    with pytest.raises(NonFiniteDataError, match="NaN or Inf among the elements"):
        CODEC.decode(bytes.fromhex("0000" + bits), (2,))
