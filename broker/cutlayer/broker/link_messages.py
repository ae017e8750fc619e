"""The messages that are about the way and not about the run: pieces of what is larger than a packet, and probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutlayer.broker.wire import binary, many, number, pair, text, uint, wire
from cutlayer.broker.wire_limits import MAX_CHUNKS, MAX_MESSAGE_BYTES, MAX_NAME

MAX_MISSING_RANGES = 24
"""Ranges in a MissingChunks, which so fits the smallest packets that brokers are set to: it cannot go in chunks."""
MAX_PROBE_BYTES = 4_096
"""Payload of a Probe: enough to see what a packet of some size costs, too little to burden a worker."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a message that is larger than one packet.

    Attributes:
        message_id: BLAKE2b-64 of the whole message: a resent message has the same chunks.
        index: Position, from 0.
        count: Chunks in all.
        total_bytes: Size of the whole message.
        data: The piece.
    """

    KIND: ClassVar[int] = 0
    message_id: bytes = wire(binary(8))
    index: int = wire(uint(MAX_CHUNKS - 1))
    count: int = wire(uint(MAX_CHUNKS))
    total_bytes: int = wire(uint(MAX_MESSAGE_BYTES))
    data: bytes = wire(binary(MAX_MESSAGE_BYTES))


@dataclass(frozen=True, slots=True)
class MissingChunks:
    """The receiver of a chunked message that does not go on asks its sender for single pieces of it.

    Attributes:
        message_id: The chunks'.
        count: The chunks': one message may have been cut in two ways.
        ranges: Ranges [start, stop) of the pieces that are missing, sorted; neither empty nor touching.
    """

    KIND: ClassVar[int] = 19
    message_id: bytes = wire(binary(8))
    count: int = wire(uint(MAX_CHUNKS))
    ranges: tuple[tuple[int, int], ...] = wire(many(pair(uint(MAX_CHUNKS), uint(MAX_CHUNKS)), MAX_MISSING_RANGES))


@dataclass(frozen=True, slots=True)
class Probe:
    """Whoever sets a site up asks a worker to answer: no lease is needed, and no run is disturbed.

    Attributes:
        nonce: Random number that the answer repeats.
        sent_at: When it was sent, in seconds since the epoch by the asker's clock.
        payload: Bytes without a meaning, which give the packet its size.
    """

    KIND: ClassVar[int] = 20
    nonce: int = wire(uint())
    sent_at: float = wire(number(0.0))
    payload: bytes = wire(binary(MAX_PROBE_BYTES))


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """A worker's answer to a Probe: it was read here, and the way back is open.

    Attributes:
        worker: The worker's name.
        nonce: Echo of the Probe's.
        sent_at: Echo of the Probe's.
        answered_at: When it was answered, in seconds since the epoch by the worker's clock.
    """

    KIND: ClassVar[int] = 21
    worker: str = wire(text(MAX_NAME))
    nonce: int = wire(uint())
    sent_at: float = wire(number(0.0))
    answered_at: float = wire(number(0.0))
