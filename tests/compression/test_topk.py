"""Top-k and its randomized form: their bytes, what they keep, and the bytes that they refuse."""

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.compression import (
    CorruptError,
    DecodeError,
    NonFiniteDataError,
    UnknownCodecError,
    WrongLengthError,
    codec_from_name,
)
from cutlayer.compression.topk import TopKCodec

LARGEST = float(np.finfo(np.float32).max)

ARRAY = np.array([[0.5, -3.0, 0.25, 0.0], [1.0, 2.0, -0.125, -1.0]], np.float32)
GOLDEN_16 = bytes.fromhex("00008040 00ba 0034 0038 ff 32")  # scale 4; -0.75, 0.25, 0.5 of it; bits 1, 4 and 5
GOLDEN_8 = bytes.fromhex("0783c13c 81 2a 55 ff 32")  # scale 3 / 127 rounded up; -127, 42, 85
TINY = 2.0**-149


def noise(shape: tuple[int, ...] = (32, 16, 128)) -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def round_trip(codec: TopKCodec, array: NDArray[np.float32]) -> NDArray[np.float32]:
    return codec.decode(codec.encode(array), array.shape)


def test_golden_bytes_with_sixteen_bits() -> None:
    codec = TopKCodec(0.375)
    assert codec.encode(ARRAY) == GOLDEN_16
    decoded = np.array([[0, -3.0, 0, 0], [1.0, 2.0, 0, 0]], np.float32)  # of two equal magnitudes, the first
    np.testing.assert_array_equal(codec.decode(GOLDEN_16, (2, 4)), decoded)


def test_golden_bytes_with_eight_bits() -> None:
    codec = TopKCodec(0.375, bits=8)
    assert codec.encode(ARRAY) == GOLDEN_8
    scale = np.frombuffer(GOLDEN_8, "<f4", 1)[0].astype(np.float64)
    decoded = np.array([[0, -127 * scale, 0, 0], [42 * scale, 85 * scale, 0, 0]]).astype(np.float32)
    np.testing.assert_array_equal(codec.decode(GOLDEN_8, (2, 4)), decoded)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("ratio", [0.0001, 0.01, 0.1, 0.5, 1.0])
def test_the_largest_elements_of_the_whole_tensor_are_kept(ratio: float, bits: int) -> None:
    array = noise()
    decoded = round_trip(TopKCodec(ratio, bits), array)
    is_kept = decoded != 0
    num_kept = int(np.ceil(ratio * array.size))
    # Very small elements may be kept and still round to zero.
    assert 0.98 * num_kept <= np.count_nonzero(is_kept) <= num_kept
    assert np.abs(array[is_kept]).min() >= np.abs(array[~is_kept]).max(initial=0.0)
    assert np.abs(decoded - array)[is_kept].max() <= np.abs(array).max() / (2000 if bits == 16 else 250)


def test_bound_of_what_is_left_out_is_its_magnitude() -> None:
    bound = TopKCodec(0.375).error_bound(ARRAY)
    np.testing.assert_array_equal(bound[decoded_zeros()], np.abs(ARRAY)[decoded_zeros()])
    assert (bound[~decoded_zeros()] < np.abs(ARRAY)[~decoded_zeros()] / 1000).all()


def decoded_zeros() -> NDArray[np.bool_]:
    is_zero: NDArray[np.bool_] = TopKCodec(0.375).decode(GOLDEN_16, (2, 4)) == 0
    return is_zero


def test_at_least_one_element_is_kept() -> None:
    np.testing.assert_array_equal(round_trip(TopKCodec(0.0001), ARRAY), np.where(ARRAY == -3, ARRAY, 0))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("magnitude", [TINY, 100 * TINY, 2.0**-126, 1e-20, 65504.0, 1e6, LARGEST])
def test_elements_of_any_magnitude_stay_within_the_bound(magnitude: float, bits: int) -> None:
    array = (np.random.default_rng(7).uniform(-1, 1, (4, 32)) * magnitude).astype(np.float32)
    array[0, 0], array[1, 1] = magnitude, -magnitude
    codec = TopKCodec(0.5, bits)
    with np.errstate(all="raise"):
        decoded = round_trip(codec, array)
        bound = codec.error_bound(array)
    assert (np.abs(decoded.astype(np.float64) - array) <= bound).all()
    assert decoded[0, 0] == pytest.approx(magnitude, rel=2.0**-10)


def test_randomized_top_k_keeps_most_of_the_largest_and_some_of_the_rest() -> None:
    array = noise()
    num_kept = int(np.ceil(0.1 * array.size))
    plain = np.abs(round_trip(TopKCodec(0.1), array)) > 0
    drawn = np.abs(round_trip(TopKCodec(0.1, share=0.25, family="randtopk"), array)) > 0
    assert np.count_nonzero(drawn) == num_kept
    assert np.count_nonzero(drawn & ~plain) == pytest.approx(0.25 * num_kept, rel=0.05)
    cut = np.sort(np.abs(array), axis=None)[-round(0.75 * num_kept)]
    assert drawn[np.abs(array) > cut].all()


def test_randomized_top_k_draws_small_and_large_elements_alike() -> None:
    array = noise()
    drawn = round_trip(TopKCodec(0.2, share=1.0, family="randtopk"), array) != 0
    correlation = np.corrcoef(drawn.reshape(-1), np.abs(array).reshape(-1))[0, 1]
    assert abs(correlation) < 0.02


def test_randomized_top_k_is_a_function_of_its_input() -> None:
    codec = TopKCodec(0.1, share=0.5, family="randtopk")
    array = noise((4, 64))
    assert codec.encode(array) == codec.encode(array.copy())
    other = array.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float32(9))
    positions = [np.flatnonzero(round_trip(codec, tensor)).tolist() for tensor in (array, other)]
    assert positions[0] != positions[1]


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"", WrongLengthError),
        (GOLDEN_16[:-2], WrongLengthError),
        (GOLDEN_16 + b"\x00", WrongLengthError),
        (GOLDEN_16[:-1] + b"\x33", CorruptError),
        (struct.pack("<f", np.nan) + GOLDEN_16[4:], NonFiniteDataError),
        (struct.pack("<f", np.inf) + GOLDEN_16[4:], NonFiniteDataError),
        (struct.pack("<f", -1.0) + GOLDEN_16[4:], NonFiniteDataError),
        (GOLDEN_16[:4] + b"\x00\x7c" + GOLDEN_16[6:], NonFiniteDataError),
        (bytes(4) + b"\x00\x7c" + GOLDEN_16[6:], NonFiniteDataError),
        (GOLDEN_16[:4] + b"\x00\x7e" + GOLDEN_16[6:], NonFiniteDataError),
    ],
    ids=[
        "empty",
        "short",
        "long",
        "one too many",
        "NaN scale",
        "Inf scale",
        "negative scale",
        "Inf",
        "Inf times 0",
        "NaN",
    ],
)
def test_what_no_encoder_writes_is_refused(data: bytes, refusal: type[DecodeError]) -> None:
    with pytest.raises(refusal):
        TopKCodec(0.375).decode(data, (2, 4))


def test_a_scale_that_leads_beyond_float32_decodes_to_its_largest_number() -> None:
    data = struct.pack("<f", LARGEST) + bytes.fromhex("00c4") * 3 + GOLDEN_16[10:]
    assert TopKCodec(0.375).decode(data, (2, 4)).min() == -np.float32(LARGEST)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("topk", "topk:ratio=0.1,bits=16"),
        ("topk:bits=8", "topk:ratio=0.1,bits=8"),
        ("topk:bits=8,ratio=0.010", "topk:ratio=0.01,bits=8"),
        ("randtopk", "randtopk:ratio=0.1,share=0.1,bits=16"),
        ("randtopk:share=0.5,bits=8+zstd", "randtopk:ratio=0.1,share=0.5,bits=8+zstd:3"),
    ],
)
def test_the_canonical_name_has_all_options_in_one_order(name: str, canonical: str) -> None:
    assert codec_from_name(name).name == canonical
    assert codec_from_name(canonical) == codec_from_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "topk:0.1",
        "topk:ratio=0",
        "topk:ratio=1.5",
        "topk:ratio=nan",
        "topk:bits=4",
        "topk:bits=9",
        "topk:share=0.1",
        "topk:ratio=0.1,ratio=0.2",
        "randtopk:share=2",
        "randtopk:k=3",
    ],
)
def test_other_options_are_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(UnknownCodecError, match=r"topk takes ratio=0\.0001 to ratio=1, bits=8 or bits=16"):
        codec_from_name(name)
