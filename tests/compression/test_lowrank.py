"""The low-rank codec: its bytes, its error, its rate, and what it makes of tensors without structure."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.compression import (
    CorruptError,
    DecodeError,
    NonFiniteDataError,
    OversizedError,
    UnknownCodecError,
    WrongLengthError,
    codec_from_name,
)
from cutlayer.compression.integer_coder import encode_groups
from cutlayer.compression.lowrank import LowRankCodec

CODEC = LowRankCodec()
LARGEST = float(np.finfo(np.float32).max)

GOLDEN_RANK_ONE = bytes.fromhex(
    "02 0001 ce55bb40 0100"  # as factors without mean, 8 + 31 * 8, step, one component
    "001212"  # models: its mean coordinate, its direction, its coordinates
    "00 c2130100 63cd9eaba3d96493"  # no escapes, one lane, its words
)
GOLDEN_CONSTANT = bytes.fromhex(
    "03 2a01 17108542 0000"  # as factors with mean, 50 + 31 * 8, step, no component
    "0092"  # models: no mean coordinates, the mean token
    "00 707fa59f 1ae9"
)


def tokens_of_rank(rank: int, shape: tuple[int, ...] = (32, 16, 128), seed: int = 7) -> NDArray[np.float32]:
    """Normal tokens of a linear tokenizer with `rank` inputs of falling energy and a bias."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((*shape[:-1], rank)) * 0.8 ** np.arange(rank)
    weights = generator.standard_normal((rank, shape[-1]))
    tokens: NDArray[np.float32] = (inputs @ weights + generator.standard_normal(shape[-1])).astype(np.float32)
    return tokens


def relative_error(codec: LowRankCodec, array: NDArray[np.float32]) -> float:
    difference = codec.decode(codec.encode(array), array.shape).astype(np.float64) - array
    return float(np.sqrt(np.square(difference).mean() / np.square(array, dtype=np.float64).mean()))


def test_golden_bytes_of_one_component() -> None:
    codec = LowRankCodec(0.1)
    array = np.outer([3, 1, -2, 0, -4, 2, 5, -5], [1, 2, 0, -4, 2, -1, 3, 4]).astype(np.float32)
    assert codec.encode(array) == GOLDEN_RANK_ONE
    coordinates, direction = np.array([-4, -1, 2, 0, 5, -2, -6, 6]), np.array([-2, -3, 0, 6, -3, 2, -5, -6])
    step = struct.unpack("<f", bytes.fromhex("ce55bb40"))[0]
    expected = step * np.outer(coordinates, np.rint(direction * 2**14 / np.sqrt(123)) / 2**14)
    np.testing.assert_array_equal(codec.decode(GOLDEN_RANK_ONE, (8, 8)), expected.astype(np.float32))


def test_golden_bytes_of_a_constant_token() -> None:
    codec = LowRankCodec(0.05)
    array = np.tile(np.array([100, -50, 25, 7, 1, 0, 0, 3], np.float32), (50, 1))
    assert codec.encode(array) == GOLDEN_CONSTANT
    step = struct.unpack("<f", bytes.fromhex("17108542"))[0]
    expected = step * np.array([12, -6, 3, 1, 0, 0, 0, 0]) / 8  # N = 50 has six bits: the mean's step is an 8th
    np.testing.assert_array_equal(codec.decode(GOLDEN_CONSTANT, (50, 8)), np.tile(expected.astype(np.float32), (50, 1)))


def test_golden_bytes_of_what_does_not_get_smaller() -> None:
    array = np.array([[1.0, -2.0]], np.float32)
    golden = bytes.fromhex("01 0000803f 000000c0")
    assert CODEC.encode(array) == golden
    np.testing.assert_array_equal(CODEC.decode(golden, (1, 2)), array)


@pytest.mark.parametrize("error", [0.001, 0.01, 0.03, 0.1, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("rank", [1, 4, 64, 128])
def test_the_root_mean_square_error_is_what_was_asked_for(rank: int, error: float) -> None:
    actual = relative_error(LowRankCodec(error), tokens_of_rank(rank))
    assert actual <= error
    if rank > 1:  # one component stays or goes
        assert actual > (0.7 if error < 0.9 else 0.5) * error


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rank=st.integers(1, 20),
    exponent=st.integers(-30, 36),
    error=st.sampled_from([0.001, 0.03, 0.3]),
    seed=st.integers(0, 999),
)
def test_shapes_wide_and_tall_keep_the_error_at_any_magnitude(
    shape: tuple[int, int], rank: int, exponent: int, error: float, seed: int
) -> None:
    array = np.clip(tokens_of_rank(rank, shape, seed) * 10.0**exponent, -LARGEST, LARGEST).astype(np.float32)
    if array.any():
        assert relative_error(LowRankCodec(error), array) <= error


@pytest.mark.parametrize("rank", [4, 64])
def test_tokens_of_a_linear_tokenizer_take_fewer_bytes_than_half_a_byte_an_element(rank: int) -> None:
    array = tokens_of_rank(rank)
    assert len(CODEC.encode(array)) < {4: 1 / 30, 64: 1 / 5}[rank] * array.size


def test_samples_of_few_dimensions_cost_their_dimensions_whatever_the_width_is() -> None:
    narrow, wide = (len(CODEC.encode(tokens_of_rank(4, (2048, width)))) for width in (32, 256))
    assert wide < 1.35 * narrow


def test_one_outlier_does_not_spoil_the_rest() -> None:
    array = tokens_of_rank(4)
    array[3, 5, 7] = 1e4
    difference = np.abs(CODEC.decode(CODEC.encode(array), array.shape) - array)
    assert difference.max() <= CODEC.error_bound(array).item()


def test_fewer_tokens_than_components_come_back() -> None:
    assert relative_error(CODEC, tokens_of_rank(64, (3, 300))) <= 0.03


def test_numbers_too_small_for_a_step_come_back_exactly() -> None:
    array = np.random.default_rng(7).integers(-9, 9, (64, 64)).astype(np.float32) * np.float32(2.0**-149)
    np.testing.assert_array_equal(CODEC.decode(CODEC.encode(array), array.shape), array)


def test_zeros_take_a_few_bytes() -> None:
    assert len(CODEC.encode(np.zeros((32, 16, 128), np.float32))) == 11


def test_floating_point_settings_of_the_caller_do_not_matter() -> None:
    for array in (tokens_of_rank(4), np.full((4, 9), LARGEST, np.float32), np.full((40, 40), 2.0**-140, np.float32)):
        with np.errstate(all="raise"):
            encoded = CODEC.encode(array)
            decoded = CODEC.decode(encoded, array.shape)
        np.testing.assert_array_equal(decoded, CODEC.decode(CODEC.encode(array), array.shape))


def test_products_are_exact_so_that_every_machine_decodes_the_same() -> None:
    array = tokens_of_rank(64)
    decoded = CODEC.decode(CODEC.encode(array), array.shape).reshape(-1, 128)
    factors = CODEC._factors(array.reshape(-1, 128))
    assert factors is not None
    lengths = [float(np.sqrt(sum(int(number) ** 2 for number in row))) for row in factors.directions_RD]
    units = [np.rint(row * (2.0**14 / length)) for row, length in zip(factors.directions_RD, lengths, strict=True)]
    for token, column in ((0, 0), (17, 100), (511, 127)):
        numbers = zip(factors.coordinates_RN[:, token], units, strict=True)
        whole = sum(int(number) * int(row[column]) for number, row in numbers)
        mean = 0.0 if factors.mean_D is None else factors.mean_D[column] / 32  # N = 512 has ten bits
        assert decoded[token, column] == np.float32((whole / 2**14 + mean) * float(factors.step))


def test_memory_of_a_decoder_is_bounded_by_the_shape() -> None:
    array = tokens_of_rank(300, (300, 300))
    for error in (0.001, 0.5):
        codec = LowRankCodec(error)
        encoded = codec.encode(array)
        codec.decode(encoded, array.shape)  # makes the tables, which stay
        tracemalloc.start()
        try:
            codec.decode(encoded, array.shape)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 64 * array.size


@pytest.mark.parametrize(
    ("header", "refusal"),
    [
        (struct.pack("<BHfH", 0, 256, 1.0, 1), CorruptError),
        (struct.pack("<BHfH", 2, 257, 1.0, 1), CorruptError),
        (struct.pack("<BHfH", 2, 256, np.nan, 1), NonFiniteDataError),
        (struct.pack("<BHfH", 2, 256, np.inf, 1), NonFiniteDataError),
        (struct.pack("<BHfH", 2, 256, -1.0, 1), NonFiniteDataError),
        (struct.pack("<BHfH", 2, 256, 0.0, 1), NonFiniteDataError),
        (struct.pack("<BHfH", 2, 256, 1.0, 9), OversizedError),
    ],
    ids=["mode", "another shape", "NaN", "Inf", "negative step", "no step", "more components than dimensions"],
)
def test_a_header_that_no_encoder_writes_is_refused(header: bytes, refusal: type[DecodeError]) -> None:
    with pytest.raises(refusal):
        CODEC.decode(header + GOLDEN_RANK_ONE[len(header) :], (8, 8))


@pytest.mark.parametrize("data", [b"", b"\x02", GOLDEN_RANK_ONE[:-2], GOLDEN_RANK_ONE + b"\x00\x00"])
def test_bytes_too_few_or_too_many_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        CODEC.decode(data, (8, 8))


def test_a_direction_without_length_is_refused() -> None:
    zeros = [np.zeros(1, np.int64), np.zeros(8, np.int64), np.zeros(8, np.int64)]
    with pytest.raises(CorruptError, match="direction without length"):
        CODEC.decode(struct.pack("<BHfH", 2, 256, 1.0, 1) + encode_groups(zeros), (8, 8))


def test_a_large_step_decodes_to_the_largest_number() -> None:
    data = GOLDEN_RANK_ONE[:3] + struct.pack("<f", LARGEST) + GOLDEN_RANK_ONE[7:]
    decoded = CODEC.decode(data, (8, 8))
    assert np.isfinite(decoded).all()
    assert decoded.max() == np.float32(LARGEST)


def test_an_exact_tensor_of_another_length_is_refused() -> None:
    with pytest.raises(WrongLengthError):
        CODEC.decode(b"\x01" + bytes(12), (2, 2))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("lowrank", "lowrank:error=0.03"),
        ("lowrank:error=0.10", "lowrank:error=0.1"),
        ("lowrank:error=0.001+zstd", "lowrank:error=0.001+zstd:3"),
    ],
)
def test_the_canonical_name_always_has_the_error(name: str, canonical: str) -> None:
    assert codec_from_name(name).name == canonical
    assert codec_from_name(canonical) == codec_from_name(name)


@pytest.mark.parametrize(
    "option", ["0.1", "error", "error=", "error=0", "error=1", "error=1e-2", "error=nan", "rank=4"]
)
def test_other_options_are_refused_with_what_is_accepted(option: str) -> None:
    with pytest.raises(UnknownCodecError, match=r"lowrank takes error=0\.001 to error=0\.95"):
        codec_from_name(f"lowrank:{option}")


def test_two_options_are_refused() -> None:
    with pytest.raises(UnknownCodecError):
        codec_from_name("lowrank:error=0.1,error=0.2")
