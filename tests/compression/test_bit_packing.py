"""Codes of a few bits in bytes: which bits are whose, and what is left of the last byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.compression.bit_packing import pack_codes, packed_bytes, unpack_codes


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (4, [0x1, 0xF, 0x3, 0xA], "f1 a3"),
        (4, [0x1, 0xF, 0x7], "f1 07"),
        (2, [0, 1, 2, 3, 3, 0, 0, 1], "e4 43"),
        (2, [3, 3, 1], "1f"),
        (2, [2], "02"),
        (8, [1, 255], "01 ff"),
    ],
)
def test_the_first_code_is_in_the_lowest_bits_and_unused_bits_are_zero(
    bits: int, codes: list[int], packed: str
) -> None:
    array = np.array(codes, np.uint8)
    assert pack_codes(array, bits).tobytes() == bytes.fromhex(packed)
    np.testing.assert_array_equal(unpack_codes(pack_codes(array, bits), len(codes), bits), array)


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(data=st.data())
def test_codes_come_back_from_the_stated_number_of_bytes(bits: int, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40)), np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.size == packed_bytes(codes.size, bits)
    np.testing.assert_array_equal(unpack_codes(packed, codes.size, bits), codes)


@pytest.mark.parametrize("bits", [2, 4])
def test_unused_bits_of_the_last_byte_are_not_looked_at(bits: int) -> None:
    codes = unpack_codes(np.array([0xFF], np.uint8), 1, bits)
    np.testing.assert_array_equal(codes, [2**bits - 1])


@pytest.mark.parametrize("bits", [2, 4])
def test_many_codes_come_back(bits: int) -> None:
    codes = np.random.default_rng(7).integers(0, 2**bits, 300_001, dtype=np.uint8)
    packed = pack_codes(codes, bits)
    np.testing.assert_array_equal(unpack_codes(packed, codes.size, bits), codes)
    parts = [pack_codes(part, bits) for part in (codes[:100_000], codes[100_000:])]
    np.testing.assert_array_equal(packed, np.concatenate(parts))
