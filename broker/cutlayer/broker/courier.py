"""Carries messages over a transport: bytes, chunks, counting and refusal in one place for both roles.

What is missing of a message in chunks is asked for and given here, too, out of the sessions' sight: the driver calls
`tick` and knows from `next_deadline` when to come back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunk_watch import ChunkWatch
from cutlayer.broker.chunking import Reassembler, cut
from cutlayer.broker.errors import PacketTooLarge, SettingsError, WireError
from cutlayer.broker.messages import Direction, Message, MissingChunks, serialize
from cutlayer.broker.sent_chunks import SentChunks, check_ask
from cutlayer.broker.telemetry import TrafficMeter
from cutlayer.broker.topics import AgentTopics, agent_of
from cutlayer.broker.transport import Received, Transport

__all__ = ["Courier"]

MAX_UNFINISHED_TOPICS = 4_096
"""Topics whose bytes are counted towards a message that is not whole; an agent may publish on any below its own."""

WORKER_KEPT_BYTES = 128 << 20
"""Of what a worker has sent in chunks, to all its agents together."""
MAX_WAITING_ASKS = 256
"""Asks taken from one tick to the next; who asked in vain asks again."""


@dataclass(slots=True)
class _Size:
    payload_bytes: int = 0
    wire_bytes: int = 0


class Courier:
    """Sends and receives messages for one party.

    Args:
        transport: The connection.
        sends: The direction of what this party sends: up for an agent, down for a worker.
        reassembler: Puts chunked messages together; given one, the courier asks for nothing that is missing.

    Attributes:
        transport: The connection.
        traffic: Messages and bytes so far, by direction, kind and codec. Pieces that were sent again are not in
            their message's row but in that of Chunk; what is received is in the message's row, however often.
        rejects: Messages refused so far, by label.
        last_reject: Label of the last packet that broke the protocol.
        handed_bytes: Bytes of packets given to the transport so far.
    """

    def __init__(self, transport: Transport, sends: Direction, reassembler: Reassembler | None = None) -> None:
        self.transport = transport
        self.traffic = TrafficMeter()
        self.rejects: Counter[str] = Counter()
        self.last_reject = ""
        self.handed_bytes = 0
        self._sends = sends
        self._receives = Direction.DOWN if sends is Direction.UP else Direction.UP
        self._watch = ChunkWatch()
        self._reassembler = reassembler or Reassembler(watch=self._watch)
        self._sent = SentChunks() if sends is Direction.UP else SentChunks(WORKER_KEPT_BYTES)
        self._asks: list[tuple[str, MissingChunks]] = []
        self._resumed: list[Message] = []
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
        pieces = cut(message, limit)
        for packet in [message] if pieces is None else pieces.packets():
            size.payload_bytes += len(packet)
            size.wire_bytes += self.transport.publish(publish.topic, packet, qos=publish.qos, retain=publish.retain)
        self.handed_bytes += size.wire_bytes
        if pieces is not None:
            self._sent.keep(publish, pieces, limit, self.handed_bytes)
        self.traffic.add(self._sends, publish.message, size.payload_bytes, size.wire_bytes)

    def receive(self, packet: Received) -> Message | None:
        """Take a packet; return the message that it completes, or None.

        A packet that breaks the protocol is counted under its label in `rejects` and dropped.
        """
        if not packet.payload:
            return None  # an empty retained message clears a topic
        agent = agent_of(packet.topic)
        size = self._unfinished.setdefault(packet.topic, _Size())
        if len(self._unfinished) > MAX_UNFINISHED_TOPICS:
            del self._unfinished[next(iter(self._unfinished))]
        size.payload_bytes += len(packet.payload)
        size.wire_bytes += packet.wire_bytes
        try:
            # No agent's name starts with a slash: nobody is asked for what came on a topic that is no agent's.
            message = self._reassembler.feed(agent or f"/{packet.topic}", packet.payload)
            if isinstance(message, MissingChunks):
                check_ask(message)
        except WireError as error:
            self.rejects[error.label] += 1
            self.last_reject = error.label
            self._unfinished.pop(packet.topic, None)
            return None
        if message is not None:
            self.traffic.add(self._receives, message, size.payload_bytes, size.wire_bytes)
            self._unfinished.pop(packet.topic, None)
        if not isinstance(message, MissingChunks):
            return message
        if agent is None:
            self.refuse("unexpected")
        elif len(self._asks) < MAX_WAITING_ASKS:
            self._asks.append((agent, message))
        return None

    def tick(self, now: float) -> None:
        """Give the pieces that were asked for, and ask for those that are missing.

        Call it after what has arrived was received: pieces count as come at this time.
        """
        for agent, ask in self._asks:
            self._answer(agent, ask, now)
        self._asks.clear()
        for key in self._watch.tick(now):
            try:
                topics = AgentTopics(key[0])
            except SettingsError:
                continue
            missing = self._reassembler.missing(key)
            if missing is not None:
                self.send(Publish(topics.missing if self._sends is Direction.UP else topics.down_control, missing))

    def next_deadline(self) -> float | None:
        """Return the time before which `tick` has nothing to do by the clock alone, or None."""
        return self._watch.next_deadline()

    @property
    def num_pieces_received(self) -> int:
        """Pieces that have come, copies not counted: whoever waits for a message sees that one is coming."""
        return self._watch.num_pieces

    def take_resumed(self) -> list[Message]:
        """Return the messages of which pieces were sent again since the last call: somebody is receiving them."""
        resumed, self._resumed = self._resumed, []
        return resumed

    def refuse(self, label: str) -> None:
        """Count a message that a session has refused."""
        self.rejects[label] += 1

    def forget(self, agent: str) -> None:
        """Drop what an agent has left unfinished."""
        self._reassembler.forget(agent)
        self._sent.forget(agent)
        for topic in [topic for topic in self._unfinished if agent_of(topic) == agent]:
            del self._unfinished[topic]

    def _answer(self, agent: str, ask: MissingChunks, now: float) -> None:
        sent = self._sent.find(agent, ask, self.handed_bytes - self.transport.pending_bytes(), now)
        if sent is None or self.transport.payload_limit(sent.publish.topic) < sent.payload_limit:
            return
        topic, qos = sent.publish.topic, sent.publish.qos
        for piece in self._sent.pieces(sent, ask, now):
            packet = serialize(piece)
            wire_bytes = self.transport.publish(topic, packet, qos=qos)
            self.handed_bytes += wire_bytes
            self.traffic.add(self._sends, piece, len(packet), wire_bytes)
        sent.out_at_bytes = self.handed_bytes
        self._resumed.append(sent.publish.message)
