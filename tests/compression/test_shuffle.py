"""The shuffles: their bytes, and that they come back whatever the length."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.compression import OversizedError, codec_from_name
from cutlayer.compression.byte_stage import ByteStage
from cutlayer.compression.shuffle import BitShuffleStage, ShuffleStage

STAGES: list[ByteStage] = [*map(ShuffleStage, (2, 3, 4)), *map(BitShuffleStage, (1, 2, 4))]
every_stage = pytest.mark.parametrize("stage", STAGES, ids=str)


def test_shuffle_golden_bytes_are_first_bytes_then_second_bytes_then_the_rest() -> None:
    data = bytes.fromhex("a1b1 a2b2 a3b3 ff")
    golden = bytes.fromhex("a1a2a3 b1b2b3 ff")
    assert ShuffleStage(2).encode(data) == golden
    assert ShuffleStage(2).decode(memoryview(golden), 7) == data


def test_bitshuffle_golden_bytes_are_lowest_bits_first_then_the_rest() -> None:
    # Elements 0 to 7: bit 0 alternates, bit 1 every two, bit 2 every four.
    data = bytes(range(8)) + b"\xff\xfe"
    golden = bytes.fromhex("aa cc f0 00 00 00 00 00 ff fe")
    assert BitShuffleStage(1).encode(data) == golden
    assert BitShuffleStage(1).decode(memoryview(golden), 10) == data


def test_bitshuffle_of_wide_elements_writes_the_planes_of_the_first_byte_before_those_of_the_second() -> None:
    elements = np.arange(16, dtype="<u2") | np.uint16(0x8000)
    golden = bytes.fromhex("aaaa cccc f0f0 00ff 0000 0000 0000 0000" + "0000" * 7 + "ffff")
    assert BitShuffleStage(2).encode(elements.tobytes()) == golden


@every_stage
@given(data=st.binary(max_size=300))
def test_bytes_come_back_with_the_length_unchanged(stage: ByteStage, data: bytes) -> None:
    encoded = stage.encode(data)
    assert len(encoded) == stage.max_encoded_bytes(len(data)) == len(data)
    assert stage.decode(memoryview(encoded), len(data)) == data


@every_stage
def test_a_megabyte_comes_back_in_another_order(stage: ByteStage) -> None:
    data = np.random.default_rng(7).bytes(1_000_003)
    encoded = stage.encode(data)
    assert encoded != data
    assert stage.decode(memoryview(encoded), len(data)) == data


@every_stage
def test_more_bytes_than_allowed_are_refused_before_memory_is_taken(stage: ByteStage) -> None:
    data = memoryview(bytes(1_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(OversizedError) as caught:
            stage.decode(data, max_bytes=999_999)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (caught.value.declared_bytes, caught.value.limit_bytes) == (1_000_000, 999_999)
    assert peak_bytes < 100_000


@pytest.mark.parametrize(("codec", "shuffled"), [("bf16", "bf16+shuffle"), ("identity", "identity+bitshuffle")])
@pytest.mark.parametrize("compressor", ["lz4", "zstd:3"])
def test_shuffled_numbers_compress_better(codec: str, shuffled: str, compressor: str) -> None:
    array = np.random.default_rng(7).standard_normal((32, 16, 128)).astype(np.float32)
    plain = codec_from_name(f"{codec}+{compressor}").encode(array)
    assert len(codec_from_name(f"{shuffled}+{compressor}").encode(array)) < 0.98 * len(plain)
