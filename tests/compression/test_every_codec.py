"""What holds for every codec and byte stage: round trips within the bound, and no trust in bytes."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cutlayer.compression import (
    MAX_ELEMENTS,
    Codec,
    CodecError,
    DecodeError,
    NonFiniteInputError,
    OversizedError,
    ShapeError,
    WrongDtypeError,
    available_byte_stages,
    available_codecs,
    codec_from_name,
)

WITH_OPTIONS = [
    "int8:block=token",
    "int8:block=5",
    "int8:block=all,round=stochastic",
    "int4:block=16,symmetric",
    "int4:block=all,symmetric",
    "int4:round=stochastic",
    "int2:block=7",
    "int2:block=all",
    "int2:symmetric,round=stochastic",
    "entropy:error=0.001",
    "entropy:error=0.95",
    "lowrank:error=0.001",
    "lowrank:error=0.95",
    "topk:ratio=0.5,bits=8",
]
STAGED = [f"{tensor}+{stage}" for tensor in ("identity", "int8") for stage in available_byte_stages()]
NAMES = [*available_codecs(), *WITH_OPTIONS, *STAGED, "bf16+shuffle+zstd", "int4+zstd", "identity+bitshuffle+lz4"]
every_codec = pytest.mark.parametrize("codec", [codec_from_name(name) for name in NAMES], ids=NAMES)

EMPTY_SHAPES = [(0,), (0, 128), (4, 0), (0, 0), (2, 0, 3), (32, 0, 128)]

finite_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
tensors = hnp.arrays(np.float32, shapes, elements=finite_float32)


def assert_round_trip(codec: Codec, array: NDArray[np.float32]) -> None:
    encoded = codec.encode(array)
    assert len(encoded) <= codec.max_encoded_bytes(array.shape)
    decoded = codec.decode(encoded, array.shape)
    assert decoded.shape == array.shape
    assert decoded.dtype == np.float32
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
    assert np.isfinite(decoded).all()
    error = np.abs(decoded.astype(np.float64) - array)
    assert (error <= np.broadcast_to(codec.error_bound(array), array.shape)).all()
    if codec.is_lossless:
        assert decoded.tobytes() == array.tobytes()


@every_codec
@settings(deadline=None)
@given(array=tensors)
def test_any_finite_tensor_comes_back_within_the_bound(codec: Codec, array: NDArray[np.float32]) -> None:
    assert_round_trip(codec, array)


@every_codec
@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-45, 38), center=st.floats(-1e3, 1e3))
def test_activations_of_any_magnitude_come_back_within_the_bound(
    codec: Codec, seed: int, exponent: int, center: float
) -> None:
    noise = np.random.default_rng(seed).uniform(-1, 1, (3, 5, 64)) + center * (seed % 2)
    largest = np.finfo(np.float32).max
    assert_round_trip(codec, np.clip(noise * 10.0**exponent, -largest, largest).astype(np.float32))


@every_codec
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 2.0**-149, 65504.0, 3.4e38, -3.4e38])
def test_constant_tensors_come_back_within_the_bound(codec: Codec, value: float) -> None:
    assert_round_trip(codec, np.full((2, 3, 16), value, np.float32))


@every_codec
def test_zeros_come_back_as_zeros(codec: Codec) -> None:
    zeros = np.zeros((2, 3, 16), np.float32)
    np.testing.assert_array_equal(codec.decode(codec.encode(zeros), zeros.shape), zeros)


@every_codec
@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
def test_empty_tensors_come_back(codec: Codec, shape: tuple[int, ...]) -> None:
    assert_round_trip(codec, np.empty(shape, np.float32))


@every_codec
def test_a_tensor_without_axes_comes_back(codec: Codec) -> None:
    assert_round_trip(codec, np.array(3.25, np.float32))


@every_codec
def test_memory_layout_of_the_input_does_not_matter(codec: Codec) -> None:
    whole = np.random.default_rng(7).standard_normal((6, 8, 10)).astype(np.float32)
    views = [whole.transpose(2, 0, 1), whole[::2, :, 1:7], whole[:, ::-1], np.asfortranarray(whole)]
    for view in views:
        assert codec.encode(view) == codec.encode(view.copy(order="C"))
        assert_round_trip(codec, view)


@every_codec
def test_the_input_is_left_alone(codec: Codec) -> None:
    array = np.random.default_rng(7).standard_normal((4, 16)).astype(np.float32)
    before = array.copy()
    array.flags.writeable = False
    codec.decode(codec.encode(array), array.shape)[:] = 0
    np.testing.assert_array_equal(array, before)


@every_codec
def test_a_decoded_tensor_shares_no_memory_with_the_bytes(codec: Codec) -> None:
    array = np.random.default_rng(7).standard_normal((4, 16)).astype(np.float32)
    buffer = bytearray(codec.encode(array))
    decoded = codec.decode(memoryview(buffer), array.shape)
    before = decoded.copy()
    buffer[:] = bytes(len(buffer))
    np.testing.assert_array_equal(decoded, before)


@every_codec
def test_bytes_may_start_at_an_odd_address(codec: Codec) -> None:
    array = np.random.default_rng(7).standard_normal((4, 16)).astype(np.float32)
    encoded = codec.encode(array)
    shifted = memoryview(b"\x00" + encoded)[1:]
    np.testing.assert_array_equal(codec.decode(shifted, array.shape), codec.decode(encoded, array.shape), strict=True)


@every_codec
@pytest.mark.parametrize(
    ("values", "num_nan", "num_inf"),
    [([np.nan, 0.0], 1, 0), ([np.inf, 0.0], 0, 1), ([-np.inf, np.inf], 0, 2), ([np.nan, -np.inf], 1, 1)],
)
def test_nan_and_inf_are_refused_by_name(codec: Codec, values: list[float], num_nan: int, num_inf: int) -> None:
    array = np.zeros((3, 8), np.float32)
    array[1, :2] = values
    for refuse in (codec.encode, codec.error_bound):
        with pytest.raises(NonFiniteInputError, match=f"{num_nan} NaN and {num_inf} Inf") as caught:
            refuse(array)
        assert (caught.value.num_nan, caught.value.num_inf) == (num_nan, num_inf)


@every_codec
def test_other_dtypes_are_refused(codec: Codec) -> None:
    array = np.zeros((2, 3), np.float64)
    for refuse in (codec.encode, codec.error_bound):
        with pytest.raises(WrongDtypeError, match="float64"):
            refuse(array)  # type: ignore[arg-type]


@every_codec
def test_shapes_beyond_the_limits_are_refused_in_both_directions(codec: Codec) -> None:
    too_large = np.broadcast_to(np.float32(0), (MAX_ELEMENTS + 1,))
    with pytest.raises(ShapeError):
        codec.encode(too_large)
    with pytest.raises(ShapeError):
        codec.decode(b"", too_large.shape)
    with pytest.raises(ShapeError):
        codec.max_encoded_bytes((2, -1))


@every_codec
@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=300), shape=shapes)
def test_arbitrary_bytes_decode_to_finite_numbers_or_raise_a_codec_error(
    codec: Codec, data: bytes, shape: tuple[int, ...]
) -> None:
    try:
        decoded = codec.decode(data, shape)
    except CodecError:
        return
    assert decoded.shape == shape
    assert np.isfinite(decoded).all()


@every_codec
@settings(deadline=None)
@given(array=hnp.arrays(np.float32, (3, 8), elements=finite_float32), data=st.data())
def test_a_damaged_encoding_decodes_to_finite_numbers_or_raises_a_decode_error(
    codec: Codec, array: NDArray[np.float32], data: st.DataObject
) -> None:
    damaged = bytearray(codec.encode(array))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = codec.decode(bytes(damaged), array.shape)
    except DecodeError:
        return
    assert np.isfinite(decoded).all()


@every_codec
def test_a_wrong_shape_is_refused(codec: Codec) -> None:
    encoded = codec.encode(np.ones((4, 16), np.float32))
    for shape in [(4, 15), (5, 16), (0,), ()]:
        with pytest.raises(DecodeError):
            codec.decode(encoded, shape)


@every_codec
def test_a_large_shape_with_few_bytes_takes_no_memory(codec: Codec) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            codec.decode(b"\x00" * 64, (2**13, 2**14))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


@every_codec
@pytest.mark.parametrize("shape", [(64, 1024), (50_000, 1), (65_536,)], ids=str)
def test_a_decoder_takes_no_more_than_64_bytes_an_element(codec: Codec, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    encoded = codec.encode(array)
    codec.decode(encoded, shape)  # what is made on first use and kept
    tracemalloc.start()
    try:
        codec.decode(encoded, shape)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes <= 64 * array.size


@pytest.mark.parametrize("name", ["int8+lz4", "int8+zstd"])
def test_more_bytes_than_an_encoding_can_have_are_refused_unread(name: str) -> None:
    codec = codec_from_name(name)
    limit_bytes = codec.max_encoded_bytes((2, 3))
    with pytest.raises(OversizedError) as caught:
        codec.decode(bytes(limit_bytes + 1), (2, 3))
    assert (caught.value.declared_bytes, caught.value.limit_bytes) == (limit_bytes + 1, limit_bytes)


@every_codec
def test_codecs_are_values_that_can_be_pickled(codec: Codec) -> None:
    assert pickle.loads(pickle.dumps(codec)) == codec  # noqa: S301
    assert hash(codec) == hash(codec_from_name(codec.name))
