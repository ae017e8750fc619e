"""Carries messages over a transport: bytes, chunks, counting and refusal in one place for both roles."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunking import Reassembler, split
from cutlayer.broker.errors import PacketTooLarge, WireError
from cutlayer.broker.messages import Direction, Message, serialize
from cutlayer.broker.telemetry import TrafficMeter
from cutlayer.broker.topics import agent_of
from cutlayer.broker.transport import Received, Transport

__all__ = ["Courier"]

MAX_UNFINISHED_TOPICS = 4_096
"""Topics whose bytes are counted towards a message that is not whole; an agent may publish on any below its own."""


@dataclass(slots=True)
class _Size:
    payload_bytes: int = 0
    wire_bytes: int = 0


class Courier:
    """Sends and receives messages for one party.

    Args:
        transport: The connection.
        sends: The direction of what this party sends: up for an agent, down for a worker.
        reassembler: Puts chunked messages together.

    Attributes:
        transport: The connection.
        traffic: Messages and bytes so far, by direction, kind and codec.
        rejects: Messages refused so far, by label.
        handed_bytes: Bytes of packets given to the transport so far.
    """

    def __init__(self, transport: Transport, sends: Direction, reassembler: Reassembler | None = None) -> None:
        self.transport = transport
        self.traffic = TrafficMeter()
        self.rejects: Counter[str] = Counter()
        self.handed_bytes = 0
        self._sends = sends
        self._receives = Direction.DOWN if sends is Direction.UP else Direction.UP
        self._reassembler = reassembler or Reassembler()
        self._unfinished: dict[str, _Size] = {}

    def send(self, publish: Publish) -> None:
        """Publish a message, in chunks where it is larger than a packet.

        Raises:
            PacketTooLarge: When the packet limit leaves no room for a chunk, or the message is retained, which
                cannot be cut.
        """
        size = _Size()
        limit = self.transport.payload_limit(publish.topic)
        message = serialize(publish.message)
        if publish.retain and len(message) > limit:
            raise PacketTooLarge(limit, len(message))  # the broker would keep the last chunk alone
        for packet in split(message, limit):
            size.payload_bytes += len(packet)
            size.wire_bytes += self.transport.publish(publish.topic, packet, qos=publish.qos, retain=publish.retain)
        self.handed_bytes += size.wire_bytes
        self.traffic.add(self._sends, publish.message, size.payload_bytes, size.wire_bytes)

    def receive(self, packet: Received) -> Message | None:
        """Take a packet; return the message that it completes, or None.

        A packet that breaks the protocol is counted under its label in `rejects` and dropped.
        """
        if not packet.payload:
            return None  # an empty retained message clears a topic
        sender = agent_of(packet.topic) or packet.topic
        size = self._unfinished.setdefault(packet.topic, _Size())
        if len(self._unfinished) > MAX_UNFINISHED_TOPICS:
            del self._unfinished[next(iter(self._unfinished))]
        size.payload_bytes += len(packet.payload)
        size.wire_bytes += packet.wire_bytes
        try:
            message = self._reassembler.feed(sender, packet.payload)
        except WireError as error:
            self.rejects[error.label] += 1
            self._unfinished.pop(packet.topic, None)
            return None
        if message is not None:
            self.traffic.add(self._receives, message, size.payload_bytes, size.wire_bytes)
            self._unfinished.pop(packet.topic, None)
        return message

    def refuse(self, label: str) -> None:
        """Count a message that a session has refused."""
        self.rejects[label] += 1

    def forget(self, agent: str) -> None:
        """Drop what an agent has left unfinished."""
        self._reassembler.forget(agent)
        for topic in [topic for topic in self._unfinished if agent_of(topic) == agent]:
            del self._unfinished[topic]
