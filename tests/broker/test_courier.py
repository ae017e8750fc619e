"""Messages over a transport: cut, counted, refused; over the in-memory broker."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunking import split
from cutlayer.broker.courier import MAX_UNFINISHED_TOPICS, Courier
from cutlayer.broker.errors import PacketTooLarge
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import (
    Activations,
    AgentState,
    Chunk,
    Direction,
    EncodedTensor,
    Message,
    Mode,
    RunManifest,
    serialize,
)
from cutlayer.broker.transport import Received
from support.message_values import EXAMPLES, TENSOR, mutated

UP = "clinic/07/up/w0/activations"
CONTROL = "clinic/07/down/control"


class Pair:
    """An agent's courier and a worker's, on one broker."""

    def __init__(self, max_packet_bytes: int = 1_000_000) -> None:
        self.broker = MemoryBroker(lambda: 0.0, max_packet_bytes=max_packet_bytes)
        self.agent = Courier(MemoryTransport(self.broker, "agent"), Direction.UP)
        self.worker = Courier(MemoryTransport(self.broker, "worker"), Direction.DOWN)
        for courier in (self.agent, self.worker):
            courier.transport.connect(None)
        self.worker.transport.subscribe("clinic/07/up/w0/+")
        self.agent.transport.subscribe("clinic/07/down/+")
        self.received_packets: list[Received] = []

    def take(self, courier: Courier) -> list[Message]:
        """Return the messages that have come to a courier."""
        packets = [event for event in courier.transport.poll() if isinstance(event, Received)]
        self.received_packets += packets
        return [message for packet in packets if (message := courier.receive(packet)) is not None]


def received(topic: str, payload: bytes) -> Received:
    """Return a packet as a transport would give it."""
    return Received(topic, payload, False, len(payload) + len(topic) + 7)


def activations(num_bytes: int = 3, codec: str = "int8") -> Activations:
    """Return activations of about so many bytes."""
    return Activations(1, 2, Mode.TRAIN, 4, (("image", EncodedTensor(codec, (4, 2), bytes(num_bytes))),))


def test_a_message_arrives_in_as_many_packets_as_it_needs() -> None:
    for num_bytes, num_packets in ((100, 1), (5_000, 6)):
        pair = Pair(max_packet_bytes=1_000)
        pair.agent.send(Publish(UP, activations(num_bytes)))
        assert pair.take(pair.worker) == [activations(num_bytes)]
        assert len(pair.received_packets) == num_packets
        assert all(packet.wire_bytes <= 1_000 for packet in pair.received_packets)


def test_both_ends_count_the_same_bytes() -> None:
    pair = Pair(max_packet_bytes=1_000)
    for num_bytes in (100, 5_000):
        pair.agent.send(Publish(UP, activations(num_bytes)))
    pair.take(pair.worker)
    assert pair.agent.handed_bytes == sum(packet.wire_bytes for packet in pair.received_packets)
    (sent,), (taken,) = pair.agent.traffic.snapshot(), pair.worker.traffic.snapshot()
    assert sent == taken
    assert (sent.direction, sent.kind, sent.codec, sent.messages) == (Direction.UP, "Activations", "int8", 2)
    assert sent.raw_bytes == 2 * 4 * 2 * 4
    assert sent.payload_bytes == sum(len(packet.payload) for packet in pair.received_packets)
    assert sent.wire_bytes == sum(packet.wire_bytes for packet in pair.received_packets)


def test_what_comes_down_is_counted_as_down_at_both_ends() -> None:
    pair = Pair()
    pair.worker.send(Publish(CONTROL, EXAMPLES["Welcome"]))
    assert pair.take(pair.agent) == [EXAMPLES["Welcome"]]
    assert pair.agent.traffic.snapshot() == pair.worker.traffic.snapshot()
    assert pair.agent.traffic.snapshot()[0].direction is Direction.DOWN


def test_a_packet_that_breaks_the_protocol_is_counted_under_its_label_and_disturbs_nothing() -> None:
    pair = Pair(max_packet_bytes=1_000)
    *most, last = split(serialize(activations(5_000)), 900)
    for packet in most:
        assert pair.worker.receive(received(UP, packet)) is None
    assert pair.worker.receive(received("clinic/07/up/w0/gradients", b"\xff")) is None
    assert pair.worker.receive(received("clinic/08/up/w0/gradients", b"\x93\x02\x0b\x01")) is None
    vast = serialize(Chunk(b"12345678", 0, 2, 64 << 20, b"a"))
    assert pair.worker.receive(received("clinic/08/up/w0/gradients", vast)) is None
    assert dict(pair.worker.rejects) == {"malformed": 1, "version": 1}
    small = Courier(pair.worker.transport, Direction.DOWN)
    assert pair.worker.receive(received(UP, last)) == activations(5_000)
    small.refuse("content")
    assert dict(small.rejects) == {"content": 1}


def test_an_empty_payload_clears_a_retained_topic_and_is_no_message() -> None:
    pair = Pair()
    assert pair.worker.receive(received(UP, b"")) is None
    assert not pair.worker.rejects


def test_a_retained_message_over_the_limit_is_refused_since_the_broker_would_keep_its_last_chunk_alone() -> None:
    pair = Pair(max_packet_bytes=1_000)
    manifest = Publish("cutlayer/run", RunManifest(bytes(2_000)), retain=True)
    with pytest.raises(PacketTooLarge) as caught:
        pair.worker.send(manifest)
    assert caught.value.needed_bytes > 2_000
    assert not pair.broker.retained
    pair.worker.send(Publish("clinic/07/state", AgentState(True, 1), retain=True))
    assert list(pair.broker.retained) == ["clinic/07/state"]


def test_what_an_agent_left_unfinished_is_forgotten_with_it() -> None:
    pair = Pair()
    packets = list(split(serialize(activations(5_000)), 900))
    for packet in packets[:-1]:
        pair.worker.receive(received(UP, packet))
        pair.worker.receive(received("clinic/08/up/w0/activations", packet))
    # A finished message on the same topic must not hide the unfinished one.
    pair.worker.receive(received(UP, serialize(EXAMPLES["TrainingDone"])))
    pair.worker.forget("clinic/07")
    assert pair.worker.receive(received(UP, packets[-1])) is None
    assert pair.worker.receive(received("clinic/08/up/w0/activations", packets[-1])) == activations(5_000)


def test_an_agent_has_one_share_of_the_budget_on_however_many_topics() -> None:
    pair = Pair()
    honest = list(split(serialize(activations(5_000)), 900))
    for packet in honest[:-1]:
        pair.worker.receive(received("clinic/08/up/w0/activations", packet))
    for number in range(40):  # each claims 60 MiB of 512
        chunk = Chunk(number.to_bytes(8, "big"), 0, 2, 60 << 20, b"a")
        pair.worker.receive(received(f"clinic/07/up/w0/{number}", serialize(chunk)))
    assert pair.worker.receive(received("clinic/08/up/w0/activations", honest[-1])) == activations(5_000)


def test_topics_without_end_take_no_memory_without_end() -> None:
    worker = Pair().worker
    tracemalloc.start()
    try:
        for number in range(3 * MAX_UNFINISHED_TOPICS):
            chunk = Chunk(number.to_bytes(8, "big"), 0, 2, 2, b"a")
            worker.receive(received(f"clinic/07/up/w0/{number}", serialize(chunk)))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(worker._unfinished) <= MAX_UNFINISHED_TOPICS
    assert taken < 20 << 20


def test_codec_names_without_end_make_no_rows_without_end() -> None:
    """The name comes from a peer and is counted before any session has looked at it."""
    worker = Pair().worker
    for number in range(1_000):
        worker.receive(received(UP, serialize(activations(codec=f"codec-{number}"))))
    rows = worker.traffic.snapshot()
    assert len(rows) <= 256
    assert sum(row.messages for row in rows) == 1_000


@settings(max_examples=50)
@given(data=st.data())
def test_whatever_arrives_is_a_message_or_counted(data: st.DataObject) -> None:
    worker = Pair().worker
    message = Activations(1, 2, Mode.TRAIN, 4, (("image", TENSOR),))
    topics = st.sampled_from([UP, CONTROL, "cutlayer/run", "", "/", "x" * 300])
    for _ in range(10):
        packet = data.draw(st.binary(max_size=50) | mutated(serialize(message)))
        before = worker.rejects.total()
        taken = worker.receive(received(data.draw(topics), packet))
        assert taken is None or worker.rejects.total() == before
