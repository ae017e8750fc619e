"""The identity codec: its bytes, and what it refuses to read."""

import numpy as np
import pytest

from cutlayer.compression import NonFiniteDataError, WrongLengthError
from cutlayer.compression.identity import IdentityCodec

CODEC = IdentityCodec()


def test_golden_bytes_are_little_endian_float32_in_c_order() -> None:
    array = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)
    golden = bytes.fromhex("0000803f 000000c0 0000003f 00000000")
    assert CODEC.encode(array) == golden
    np.testing.assert_array_equal(CODEC.decode(golden, (2, 2)), array)


def test_every_finite_bit_pattern_survives_including_negative_zero_and_subnormals() -> None:
    bits = np.array([0x80000000, 0x00000001, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800001], np.uint32)
    array = bits.view(np.float32)
    decoded = CODEC.decode(CODEC.encode(array), array.shape)
    np.testing.assert_array_equal(decoded.view(np.uint32), bits)


@pytest.mark.parametrize("bits", ["0000c07f", "0000807f", "000080ff", "010080ff"])
def test_nan_and_inf_in_the_bytes_are_refused(bits: str) -> None:
    with pytest.raises(NonFiniteDataError, match="NaN or Inf among the elements"):
        CODEC.decode(bytes.fromhex("00000000" + bits), (2,))


@pytest.mark.parametrize("num_bytes", [0, 15, 17, 32])
def test_bytes_of_another_length_are_refused_with_both_lengths(num_bytes: int) -> None:
    with pytest.raises(WrongLengthError) as caught:
        CODEC.decode(bytes(num_bytes), (2, 2))
    assert (caught.value.expected_bytes, caught.value.actual_bytes) == (16, num_bytes)
    assert caught.value.codec == "identity"
