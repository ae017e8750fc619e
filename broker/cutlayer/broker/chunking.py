"""Messages larger than a packet: cut by the sender, put together under a byte budget by the receiver.

The id of a chunked message is a hash of its bytes. So a message that is sent again fills the gaps of its first
sending, copies change nothing, and a message put together is known to be whole.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cutlayer.broker.errors import MalformedMessage, OversizedMessage, PacketTooLarge
from cutlayer.broker.messages import MAX_CHUNKS, Chunk, Message, parse, serialize

__all__ = ["CHUNK_OVERHEAD_BYTES", "Reassembler", "split"]

CHUNK_OVERHEAD_BYTES = 40
"""At most what a chunk's own fields take: array, version, kind, id (10), index, count, total (3 x 5), data (5)."""
MIN_CHUNK_BYTES = 64


def split(message: bytes, payload_limit: int) -> Iterator[bytes]:
    """Yield the packets that carry a message: itself where it fits, else its chunks.

    Args:
        message: A serialized message.
        payload_limit: Largest payload of a packet in bytes.

    Raises:
        PacketTooLarge: When the limit leaves no room for a chunk.
    """
    if len(message) <= payload_limit:
        yield message
        return
    room = payload_limit - CHUNK_OVERHEAD_BYTES
    if room < MIN_CHUNK_BYTES or -(-len(message) // room) > MAX_CHUNKS:
        raise PacketTooLarge(payload_limit, CHUNK_OVERHEAD_BYTES + max(MIN_CHUNK_BYTES, len(message) // MAX_CHUNKS + 1))
    message_id = _message_id(message)
    count = -(-len(message) // room)
    for index in range(count):
        data = message[index * room : (index + 1) * room]
        yield serialize(Chunk(message_id, index, count, len(message), data))


@dataclass(slots=True)
class _Partial:
    count: int
    total_bytes: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    held_bytes: int = 0


class Reassembler:
    """Puts chunks together again. A sender cannot make it hold more than its share of the budget.

    Args:
        budget_bytes: Most bytes held in all, by the totals that senders declare.
        sender_share: Most of that for one sender, as a share.

    A message is given up when others need its room (the one without progress for longest goes first); its sender
    sends it again at its deadline.
    """

    def __init__(self, budget_bytes: int = 512 << 20, sender_share: float = 0.5) -> None:
        self._budget_bytes = budget_bytes
        self._sender_bytes = int(budget_bytes * sender_share)
        self._partials: OrderedDict[tuple[str, bytes], _Partial] = OrderedDict()
        self.num_dropped = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes that the unfinished messages may grow to."""
        return sum(partial.total_bytes for partial in self._partials.values())

    def feed(self, sender: str, packet: bytes) -> Message | None:
        """Take one packet.

        Args:
            sender: Whoever it came from, such as the topic name.
            packet: Its payload.

        Returns:
            A whole message, or None while chunks are missing.

        Raises:
            WireError: When the packet, or the message it completes, breaks the protocol.
        """
        message = parse(packet)
        if not isinstance(message, Chunk):
            return message
        self._check(message)
        key = (sender, message.message_id)
        partial = self._partials.get(key)
        if partial is None:
            self._make_room(sender, message.total_bytes)
            partial = self._partials[key] = _Partial(message.count, message.total_bytes)
        elif (partial.count, partial.total_bytes) != (message.count, message.total_bytes):
            del self._partials[key]
            raise MalformedMessage("chunks of one message disagree on its size")
        self._partials.move_to_end(key)
        if message.index not in partial.pieces:
            if partial.held_bytes + len(message.data) > partial.total_bytes:
                del self._partials[key]
                raise MalformedMessage("chunks hold more bytes than they declare")
            partial.pieces[message.index] = message.data
            partial.held_bytes += len(message.data)
        if len(partial.pieces) < partial.count:
            return None
        del self._partials[key]
        return _join(partial, message.message_id)

    def forget(self, sender: str) -> None:
        """Drop what a sender has left unfinished."""
        for key in [key for key in self._partials if key[0] == sender]:
            del self._partials[key]

    def _check(self, chunk: Chunk) -> None:
        if len(chunk.message_id) != 8 or chunk.index >= chunk.count or not chunk.data:
            raise MalformedMessage(f"chunk {chunk.index} of {chunk.count} with {len(chunk.data)} B is none")
        if chunk.total_bytes > self._sender_bytes:
            raise OversizedMessage("chunked message", chunk.total_bytes, self._sender_bytes)

    def _make_room(self, sender: str, total_bytes: int) -> None:
        own = sum(partial.total_bytes for (owner, _), partial in self._partials.items() if owner == sender)
        while own + total_bytes > self._sender_bytes:
            key = next(key for key in self._partials if key[0] == sender)
            own -= self._partials.pop(key).total_bytes
            self.num_dropped += 1
        while self.reserved_bytes + total_bytes > self._budget_bytes:
            self._partials.popitem(last=False)
            self.num_dropped += 1


def _join(partial: _Partial, message_id: bytes) -> Message:
    whole = b"".join(partial.pieces[index] for index in range(partial.count))
    if len(whole) != partial.total_bytes or _message_id(whole) != message_id:
        raise MalformedMessage("a message put together from chunks does not match its id")
    message = parse(whole)
    if isinstance(message, Chunk):
        raise MalformedMessage("a chunk inside chunks")
    return message


def _message_id(message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=8).digest()
