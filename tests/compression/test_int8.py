"""The 8-bit codec: its bytes, the tokens at the edges of float32, and the headers it refuses."""

import struct

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from cutlayer.compression import NonFiniteDataError, NonFiniteInputError
from cutlayer.compression.int8 import Int8Codec

CODEC = Int8Codec()
SUBNORMAL = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)


def float32(values: ArrayLike) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def round_trip(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return CODEC.decode(CODEC.encode(array), array.shape)


def test_golden_bytes_are_offsets_then_scales_then_codes() -> None:
    array = float32([[0.0, 1, 2, 255], [-1.0, -1, -1, -1], [-0.5, 0.0, 0.25, 127.0]])
    golden = bytes.fromhex(
        "00000000 000080bf 000000bf"  # offsets 0, -1, -0.5
        "0000803f 00000000 0000003f"  # scales 1, 0, 0.5
        "000102ff 00000000 000102ff"  # codes; 0.25 lies between 1 and 2 of its token, and ties round up
    )
    assert CODEC.encode(array) == golden
    decoded = float32([[0.0, 1, 2, 255], [-1.0, -1, -1, -1], [-0.5, 0.0, 0.5, 127.0]])
    np.testing.assert_array_equal(CODEC.decode(golden, (3, 4)), decoded)


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.3, SUBNORMAL, -SUBNORMAL, 2.0**-126, LARGEST, -LARGEST])
def test_constant_tokens_come_back_exactly_with_a_bound_of_zero(constant: float) -> None:
    array = np.full((3, 7), constant, np.float32)
    np.testing.assert_array_equal(round_trip(array), array)
    np.testing.assert_array_equal(CODEC.error_bound(array), np.zeros((3, 1)))


@pytest.mark.parametrize(
    "token",
    [
        [0.0, SUBNORMAL],
        [-SUBNORMAL, SUBNORMAL, 0.0],
        [0.0, 100 * SUBNORMAL, 254 * SUBNORMAL],
        [0.0, 2.0**-126, 2.0**-127],
        [1e-38, 3e-38, 2e-38],
        [0.0, 2.0**-119, 2.0**-118],
        [-LARGEST, LARGEST, 0.0, 1.0],
        [0.0, LARGEST, LARGEST / 3],
        [-LARGEST, 0.0, -LARGEST / 3],
        [0.9 * LARGEST, LARGEST, 0.95 * LARGEST],
        [2.0**126, -(2.0**126), 0.0],
        [1e6, 1e6 + 0.0625, 1e6 + 0.125],
        [-LARGEST, SUBNORMAL],
    ],
)
def test_tokens_at_the_edges_of_float32_stay_within_the_bound(token: list[float]) -> None:
    array = float32([token])
    error = np.abs(round_trip(array).astype(np.float64) - array)
    assert (error <= CODEC.error_bound(array)).all()


def test_bound_is_about_half_of_a_255th_of_the_range() -> None:
    bound = CODEC.error_bound(float32([[0.0, 51.0], [0.0, 510.0]]))
    np.testing.assert_allclose(bound, [[0.1], [1.0]], rtol=1e-3)


def test_bound_is_not_loose() -> None:
    array = np.random.default_rng(7).standard_normal((64, 128)).astype(np.float32)
    error = np.abs(round_trip(array).astype(np.float64) - array)
    assert (error.max(axis=1, keepdims=True) > 0.9 * CODEC.error_bound(array)).all()


def test_minimum_comes_back_exactly() -> None:
    array = np.random.default_rng(7).standard_normal((64, 128)).astype(np.float32)
    np.testing.assert_array_equal(round_trip(array).min(axis=1), array.min(axis=1))


def test_a_token_codes_the_same_whatever_its_neighbours_are() -> None:
    generator = np.random.default_rng(7)
    plain = generator.standard_normal((4, 16)).astype(np.float32)
    extreme = float32([[-LARGEST, LARGEST] * 8, [0.0, SUBNORMAL] * 8])
    mixed = round_trip(np.concatenate([extreme, plain, extreme]))
    np.testing.assert_array_equal(mixed[2:6], round_trip(plain))
    np.testing.assert_array_equal(mixed[:2], round_trip(extreme))


@pytest.mark.parametrize("shape", [(3, 700, 128), (2, 100_000), (200_000, 1)])
def test_a_tensor_of_several_blocks_equals_its_tokens_one_by_one(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    tokens = array.reshape(-1, shape[-1])
    decoded = round_trip(array).reshape(tokens.shape)
    for index in (0, 1, len(tokens) // 2, len(tokens) - 1):
        np.testing.assert_array_equal(decoded[index], round_trip(tokens[index]))


def test_nan_anywhere_in_a_tensor_of_several_blocks_is_counted() -> None:
    array = np.zeros((2000, 128), np.float32)
    array[0, 0], array[1999, 127], array[1000, 5] = np.nan, np.nan, -np.inf
    with pytest.raises(NonFiniteInputError) as caught:
        CODEC.encode(array)
    assert (caught.value.num_nan, caught.value.num_inf) == (2, 1)


def encoding(offset: float, scale: float, codes: bytes) -> bytes:
    return struct.pack("<ff", offset, scale) + codes


@pytest.mark.parametrize(("offset", "scale"), [(np.nan, 1.0), (np.inf, 1.0), (0.0, np.nan), (0.0, np.inf)])
def test_a_header_that_is_not_finite_is_refused(offset: float, scale: float) -> None:
    with pytest.raises(NonFiniteDataError, match="offsets and scales"):
        CODEC.decode(encoding(offset, scale, b"\x00\x01"), (2,))


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(NonFiniteDataError, match="negative scale"):
        CODEC.decode(encoding(0.0, -1.0, b"\x00\x01"), (2,))


def test_a_header_that_leads_beyond_float32_decodes_to_its_largest_number() -> None:
    decoded = CODEC.decode(encoding(0.0, LARGEST, b"\x00\x01\x02\xff"), (4,))
    np.testing.assert_array_equal(decoded, float32([0.0, LARGEST, LARGEST, LARGEST]))


def test_floating_point_settings_of_the_caller_do_not_matter() -> None:
    array = float32([[-LARGEST, LARGEST], [0.0, SUBNORMAL], [0.0, 0.0], [1.0, 2.0]])
    with np.errstate(all="raise"):
        decoded = round_trip(array)
        CODEC.error_bound(array)
    np.testing.assert_array_equal(decoded, round_trip(array))


def test_a_token_costs_its_width_and_eight_bytes() -> None:
    assert CODEC.max_encoded_bytes((32, 16, 128)) == 32 * 16 * (128 + 8)
    assert len(CODEC.encode(np.zeros((32, 16, 128), np.float32))) == 32 * 16 * (128 + 8)
