"""The entropy-coded quantizer: its bytes, its error, and its rate on outputs and output gradients."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.compression import (
    CorruptError,
    DecodeError,
    NonFiniteDataError,
    UnknownCodecError,
    WrongLengthError,
    codec_from_name,
)
from cutlayer.compression.entropy import EntropyCodec

LARGEST = float(np.finfo(np.float32).max)
ARRAY = np.array([[1.0, -2.0, 0.25, 0.0], [3.0, 0.5, -0.75, 6.0]], np.float32)
GOLDEN = bytes.fromhex("d63f 8d00 ecec 1400 cbdf")


def relative_error(codec: EntropyCodec, array: NDArray[np.float32]) -> float:
    difference = codec.decode(codec.encode(array), array.shape).astype(np.float64) - array
    return float(np.sqrt(np.square(difference).mean() / np.square(array, dtype=np.float64).mean()))


def gradients(rows: int = 32, confidence: float = 4.0) -> NDArray[np.float32]:
    """Output gradients of a trained classifier: softmax less the labels."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 10, rows)
    outputs = generator.standard_normal((rows, 10)) + confidence * np.eye(10)[labels]
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    result: NDArray[np.float32] = (shares - np.eye(10)[labels]).astype(np.float32)
    return result


def test_golden_bytes() -> None:
    codec = EntropyCodec(0.2)
    assert codec.encode(ARRAY) == GOLDEN
    step = float(np.frombuffer(b"\x00\x00" + GOLDEN[:2], "<f4")[0])
    expected = np.rint(ARRAY / step) * step
    np.testing.assert_array_equal(codec.decode(GOLDEN, (2, 4)), expected.astype(np.float32))


def test_golden_bytes_of_what_does_not_get_smaller() -> None:
    golden = bytes.fromhex("0000 0000803f")
    assert EntropyCodec(0.1).encode(np.ones(1, np.float32)) == golden
    np.testing.assert_array_equal(EntropyCodec(0.1).decode(golden, (1,)), np.ones(1, np.float32))


@pytest.mark.parametrize("error", [0.001, 0.01, 0.1, 0.3, 0.5])
def test_the_root_mean_square_error_is_what_was_asked_for(error: float) -> None:
    array = np.random.default_rng(7).standard_normal((32, 10)).astype(np.float32)
    assert 0.95 * error < relative_error(EntropyCodec(error), array) <= error + 1e-7


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 400),
    exponent=st.integers(-29, 38),
    error=st.sampled_from([0.001, 0.1, 0.9]),
    power=st.sampled_from([1, 5]),
)
def test_tensors_of_any_magnitude_and_tail_keep_the_error(size: int, exponent: int, error: float, power: int) -> None:
    noise = np.random.default_rng(size).uniform(-1, 1, size) ** power
    array = np.clip(noise * 10.0**exponent, -LARGEST, LARGEST).astype(np.float32)
    assert relative_error(EntropyCodec(error), array) <= error + 1e-7


@pytest.mark.parametrize(
    "name", ["int4:block=all,symmetric", "int4:block=all,symmetric+zstd", "int2:block=all,symmetric"]
)
def test_output_gradients_take_fewer_bytes_at_the_same_error(name: str) -> None:
    array, fixed = gradients(), codec_from_name(name)
    encoded = fixed.encode(array)
    difference = fixed.decode(encoded, array.shape) - array
    error = float(np.sqrt(np.square(difference).mean() / np.square(array).mean()))
    entropy = EntropyCodec(round(error, 4))
    assert relative_error(entropy, array) <= error + 1e-4
    num_bytes = len(entropy.encode(array))
    print(f"{fixed.name}: {len(encoded)} bytes, error {error:.3f}; entropy: {num_bytes} bytes")  # -s shows it
    assert num_bytes < 0.8 * len(encoded)


def test_zeros_take_eight_bytes() -> None:
    assert len(EntropyCodec().encode(np.zeros((32, 10), np.float32))) == 8


def test_numbers_too_small_for_a_step_come_back_exactly() -> None:
    array = np.arange(-20, 20, dtype=np.float32) * np.float32(2.0**-149)
    np.testing.assert_array_equal(EntropyCodec().decode(EntropyCodec().encode(array), array.shape), array)


def test_floating_point_settings_of_the_caller_do_not_matter() -> None:
    codec = EntropyCodec()
    for array in (gradients(), np.full((4, 9), LARGEST, np.float32), np.full((4, 9), 2.0**-140, np.float32)):
        with np.errstate(all="raise"):
            decoded = codec.decode(codec.encode(array), array.shape)
            codec.error_bound(array)
        assert (np.abs(decoded.astype(np.float64) - array) <= codec.error_bound(array)).all()


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"", WrongLengthError),
        (b"\x00", WrongLengthError),
        (GOLDEN[:3], WrongLengthError),
        (GOLDEN[:-1], DecodeError),
        (GOLDEN + b"\x00\x00", CorruptError),
        (struct.pack("<H", 0) + bytes(4), WrongLengthError),
        (struct.pack("<H", 0x7F80) + GOLDEN[2:], NonFiniteDataError),
        (struct.pack("<H", 0x7FC0) + GOLDEN[2:], NonFiniteDataError),
        (struct.pack("<H", 0xBF80) + GOLDEN[2:], NonFiniteDataError),
        (struct.pack("<H", 0) + np.full(8, np.nan, "<f4").tobytes(), NonFiniteDataError),
    ],
    ids=["empty", "one byte", "short", "cut off", "long", "exact, short", "Inf", "NaN", "negative", "exact NaN"],
)
def test_what_no_encoder_writes_is_refused(data: bytes, refusal: type[DecodeError]) -> None:
    with pytest.raises(refusal):
        EntropyCodec(0.2).decode(data, (2, 4))


def test_a_large_step_decodes_to_the_largest_number() -> None:
    decoded = EntropyCodec(0.2).decode(struct.pack("<H", 0x7F7F) + GOLDEN[2:], (2, 4))
    assert decoded.max() == np.float32(LARGEST)


@pytest.mark.parametrize(
    ("name", "canonical"), [("entropy", "entropy:error=0.1"), ("entropy:error=0.20", "entropy:error=0.2")]
)
def test_the_canonical_name_always_has_the_error(name: str, canonical: str) -> None:
    assert codec_from_name(name).name == canonical
    assert codec_from_name(canonical) == codec_from_name(name)


@pytest.mark.parametrize("option", ["0.1", "error=0", "error=1", "error=nan", "step=0.1", "error=0.1,error=0.1"])
def test_other_options_are_refused_with_what_is_accepted(option: str) -> None:
    with pytest.raises(UnknownCodecError, match=r"entropy takes error=0\.001 to error=0\.95"):
        codec_from_name(f"entropy:{option}")
