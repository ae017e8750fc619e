"""A virtual network whose members take time for their work, and whose queues can be read.

A member that makes activations, gradients or outputs is at work for a while, one message after the other: meanwhile it
takes nothing, and what it has made leaves when it is made. Time is virtual, so what a slow member costs is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.memory import MemoryTransport
from cutlayer.broker.memory_broker import Publish
from cutlayer.broker.mqtt_packets import publish_size
from cutlayer.broker.transport import TransportEvent
from cutlayer.simulation.virtual import Pumped, VirtualNetwork

__all__ = ["PacedNetwork", "PacedTransport"]


def is_work(topic: str) -> bool:
    """Whether a topic carries a microbatch's messages: all the rest takes no time."""
    return topic.endswith(("/activations", "/gradients", "/outputs"))


class PacedTransport(MemoryTransport):
    """A connection of a member that takes time.

    Args:
        network: The network.
        client_id: Client identifier.
        work_s: Seconds that each message of a microbatch takes to make.
        up: Faults of its link to the broker; the network's when left out.
        down: Faults of its link from the broker.

    Attributes:
        work_s: May be changed at any time.
        waiting_bytes: Bytes of microbatches that have come and were not taken.
    """

    def __init__(
        self,
        network: PacedNetwork,
        client_id: str,
        work_s: float,
        *,
        up: LinkFaults | None = None,
        down: LinkFaults | None = None,
    ) -> None:
        super().__init__(network.broker, client_id, up=up, down=down)
        self.work_s = work_s
        self.waiting_bytes = 0
        self.busy_until = 0.0
        self._network = network
        self._made: deque[tuple[float, Callable[[], int], int]] = deque()

    @property
    def is_busy(self) -> bool:
        """Whether it is at work."""
        return self.busy_until > self._network.clock()

    @property
    def num_events(self) -> int:
        """Events that wait to be taken, of which a member at work sees none."""
        return 0 if self.is_busy else super().num_events

    def poll(self) -> list[TransportEvent]:
        """Take what has come."""
        self.waiting_bytes = 0
        return super().poll()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send one packet, when it is made and what was made before it has left."""
        now = self._network.clock()
        if is_work(topic):
            self.busy_until = max(self.busy_until, now) + self.work_s
        if not self._made and self.busy_until <= now:
            return super().publish(topic, payload, qos=qos, retain=retain)
        size = publish_size(topic, len(payload), qos=qos, protocol="3.1.1")
        send = super().publish
        self._made.append((self.busy_until, lambda: send(topic, payload, qos=qos, retain=retain), size))
        return size

    def pending_bytes(self) -> int:
        """Bytes on their way to the broker, and of what is being made."""
        return super().pending_bytes() + sum(size for _, _, size in self._made)

    def send_made(self) -> float | None:
        """Send what is made by now; return when the next is."""
        while self._made and self._made[0][0] <= self._network.clock():
            self._made.popleft()[1]()
        return self._made[0][0] if self._made else None

    def on_publish(self, packet: Publish) -> None:
        """A packet arrives."""
        if is_work(packet.topic):
            self._network.num_broker_bytes -= packet.wire_bytes
            self.waiting_bytes += packet.wire_bytes
        super().on_publish(packet)


class _Paced:
    """A driver that is not woken while its member is at work."""

    def __init__(self, driver: Pumped, transport: PacedTransport, clock: Callable[[], float]) -> None:
        self._driver = driver
        self._transport = transport
        self._clock = clock
        self.is_over: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """Start connecting."""
        self._driver.start()

    def pump(self, now: float) -> float:
        """Work, unless it is still at work."""
        next_made = self._transport.send_made()
        if self._transport.is_busy:
            return self._transport.busy_until if next_made is None else next_made
        if self.is_over():
            return now
        wake_at = self._driver.pump(now)
        next_made = self._transport.send_made()
        return wake_at if next_made is None else next_made

    def is_done(self) -> bool:
        """Whether it has ended and has sent its last word."""
        return self.is_over() and not self._transport.is_busy and self._transport.send_made() is None


class PacedNetwork(VirtualNetwork):
    """A virtual network whose members take time.

    Args:
        work_s: Seconds for a message of a microbatch, by the member's name; 0 for those not named.
        links: Faults of a member's links by its name, where they are not the network's: (up, down).
        options: What `VirtualNetwork` is given.

    Attributes:
        num_broker_bytes: Bytes of microbatches that the broker has taken and not delivered.
    """

    def __init__(
        self,
        work_s: Mapping[str, float] | None = None,
        links: Mapping[str, tuple[LinkFaults | None, LinkFaults | None]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_broker_bytes = 0
        self.transports: dict[str, PacedTransport] = {}
        self._work_s = work_s or {}
        self._links = links or {}
        self.broker.on_publish = self._arrived

    @property
    def queued_bytes(self) -> int:
        """Bytes of microbatches at the broker, and at members that have not taken them."""
        return self.num_broker_bytes + sum(transport.waiting_bytes for transport in self.transports.values())

    def transport(
        self, client_id: str, *, up: LinkFaults | None = None, down: LinkFaults | None = None
    ) -> MemoryTransport:
        """Make a connection for a driver."""
        given_up, given_down = self._links.get(client_id, (None, None))
        transport = PacedTransport(
            self, client_id, self._work_s.get(client_id, 0.0), up=up or given_up, down=down or given_down
        )
        self.transports[client_id] = transport
        return transport

    def add(self, name: str, driver: Pumped, transport: MemoryTransport, is_done: Callable[[], bool]) -> None:
        """Add a driver and start it."""
        assert isinstance(transport, PacedTransport)
        paced = _Paced(driver, transport, self.clock)
        paced.is_over = is_done
        super().add(name, paced, transport, paced.is_done)

    def _arrived(self, packet: Publish) -> None:
        if is_work(packet.topic):
            self.num_broker_bytes += packet.wire_bytes
