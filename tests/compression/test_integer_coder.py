"""The entropy coder: its bytes, its rate, and the streams that it refuses."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.compression import CorruptError, DecodeError, WrongLengthError
from cutlayer.compression.integer_coder import MAX_MAGNITUDE, decode_groups, encode_groups

Group = NDArray[np.int64]

GOLDEN_GROUPS = [[0, 0, 0], [], [1, -2, 300], [-70000, 80000]]
GOLDEN = bytes.fromhex(
    "0000a84b"  # models: narrowest twice, geometric class 28 with 3 low bits, normal class 31 with 11
    "00"  # no escapes
    "b1a10100"  # the lane's final state
    "d01d"  # its one word
    "028c31210d08"  # low bits: 3 of each of three numbers, 11 of each of two
)


def groups_of(numbers: list[list[int]]) -> list[Group]:
    return [np.array(group, np.int64) for group in numbers]


def round_trip(groups: list[Group]) -> list[Group]:
    return decode_groups(memoryview(encode_groups(groups)), [group.size for group in groups], "test")


def assert_same(groups: list[Group], others: list[Group]) -> None:
    assert [group.tolist() for group in groups] == [group.tolist() for group in others]


def test_golden_bytes() -> None:
    groups = groups_of(GOLDEN_GROUPS)
    assert encode_groups(groups) == GOLDEN
    assert_same(decode_groups(memoryview(GOLDEN), [3, 0, 3, 2], "test"), groups)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-MAX_MAGNITUDE, MAX_MAGNITUDE), max_size=20), max_size=6))
def test_any_integers_come_back(numbers: list[list[int]]) -> None:
    groups = groups_of(numbers)
    assert_same(round_trip(groups), groups)


@pytest.mark.parametrize("sizes", [[], [0, 0], [1], [255], [256], [257], [1000, 24], [70000]])
def test_groups_of_any_size_come_back(sizes: list[int]) -> None:
    generator = np.random.default_rng(7)
    groups = [np.rint(generator.normal(0, 3, size)).astype(np.int64) for size in sizes]
    assert_same(round_trip(groups), groups)


@pytest.mark.parametrize("deviation", [0.5, 1, 2, 5, 20, 50, 1000, 1e6])
def test_normal_numbers_take_little_more_than_their_entropy(deviation: float) -> None:
    numbers = np.rint(np.random.default_rng(7).normal(0, deviation, 40_000)).astype(np.int64)
    edges = np.arange(-40 * deviation, 40 * deviation + 1) + 0.5 if deviation <= 50 else np.empty(0)
    if edges.size:
        shares = np.diff([0.5 * (1 + math.erf(edge / deviation / math.sqrt(2))) for edge in edges])
        entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    else:
        entropy = math.log2(deviation * math.sqrt(2 * math.pi * math.e))
    bits = 8 * len(encode_groups([numbers])) / numbers.size
    assert entropy < bits < entropy + 0.25


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8, 0.99])
def test_geometric_numbers_take_little_more_than_their_entropy(share: float) -> None:
    generator = np.random.default_rng(7)
    numbers = generator.geometric(1 - share, 40_000) - generator.geometric(1 - share, 40_000)
    counts = np.unique(numbers, return_counts=True)[1] / numbers.size
    entropy = float(-(counts * np.log2(counts)).sum())
    assert 8 * len(encode_groups([numbers])) / numbers.size < entropy + 0.25


def test_zeros_cost_next_to_nothing() -> None:
    assert len(encode_groups([np.zeros(100_000, np.int64)])) < 1650  # 390 lanes of 4 bytes


def test_rare_outliers_are_escaped_and_cost_their_own_bytes() -> None:
    numbers = np.zeros(1000, np.int64)
    numbers[3] = 40
    assert_same(round_trip([numbers]), [numbers])
    with_outlier, without = len(encode_groups([numbers])), len(encode_groups([np.zeros(1000, np.int64)]))
    assert without < with_outlier < without + 300


def test_many_escapes_have_a_longer_count() -> None:
    numbers = np.zeros(2_000_000, np.int64)
    numbers[::5000] = 6  # 400 of them, beyond the narrowest model
    encoded = encode_groups([numbers])
    assert encoded[:6] == b"\x80\xff" + (400).to_bytes(4, "little")
    assert_same(decode_groups(memoryview(encoded), [numbers.size], "test"), [numbers])


@pytest.mark.parametrize("data", [b"", GOLDEN[:8], GOLDEN[:-1], GOLDEN + b"x", GOLDEN[:4] + b"\xff" + GOLDEN[5:]])
def test_bytes_too_few_or_too_many_are_refused(data: bytes) -> None:
    with pytest.raises((WrongLengthError, CorruptError)):
        decode_groups(memoryview(data), [3, 0, 3, 2], "test")


def test_words_left_over_are_refused() -> None:
    with pytest.raises(CorruptError, match="not where an encoder starts"):
        decode_groups(memoryview(GOLDEN[:9] + b"\x00\x00" + GOLDEN[9:]), [3, 0, 3, 2], "test")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_bytes_raise_only_decode_errors(data: st.DataObject) -> None:
    damaged = bytearray(GOLDEN)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        decoded = decode_groups(memoryview(damaged), [3, 0, 3, 2], "test")
        assert [group.size for group in decoded] == [3, 0, 3, 2]
