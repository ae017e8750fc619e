"""What a message costs on one agent's MQTT connection: its own packets one way, their acknowledgements the other.

Sizes are those of real messages on their real topics: what `serialize` writes, cut as the courier cuts it, in packets
as `cutlayer.broker.mqtt_packets` has them. So they are what the agent's wire counters count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutlayer.broker.actions import Publish
from cutlayer.broker.chunking import split
from cutlayer.broker.messages import serialize
from cutlayer.broker.mqtt_packets import (
    PUBACK_BYTES,
    Protocol,
    connack_size,
    connect_size,
    disconnect_size,
    largest_payload,
    publish_size,
    suback_size,
    subscribe_size,
    unsuback_size,
    unsubscribe_size,
)
from cutlayer.broker.transport import Will

__all__ = ["NOTHING", "Link", "Ways", "mean", "total"]

MQTT_5_CONNECT_PROPERTIES_BYTES = 5
"""Maximum Packet Size, which an agent announces: an identifier and four bytes (MQTT 5, section 3.1.2.11.4)."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Bytes of one or more agents, by direction. Means over messages make them fractional.

    Attributes:
        up: From the agent.
        down: To the agent.
    """

    up: float = 0.0
    down: float = 0.0

    def __add__(self, other: Ways) -> Ways:
        return Ways(self.up + other.up, self.down + other.down)

    def __mul__(self, factor: float) -> Ways:
        return Ways(self.up * factor, self.down * factor)

    @property
    def both(self) -> float:
        """Both directions together."""
        return self.up + self.down


NOTHING = Ways()


def total(parts: Sequence[Ways]) -> Ways:
    """Add several up."""
    return sum(parts, NOTHING)


def mean(parts: Sequence[Ways]) -> Ways:
    """Return the mean of at least one."""
    return total(parts) * (1 / len(parts))


@dataclass(frozen=True, slots=True)
class Link:
    """One agent's connection, as far as it decides sizes.

    Attributes:
        protocol: MQTT version: each PUBLISH of MQTT 5 has a byte more.
        max_packet_bytes: Larger messages go in chunks.
    """

    protocol: Protocol = "5"
    max_packet_bytes: int = 1_000_000

    def up(self, publish: Publish) -> Ways:
        """Return what a message from the agent takes."""
        wire_bytes, acknowledgement_bytes = self._packets(publish)
        return Ways(up=wire_bytes, down=acknowledgement_bytes)

    def down(self, publish: Publish) -> Ways:
        """Return what a message to the agent takes."""
        wire_bytes, acknowledgement_bytes = self._packets(publish)
        return Ways(up=acknowledgement_bytes, down=wire_bytes)

    def connecting(self, client_id: str, will: Will, topic_filters: Sequence[str]) -> Ways:
        """Return what CONNECT, the first SUBSCRIBE and their answers take.

        A broker's CONNACK may have properties (some 10 bytes), which nobody knows beforehand.
        """
        properties_bytes = MQTT_5_CONNECT_PROPERTIES_BYTES if self.protocol == "5" else 0
        connect_bytes = connect_size(client_id, protocol=self.protocol, will=will, properties_bytes=properties_bytes)
        return Ways(
            connect_bytes + subscribe_size(topic_filters, protocol=self.protocol),
            connack_size(protocol=self.protocol) + suback_size(len(topic_filters), protocol=self.protocol),
        )

    def subscribing(self, topic_filter: str) -> Ways:
        """Return what it takes to subscribe to one more topic filter, and to give it up again."""
        return Ways(
            subscribe_size([topic_filter], protocol=self.protocol)
            + unsubscribe_size([topic_filter], protocol=self.protocol),
            suback_size(1, protocol=self.protocol) + unsuback_size(1, protocol=self.protocol),
        )

    def disconnecting(self) -> Ways:
        """Return what DISCONNECT takes."""
        return Ways(up=disconnect_size(protocol=self.protocol))

    def _packets(self, publish: Publish) -> tuple[int, int]:
        """Return the bytes of a message's PUBLISH packets, and of their PUBACKs."""
        limit_bytes = largest_payload(publish.topic, self.max_packet_bytes)
        sizes = [
            publish_size(publish.topic, len(payload), qos=publish.qos, protocol=self.protocol)
            for payload in split(serialize(publish.message), limit_bytes)
        ]
        return sum(sizes), len(sizes) * PUBACK_BYTES if publish.qos else 0
