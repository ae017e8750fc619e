"""Messages larger than a packet: cut by the sender, put together under a byte budget by the receiver.

The id of a chunked message is a hash of its bytes. So a message that is sent again fills the gaps of its first
sending, copies change nothing, and a message put together is known to be whole. Whoever lacks a few pieces asks for
just those (`chunk_watch.py`), and the sender gives them once more (`sent_chunks.py`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from cutlayer.broker.chunk_watch import ChunkKey, ChunkWatch
from cutlayer.broker.errors import MalformedMessage, OversizedMessage, PacketTooLarge
from cutlayer.broker.messages import MAX_CHUNKS, MAX_MISSING_RANGES, Chunk, Message, MissingChunks, parse, serialize

__all__ = ["CHUNK_OVERHEAD_BYTES", "Cut", "Reassembler", "cut", "split"]

CHUNK_OVERHEAD_BYTES = 40
"""At most what a chunk's own fields take: array, version, kind, id (10), index, count, total (3 x 5), data (5)."""
MIN_CHUNK_BYTES = 64
PARTIAL_BYTES = 1024
"""At most what an unfinished message takes beside its bytes: a small one is not free."""
PIECE_BYTES = 128
"""At most what a piece takes beside its bytes."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A message that is larger than a packet, and where it is cut.

    Attributes:
        message: The serialized message.
        message_id: Its hash.
        piece_bytes: Size of all pieces but the last.
    """

    message: bytes
    message_id: bytes
    piece_bytes: int

    @property
    def count(self) -> int:
        """Chunks in all."""
        return -(-len(self.message) // self.piece_bytes)

    def piece(self, index: int) -> Chunk:
        """Return one of the pieces that carry the message."""
        data = self.message[index * self.piece_bytes : (index + 1) * self.piece_bytes]
        return Chunk(self.message_id, index, self.count, len(self.message), data)

    def packets(self) -> Iterator[bytes]:
        """Yield the packets that carry the message."""
        for index in range(self.count):
            yield serialize(self.piece(index))


def cut(message: bytes, payload_limit: int) -> Cut | None:
    """Find where a message is to be cut; None where it fits a packet.

    Args:
        message: A serialized message.
        payload_limit: Largest payload of a packet in bytes.

    Raises:
        PacketTooLarge: When the limit leaves no room for a chunk.
    """
    if len(message) <= payload_limit:
        return None
    room = payload_limit - CHUNK_OVERHEAD_BYTES
    if room < MIN_CHUNK_BYTES or -(-len(message) // room) > MAX_CHUNKS:
        raise PacketTooLarge(payload_limit, CHUNK_OVERHEAD_BYTES + max(MIN_CHUNK_BYTES, len(message) // MAX_CHUNKS + 1))
    return Cut(message, _message_id(message), room)


def split(message: bytes, payload_limit: int) -> Iterator[bytes]:
    """Yield the packets that carry a message: itself where it fits, else its chunks. See `cut`."""
    pieces = cut(message, payload_limit)
    if pieces is None:
        yield message
    else:
        yield from pieces.packets()


@dataclass(slots=True)
class _Partial:
    count: int
    total_bytes: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    held_bytes: int = 0

    @property
    def cost_bytes(self) -> int:
        return _cost_bytes(self.count, self.total_bytes)


@dataclass(slots=True)
class _Sender:
    reserved_bytes: int = 0
    partials: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class Reassembler:
    """Puts chunks together again. A sender cannot make it hold more than its share of the budget.

    Args:
        budget_bytes: Most bytes held in all, by the totals that senders declare.
        sender_share: Most of that for one sender, as a share.
        watch: Told of each piece, so that what is missing can be asked for.

    What counts against the budget is what a message may grow to: the size that it declares, and what its pieces
    take beside. A message is given up when others need its room (the one without progress for longest goes first);
    its sender sends it again at its deadline.
    """

    def __init__(
        self, budget_bytes: int = 512 << 20, sender_share: float = 0.5, watch: ChunkWatch | None = None
    ) -> None:
        self._budget_bytes = budget_bytes
        self._sender_bytes = int(budget_bytes * sender_share)
        self._watch = watch or ChunkWatch()
        self._partials: OrderedDict[ChunkKey, _Partial] = OrderedDict()
        self._senders: dict[str, _Sender] = {}
        self._reserved_bytes = 0
        self.num_dropped = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes that the unfinished messages may grow to."""
        return self._reserved_bytes

    def feed(self, sender: str, packet: bytes) -> Message | None:
        """Take one packet.

        Args:
            sender: Whoever it came from, such as the agent.
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
            partial = self._open(key, _Partial(message.count, message.total_bytes))
        elif (partial.count, partial.total_bytes) != (message.count, message.total_bytes):
            self._close(key)
            raise MalformedMessage("chunks of one message disagree on its size")
        self._partials.move_to_end(key)
        self._senders[sender].partials.move_to_end(message.message_id)
        if message.index not in partial.pieces:
            if partial.held_bytes + len(message.data) > partial.total_bytes:
                self._close(key)
                raise MalformedMessage("chunks hold more bytes than they declare")
            partial.pieces[message.index] = message.data
            partial.held_bytes += len(message.data)
            self._watch.piece_came(key, len(partial.pieces), partial.count)
        if len(partial.pieces) < partial.count:
            return None
        self._close(key)
        whole = _join(partial, message.message_id)
        self._watch.finished(key)
        return whole

    def missing(self, key: ChunkKey) -> MissingChunks | None:
        """Return what to ask the sender of an unfinished message for, or None when it is unfinished no more.

        That is no more pieces than have come: where none is lost and the link is merely slow, little is sent twice.
        """
        partial = self._partials.get(key)
        if partial is None:
            return None
        ranges: list[tuple[int, int]] = []
        num_left = len(partial.pieces)
        for index in range(partial.count):
            if index in partial.pieces:
                continue
            if ranges and ranges[-1][1] == index:
                ranges[-1] = (ranges[-1][0], index + 1)
            elif len(ranges) == MAX_MISSING_RANGES:
                break
            else:
                ranges.append((index, index + 1))
            num_left -= 1
            if not num_left:
                break
        return MissingChunks(key[1], partial.count, tuple(ranges))

    def forget(self, sender: str) -> None:
        """Drop what a sender has left unfinished."""
        while sender in self._senders:
            self._close((sender, next(iter(self._senders[sender].partials))))

    def _check(self, chunk: Chunk) -> None:
        if len(chunk.message_id) != 8 or chunk.index >= chunk.count or not chunk.data:
            raise MalformedMessage(f"chunk {chunk.index} of {chunk.count} with {len(chunk.data)} B is none")
        if chunk.count > chunk.total_bytes:
            raise MalformedMessage(f"{chunk.count} chunks of a message of {chunk.total_bytes} B")
        if _cost_bytes(chunk.count, chunk.total_bytes) > self._sender_bytes:
            raise OversizedMessage("chunked message", _cost_bytes(chunk.count, chunk.total_bytes), self._sender_bytes)

    def _open(self, key: ChunkKey, partial: _Partial) -> _Partial:
        sender, message_id = key
        while sender in self._senders and (
            self._senders[sender].reserved_bytes + partial.cost_bytes > self._sender_bytes
        ):
            self._close((sender, next(iter(self._senders[sender].partials))))
            self.num_dropped += 1
        while self._reserved_bytes + partial.cost_bytes > self._budget_bytes:
            self._close(next(iter(self._partials)))
            self.num_dropped += 1
        owner = self._senders.setdefault(sender, _Sender())
        owner.partials[message_id] = None
        owner.reserved_bytes += partial.cost_bytes
        self._reserved_bytes += partial.cost_bytes
        self._partials[key] = partial
        return partial

    def _close(self, key: ChunkKey) -> None:
        sender, message_id = key
        self._watch.forget(key)
        cost_bytes = self._partials.pop(key).cost_bytes
        self._reserved_bytes -= cost_bytes
        owner = self._senders[sender]
        del owner.partials[message_id]
        owner.reserved_bytes -= cost_bytes
        if not owner.partials:
            del self._senders[sender]


def _cost_bytes(count: int, total_bytes: int) -> int:
    return total_bytes + count * PIECE_BYTES + PARTIAL_BYTES


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
