"""Numbers, masks and positions: what is packed comes back, and nothing else is taken."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.sample_refs import (
    MAX_SAMPLE_NUMBER,
    bases_bytes,
    checksum_of,
    mask_bytes,
    pack_bases,
    pack_mask,
    pack_numbers,
    pack_positions,
    unpack_bases,
    unpack_mask,
    unpack_numbers,
    unpack_positions,
)


def numbers(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize(
    ("values", "packed"),
    [
        ((0, 255), "00 ff"),
        ((1, 256), "0100 0001"),
        ((65_535,), "ffff"),
        ((65_536, 2), "00000100 02000000"),
        ((MAX_SAMPLE_NUMBER,), "ffffffff"),
        ((), ""),
    ],
)
def test_numbers_take_as_many_bytes_as_the_largest_needs(values: tuple[int, ...], packed: str) -> None:
    assert pack_numbers(numbers(*values)) == bytes.fromhex(packed)


@given(values=st.lists(st.integers(0, MAX_SAMPLE_NUMBER), min_size=1, max_size=50))
def test_numbers_come_back(values: list[int]) -> None:
    unpacked = unpack_numbers(pack_numbers(numbers(*values)), len(values))
    assert unpacked.dtype == np.int64
    assert unpacked.tolist() == values


@pytest.mark.parametrize("value", [-1, MAX_SAMPLE_NUMBER + 1])
def test_numbers_that_no_message_carries_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="sample numbers"):
        pack_numbers(numbers(3, value))


@pytest.mark.parametrize(("num_bytes", "num_samples"), [(3, 2), (0, 2), (24, 3), (1, 0), (9, 3)])
def test_bytes_that_are_no_numbers_are_refused(num_bytes: int, num_samples: int) -> None:
    with pytest.raises(MalformedMessage, match=f"numbers of {num_samples} samples"):
        unpack_numbers(bytes(num_bytes), num_samples)


@given(mask=st.lists(st.booleans(), max_size=70))
def test_masks_come_back(mask: list[bool]) -> None:
    packed = pack_mask(np.array(mask, dtype=bool))
    assert len(packed) == (mask_bytes(len(mask)) if any(mask) else 0)
    assert unpack_mask(packed, len(mask)).tolist() == mask


def test_the_lowest_bit_is_the_first_item() -> None:
    assert pack_mask(np.array([True, False, False, True, False, False, False, False, True])) == b"\x09\x01"


@pytest.mark.parametrize("data", [b"\x01", b"\x01\x00\x00", b"\x01\x02"], ids=["short", "long", "bit behind the last"])
def test_bytes_that_are_no_mask_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="mask of 9 items"):
        unpack_mask(data, 9)


@given(seed=st.integers(0, 1_000), num_samples=st.integers(0, 5), num_tokens=st.integers(1, 20))
def test_positions_come_back(seed: int, num_samples: int, num_tokens: int) -> None:
    rng = np.random.default_rng(seed)
    num_kept = int(rng.integers(1, num_tokens + 1))
    rows = [np.sort(rng.permutation(num_tokens)[:num_kept]) for _ in range(num_samples)]
    positions = np.array(rows, dtype=np.intp).reshape(num_samples, num_kept)
    packed = pack_positions(positions, num_tokens)
    np.testing.assert_array_equal(unpack_positions(packed, num_samples, num_tokens, num_kept), positions)


@pytest.mark.parametrize(
    "data", [b"\x03", b"\x03\x07", b"\x03\x21", b""], ids=["short", "three kept", "bit behind the last", "nothing"]
)
def test_bytes_that_are_no_positions_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack_positions(data, num_samples=2, num_tokens=5, num_kept=2)


def test_bases_come_back_with_the_checksum_of_float16_in_order() -> None:
    parts = [np.ones((2, 1, 3), np.float16), np.arange(6, dtype=np.float16).reshape(2, 1, 3)]
    packed = pack_bases(np.array([0, 255], np.uint8), parts)
    assert len(packed) == bases_bytes(2) == 6
    visits, checksum = unpack_bases(packed, 2)
    assert visits.tolist() == [0, 255]
    assert checksum == zlib.crc32(b"".join(part.tobytes() for part in parts)) != checksum_of(parts[::-1])


@pytest.mark.parametrize("data", [b"", bytes(5), bytes(7)], ids=["nothing", "short", "long"])
def test_bytes_that_are_no_bases_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="no bases of 2 samples"):
        unpack_bases(data, 2)
