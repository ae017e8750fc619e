"""Sets of indices: their bytes in both forms, and what is refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.compression import CorruptError, DecodeError, WrongLengthError
from cutlayer.compression.index_sets import decode_indices, encode_indices, max_index_bytes

GOLDEN_BITMAP = bytes.fromhex("ff 6b02")  # bits 0, 1, 3, 5, 6 and 9
GOLDEN_GAPS = bytes.fromhex("04 fb03 25")  # gaps 11, 31 and 35: remainders 11, 15 and 3, quotients 0, 1 and 2


def indices(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_golden_bytes_of_a_bitmap() -> None:
    assert encode_indices(indices(0, 1, 3, 5, 6, 9), 10) == GOLDEN_BITMAP
    assert decode_indices(memoryview(GOLDEN_BITMAP), 6, 10, "test").tolist() == [0, 1, 3, 5, 6, 9]


def test_golden_bytes_of_gaps() -> None:
    assert encode_indices(indices(11, 43, 79), 100) == GOLDEN_GAPS
    assert decode_indices(memoryview(GOLDEN_GAPS), 3, 100, "test").tolist() == [11, 43, 79]


@settings(deadline=None)
@given(st.sets(st.integers(0, 5000), min_size=1, max_size=300), st.integers(0, 100_000))
def test_any_set_comes_back_within_the_stated_length(members: set[int], more: int) -> None:
    total = max(members) + 1 + more
    encoded = encode_indices(indices(*sorted(members)), total)
    assert len(encoded) <= max_index_bytes(total)
    assert decode_indices(memoryview(encoded), len(members), total, "test").tolist() == sorted(members)


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.1, 0.3, 0.5, 0.9])
def test_random_sets_take_little_more_than_their_entropy(ratio: float) -> None:
    total = 200_000
    kept = np.sort(np.random.default_rng(7).choice(total, int(ratio * total), replace=False))
    entropy_bits = -total * (ratio * np.log2(ratio) + (1 - ratio) * np.log2(1 - ratio))
    bits = 8 * len(encode_indices(kept, total))
    assert bits <= min(1.05 * entropy_bits if ratio < 0.25 else np.inf, total + 16)


@pytest.mark.parametrize(
    ("data", "num_kept", "total", "refusal"),
    [
        (GOLDEN_BITMAP, 5, 10, CorruptError),
        (GOLDEN_BITMAP, 6, 9, CorruptError),
        (GOLDEN_BITMAP, 6, 17, WrongLengthError),
        (GOLDEN_GAPS, 2, 100, CorruptError),
        (GOLDEN_GAPS, 3, 79, CorruptError),
        (GOLDEN_GAPS + b"\x00", 3, 100, CorruptError),
        (b"\x1b" + GOLDEN_GAPS[1:], 3, 100, CorruptError),
        (b"\x04", 3, 100, CorruptError),
        (b"\x00", 3, 100, CorruptError),
    ],
    ids=["count", "beyond", "length", "gap count", "gap beyond", "trailing", "too many bits", "no bits", "no gaps"],
)
def test_what_no_encoder_writes_is_refused(data: bytes, num_kept: int, total: int, refusal: type[DecodeError]) -> None:
    with pytest.raises(refusal):
        decode_indices(memoryview(data), num_kept, total, "test")


@settings(deadline=None, max_examples=300)
@given(data=st.binary(min_size=1, max_size=14), num_kept=st.integers(1, 20), total=st.integers(20, 100))
def test_arbitrary_bytes_give_rising_indices_or_a_decode_error(data: bytes, num_kept: int, total: int) -> None:
    with contextlib.suppress(DecodeError):
        decoded = decode_indices(memoryview(data), num_kept, total, "test")
        assert decoded.size == num_kept
        assert 0 <= decoded[0] <= decoded[-1] < total
        assert (np.diff(decoded) > 0).all()
