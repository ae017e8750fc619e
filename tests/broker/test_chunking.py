"""Messages larger than a packet: cut, shuffled, doubled, lost, sent again, and put together within a budget."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.broker.chunking import (
    CHUNK_OVERHEAD_BYTES,
    MIN_CHUNK_BYTES,
    PARTIAL_BYTES,
    PIECE_BYTES,
    Reassembler,
    split,
)
from cutlayer.broker.errors import MalformedMessage, OversizedMessage, PacketTooLarge, WireError
from cutlayer.broker.messages import MAX_CHUNKS, MAX_MESSAGE_BYTES, Chunk, Message, RunManifest, parse, serialize
from support.message_values import ANY_MESSAGE, EXAMPLES, mutated

LIMIT = 200


def manifest(seed: int = 0, num_bytes: int = 5_000) -> RunManifest:
    """Return a message of about so many bytes."""
    return RunManifest(random.Random(seed).randbytes(num_bytes))


def chunks_of(message: Message, limit: int = LIMIT) -> list[bytes]:
    """Return the packets of a message."""
    return list(split(serialize(message), limit))


def test_a_message_that_fits_travels_as_it_is() -> None:
    message = serialize(EXAMPLES["Hello"])
    assert list(split(message, len(message))) == [message]
    assert Reassembler().feed("a", message) == EXAMPLES["Hello"]


@settings(max_examples=60)
@given(message=ANY_MESSAGE, limit=st.integers(CHUNK_OVERHEAD_BYTES + MIN_CHUNK_BYTES, 400), seed=st.integers(0, 99))
def test_any_message_comes_whole_out_of_its_chunks_in_any_order_with_copies(
    message: Message, limit: int, seed: int
) -> None:
    if isinstance(message, Chunk):
        return
    packets = list(split(serialize(message), limit))
    assert all(len(packet) <= limit for packet in packets)
    shuffled = packets + packets[::2] if len(packets) > 1 else packets
    random.Random(seed).shuffle(shuffled)
    reassembler = Reassembler()
    whole = [taken for packet in shuffled if (taken := reassembler.feed("a", packet)) is not None]
    assert whole[0] == message
    assert all(taken == message for taken in whole)


@pytest.mark.parametrize("limit", [104, 127, 128, 129, 255, 256, 257, 300, 1_000, 65_535, 65_536, 65_599])
@pytest.mark.parametrize("num_bytes", [65_500, 65_536])
def test_no_packet_is_over_the_limit(limit: int, num_bytes: int) -> None:
    packets = chunks_of(RunManifest(bytes(num_bytes)), limit)
    assert max(map(len, packets)) <= limit


def test_a_limit_without_room_for_a_chunk_is_refused_with_what_is_needed() -> None:
    message = serialize(manifest())
    with pytest.raises(PacketTooLarge) as caught:
        list(split(message, CHUNK_OVERHEAD_BYTES + MIN_CHUNK_BYTES - 1))
    assert caught.value.needed_bytes == CHUNK_OVERHEAD_BYTES + MIN_CHUNK_BYTES
    assert list(split(message, caught.value.needed_bytes))


def test_a_limit_that_makes_too_many_chunks_is_refused_with_what_is_needed() -> None:
    message = bytes(MAX_CHUNKS * 100)
    with pytest.raises(PacketTooLarge) as caught:
        list(split(message, 110))
    needed = caught.value.needed_bytes
    assert next(split(message, needed))
    assert parse(next(split(message, needed))).count <= MAX_CHUNKS  # type: ignore[union-attr]


def test_senders_and_messages_may_interleave() -> None:
    reassembler = Reassembler()
    streams = {("a", 1): chunks_of(manifest(1)), ("a", 2): chunks_of(manifest(2)), ("b", 1): chunks_of(manifest(1))}
    done = []
    for packets in zip(*streams.values(), strict=True):
        for key, packet in zip(streams, packets, strict=True):
            if reassembler.feed(key[0], packet) is not None:
                done.append(key)
    assert done == list(streams)
    assert reassembler.reserved_bytes == 0


def test_a_message_sent_again_fills_the_gaps_of_its_first_sending() -> None:
    reassembler = Reassembler()
    packets = chunks_of(manifest())
    for packet in packets[::3]:
        assert reassembler.feed("a", packet) is None
    answers = [reassembler.feed("a", packet) for packet in packets if packet not in packets[::3]]
    assert answers[-1] == manifest()
    assert answers[:-1] == [None] * (len(answers) - 1)


def test_one_sender_cannot_finish_anothers_message() -> None:
    reassembler = Reassembler()
    packets = chunks_of(manifest())
    for packet in packets[:-1]:
        reassembler.feed("a", packet)
    assert reassembler.feed("b", packets[-1]) is None
    assert reassembler.feed("a", packets[-1]) == manifest()


def test_what_a_sender_left_unfinished_can_be_forgotten() -> None:
    reassembler = Reassembler()
    for seed in range(3):
        reassembler.feed("a", chunks_of(manifest(seed))[0])
    reassembler.feed("b", chunks_of(manifest())[0])
    before = reassembler.reserved_bytes
    reassembler.forget("a")
    reassembler.forget("nobody")
    assert reassembler.reserved_bytes == before / 4
    assert [reassembler.feed("b", packet) for packet in chunks_of(manifest())[1:]][-1] == manifest()


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(b"1234567", 0, 2, 10, b"a"),
        Chunk(b"12345678", 2, 2, 10, b"a"),
        Chunk(b"12345678", 0, 0, 10, b"a"),
        Chunk(b"12345678", 0, 2, 10, b""),
        Chunk(b"12345678", 0, 11, 10, b"a"),
        Chunk(b"12345678", 0, 2, 10, b"a" * 11),
    ],
    ids=["short id", "index", "no chunks", "empty", "more chunks than bytes", "more bytes than declared"],
)
def test_a_chunk_that_contradicts_itself_is_malformed(chunk: Chunk) -> None:
    reassembler = Reassembler()
    with pytest.raises(MalformedMessage):
        reassembler.feed("a", serialize(chunk))
    assert reassembler.reserved_bytes == 0


def test_chunks_that_disagree_on_the_size_end_their_message() -> None:
    reassembler = Reassembler()
    reassembler.feed("a", serialize(Chunk(b"12345678", 0, 3, 10, b"abc")))
    with pytest.raises(MalformedMessage, match="disagree"):
        reassembler.feed("a", serialize(Chunk(b"12345678", 1, 3, 11, b"abc")))
    assert reassembler.reserved_bytes == 0


def test_chunks_that_hold_more_than_they_declare_end_their_message() -> None:
    reassembler = Reassembler()
    reassembler.feed("a", serialize(Chunk(b"12345678", 0, 3, 10, b"abcdef")))
    with pytest.raises(MalformedMessage, match="more bytes"):
        reassembler.feed("a", serialize(Chunk(b"12345678", 1, 3, 10, b"abcdef")))
    assert reassembler.reserved_bytes == 0


def test_a_message_whose_bytes_do_not_match_its_id_is_malformed() -> None:
    reassembler = Reassembler()
    *most, last = (parse(packet) for packet in chunks_of(manifest()))
    for chunk in most:
        reassembler.feed("a", serialize(chunk))
    assert isinstance(last, Chunk)
    forged = Chunk(last.message_id, last.index, last.count, last.total_bytes, bytes(len(last.data)))
    with pytest.raises(MalformedMessage, match="does not match its id"):
        reassembler.feed("a", serialize(forged))
    assert reassembler.reserved_bytes == 0


def test_a_chunk_inside_chunks_is_malformed() -> None:
    inner = serialize(Chunk(b"12345678", 0, 2, 1_000, bytes(500)))
    reassembler = Reassembler()
    *most, last = split(inner, LIMIT)
    for packet in most:
        reassembler.feed("a", packet)
    with pytest.raises(MalformedMessage, match="inside"):
        reassembler.feed("a", last)


def test_a_malformed_message_inside_chunks_is_malformed() -> None:
    reassembler = Reassembler()
    *most, last = split(b"\x93\x01\x01" + bytes(1_000), LIMIT)
    for packet in most:
        reassembler.feed("a", packet)
    with pytest.raises(MalformedMessage):
        reassembler.feed("a", last)


# The budget --------------------------------------------------------------------------------------------------


def test_a_declared_size_over_the_senders_share_is_oversized() -> None:
    reassembler = Reassembler(budget_bytes=1 << 20, sender_share=0.5)
    with pytest.raises(OversizedMessage) as caught:
        reassembler.feed("a", serialize(Chunk(b"12345678", 0, 2, 1 << 19, b"a")))
    assert caught.value.limit_bytes == 1 << 19
    assert reassembler.reserved_bytes == 0


def test_a_declared_size_over_the_largest_message_is_malformed_before_any_memory_is_taken() -> None:
    packet = bytearray(serialize(Chunk(b"12345678", 0, 2, MAX_MESSAGE_BYTES, b"a")))
    packet[packet.index(b"\xce\x04\x00\x00\x00") + 4] = 1
    with pytest.raises(MalformedMessage, match=r"Chunk\.total_bytes"):
        Reassembler().feed("a", bytes(packet))


def test_a_sender_over_its_share_loses_its_own_oldest_message_and_nobody_elses() -> None:
    reassembler = Reassembler(budget_bytes=64 << 10, sender_share=0.5)
    reassembler.feed("b", chunks_of(manifest(9))[0])
    for seed in range(8):
        reassembler.feed("a", chunks_of(manifest(seed))[0])
    assert reassembler.reserved_bytes <= 64 << 10
    assert reassembler.num_dropped > 0
    assert [reassembler.feed("b", packet) for packet in chunks_of(manifest(9))[1:]][-1] == manifest(9)
    assert [reassembler.feed("a", packet) for packet in chunks_of(manifest(7))[1:]][-1] == manifest(7)
    assert [reassembler.feed("a", packet) for packet in chunks_of(manifest(0))[1:]][-1] is None


def test_over_the_budget_the_message_without_progress_for_longest_is_given_up() -> None:
    reassembler = Reassembler(budget_bytes=32 << 10, sender_share=0.5)
    first, second = chunks_of(manifest(1)), chunks_of(manifest(2))
    reassembler.feed("a", first[0])
    reassembler.feed("b", second[0])
    reassembler.feed("a", first[1])  # progress
    num_senders = 2
    while not reassembler.num_dropped:
        num_senders += 1
        reassembler.feed(f"c{num_senders}", chunks_of(manifest(num_senders))[0])
    assert [reassembler.feed("a", packet) for packet in first[2:]][-1] == manifest(1)
    assert [reassembler.feed("b", packet) for packet in second[1:]][-1] is None


def test_messages_of_one_byte_are_not_free() -> None:
    """A flood of chunks that each open a message must not take memory that the budget does not know of."""
    reassembler = Reassembler(budget_bytes=1 << 20)
    tracemalloc.start()
    try:
        for number in range(6_000):
            reassembler.feed("a", serialize(Chunk(number.to_bytes(8, "big"), 0, 2, 2, b"a")))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert reassembler.reserved_bytes <= 1 << 19
    assert taken < 1 << 20


def test_pieces_of_one_byte_are_not_free() -> None:
    reassembler = Reassembler(budget_bytes=1 << 20)
    tracemalloc.start()
    try:
        for number in range(32):
            for index in range(500):
                chunk = Chunk(number.to_bytes(8, "big"), index, 501, 501, b"a")
                reassembler.feed("a", serialize(chunk))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 1 << 20
    assert reassembler.num_dropped > 0


def test_what_is_reserved_is_the_declared_size_and_what_the_pieces_take_beside() -> None:
    reassembler = Reassembler()
    reassembler.feed("a", serialize(Chunk(b"12345678", 0, 3, 10, b"abc")))
    assert reassembler.reserved_bytes == 10 + 3 * PIECE_BYTES + PARTIAL_BYTES


# Whatever anybody sends --------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_arbitrary_packets_raise_nothing_but_wire_errors(packet: bytes) -> None:
    try:
        Reassembler().feed("a", packet)
    except WireError:
        return


@settings(max_examples=50)
@given(data=st.data())
def test_damaged_chunks_raise_nothing_but_wire_errors_and_leave_no_wrong_message(data: st.DataObject) -> None:
    reassembler = Reassembler(budget_bytes=1 << 16)
    message = manifest(num_bytes=600)
    for packet in chunks_of(message):
        for sent in (*data.draw(st.sampled_from([[packet], [packet, packet]])), data.draw(mutated(packet))):
            try:
                taken = reassembler.feed("a", sent)
            except WireError:
                continue
            assert taken is None or taken == message or not isinstance(taken, RunManifest)
        assert reassembler.reserved_bytes <= 1 << 16
