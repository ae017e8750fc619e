"""A broker in memory that keeps what passes it."""

from __future__ import annotations

from typing import TypeVar

from cutlayer.broker.chunking import Reassembler
from cutlayer.broker.memory_broker import MemoryBroker, Publish
from cutlayer.broker.messages import ActivationGradients, Activations, OutputGradients, Outputs
from cutlayer.simulation.virtual import VirtualNetwork, is_retained_topic

__all__ = ["TappedBroker"]

_Kind = TypeVar("_Kind", Activations, Outputs, OutputGradients, ActivationGradients)


class TappedBroker(MemoryBroker):
    """Keeps everything that anybody publishes."""

    def __init__(self, network: VirtualNetwork) -> None:
        super().__init__(network.clock, max_packet_bytes=1_000_000, exempt=is_retained_topic)
        self.seen: list[tuple[str, bytes]] = []

    def publish(self, packet: Publish) -> None:
        """Take a PUBLISH."""
        self.seen.append((packet.topic, packet.payload))
        super().publish(packet)

    def messages(self, kind: type[_Kind]) -> list[_Kind]:
        """Return the messages of a kind, in their order."""
        reassembler = Reassembler()
        found: list[_Kind] = []
        for topic, payload in self.seen:
            message = reassembler.feed(topic, payload) if payload else None
            if isinstance(message, kind):
                found.append(message)
        return found
