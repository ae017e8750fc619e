"""Chunks that a link loses are asked for and sent again, alone, with every byte counted; over the in-memory broker."""

from __future__ import annotations

import pytest

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunking import cut
from cutlayer.broker.courier import MAX_WAITING_ASKS, Courier
from cutlayer.broker.faults import NO_FAULTS, LinkFaults, nothing_exempt
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import (
    Activations,
    Direction,
    EncodedTensor,
    Message,
    MissingChunks,
    Mode,
    Outputs,
    parse,
    serialize,
)
from cutlayer.broker.transport import Received
from support.manual_clock import ManualClock

AGENT = "clinic/07"
UP = "clinic/07/up/w0/activations"
DOWN = "clinic/07/down/outputs"
CONTROL = "clinic/07/down/control"
MISSING = "clinic/07/up/missing"


def activations(step: int = 0, num_bytes: int = 20_000) -> Activations:
    """Return activations of about so many bytes."""
    data = bytes(step + number % 251 for number in range(num_bytes))
    return Activations(1, step, Mode.TRAIN, 4, (("image", EncodedTensor("int8", (4, 2), data)),))


def outputs(step: int = 0, num_bytes: int = 20_000) -> Outputs:
    """Return outputs of about so many bytes."""
    return Outputs(1, step, Mode.TRAIN, 0, 0.0, EncodedTensor("fp16", (4, 2), bytes(num_bytes)))


class Parties:
    """An agent's courier and two workers', whose links lose packets, in a time that is set by hand."""

    def __init__(self, up: LinkFaults = NO_FAULTS, down: LinkFaults = NO_FAULTS, limit: int = 1_000) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(self.clock, max_packet_bytes=limit, exempt=nothing_exempt)
        self.agent = Courier(MemoryTransport(self.broker, "agent", up=up, down=down), Direction.UP)
        self.worker = Courier(MemoryTransport(self.broker, "w0"), Direction.DOWN)
        self.other = Courier(MemoryTransport(self.broker, "w1"), Direction.DOWN)
        for courier in (self.agent, self.worker, self.other):
            courier.transport.connect(None)
        self.agent.transport.subscribe("clinic/07/down/+")
        for courier, name in ((self.worker, "w0"), (self.other, "w1")):
            courier.transport.subscribe(f"clinic/07/up/{name}/+")
            courier.transport.subscribe(MISSING)
        self.packets: list[Received] = []
        self.run(0.5)  # all are connected and subscribed

    def pump(self) -> list[Message]:
        """Let everybody receive and tick once; return the messages that are whole."""
        whole = []
        for courier in (self.agent, self.worker, self.other):
            packets = [event for event in courier.transport.poll() if isinstance(event, Received)]
            self.packets += packets
            whole += [message for packet in packets if (message := courier.receive(packet)) is not None]
            courier.tick(self.clock.now_s)
        return whole

    def run(self, until_s: float) -> list[Message]:
        """Let time pass, from one event to the next; return the messages that became whole."""
        whole = self.pump()
        while True:
            times = [courier.next_deadline() for courier in (self.agent, self.worker, self.other)]
            times.append(self.broker.next_delivery_time())
            next_s = min((time for time in times if time is not None), default=until_s)
            if next_s >= until_s:
                self.clock.now_s = until_s
                return whole + self.pump()
            self.clock.now_s = max(next_s, self.clock.now_s)
            whole += self.pump()

    def packets_of(self, kind: type[Message]) -> int:
        """Return how many packets have been received that are, or are pieces of, a kind."""
        return sum(isinstance(parse(packet.payload), kind) for packet in self.packets)


@pytest.mark.parametrize("seed", range(5))
def test_what_a_lossy_uplink_loses_is_sent_again_piece_by_piece(seed: int) -> None:
    parties = Parties(up=LinkFaults(seed=seed, loss=0.2, delay_s=0.02, bytes_per_s=8_000))
    parties.agent.send(Publish(UP, activations()))
    assert parties.run(60.0) == [activations()]
    pieces = cut(serialize(activations()), 1_000 - len(UP) - 6)
    assert pieces is not None
    rows = {row.kind: row for row in parties.agent.traffic.snapshot()}
    assert rows["Activations"].messages == 1
    # 5 of 20 are lost the first time, 1 of those again, and so on; sending it whole would have cost 22 at the least.
    assert 0 < rows["Chunk"].messages < pieces.count
    assert rows["Chunk"].payload_bytes < pieces.count * 1_000
    assert rows["MissingChunks"].payload_bytes < 1_000
    assert parties.agent.next_deadline() is None
    assert parties.worker.next_deadline() is None


@pytest.mark.parametrize("seed", range(5))
def test_what_a_lossy_downlink_loses_is_given_by_the_worker_that_sent_it(seed: int) -> None:
    parties = Parties(down=LinkFaults(seed=seed, loss=0.2, delay_s=0.02, bytes_per_s=8_000))
    parties.worker.send(Publish(DOWN, outputs()))
    assert parties.run(60.0) == [outputs()]
    sent = {row.kind for row in parties.worker.traffic.snapshot() if row.direction is Direction.DOWN}
    assert sent == {"Outputs", "Chunk"}
    # The other worker hears the asks too, and says nothing.
    assert {(row.direction, row.kind) for row in parties.other.traffic.snapshot()} == {(Direction.UP, "MissingChunks")}


def test_every_byte_of_a_lossy_exchange_is_counted_once_at_each_end() -> None:
    parties = Parties(up=LinkFaults(seed=3, loss=0.3, delay_s=0.01), down=LinkFaults(seed=4, loss=0.3, delay_s=0.01))
    for step in range(5):
        parties.agent.send(Publish(UP, activations(step)))
        parties.worker.send(Publish(DOWN, outputs(step)))
    assert len(parties.run(300.0)) == 10
    sent = [row for row in parties.agent.traffic.snapshot() if row.direction is Direction.UP]
    assert sum(row.wire_bytes for row in sent) == parties.agent.handed_bytes
    came = [packet for packet in parties.packets if "/up/" in packet.topic]
    taken = [row for row in parties.worker.traffic.snapshot() if row.direction is Direction.UP]
    asks = [row for row in parties.other.traffic.snapshot() if row.direction is Direction.UP]
    assert sum(row.wire_bytes for row in taken + asks) == sum(packet.wire_bytes for packet in came)
    assert sum(row.payload_bytes for row in taken + asks) == sum(len(packet.payload) for packet in came)


def test_copies_and_late_pieces_have_nothing_sent_again() -> None:
    parties = Parties(up=LinkFaults(seed=1, duplication=0.5, reordering=0.5, delay_s=0.05))
    for step in range(5):
        parties.agent.send(Publish(UP, activations(step)))
    assert len(parties.run(600.0)) >= 5
    assert parties.packets_of(MissingChunks) == 0
    assert {row.kind for row in parties.agent.traffic.snapshot()} == {"Activations"}


def test_a_slow_link_that_loses_nothing_costs_next_to_nothing_more() -> None:
    """Pieces that take 8 s each: the worker asks a few times until it knows, and the agent knows better."""
    parties = Parties(up=LinkFaults(bytes_per_s=125), down=LinkFaults(delay_s=0.5))
    parties.agent.send(Publish(UP, activations()))
    assert parties.run(600.0) == [activations()]
    assert 0 < parties.packets_of(MissingChunks) <= 3
    assert {row.kind for row in parties.agent.traffic.snapshot() if row.direction is Direction.UP} == {"Activations"}


def test_pieces_of_a_message_go_where_the_message_went_and_to_its_agent_only() -> None:
    parties = Parties(limit=1_000)
    parties.worker.send(Publish(DOWN, outputs()))
    parties.run(1.0)
    parties.packets.clear()
    pieces = cut(serialize(outputs()), parties.worker.transport.payload_limit(DOWN))
    assert pieces is not None
    ask = serialize(MissingChunks(pieces.message_id, pieces.count, ((0, 2),)))
    for number, topic in enumerate(["clinic/08/up/missing", "cutlayer/workers/w0/inbox/clinic/08", MISSING]):
        parties.worker.receive(Received(topic, ask, False, len(ask)))
        parties.run(2.0 + number)
    assert [packet.topic for packet in parties.packets] == [DOWN, DOWN]


def test_asks_do_not_make_a_worker_send_without_end() -> None:
    parties = Parties()
    parties.worker.send(Publish(DOWN, outputs()))
    parties.run(1.0)
    before = parties.worker.handed_bytes
    pieces = cut(serialize(outputs()), parties.worker.transport.payload_limit(DOWN))
    assert pieces is not None
    ask = serialize(MissingChunks(pieces.message_id, pieces.count, ((0, pieces.count),)))
    for number in range(1_000):
        parties.worker.receive(Received(MISSING, ask, False, len(ask)))
        parties.run(1.0 + 0.1 * number)
    assert parties.worker.handed_bytes - before == 4 * before


def test_asks_that_break_the_protocol_are_counted_and_asks_without_end_take_no_memory() -> None:
    worker = Parties().worker
    wrong = serialize(MissingChunks(b"12345678", 9, ((4, 3),)))
    assert worker.receive(Received(MISSING, wrong, False, len(wrong))) is None
    ask = serialize(MissingChunks(b"12345678", 9, ((3, 4),)))
    assert worker.receive(Received("cutlayer/workers/w1/window", ask, False, len(ask))) is None
    assert dict(worker.rejects) == {"malformed": 1, "unexpected": 1}
    for _ in range(10 * MAX_WAITING_ASKS):
        worker.receive(Received(MISSING, ask, False, len(ask)))
    assert len(worker._asks) == MAX_WAITING_ASKS


def test_nobody_is_asked_for_what_came_on_a_topic_that_is_no_agents() -> None:
    parties = Parties()
    pieces = cut(serialize(activations()), 900)
    assert pieces is not None
    packet = serialize(pieces.piece(0))
    parties.worker.receive(Received("cutlayer/workers/w1/window", packet, False, len(packet)))
    parties.run(600.0)
    assert parties.packets == []


def test_what_an_agent_had_is_not_given_again_once_it_is_forgotten() -> None:
    parties = Parties()
    parties.worker.send(Publish(DOWN, outputs()))
    parties.run(1.0)
    parties.worker.forget(AGENT)
    parties.packets.clear()
    pieces = cut(serialize(outputs()), parties.worker.transport.payload_limit(DOWN))
    assert pieces is not None
    ask = serialize(MissingChunks(pieces.message_id, pieces.count, ((0, 2),)))
    parties.worker.receive(Received(MISSING, ask, False, len(ask)))
    parties.run(2.0)
    assert parties.packets == []


def test_the_sender_learns_which_of_its_messages_are_being_received() -> None:
    parties = Parties(up=LinkFaults(seed=1, loss=0.2, delay_s=0.02))
    message = activations()
    parties.agent.send(Publish(UP, message))
    parties.run(60.0)
    assert parties.agent.take_resumed()[0] is message
    assert parties.agent.take_resumed() == []
    assert parties.worker.num_pieces_received == 22


def test_a_broker_that_takes_less_than_before_is_not_sent_the_old_pieces() -> None:
    parties = Parties()
    parties.agent.send(Publish(UP, activations()))
    parties.run(1.0)
    parties.broker.max_packet_bytes = 800
    pieces = cut(serialize(activations()), 1_000 - len(UP) - 6)
    assert pieces is not None
    ask = serialize(MissingChunks(pieces.message_id, pieces.count, ((0, 2),)))
    before = parties.agent.handed_bytes
    parties.agent.receive(Received(CONTROL, ask, False, len(ask)))
    parties.agent.tick(2.0)
    assert parties.agent.handed_bytes == before
