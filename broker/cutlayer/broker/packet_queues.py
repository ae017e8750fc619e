"""The two bounded queues of a transport: events that have come, and packets that have not gone yet.

The network thread fills one and drains the other; the driver's thread does the opposite.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from cutlayer.broker.transport import Received, TransportEvent

__all__ = ["EventQueue", "OnItsWay", "Outbox"]


class EventQueue:
    """Events for the driver, oldest first, with a wait that ends when one comes. Thread-safe.

    Args:
        max_bytes: What the `Received` events in it may hold; beyond that the newest is refused. Without this a
            peer that floods a topic fills this process's memory.

    Attributes:
        num_refused: `Received` events that found no room.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_refused = 0
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._events: deque[TransportEvent] = deque()
        self._lock = threading.Lock()
        self._filled = threading.Event()

    def put(self, event: TransportEvent) -> None:
        """Append an event, unless it is a `Received` for which there is no room."""
        with self._lock:
            if isinstance(event, Received):
                if self._held_bytes + event.wire_bytes > self._max_bytes:
                    self.num_refused += 1
                    return
                self._held_bytes += event.wire_bytes
            self._events.append(event)
            self._filled.set()

    def take_all(self) -> list[TransportEvent]:
        """Return everything in the queue and empty it."""
        with self._lock:
            events = list(self._events)
            self._events.clear()
            self._held_bytes = 0
            self._filled.clear()
        return events

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is an event or `timeout_s` seconds have passed; return whether there is one."""
        return self._filled.wait(timeout_s)


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """A packet that was handed to the network: its topic, QoS and size on the wire in bytes."""

    topic: str
    qos: int
    wire_bytes: int


class Outbox:
    """Bounds and counts the packets between `publish` and the broker. Thread-safe.

    paho-mqtt bounds its own queue for QoS 1 only, and by number, not bytes; so the bound is kept here.

    Args:
        max_packets: Packets that may be on their way.
        max_bytes: Their size on the wire.
    """

    def __init__(self, max_packets: int, max_bytes: int) -> None:
        self._max_packets = max_packets
        self._max_bytes = max_bytes
        self._num_packets = 0
        self._bytes = 0
        self._sent: dict[int, OnItsWay] = {}
        # paho-mqtt may report a packet as done, or refused, before `publish` has returned its identifier.
        self._done_early: dict[int, str] = {}
        self._changed = threading.Condition()

    @property
    def pending_bytes(self) -> int:
        """Bytes on their way."""
        with self._changed:
            return self._bytes

    def reserve(self, wire_bytes: int) -> bool:
        """Make room for a packet; return False when there is none."""
        with self._changed:
            if self._num_packets >= self._max_packets or self._bytes + wire_bytes > self._max_bytes:
                return False
            self._num_packets += 1
            self._bytes += wire_bytes
            return True

    def release(self, wire_bytes: int) -> None:
        """Give the room of a packet back that was not sent after all."""
        with self._changed:
            self._release(wire_bytes)

    def sent(self, identifier: int, packet: OnItsWay) -> str:
        """Note under which identifier a packet, whose room is reserved, went to the network.

        Returns:
            What `done` was told already as the reason for a refusal; empty when there is none.
        """
        with self._changed:
            if identifier not in self._done_early:
                self._sent[identifier] = packet
                return ""
            self._release(packet.wire_bytes)
            return self._done_early.pop(identifier)

    def done(self, identifier: int, refusal: str = "") -> OnItsWay | None:
        """Note that a packet has been written (QoS 0) or acknowledged (QoS 1), and return it where known.

        Args:
            identifier: Under which it went.
            refusal: Why the broker refused it; empty when it did not.
        """
        with self._changed:
            packet = self._sent.pop(identifier, None)
            if packet is None:
                self._done_early[identifier] = refusal
            else:
                self._release(packet.wire_bytes)
            return packet

    def forget(self, *, qos_1_too: bool) -> int:
        """Give up packets that a lost connection took with it; return how many."""
        with self._changed:
            lost = [key for key, packet in self._sent.items() if packet.qos == 0 or qos_1_too]
            for key in lost:
                self._release(self._sent.pop(key).wire_bytes)
            self._done_early.clear()
            return len(lost)

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Sleep until nothing is on its way or `timeout_s` seconds have passed; return whether it is empty."""
        with self._changed:
            return self._changed.wait_for(lambda: self._num_packets == 0, timeout_s)

    def _release(self, wire_bytes: int) -> None:
        self._num_packets -= 1
        self._bytes -= wire_bytes
        self._changed.notify_all()
