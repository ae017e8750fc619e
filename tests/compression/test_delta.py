"""Changes instead of activations: both ends have the same bits, errors do not add up, memory is bounded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cutlayer.compression import DecodeError, NonFiniteInputError, codec_from_name
from cutlayer.compression.delta import SampleMemory, decode_change, encode_change

NAMES = ["identity", "fp16", "int8+zstd", "int4", "topk:ratio=0.2", "lowrank:error=0.05", "lowrank:error=0.05+zstd"]
every_codec = pytest.mark.parametrize("name", NAMES)
every_type = pytest.mark.parametrize("dtype", [np.float16, np.float32])
Kept = type[np.float16 | np.float32]
SHAPE = (8, 16, 32)
ENTRY_BYTES = 300


def visits_of(num_visits: int, *, drift: float = 0.1, rank: int = 8) -> list[NDArray[np.float32]]:
    """The same samples as a linear tokenizer gives them while its weights change."""
    generator = np.random.default_rng(7)
    inputs = generator.standard_normal((*SHAPE[:2], rank))
    weights = generator.standard_normal((rank, SHAPE[-1]))
    activations = []
    for _ in range(num_visits):
        activations.append((inputs @ weights).astype(np.float32))
        weights = weights + drift * generator.standard_normal(weights.shape)
    return activations


def relative_error(reconstruction: NDArray[np.float16 | np.float32], array: NDArray[np.float32]) -> float:
    difference = reconstruction.astype(np.float64) - array
    return float(np.sqrt(np.square(difference).mean() / np.square(array, dtype=np.float64).mean()))


@every_codec
@every_type
def test_both_ends_have_the_same_bits_after_every_visit(name: str, dtype: Kept) -> None:
    codec = codec_from_name(name)
    agent_base = worker_base = np.zeros(SHAPE, dtype)
    for array in visits_of(5):
        encoded, agent_base = encode_change(codec, array, agent_base)
        worker_base = decode_change(codec, encoded, worker_base)
        assert agent_base.dtype == worker_base.dtype == dtype
        assert agent_base.tobytes() == worker_base.tobytes()


@pytest.mark.parametrize(("name", "bound"), [("lowrank:error=0.05", 0.0501), ("int8", 0.01), ("int4", 0.12)])
@every_type
def test_errors_of_many_visits_do_not_add_up(name: str, bound: float, dtype: Kept) -> None:
    codec = codec_from_name(name)
    base = np.zeros(SHAPE, dtype)
    for array in visits_of(40, drift=0.03):
        _, base = encode_change(codec, array, base)
        assert relative_error(base, array) <= bound


@pytest.mark.parametrize("name", ["int4", "int2", "int8"])
def test_a_fixed_number_of_bits_says_more_about_a_small_change(name: str) -> None:
    codec = codec_from_name(name)
    first, second = visits_of(2, drift=0.03)
    _, base = encode_change(codec_from_name("identity"), first, np.zeros(SHAPE, np.float32))
    _, reconstruction = encode_change(codec, second, base)
    whole = codec.decode(codec.encode(second), SHAPE)
    assert relative_error(reconstruction, second) < 0.2 * relative_error(whole, second)


def test_a_small_change_takes_fewer_bytes_at_the_same_error() -> None:
    codec = codec_from_name("lowrank:error=0.03")
    first, second = visits_of(2, drift=0.05)
    _, base = encode_change(codec, first, np.zeros(SHAPE, np.float16))
    encoded, reconstruction = encode_change(codec, second, base)
    assert relative_error(reconstruction, second) < 0.0301
    assert len(encoded) < 0.7 * len(codec.encode(second))


def test_a_change_below_the_error_takes_a_few_bytes_and_changes_nothing() -> None:
    codec = codec_from_name("lowrank:error=0.05")
    (array,) = visits_of(1)
    _, base = encode_change(codec_from_name("lowrank:error=0.02"), array, np.zeros(SHAPE, np.float32))
    encoded, reconstruction = encode_change(codec, array, base)
    assert len(encoded) < 20
    np.testing.assert_array_equal(reconstruction, base)


def test_a_sample_that_the_receiver_does_not_have_goes_beside_one_that_it_has() -> None:
    first, second = visits_of(2)
    base = np.zeros(SHAPE, np.float32)
    base[3:] = first[3:]
    encoded, reconstruction = encode_change(codec_from_name("int8"), second, base)
    assert relative_error(reconstruction[:3], second[:3]) < 0.01
    assert decode_change(codec_from_name("int8"), encoded, base).tobytes() == reconstruction.tobytes()


@every_codec
@every_type
@settings(deadline=None, max_examples=20)
@given(exponent=st.integers(-44, 38), base_exponent=st.integers(-44, 38))
def test_reconstructions_are_finite_at_any_magnitude(name: str, dtype: Kept, exponent: int, base_exponent: int) -> None:
    noise = np.random.default_rng(7).uniform(-1, 1, (2, 3, 8))
    array = (noise * 10.0**exponent).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        base: NDArray[np.float16 | np.float32] = np.zeros(noise.shape, dtype)
        base += np.clip(noise[::-1] * 10.0**base_exponent, -60000, 60000).astype(dtype)
    encoded, reconstruction = encode_change(codec_from_name(name), array, base)
    assert np.isfinite(reconstruction).all()
    assert decode_change(codec_from_name(name), encoded, base).tobytes() == reconstruction.tobytes()


@every_codec
def test_a_change_beyond_float32_is_refused(name: str) -> None:
    largest = np.finfo(np.float32).max
    with pytest.raises(NonFiniteInputError):
        encode_change(codec_from_name(name), np.full((1, 2, 3), largest), np.full((1, 2, 3), -largest))


def test_damaged_bytes_raise_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        decode_change(codec_from_name("int8"), b"\x00" * 7, np.zeros(SHAPE, np.float32))


def samples(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


@every_type
def test_kept_samples_are_recalled_and_others_are_zeros(dtype: Kept) -> None:
    memory = SampleMemory(dtype=dtype)
    reconstruction = np.zeros((2, 3, 4), dtype)
    reconstruction += np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    assert memory.keep(samples(7, 3), reconstruction).tolist() == [1, 1]
    recalled = memory.recall(samples(3, 5, 7), (3, 4))
    assert recalled.base_BND.dtype == dtype
    np.testing.assert_array_equal(recalled.base_BND, [reconstruction[1], np.zeros((3, 4)), reconstruction[0]])
    assert recalled.is_known_B.tolist() == [True, False, True]
    assert recalled.visits_B.tolist() == [1, 0, 1]


def test_what_is_kept_shares_no_memory_with_the_caller() -> None:
    memory = SampleMemory()
    reconstruction = np.ones((1, 3, 4), np.float16)
    memory.keep(samples(7), reconstruction)
    reconstruction[:] = 0
    recalled = memory.recall(samples(7), (3, 4))
    assert (recalled.base_BND == 1).all()
    recalled.base_BND[:] = 0
    assert (memory.recall(samples(7), (3, 4)).base_BND == 1).all()


def test_visits_are_counted_modulo_256() -> None:
    memory = SampleMemory()
    counts = [int(memory.keep(samples(7), np.ones((1, 3, 4), np.float16))[0]) for _ in range(258)]
    assert counts == [*range(1, 256), 0, 1, 2]
    assert memory.recall(samples(7), (3, 4)).visits_B.tolist() == [2]


def test_a_full_memory_keeps_what_it_has() -> None:
    memory = SampleMemory(max_bytes=2 * (24 + ENTRY_BYTES))
    values = np.arange(3).astype(np.float16).repeat(12).reshape(3, 3, 4)
    assert memory.keep(samples(1, 2, 3), values).tolist() == [1, 1, 0]
    assert (memory.num_samples, memory.num_bytes) == (2, 2 * (24 + ENTRY_BYTES))
    assert memory.keep(samples(2, 3), values[1:]).tolist() == [2, 0]
    assert memory.recall(samples(1, 2, 3), (3, 4)).is_known_B.tolist() == [True, True, False]


def test_forgetting_makes_room() -> None:
    memory = SampleMemory(max_bytes=24 + ENTRY_BYTES)
    one = np.ones((1, 3, 4), np.float16)
    memory.keep(samples(1), one)
    memory.forget(samples(1, 99))
    assert (memory.num_samples, memory.num_bytes) == (0, 0)
    assert memory.keep(samples(2), one).tolist() == [1]
    memory.forget()
    assert (memory.num_samples, memory.num_bytes) == (0, 0)


def test_a_sample_of_another_shape_is_unknown() -> None:
    memory = SampleMemory()
    memory.keep(samples(1), np.ones((1, 3, 4), np.float16))
    assert memory.recall(samples(1), (4, 3)).is_known_B.tolist() == [False]
    assert memory.recall(samples(1), (4, 3)).visits_B.tolist() == [0]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes is -1"):
        SampleMemory(max_bytes=-1)
    with pytest.raises(ValueError, match="must be float16 or float32"):
        SampleMemory(dtype=np.float64)  # type: ignore[arg-type]
