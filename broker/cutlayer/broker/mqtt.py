"""`MqttTransport`: the transport over a real broker, on paho-mqtt.

The driver's thread lives here; what paho-mqtt's network thread does is in `mqtt_connection`.

Two processes with one client identifier: an MQTT 5 broker may tell the older one (reason code 0x8E), which then
reports `IdentityTaken`. MQTT 3.1.1 has no such word, and Mosquitto 2.0.11 does not use it: both lose and regain the
connection in turn, just as they would for a packet above the broker's limit. The third short connection in a row
says so in its `Disconnected.reason`; the sessions tell for certain, by another incarnation in the retained state.

A process can hold some 300 of these (paho-mqtt calls select(), which ends at file descriptor 1024); simulations
with more clients use the in-memory twin.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from cutlayer.broker.broker_settings import BrokerSettings, is_loopback
from cutlayer.broker.errors import PacketTooLarge
from cutlayer.broker.mqtt_connection import MqttConnection
from cutlayer.broker.mqtt_packets import Protocol, largest_payload, publish_size
from cutlayer.broker.packet_queues import EventQueue, OnItsWay, Outbox
from cutlayer.broker.transport import Connected, Disconnected, TransportEvent, Will, WireCount

__all__ = ["MqttTransport"]

log = logging.getLogger("cutlayer.broker")

FLUSH_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    packet: OnItsWay
    payload: bytes
    retain: bool


class MqttTransport:
    """One client of an MQTT broker.

    Args:
        settings: The broker and the limits.
        client_id: Client identifier, stable over restarts: a second process with it takes the session over.
        identity: What to call this client in `IdentityTaken`; the client identifier when left out.
    """

    def __init__(self, settings: BrokerSettings, client_id: str, *, identity: str | None = None) -> None:
        self._settings = settings
        self._events = EventQueue(settings.max_queued_bytes)
        self._outbox = Outbox(settings.max_queued_messages, settings.max_queued_bytes)
        self._connection = MqttConnection(settings, client_id, identity or client_id, self._events, self._outbox)
        self._waiting: deque[_Waiting] = deque()
        self._ready = False
        self._num_refused = 0

    @property
    def wire(self) -> WireCount:
        """Bytes so far: a copy, so that two readings can be subtracted."""
        count = self._connection.wire
        count.dropped_packets += self._num_refused
        return count

    @property
    def max_packet_bytes(self) -> int:
        """The present limit of one MQTT packet, topic and headers included."""
        return self._connection.max_packet_bytes

    @property
    def protocol(self) -> Protocol:
        """The MQTT version spoken: the one agreed on once `Connected` has come, before that the one tried."""
        return self._connection.protocol

    def connect(self, will: Will | None) -> None:
        """Start connecting; `Connected` follows as an event.

        Raises:
            SettingsError: When a certificate, key or password file cannot be loaded.
        """
        settings = self._settings
        if settings.username is not None and not settings.tls and not is_loopback(settings.host):
            log.warning("the password travels unencrypted to %s: use mqtts://", settings.url)
        self._connection.start(will)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send one packet; see `Transport.publish`.

        Raises:
            PacketTooLarge: When the packet is over `max_packet_bytes`.
        """
        wire_bytes = publish_size(topic, len(payload), qos=qos, protocol=self.protocol)
        if wire_bytes > self.max_packet_bytes:
            raise PacketTooLarge(self.max_packet_bytes, wire_bytes)
        online = self._ready and self._connection.up
        if self._connection.over or (qos == 0 and not online) or not self._outbox.reserve(wire_bytes):
            self._num_refused += 1
            return 0
        waiting = _Waiting(OnItsWay(topic, qos, wire_bytes), payload, retain)
        if not online:
            self._waiting.append(waiting)
            return wire_bytes
        return wire_bytes if self._send(waiting) else 0

    def subscribe(self, topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        """Ask for a topic filter; it is asked for again after each reconnect, an optional one until it is denied."""
        self._connection.subscribe(topic_filter, qos, is_optional=is_optional)

    def unsubscribe(self, topic_filter: str) -> None:
        """Give a topic filter up."""
        self._connection.unsubscribe(topic_filter)

    def payload_limit(self, topic: str) -> int:
        """Largest payload in bytes that fits one packet on this topic.

        Raises:
            PacketTooLarge: When the limit leaves no room.
        """
        return largest_payload(topic, self.max_packet_bytes)

    def poll(self) -> list[TransportEvent]:
        """Take the events that have come since the last call, oldest first."""
        events = self._events.take_all()
        for event in events:
            if isinstance(event, Connected):
                self._ready = True
                # paho-mqtt keeps QoS 1 packets over a reconnect and forgets QoS 0 ones.
                self._num_refused += self._outbox.forget(qos_1_too=False)
            elif isinstance(event, Disconnected):
                self._ready = False
        if self._ready and self._connection.up:
            self._send_waiting()
        return events

    def wait(self, timeout_s: float) -> None:
        """Sleep until an event is there or `timeout_s` seconds have passed."""
        self._events.wait(timeout_s)

    def pending_bytes(self) -> int:
        """Bytes handed to `publish` that are still on their way to the broker."""
        return self._outbox.pending_bytes

    def close(self, *, graceful: bool = True) -> None:
        """Disconnect and join the network thread.

        Graceful waits at most 5 s for queued packets and 2 s for DISCONNECT to leave. Where an attempt to connect
        is under way, up to 10 s more pass until it has failed.
        """
        if graceful and self._connection.up:
            self._send_waiting()
            self._outbox.wait_until_empty(FLUSH_TIMEOUT_S)
        self._connection.close(graceful=graceful)
        self._ready = False

    def _send_waiting(self) -> None:
        while self._waiting:
            self._send(self._waiting.popleft())

    def _send(self, waiting: _Waiting) -> bool:
        sent = self._connection.publish(waiting.packet, waiting.payload, retain=waiting.retain)
        if not sent:
            self._outbox.release(waiting.packet.wire_bytes)
            self._num_refused += 1
        return sent
