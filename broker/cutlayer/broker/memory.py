"""`MemoryTransport`: the in-memory twin of `MqttTransport`, on a `MemoryBroker`.

It behaves as an MQTT 5 client does (a session that is taken over is told so) and counts bytes as an MQTT 3.1.1
client sends them. One behaviour suite runs over both (tests/broker/test_transports.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from cutlayer.broker.errors import PacketTooLarge
from cutlayer.broker.faults import Link, LinkFaults
from cutlayer.broker.memory_broker import Connection, MemoryBroker, Publish
from cutlayer.broker.mqtt_packets import (
    PUBACK_BYTES,
    connect_size,
    disconnect_size,
    largest_payload,
    subscribe_size,
    unsuback_size,
    unsubscribe_size,
)
from cutlayer.broker.packet_queues import EventQueue
from cutlayer.broker.transport import Connected, Disconnected, Received, TransportEvent, Will, WireCount

__all__ = ["MemoryBroker", "MemoryTransport"]


class MemoryTransport:
    """One client of a `MemoryBroker`.

    Args:
        broker: The broker.
        client_id: Client identifier.
        identity: What to call this client in `IdentityTaken`; the client identifier when left out.
        up: Faults of the link to the broker; the broker's when left out.
        down: Faults of the link from the broker; the broker's when left out.
        max_queued_messages: Packets that `publish` lets wait at most.
        max_queued_bytes: Bytes that the packets received and not yet taken hold at most.

    Attributes:
        on_news: Called when an event comes while none waits to be taken, with the broker's lock held: for a scheduler
            that wakes only those with news.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        identity: str | None = None,
        up: LinkFaults | None = None,
        down: LinkFaults | None = None,
        max_queued_messages: int = 1_000,
        max_queued_bytes: int = 256 * 1024 * 1024,
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._identity = identity or client_id
        self._up = Link(broker.up if up is None else up, f"{client_id}/up")
        self._down = Link(broker.down if down is None else down, f"{client_id}/down")
        self._max_queued_messages = max_queued_messages
        self._will: Will | None = None
        self._connection: Connection | None = None
        self._accepted = False
        self._ready = False
        self._over = False
        self._filters: dict[str, int] = {}
        self._on_its_way: dict[int, Publish] = {}
        self._order = itertools.count()
        self._events = EventQueue(max_queued_bytes)
        self._num_events = 0
        self.on_news: Callable[[], None] | None = None
        self._wire = WireCount()

    @property
    def wire(self) -> WireCount:
        """Bytes so far: a copy, so that two readings can be subtracted."""
        with self._broker.changed:
            wire, num_refused = self._wire, self._events.num_refused
            return WireCount(
                wire.sent_bytes,
                wire.received_bytes,
                wire.sent_packets,
                wire.received_packets,
                wire.dropped_packets + num_refused,
                wire.sent_publish_bytes,
                wire.received_publish_bytes,
            )

    @property
    def num_events(self) -> int:
        """Events that wait to be taken."""
        return self._num_events

    @property
    def num_on_their_way(self) -> int:
        """Packets handed to `publish` that the broker has not acknowledged."""
        return len(self._on_its_way)

    @property
    def max_packet_bytes(self) -> int:
        """The present limit of one MQTT packet, topic and headers included."""
        return self._broker.max_packet_bytes

    def connect(self, will: Will | None) -> None:
        """Start connecting; `Connected` follows as an event."""
        with self._broker.changed:
            assert self._connection is None, "a transport connects once"
            self._will = will
            self._broker.advance()
            self._open()
            self._broker.advance()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send one packet; see `Transport.publish`.

        Raises:
            PacketTooLarge: When the packet is over `max_packet_bytes`.
        """
        packet = Publish(topic, bytes(payload), qos, retain)
        if packet.wire_bytes > self.max_packet_bytes:
            raise PacketTooLarge(self.max_packet_bytes, packet.wire_bytes)
        with self._broker.changed:
            self._broker.advance()
            full = len(self._on_its_way) >= self._max_queued_messages
            if self._over or full or (qos == 0 and not self._ready):
                self._wire.dropped_packets += 1
                return 0
            key = next(self._order)
            self._on_its_way[key] = packet
            if self._ready:
                self._transmit(key)
            self._broker.advance()
        return packet.wire_bytes

    def subscribe(self, topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        """Ask for a topic filter; it is asked for again after each reconnect."""
        del is_optional  # this broker denies nothing
        with self._broker.changed:
            self._broker.advance()
            self._filters[topic_filter] = qos
            if self._accepted:
                self._ask({topic_filter: qos})
            self._broker.advance()

    def unsubscribe(self, topic_filter: str) -> None:
        """Give a topic filter up."""
        with self._broker.changed:
            self._broker.advance()
            self._filters.pop(topic_filter, None)
            connection = self._connection
            if self._accepted and connection is not None:
                self._send(
                    connection,
                    unsubscribe_size([topic_filter], protocol="3.1.1"),
                    lambda: self._broker.unsubscribe(connection, topic_filter),
                )
                self._wire.received_bytes += unsuback_size(1, protocol="3.1.1")
            self._broker.advance()

    def payload_limit(self, topic: str) -> int:
        """Largest payload in bytes that fits one packet on this topic.

        Raises:
            PacketTooLarge: When the limit leaves no room.
        """
        return largest_payload(topic, self.max_packet_bytes)

    def poll(self) -> list[TransportEvent]:
        """Take the events whose time has come, oldest first."""
        self._broker.advance()
        with self._broker.changed:
            self._num_events = 0
            return self._events.take_all()

    def wait(self, timeout_s: float) -> None:
        """Sleep until an event is there or `timeout_s` seconds have passed. Only useful with a clock that runs."""
        end_s = time.monotonic() + timeout_s
        with self._broker.changed:
            while True:
                self._broker.advance()
                left_s = end_s - time.monotonic()
                if left_s <= 0 or self._events.wait(0):
                    return
                due_s = self._broker.next_delivery_time()
                if due_s is not None:
                    left_s = min(left_s, max(0.0, due_s - self._broker.clock()))
                self._broker.changed.wait(left_s)

    def pending_bytes(self) -> int:
        """Bytes handed to `publish` that are still on their way to the broker."""
        with self._broker.changed:
            self._broker.advance()
            return sum(packet.wire_bytes for packet in self._on_its_way.values())

    def close(self, *, graceful: bool = True) -> None:
        """Disconnect at once; what is on the link still arrives, and then DISCONNECT or, not graceful, the will."""
        with self._broker.changed:
            self._broker.advance()
            connection = self._connection
            self._over = True
            if connection is not None and connection.client_listens:
                connection.client_listens = False
                size = disconnect_size(protocol="3.1.1") if graceful else 0
                self._send(connection, size, lambda: self._broker.leave(connection, fire_will=not graceful))
            self._accepted = self._ready = False
            self._broker.advance()

    # What the broker says, with its lock held.

    def on_connack(self, wire_bytes: int) -> None:
        """The broker accepts the connection: subscribe, or report it at once."""
        self._wire.received_bytes += wire_bytes
        self._accepted = True
        if self._filters:
            self._ask(self._filters)
        else:
            self._announce()

    def on_suback(self, wire_bytes: int) -> None:
        """Subscriptions are in place; the first time this completes the connection."""
        self._wire.received_bytes += wire_bytes
        if not self._ready:
            self._announce()

    def on_publish(self, packet: Publish) -> None:
        """A packet arrives."""
        self._wire.received_bytes += packet.wire_bytes
        self._wire.received_publish_bytes += packet.wire_bytes
        self._wire.received_packets += 1
        if packet.qos:
            self._wire.sent_bytes += PUBACK_BYTES
        self._tell(Received(packet.topic, packet.payload, packet.retain, packet.wire_bytes))

    def on_lost(self, connection: Connection, reason: str, fatal: Exception | None) -> None:
        """The connection is gone, or was refused: try again later."""
        if connection is not self._connection or self._over:
            return
        self._accepted = self._ready = False
        lost = [key for key, packet in self._on_its_way.items() if packet.qos == 0]
        for key in lost:
            del self._on_its_way[key]
        self._wire.dropped_packets += len(lost)
        self._over = fatal is not None
        self._tell(Disconnected(reason, fatal))
        if fatal is None:
            self._broker.at(self._broker.now_s + self._broker.reconnect_delay_s, self._open)

    def _open(self) -> None:
        if self._over:
            return
        self._up.restart()
        self._down.restart()
        connection = Connection(self._client_id, self._identity, self, self._will, self._up, self._down)
        self._connection = connection
        size = connect_size(self._client_id, protocol="3.1.1", will=self._will)
        self._send(connection, size, lambda: self._broker.accept(connection))

    def _announce(self) -> None:
        self._ready = True
        self._tell(Connected(self.max_packet_bytes))
        for key in list(self._on_its_way):
            self._transmit(key)

    def _ask(self, filters: dict[str, int]) -> None:
        connection, asked = self._connection, dict(filters)
        assert connection is not None
        size = subscribe_size(list(asked), protocol="3.1.1")
        self._send(connection, size, lambda: self._broker.subscribe(connection, asked))

    def _send(self, connection: Connection, wire_bytes: int, what: Callable[[], None]) -> None:
        self._wire.sent_bytes += wire_bytes
        passage = connection.up.plan(wire_bytes, self._broker.now_s, exempt=True)
        self._broker.at(passage.through_s, lambda: what() if connection.broker_listens else None)

    def _transmit(self, key: int) -> None:
        connection, packet, broker = self._connection, self._on_its_way[key], self._broker
        assert connection is not None
        self._wire.sent_bytes += packet.wire_bytes
        self._wire.sent_publish_bytes += packet.wire_bytes
        self._wire.sent_packets += 1
        passage = connection.up.plan(
            packet.wire_bytes, broker.now_s, qos=packet.qos, exempt=broker.exempt(packet.topic)
        )
        # A packet that the link loses is acknowledged all the same: that is how brokers lose them.
        if passage.deliveries_s == (passage.through_s,):
            broker.at(passage.through_s, lambda: self._arrived(connection, key, packet, is_delivered=True))
            return
        for when_s in passage.deliveries_s:
            broker.at(when_s, lambda: broker.publish(packet) if connection.broker_listens else None)
        broker.at(passage.through_s, lambda: self._arrived(connection, key, packet, is_delivered=False))

    def _arrived(self, connection: Connection, key: int, packet: Publish, *, is_delivered: bool) -> None:
        if not connection.broker_listens:
            return
        if is_delivered:
            self._broker.publish(packet)
        if packet.qos == 0:
            self._on_its_way.pop(key, None)
        elif key in self._on_its_way and connection.broker_listens:
            self._broker.acknowledge(connection, lambda: self._acknowledged(key))

    def _acknowledged(self, key: int) -> None:
        self._wire.received_bytes += PUBACK_BYTES
        self._on_its_way.pop(key, None)

    def _tell(self, event: TransportEvent) -> None:
        self._events.put(event)
        self._num_events += 1
        self._broker.changed.notify_all()
        if self._num_events == 1 and self.on_news is not None:
            self.on_news()
