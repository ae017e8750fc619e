"""The client-side weights: cut, shuffled, doubled, and only taken when they are what the manifest means."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import TokenizerWeights
from cutlayer.broker.messages import ModelChunk, serialize
from cutlayer.broker.model_chunks import MODEL_CHUNK_BYTES, ModelAssembler, cut_model, describe_model

PIECE = len(cut_model(bytes(MODEL_CHUNK_BYTES))[0].data)
FILE = random.Random(1).randbytes(3 * PIECE + 10)


@pytest.mark.parametrize("num_bytes", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_file_comes_whole_out_of_its_chunks(num_bytes: int) -> None:
    file = FILE[:num_bytes]
    assembler = ModelAssembler(describe_model(file))
    chunks = cut_model(file)
    assert len(chunks) == describe_model(file).num_chunks
    assert [assembler.feed(chunk) for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert assembler.feed(chunks[-1]) == file


def test_every_chunk_fits_the_smallest_common_packet_limit() -> None:
    assert max(len(serialize(chunk)) for chunk in cut_model(FILE)) <= MODEL_CHUNK_BYTES <= 128 * 1024 - 1024


@given(st.permutations([0, 1, 2, 3, 0, 1, 2, 3]))
def test_the_order_does_not_matter_and_copies_change_nothing(order: list[int]) -> None:
    assembler = ModelAssembler(describe_model(FILE))
    chunks = cut_model(FILE)
    whole = [file for index in order if (file := assembler.feed(chunks[index])) is not None]
    assert whole[0] == FILE


@pytest.mark.parametrize(
    "chunk",
    [
        ModelChunk(0, 5, FILE[:PIECE]),
        ModelChunk(4, 4, b"a"),
        ModelChunk(0, 4, FILE[: PIECE - 1]),
        ModelChunk(0, 4, FILE[: PIECE + 1]),
        ModelChunk(3, 4, FILE[:11]),
        ModelChunk(65_535, 4, b""),
        ModelChunk(0, 4, b""),
    ],
)
def test_a_chunk_of_another_file_is_malformed_and_disturbs_nothing(chunk: ModelChunk) -> None:
    assembler = ModelAssembler(describe_model(FILE))
    for good in cut_model(FILE)[:-1]:
        assembler.feed(good)
    with pytest.raises(MalformedMessage, match="is none of 4 chunks"):
        assembler.feed(chunk)
    assert assembler.feed(cut_model(FILE)[-1]) == FILE


def test_a_file_with_another_digest_is_malformed_and_can_be_read_again() -> None:
    assembler = ModelAssembler(describe_model(FILE))
    chunks = cut_model(FILE)
    for chunk in chunks[:-1]:
        assembler.feed(chunk)
    with pytest.raises(MalformedMessage, match="digest"):
        assembler.feed(ModelChunk(3, 4, bytes(10)))
    assert [assembler.feed(chunk) for chunk in chunks][-1] == FILE


@given(
    st.builds(ModelChunk, st.integers(0, 70_000), st.integers(0, 70_000), st.binary(max_size=20)),
    st.integers(1, 1 << 30),
    st.integers(1, 65_536),
)
def test_whatever_the_manifest_and_the_chunk_say_nothing_but_a_malformed_message_is_raised(
    chunk: ModelChunk, num_bytes: int, num_chunks: int
) -> None:
    assembler = ModelAssembler(TokenizerWeights(digest="0" * 64, num_bytes=num_bytes, num_chunks=num_chunks))
    try:
        assert assembler.feed(chunk) is None
    except MalformedMessage:
        return
