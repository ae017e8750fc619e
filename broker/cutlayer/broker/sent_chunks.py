"""What was sent in chunks lately, so that its receiver can have single pieces of it again.

Asking is cheap and answering is not, so an answer has bounds: it goes where the message went and nowhere else, to an
agent that asks for what was its own, not while the pieces are still on their way, and not for ever.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunking import Cut, cut
from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.messages import Chunk, MissingChunks, serialize
from cutlayer.broker.topics import agent_of

__all__ = ["Sent", "SentChunks", "check_ask"]

KEPT_BYTES = 16 << 20
"""For one agent, whose outstanding messages its session keeps anyway; who serves many keeps more."""
KEPT_MESSAGES = 1_024
SHORTEST_REST_S = 0.25
"""From one answer for a message to the next."""
MAX_REPEATS = 4
"""Times its own size that a message may cost in answers; sending it as a whole begins anew."""


def check_ask(ask: MissingChunks) -> None:
    """Refuse an ask that names no message, or pieces out of order: nobody gets a piece twice for one ask.

    Raises:
        MalformedMessage: When it is wrong.
    """
    before = -1
    for start, stop in ask.ranges:
        if not before < start < stop <= ask.count:
            raise MalformedMessage(f"pieces {start} to {stop} of {ask.count} are out of order, or none")
        before = stop
    if len(ask.message_id) != 8:
        raise MalformedMessage(f"a message id of {len(ask.message_id)} B")


@dataclass(slots=True)
class Sent:
    """A message that was sent in chunks.

    Attributes:
        publish: The message and its topic.
        payload_limit: Largest payload of a packet when it was sent.
        count: Chunks in all.
        num_bytes: Its size.
        out_at_bytes: It has left when so many bytes have (`Courier.handed_bytes`).
        answered_at: When pieces of it were last sent again.
        num_again: Pieces sent again.
    """

    publish: Publish
    payload_limit: int
    count: int
    num_bytes: int
    out_at_bytes: int
    answered_at: float | None = None
    num_again: int = 0


class SentChunks:
    """Keeps messages, the newest whatever its size and as many before it as its bounds allow.

    The message is kept and not its bytes: where a session keeps it too, until its end, it takes no memory of its own.

    Args:
        kept_bytes: Most bytes of all messages but the newest.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._sent: OrderedDict[bytes, Sent] = OrderedDict()
        self._num_bytes = 0

    def keep(self, publish: Publish, pieces: Cut, payload_limit: int, out_at_bytes: int) -> None:
        """Keep a message that was just sent."""
        self._drop(pieces.message_id)
        num_bytes = len(pieces.message)
        self._sent[pieces.message_id] = Sent(publish, payload_limit, pieces.count, num_bytes, out_at_bytes)
        self._num_bytes += num_bytes
        while len(self._sent) > 1 and (self._num_bytes > self._kept_bytes or len(self._sent) > KEPT_MESSAGES):
            self._drop(next(iter(self._sent)))

    def find(self, agent: str, ask: MissingChunks, left_bytes: int, now: float) -> Sent | None:
        """Return the message that an ask is about, or None when the ask is not to be answered (now).

        Args:
            agent: The agent on whose topic the ask came.
            ask: What is missing.
            left_bytes: Of all bytes handed to the transport, those that have left.
            now: Seconds.
        """
        sent = self._sent.get(ask.message_id)
        if sent is None or sent.count != ask.count or agent_of(sent.publish.topic) != agent:
            return None
        if left_bytes < sent.out_at_bytes:
            return None
        if sent.answered_at is not None and now < sent.answered_at + SHORTEST_REST_S:
            return None
        if sent.num_again >= MAX_REPEATS * sent.count:
            return None
        return sent

    def pieces(self, sent: Sent, ask: MissingChunks, now: float) -> Iterator[Chunk]:
        """Yield the pieces that an ask is for; `Sent.out_at_bytes` is the caller's to set afterwards."""
        pieces = cut(serialize(sent.publish.message), sent.payload_limit)
        assert pieces is not None, "what is kept was cut"
        sent.answered_at = now
        for start, stop in ask.ranges:
            for index in range(start, stop):
                sent.num_again += 1
                yield pieces.piece(index)

    def forget(self, agent: str) -> None:
        """Drop what was sent to, or by, an agent."""
        for message_id in [key for key, sent in self._sent.items() if agent_of(sent.publish.topic) == agent]:
            self._drop(message_id)

    def _drop(self, message_id: bytes) -> None:
        sent = self._sent.pop(message_id, None)
        if sent is not None:
            self._num_bytes -= sent.num_bytes
