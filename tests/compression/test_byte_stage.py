"""The byte stages: their bytes, and the bombs and lies that they refuse before memory is taken."""

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import lz4.block
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.compression import CorruptError, DecodeError, OversizedError, available_codecs, codec_from_name
from cutlayer.compression.byte_stage import ByteStage, Lz4Stage, ZstdStage
from cutlayer.compression.checks import MAX_ELEMENTS

STAGES: list[ByteStage] = [Lz4Stage(), ZstdStage(1), ZstdStage(), ZstdStage(19)]
BOMB_BYTES = 64 << 20

GOLDEN_LZ4 = bytes.fromhex("05000000 50") + b"hello"  # size; one run of five literals
# RFC 8878: magic number; single segment with a content size of one byte; that size; last block, raw, 5 bytes.
GOLDEN_ZSTD = bytes.fromhex("28b52ffd 20 05 290000") + b"hello"


def lz4_bomb(declared_bytes: int) -> bytes:
    block: bytes = lz4.block.compress(bytes(BOMB_BYTES), store_size=False)
    return struct.pack("<I", declared_bytes) + block


def zstd_bomb(declared_bytes: int) -> bytes:
    honest = zstandard.ZstdCompressor().compress(bytes(BOMB_BYTES))
    # Where the content size is four bytes long, it follows magic number, descriptor and window descriptor.
    position = honest.index(struct.pack("<I", BOMB_BYTES))
    assert position <= 6
    return honest[:position] + struct.pack("<I", declared_bytes) + honest[position + 4 :]


def test_lz4_golden_bytes() -> None:
    assert Lz4Stage().encode(b"hello") == GOLDEN_LZ4
    assert Lz4Stage().decode(memoryview(GOLDEN_LZ4), 5) == b"hello"


def test_zstd_golden_bytes() -> None:
    assert ZstdStage().decode(memoryview(GOLDEN_ZSTD), 5) == b"hello"


def test_zstd_writes_frames_that_name_their_content_size() -> None:
    assert zstandard.frame_content_size(ZstdStage().encode(bytes(1000))) == 1000


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@settings(deadline=None)
@given(data=st.binary(max_size=5000))
def test_bytes_come_back_within_the_stated_length(stage: ByteStage, data: bytes) -> None:
    encoded = stage.encode(data)
    assert len(encoded) <= stage.max_encoded_bytes(len(data))
    assert stage.decode(memoryview(encoded), len(data)) == data


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("num_bytes", [0, 1, 254, 131_071, 131_072, 1_000_000])
def test_random_bytes_grow_no_more_than_the_stated_length(stage: ByteStage, num_bytes: int) -> None:
    data = np.random.default_rng(7).bytes(num_bytes)
    encoded = stage.encode(data)
    assert len(encoded) <= stage.max_encoded_bytes(num_bytes)
    assert stage.decode(memoryview(encoded), num_bytes) == data


@pytest.mark.parametrize(("stage", "bomb"), [(Lz4Stage(), lz4_bomb), (ZstdStage(), zstd_bomb)])
def test_a_bomb_is_refused_with_its_size_before_memory_is_taken(stage: ByteStage, bomb: Callable[[int], bytes]) -> None:
    data = memoryview(bomb(BOMB_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(OversizedError) as caught:
            stage.decode(data, max_bytes=BOMB_BYTES - 1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (caught.value.declared_bytes, caught.value.limit_bytes) == (BOMB_BYTES, BOMB_BYTES - 1)
    assert peak_bytes < 100_000


@pytest.mark.parametrize(("stage", "bomb"), [(Lz4Stage(), lz4_bomb), (ZstdStage(), zstd_bomb)])
@pytest.mark.parametrize("declared_bytes", [1, 70_000])
def test_a_bomb_that_lies_about_its_size_takes_no_more_than_it_declares(
    stage: ByteStage, bomb: Callable[[int], bytes], declared_bytes: int
) -> None:
    data = memoryview(bomb(declared_bytes))
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            stage.decode(data, max_bytes=70_000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 300_000


def test_a_bomb_inside_a_codec_is_refused_by_the_shape() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(BOMB_BYTES))
    codec = codec_from_name("identity+zstd")
    assert len(bomb) <= codec.max_encoded_bytes((16, 128))
    with pytest.raises(OversizedError) as caught:
        codec.decode(bomb, (16, 128))
    assert (caught.value.declared_bytes, caught.value.limit_bytes) == (BOMB_BYTES, 16 * 128 * 4)


def test_a_size_larger_than_the_content_is_corrupt() -> None:
    with pytest.raises(CorruptError, match="5 bytes came out where 6 were declared"):
        Lz4Stage().decode(memoryview(b"\x06" + GOLDEN_LZ4[1:]), 100)
    with pytest.raises(CorruptError):
        ZstdStage().decode(memoryview(GOLDEN_ZSTD[:5] + b"\x06" + GOLDEN_ZSTD[6:]), 100)


def test_a_zstd_frame_without_content_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(CorruptError, match="does not name its content size"):
        ZstdStage().decode(memoryview(frame), 100)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", GOLDEN_ZSTD[:-1], GOLDEN_ZSTD + b"x", GOLDEN_ZSTD * 2, b"\x50\x2a\x4d\x18\x01\x00\x00\x00a"],
    ids=["empty", "short", "cut off", "trailing byte", "two frames", "skippable frame"],
)
def test_anything_but_one_whole_zstd_frame_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError) as caught:
        ZstdStage().decode(memoryview(data), 100)
    assert caught.value.codec == "zstd:3"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00\x00\x00\x00", GOLDEN_LZ4[:-1], GOLDEN_LZ4 + b"x"],
    ids=["empty", "only a size", "cut off", "trailing byte"],
)
def test_anything_but_one_whole_lz4_block_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError) as caught:
        Lz4Stage().decode(memoryview(data), 100)
    assert caught.value.codec == "lz4"


@pytest.mark.parametrize(("stage", "golden"), [(Lz4Stage(), GOLDEN_LZ4), (ZstdStage(), GOLDEN_ZSTD)])
@settings(deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_only_decode_errors(stage: ByteStage, golden: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(golden) - 1))
    damaged = golden[:position] + data.draw(st.binary(max_size=4)) + golden[position + 1 :]
    with contextlib.suppress(DecodeError):
        assert len(stage.decode(memoryview(damaged), 50)) <= 50


def test_threads_share_a_stage() -> None:
    stage = ZstdStage()
    # Long enough that threads are inside the library at the same time.
    inputs = [np.random.default_rng(seed).bytes(500_000) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        encoded = list(pool.map(stage.encode, inputs * 10))
        decoded = list(pool.map(lambda frame: stage.decode(memoryview(frame), 500_000), encoded))
    assert decoded == inputs * 10


@pytest.mark.parametrize("name", [*available_codecs(), "int8:block=token"])
@pytest.mark.parametrize("shape", [(MAX_ELEMENTS, 1), (MAX_ELEMENTS,), (2**13, 2**14)], ids=str)
def test_the_largest_tensor_is_within_what_lz4_takes(name: str, shape: tuple[int, ...]) -> None:
    lz4_max_input_bytes = 0x7E000000
    assert codec_from_name(name).max_encoded_bytes(shape) <= lz4_max_input_bytes
