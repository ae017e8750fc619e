"""Sizes of MQTT packets, and a counter that reads packet boundaries from a byte stream.

Sizes follow OASIS MQTT 3.1.1 and MQTT 5.0, sections 2 and 3, for the packets that Cutlayer sends and receives
(QoS 0 and 1). `MqttTransport` counts the bytes of its socket; these formulas give the size of a packet before it
is sent, the room that a packet limit leaves, and the in-memory twin's count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cutlayer.broker.errors import PacketTooLarge
from cutlayer.broker.transport import Will

__all__ = [
    "MAX_PACKET_BYTES",
    "PING_BYTES",
    "PUBACK_BYTES",
    "PacketCounter",
    "Protocol",
    "connack_size",
    "connect_size",
    "disconnect_size",
    "largest_payload",
    "publish_size",
    "suback_size",
    "subscribe_size",
    "unsuback_size",
    "unsubscribe_size",
]

Protocol = Literal["3.1.1", "5"]

MAX_REMAINING_LENGTH = 268_435_455
"""Section 2.2.3: four length bytes of seven bits each."""
MAX_PACKET_BYTES = 1 + 4 + MAX_REMAINING_LENGTH
PUBACK_BYTES = 4
"""Both versions; an MQTT 5 PUBACK with a reason code has more."""
PING_BYTES = 2
"""PINGREQ and PINGRESP, both versions."""

PUBLISH_TYPE = 3


def _packet_size(remaining_length: int) -> int:
    # Fixed header: the type, then the length in 1 to 4 bytes of 7 bits (section 2.2.3).
    if remaining_length > MAX_REMAINING_LENGTH:
        raise PacketTooLarge(MAX_PACKET_BYTES, remaining_length + 5)
    return 1 + max(1, -(-remaining_length.bit_length() // 7)) + remaining_length


def _text(value: str) -> int:
    return 2 + len(value.encode())


def _properties(protocol: Protocol, properties_bytes: int) -> int:
    # MQTT 5 puts the length of the properties before them; there is nothing of the kind in 3.1.1.
    if protocol == "3.1.1":
        return 0
    return max(1, -(-properties_bytes.bit_length() // 7)) + properties_bytes


def publish_size(topic: str, payload_bytes: int, *, qos: int, protocol: Protocol) -> int:
    """Size of a PUBLISH without properties in bytes (section 3.3).

    Args:
        topic: Topic name.
        payload_bytes: Size of the payload.
        qos: 0 or 1; QoS 1 adds the packet identifier.
        protocol: MQTT version.

    Raises:
        PacketTooLarge: When MQTT has no packet of that size.
    """
    packet_identifier = 2 if qos else 0
    return _packet_size(_text(topic) + packet_identifier + _properties(protocol, 0) + payload_bytes)


def largest_payload(topic: str, limit_bytes: int) -> int:
    """Largest payload in bytes whose PUBLISH stays within a packet limit, at either QoS and MQTT version.

    Args:
        topic: Topic name.
        limit_bytes: The packet limit.

    Raises:
        PacketTooLarge: When the limit leaves no room for a single byte.
    """
    other_fields = _text(topic) + 2 + _properties("5", 0)
    # One to four length bytes: each allows for so much, and the largest that fits is the answer.
    payload = max(min(limit_bytes - 1 - n, (1 << 7 * n) - 1) for n in range(1, 5)) - other_fields
    if payload < 1:
        raise PacketTooLarge(limit_bytes, publish_size(topic, 1, qos=1, protocol="5"))
    return payload


def connect_size(
    client_id: str,
    *,
    protocol: Protocol,
    username: str | None = None,
    password: str | None = None,
    will: Will | None = None,
    properties_bytes: int = 0,
) -> int:
    """Size of a CONNECT in bytes (section 3.1).

    Args:
        client_id: Client identifier.
        protocol: MQTT version.
        username: User name, if one is sent.
        password: Password, if one is sent.
        will: The will, if there is one.
        properties_bytes: Size of the MQTT 5 properties, their length not included.
    """
    variable_header = 10 + _properties(protocol, properties_bytes)  # name, level, flags, keep alive
    payload = _text(client_id)
    if will is not None:
        payload += _properties(protocol, 0) + _text(will.topic) + 2 + len(will.payload)
    payload += sum(_text(value) for value in (username, password) if value is not None)
    return _packet_size(variable_header + payload)


def connack_size(*, protocol: Protocol, properties_bytes: int = 0) -> int:
    """Size of a CONNACK in bytes (section 3.2)."""
    return _packet_size(2 + _properties(protocol, properties_bytes))


def subscribe_size(topic_filters: Sequence[str], *, protocol: Protocol) -> int:
    """Size of a SUBSCRIBE in bytes (section 3.8)."""
    return _packet_size(2 + _properties(protocol, 0) + sum(_text(one) + 1 for one in topic_filters))


def suback_size(num_filters: int, *, protocol: Protocol) -> int:
    """Size of a SUBACK in bytes (section 3.9)."""
    return _packet_size(2 + _properties(protocol, 0) + num_filters)


def unsubscribe_size(topic_filters: Sequence[str], *, protocol: Protocol) -> int:
    """Size of an UNSUBSCRIBE in bytes (section 3.10)."""
    return _packet_size(2 + _properties(protocol, 0) + sum(_text(one) for one in topic_filters))


def unsuback_size(num_filters: int, *, protocol: Protocol) -> int:
    """Size of an UNSUBACK in bytes (section 3.11); MQTT 3.1.1 has no reason codes in it."""
    return _packet_size(2 + (0 if protocol == "3.1.1" else 1 + num_filters))


def disconnect_size(*, protocol: Protocol, reason_code: int = 0) -> int:
    """Size of a DISCONNECT without properties in bytes (section 3.14)."""
    return 2 if protocol == "3.1.1" or reason_code == 0 else 3


class PacketCounter:
    """Counts bytes, PUBLISH packets and their bytes in a stream of MQTT packets that comes in pieces of any size."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.num_publishes = 0
        self.num_publish_bytes = 0
        self._in_publish = False
        self.begin()

    def begin(self) -> None:
        """Expect the start of a packet: the stream is that of a new connection."""
        self._in_header = False
        self._length = 0
        self._shift = 0
        self._body_left = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the stream."""
        self.num_bytes += len(data)
        position = 0
        while position < len(data):
            if self._body_left:
                step = min(self._body_left, len(data) - position)
                self._body_left -= step
                position += step
                self.num_publish_bytes += step if self._in_publish else 0
                continue
            byte = data[position]
            position += 1
            if not self._in_header:
                self._in_header = True
                self._in_publish = byte >> 4 == PUBLISH_TYPE
                self.num_publishes += self._in_publish
                self.num_publish_bytes += self._in_publish
                self._length = self._shift = 0
                continue
            self.num_publish_bytes += self._in_publish
            self._length |= (byte & 0x7F) << self._shift
            self._shift += 7
            if not byte & 0x80:
                self._in_header = False
                self._body_left = self._length
