"""The transport seam: how packets travel, with everything MQTT-specific behind it.

A transport moves *packets* (one MQTT PUBLISH each, at most `max_packet_bytes` on the wire) and never looks
inside them. Two ship: `cutlayer.broker.mqtt.MqttTransport` (paho-mqtt) and
`cutlayer.broker.memory.MemoryTransport`, the in-memory twin that tests and simulations use.
`cutlayer.broker.faults.FaultyTransport` wraps either and loses, doubles, delays and reorders packets.

Delivery is at least once at best: packets may be lost, doubled, late and out of order, and a PUBACK means
nothing (Mosquitto acknowledges QoS 1 messages that it then drops). The sessions answer for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Connected", "Disconnected", "Received", "Transport", "TransportEvent", "Will", "WireCount"]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when this client vanishes (MQTT 5, section 3.1.2.5).

    Attributes:
        topic: Topic name.
        payload: Packet to publish.
        qos: 0 or 1.
        retain: Whether the broker keeps it.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


@dataclass(frozen=True, slots=True)
class Received:
    """A PUBLISH arrived.

    Attributes:
        topic: Topic name.
        payload: The packet's payload.
        retain: Whether the broker had kept it from before the subscription.
        wire_bytes: Size of the whole MQTT packet, headers included.
    """

    topic: str
    payload: bytes
    retain: bool
    wire_bytes: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection is up (also after a reconnect: subscriptions are in place again).

    No `Received` of a connection comes before its `Connected`.

    Attributes:
        max_packet_bytes: The largest MQTT packet that may be sent: the smaller of the setting and, where the
            broker announces one (MQTT 5 Maximum Packet Size), the broker's.
        session_present: Whether the broker still had this client's MQTT session.
    """

    max_packet_bytes: int
    session_present: bool = False


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone, or an attempt to make one failed.

    The transport tries again by itself, with growing delay, unless `fatal` is set; one event comes for each
    failed attempt. How long to keep trying before the first `Connected` is the driver's choice.

    Attributes:
        reason: Text for a person.
        fatal: An error to raise, such as `IdentityTaken` or `NotAuthorized`, when a retry cannot help.
    """

    reason: str
    fatal: Exception | None = None


TransportEvent = Received | Connected | Disconnected


@dataclass(slots=True)
class WireCount:
    """Bytes at the MQTT layer, since start, every packet type counted (TCP and TLS framing are not).

    Attributes:
        sent_bytes: Bytes written, all control packets included.
        received_bytes: Bytes read, all control packets included.
        sent_packets: PUBLISH packets written.
        received_packets: PUBLISH packets read.
        dropped_packets: PUBLISH packets given up by this process because a queue was full, or because there
            was no connection for a QoS 0 packet.
        sent_publish_bytes: Of the bytes written, those of PUBLISH packets; the others are MQTT's own.
        received_publish_bytes: Of the bytes read, likewise.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    received_packets: int = 0
    dropped_packets: int = 0
    sent_publish_bytes: int = 0
    received_publish_bytes: int = 0


class Transport(Protocol):
    """One client's connection to a broker. Methods are called from one thread; none blocks but `wait`.

    `close` takes as long as its own documentation says.
    """

    @property
    def wire(self) -> WireCount:
        """Bytes so far: a copy, so that two readings can be subtracted."""

    @property
    def max_packet_bytes(self) -> int:
        """The present limit of one MQTT packet, topic and headers included."""

    def connect(self, will: Will | None) -> None:
        """Start connecting; `Connected` follows as an event. The transport keeps reconnecting by itself."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send one packet.

        Without a connection a QoS 1 packet waits for the next one and a QoS 0 packet is dropped.

        Args:
            topic: Topic name.
            payload: At most `payload_limit(topic)` bytes.
            qos: 0 or 1.
            retain: Whether the broker keeps it for later subscribers.

        Returns:
            The packet's size on the wire in bytes; 0 when it was dropped (no connection at QoS 0, or the
            queue is full), which `wire.dropped_packets` counts. To the sessions that is a lost packet.

        Raises:
            PacketTooLarge: When the packet is over `max_packet_bytes`.
        """

    def subscribe(self, topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        """Ask for a topic filter; it is asked for again after each reconnect.

        Args:
            topic_filter: The filter.
            qos: 0 or 1.
            is_optional: Whether all goes on without it where the broker denies it; otherwise that is fatal.
        """

    def unsubscribe(self, topic_filter: str) -> None:
        """Give a topic filter up."""

    def payload_limit(self, topic: str) -> int:
        """Largest payload in bytes that fits one packet on this topic.

        Raises:
            PacketTooLarge: When the limit leaves no room.
        """

    def poll(self) -> list[TransportEvent]:
        """Take the events that have come since the last call, oldest first."""

    def wait(self, timeout_s: float) -> None:
        """Sleep until an event is there or `timeout_s` seconds have passed. May return early."""

    def pending_bytes(self) -> int:
        """Bytes handed to `publish` that are still on their way to the broker.

        A QoS 0 packet counts until it is written, a QoS 1 packet until the broker acknowledges it. For
        progress inside one large packet watch `wire.sent_bytes`.
        """

    def close(self, *, graceful: bool = True) -> None:
        """Disconnect.

        Graceful sends what is queued (for a few seconds at most) and DISCONNECT, so that no will fires.
        Otherwise the connection is cut as if the process had died, and the will fires.
        """
