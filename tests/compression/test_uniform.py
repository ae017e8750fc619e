"""The quantizers of 8, 4 and 2 bits: their bytes, their blocks, and that rounding at random has no bias."""

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from cutlayer.compression import Codec, NonFiniteDataError, NonFiniteInputError, codec_from_name

SUBNORMAL = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)
NAMES = [
    f"int{bits}:{options}"
    for bits in (8, 4, 2)
    for options in (
        "block=token",
        "block=5",
        "block=all",
        "symmetric",
        "round=stochastic",
        "symmetric,round=stochastic",
    )
]
every_quantizer = pytest.mark.parametrize("codec", [codec_from_name(name) for name in NAMES], ids=NAMES)


def float32(values: object) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def round_trip(codec: Codec, array: NDArray[np.float32]) -> NDArray[np.float32]:
    return codec.decode(codec.encode(array), array.shape)


def assert_within_bound(codec: Codec, array: NDArray[np.float32]) -> None:
    error = np.abs(round_trip(codec, array).astype(np.float64) - array)
    assert (error <= codec.error_bound(array)).all()


GRID = float32([[-8, -7, 0, 7], [3, 3, 3, 3], [-4, 3.5, 0.25, -0.25]])


@pytest.mark.parametrize(
    ("name", "golden", "decoded"),
    [
        (
            "int4",
            "0000 4040 0000  007f 0000 007e"  # centers 0, 3, 0; scales 1, 0, 0.5
            "10f8 8888 f089",  # codes are levels plus 8; 0.25 lies between levels 0 and 1, and ties round up
            [[-8, -7, 0, 7], [3, 3, 3, 3], [-4, 3.5, 0.5, 0]],
        ),
        (
            "int2",
            "0040 4040 803f  4081 0000 4080"  # centers 2, 3, 1; scales 5, 0, 2.5
            "e0 aa ac",  # codes are levels plus 2
            [[-8, -8, 2, 7], [3, 3, 3, 3], [-4, 3.5, 1, 1]],
        ),
        (
            "int4:block=all,symmetric",
            "257f"  # 8 / 7, rounded up to 293 / 256
            "21e8 bbbb b588",
            np.array([[-7, -6, 0, 6], [3, 3, 3, 3], [-3, 3, 0, 0]]) * 293 / 256,
        ),
    ],
)
def test_golden_bytes(name: str, golden: str, decoded: ArrayLike) -> None:
    codec = codec_from_name(name)
    assert codec.encode(GRID) == bytes.fromhex(golden)
    np.testing.assert_array_equal(codec.decode(bytes.fromhex(golden), GRID.shape), float32(decoded))


@pytest.mark.parametrize("name", ["int8:block=token", "int8:block=4"])
def test_golden_bytes_of_eight_bits(name: str) -> None:
    array = float32([[-128, -1, 0, 127], [-64, 0.25, 0, 63.5]])
    golden = bytes.fromhex("0000 0000  007f 007e  007f80ff 008180ff")  # centers, scales 1 and 0.5, levels plus 128
    assert codec_from_name(name).encode(array) == golden
    decoded = float32([[-128, -1, 0, 127], [-64, 0.5, 0, 63.5]])
    np.testing.assert_array_equal(codec_from_name(name).decode(golden, (2, 4)), decoded)


def test_a_last_block_that_is_shorter_has_a_header_like_the_others() -> None:
    array = float32([-8, -7, 0, 7, -4, 3.5, 1])
    golden = bytes.fromhex("0000 0000  007f 007e  10f8 f00a")
    assert codec_from_name("int4:block=4").encode(array) == golden


@every_quantizer
@pytest.mark.parametrize("constant", [0.0, 1.0, -0.75, 2.0**-133, -(2.0**-126), 2.0**127])
def test_constant_blocks_of_a_bfloat16_come_back_exactly(codec: Codec, constant: float) -> None:
    array = np.full((3, 7), constant, np.float32)
    if "symmetric" not in codec.name:
        np.testing.assert_array_equal(round_trip(codec, array), array)
        assert not codec.error_bound(array).any()


@every_quantizer
@pytest.mark.parametrize("constant", [0.1, -0.3, 1e-30, -3.3e38, 1e6 + 0.1])
def test_other_constant_blocks_come_back_within_half_a_percent(codec: Codec, constant: float) -> None:
    array = np.full((3, 7), constant, np.float32)
    assert_within_bound(codec, array)
    if "symmetric" not in codec.name:
        assert (np.abs(round_trip(codec, array).astype(np.float64) - array) <= 2.0**-8 * abs(constant)).all()


@every_quantizer
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
        [LARGEST, LARGEST, LARGEST],
        [2.0**126, -(2.0**126), 0.0],
        [1e6, 1e6 + 0.0625, 1e6 + 0.125],
        [-LARGEST, SUBNORMAL],
        [65504.0, 65505.0, 70000.0],
        [1e-9, -1e-9, 3e-10],
    ],
)
def test_tokens_at_the_edges_of_float32_stay_within_the_bound(codec: Codec, token: list[float]) -> None:
    assert_within_bound(codec, float32([token]))
    assert_within_bound(codec, float32([token, [1.0] * len(token), token[::-1]]))


@every_quantizer
def test_the_bound_is_half_a_step_or_one_and_not_loose(codec: Codec) -> None:
    array = np.random.default_rng(7).standard_normal((64, 125)).astype(np.float32)
    error = np.abs(round_trip(codec, array).astype(np.float64) - array)
    assert 0.9 < (error / codec.error_bound(array)).max() <= 1


def test_a_bound_is_about_half_a_step_of_the_range() -> None:
    for bits in (8, 4, 2):
        bound = codec_from_name(f"int{bits}:block=token").error_bound(float32([[0.0, 51.0, 20.0], [0.0, 510.0, 30.0]]))
        np.testing.assert_allclose(bound[:, 0], [25.5 / (2**bits - 1), 255 / (2**bits - 1)], rtol=0.01)


@pytest.mark.parametrize("name", ["int8:symmetric", "int4:symmetric", "int2:symmetric", "int4:block=all,symmetric"])
def test_zeros_in_symmetric_blocks_come_back_as_zeros(name: str) -> None:
    array = np.random.default_rng(7).standard_normal((64, 10)).astype(np.float32)
    array[::3] *= np.float32(1e-6)
    array[:, 4:9] = 0
    assert not round_trip(codec_from_name(name), array)[:, 4:9].any()


@pytest.mark.parametrize("block", ["token", "5", "64", "all"])
@pytest.mark.parametrize("shape", [(3, 700, 128), (2, 100_003), (70_001, 1), (517, 7)])
def test_a_tensor_of_several_chunks_equals_its_blocks_one_by_one(shape: tuple[int, ...], block: str) -> None:
    codec = codec_from_name(f"int4:block={block}")
    flat = np.random.default_rng(7).standard_normal(shape).astype(np.float32).reshape(-1)
    decoded = round_trip(codec, flat.reshape(shape)).reshape(-1)
    size = {"token": shape[-1], "all": flat.size}.get(block) or int(block)
    whole = codec_from_name("int4:block=all")
    last = (flat.size - 1) // size * size
    for start in (0, size, flat.size // 2 // size * size, last):
        part = slice(start, start + size)
        np.testing.assert_array_equal(decoded[part], round_trip(whole, flat[part]))


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("int8:block=token", 16 * (4 + 10)),
        ("int8:block=all", 4 + 160),
        ("int8:block=all,symmetric", 2 + 160),
        ("int4", 16 * 4 + 80),
        ("int4:block=all", 4 + 80),
        ("int4:block=64", 3 * 4 + 80),
        ("int2:block=all", 4 + 40),
        ("int2:block=all,symmetric", 2 + 40),
    ],
)
def test_outputs_of_ten_classes_cost_their_codes_and_few_bytes_more(name: str, num_bytes: int) -> None:
    codec = codec_from_name(name)
    assert codec.max_encoded_bytes((16, 10)) == num_bytes
    assert len(codec.encode(np.ones((16, 10), np.float32))) == num_bytes


def test_nan_in_any_chunk_is_counted() -> None:
    array = np.zeros((2001, 127), np.float32)
    array[0, 0], array[2000, 126], array[1000, 5] = np.nan, np.nan, -np.inf
    for name in ("int4", "int2:block=all,symmetric", "int8:block=64"):
        with pytest.raises(NonFiniteInputError) as caught:
            codec_from_name(name).encode(array)
        assert (caught.value.num_nan, caught.value.num_inf) == (2, 1)


@pytest.mark.parametrize(
    ("header", "what"),
    [("807f 007f", "centers"), ("80ff 007f", "centers"), ("c17f 007f", "centers"), ("803f 00ff", "scales")],
)
def test_a_header_that_is_not_finite_is_refused(header: str, what: str) -> None:
    with pytest.raises(NonFiniteDataError, match=f"NaN or Inf among the {what}"):
        codec_from_name("int4").decode(bytes.fromhex(header) + b"\x21", (2,))


def test_every_scale_is_decoded_to_finite_numbers_or_refused() -> None:
    codec = codec_from_name("int2:block=4,symmetric")
    num_finite = 0xFF00
    scales = np.arange(num_finite, dtype="<u2").tobytes()
    assert np.isfinite(codec.decode(scales + b"\xe4" * num_finite, (num_finite, 4))).all()
    for bits in (0xFF00, 0xFF01, 0xFFC0, 0xFFFF):
        with pytest.raises(NonFiniteDataError):
            codec.decode(bits.to_bytes(2, "little") + b"\xe4", (4,))


def test_a_header_that_leads_beyond_float32_decodes_to_its_largest_number() -> None:
    decoded = codec_from_name("int4").decode(bytes.fromhex("0000 fffe 80f0"), (4,))  # levels -8, 0, -8, 7
    np.testing.assert_array_equal(decoded, float32([-LARGEST, 0.0, -LARGEST, LARGEST]))


@every_quantizer
def test_floating_point_settings_of_the_caller_do_not_matter(codec: Codec) -> None:
    array = float32([[-LARGEST, LARGEST], [0.0, SUBNORMAL], [0.0, 0.0], [1.0, 2.0], [1e-30, -1e-39]])
    with np.errstate(all="raise"):
        decoded = round_trip(codec, array)
        codec.error_bound(array)
    np.testing.assert_array_equal(decoded, round_trip(codec, array))


def test_stochastic_rounding_is_a_function_of_the_tensor() -> None:
    codec = codec_from_name("int4:round=stochastic")
    array = np.random.default_rng(7).standard_normal((600, 128)).astype(np.float32)
    assert codec.encode(array) == codec.encode(array.copy())
    changed = array.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(np.inf))
    same = round_trip(codec, changed)[1:] == round_trip(codec, array)[1:]
    # Other random numbers: a code stays where both round the same way, 2/3 of the time on average.
    assert 0.6 < same.mean() < 0.75


@pytest.mark.parametrize("name", ["int8:round=stochastic", "int4:round=stochastic", "int2:symmetric,round=stochastic"])
@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e38])
def test_stochastic_rounding_has_no_bias(name: str, scale: float) -> None:
    codec = codec_from_name(name)
    token = (np.array([-1, 1, 0.05, 0.1, -0.33, 0.6, 0.81, -0.99, 0]) * scale).astype(np.float32)
    num_tensors, num_tokens = 100, 100
    sums = np.zeros(8)
    for index in range(num_tensors):
        array = np.tile(token, (num_tokens, 1))
        # The last element makes each tensor another one, and is too small to change a grid.
        array[0, -1] = scale * index / 1000
        sums += round_trip(codec, array)[:, :8].sum(axis=0, dtype=np.float64)
    means, exact = sums / (num_tensors * num_tokens), token[:8].astype(np.float64)
    # One element's standard deviation is at most half a step; five standard errors of the mean. Seeds are fixed.
    tolerance = 5 * float(codec.error_bound(token).max()) / 2 / (num_tensors * num_tokens) ** 0.5
    np.testing.assert_allclose(means, exact, rtol=0, atol=tolerance)
    # Rounding to nearest is biased by more than that.
    nearest = round_trip(codec_from_name(name.replace("round=stochastic", "block=token")), token)[:8]
    assert np.abs(nearest - exact).max() > 2 * tolerance
