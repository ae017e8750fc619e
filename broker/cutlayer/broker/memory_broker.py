"""`MemoryBroker`: an MQTT broker in this process, on a clock that it is given.

It does what the protocol of Cutlayer needs of a broker: topic filters, retained messages, wills, one connection
per client identifier, and links with faults. Everything that takes time is an entry in one schedule; with a clock
of its own a simulation asks `next_delivery_time`, sets the clock to it, and polls. Nothing sleeps, and a run
repeats for the same seeds.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cutlayer.broker.errors import IdentityTaken
from cutlayer.broker.faults import NO_FAULTS, Link, LinkFaults, nothing_exempt
from cutlayer.broker.mqtt_packets import PUBACK_BYTES, connack_size, publish_size, suback_size
from cutlayer.broker.topic_filters import FilterMap
from cutlayer.broker.topic_map import TopicMap
from cutlayer.broker.transport import Will

__all__ = ["Connection", "MemoryBroker", "MemoryClient", "Publish"]

RECONNECT_DELAY_S = 1.0
BROKER_CLOSED = "the broker closed the connection"


@dataclass(frozen=True, slots=True)
class Publish:
    """A PUBLISH packet.

    Attributes:
        topic: Topic name.
        payload: What it carries.
        qos: 0 or 1.
        retain: Whether the broker keeps it or, on the way down, had kept it.
        wire_bytes: Size of the packet in bytes.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    wire_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        # Computed once: a packet's size is asked for at each of its stations.
        size = publish_size(self.topic, len(self.payload), qos=self.qos, protocol="3.1.1")
        object.__setattr__(self, "wire_bytes", size)

    def passed_on(self, *, qos: int, retain: bool) -> Publish:
        """Return the packet as a subscriber gets it: at the smaller QoS, and marked as kept or not."""
        qos = min(qos, self.qos)
        same = qos == self.qos and retain == self.retain
        return self if same else Publish(self.topic, self.payload, qos, retain)


class MemoryClient(Protocol):
    """What the broker tells a client; calls come with the broker's lock held."""

    def on_connack(self, wire_bytes: int) -> None:
        """The broker accepts the connection."""

    def on_suback(self, wire_bytes: int) -> None:
        """Subscriptions are in place."""

    def on_publish(self, packet: Publish) -> None:
        """A packet arrives."""

    def on_lost(self, connection: Connection, reason: str, fatal: Exception | None) -> None:
        """The connection is gone, or was refused."""


@dataclass(eq=False, slots=True)
class Connection:
    """One connection of a client.

    Attributes:
        client_id: Client identifier.
        identity: What to call the client in `IdentityTaken`.
        client: Whom to tell.
        will: Published when the connection ends without DISCONNECT.
        up: Link to the broker.
        down: Link to the client.
        broker_listens: Whether the broker still takes what arrives on it.
        client_listens: Whether the client still does.
    """

    client_id: str
    identity: str
    client: MemoryClient
    will: Will | None
    up: Link
    down: Link
    broker_listens: bool = True
    client_listens: bool = True
    filters: dict[str, None] = field(default_factory=dict)
    """In the order of their subscription: a set's order would differ from process to process."""


class MemoryBroker:
    """A broker in memory. Usable from several threads.

    Args:
        clock: Seconds; `time.monotonic`, or a simulation's clock.
        max_packet_bytes: Largest MQTT packet, announced as an MQTT 5 broker does.
        up: Faults of the links to the broker, unless a client has its own.
        down: Faults of the links to the clients, unless a client has its own.
        exempt: Topics whose packets are only delayed, such as those of retained states.
        reconnect_delay_s: Seconds after which a client that lost its connection tries again.
        tells_takeover: Whether a client whose session is taken over learns that (MQTT 5). Otherwise it only loses
            its connection, comes back, and takes the session over in turn, as with Mosquitto 2.0.11 and MQTT 3.1.1.

    Attributes:
        on_publish: Called with each packet that arrives at the broker, wills included, before it is passed on.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        max_packet_bytes: int = 1_000_000,
        up: LinkFaults = NO_FAULTS,
        down: LinkFaults = NO_FAULTS,
        exempt: Callable[[str], bool] = nothing_exempt,
        reconnect_delay_s: float = RECONNECT_DELAY_S,
        tells_takeover: bool = True,
    ) -> None:
        self.clock = clock
        self.max_packet_bytes = max_packet_bytes
        self.up = up
        self.down = down
        self.exempt = exempt
        self.reconnect_delay_s = reconnect_delay_s
        self.on_publish: Callable[[Publish], None] | None = None
        self._tells_takeover = tells_takeover
        self.changed = threading.Condition()
        """Held by every public method, notified when the schedule changes or a client has news."""
        self._now_s = clock()
        self._running = True
        self._schedule: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._connections: dict[str, Connection] = {}
        self._subscribers: FilterMap[dict[Connection, int]] = FilterMap()
        self._retained: TopicMap[Publish] = TopicMap()

    @property
    def retained(self) -> Mapping[str, Publish]:
        """Retained messages by topic name."""
        return self._retained

    @property
    def num_scheduled(self) -> int:
        """Packets on the links, in both directions, and whatever else has its time."""
        return len(self._schedule)

    @property
    def now_s(self) -> float:
        """The moment that is being acted out."""
        return self._now_s

    def next_delivery_time(self) -> float | None:
        """When something happens next, for a scheduler that jumps the clock; None when nothing is on its way."""
        with self.changed:
            return self._schedule[0][0] if self._schedule else None

    def advance(self) -> None:
        """Act out everything that is due by now. Each client's `poll` does this."""
        with self.changed:
            now_s = self.clock()
            while self._schedule and self._schedule[0][0] <= now_s:
                self._now_s, _, action = heapq.heappop(self._schedule)
                action()
            self._now_s = max(self._now_s, now_s)

    def cut(self, client_id: str) -> None:
        """Break a client's connection: what is on the link is lost, its will fires, and it reconnects by itself."""
        with self.changed:
            self.advance()
            connection = self._connections.get(client_id)
            if connection is not None:
                connection.client_listens = False
                self._end(connection, fire_will=True)
                connection.client.on_lost(connection, "the connection was cut", None)
            self.advance()

    def stop(self) -> None:
        """Stop the broker as SIGKILL does: it forgets everything, and no will fires."""
        with self.changed:
            self.advance()
            self._running = False
            self._retained.clear()
            for connection in list(self._connections.values()):
                connection.client_listens = False
                self._end(connection, fire_will=False)
                connection.client.on_lost(connection, BROKER_CLOSED, None)

    def start(self) -> None:
        """Start it again after `stop`; the clients come back by themselves."""
        with self.changed:
            self._running = True

    # For MemoryTransport, with the lock held.

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Put an action into the schedule."""
        heapq.heappush(self._schedule, (when_s, next(self._order), action))
        self.changed.notify_all()

    def accept(self, connection: Connection) -> None:
        """Take a CONNECT: the newest connection with a client identifier wins (MQTT 3.1.1, section 3.1.4)."""
        if not self._running:
            connection.broker_listens = False
            self._tell(connection, 0, lambda: connection.client.on_lost(connection, "connection refused", None))
            return
        old = self._connections.get(connection.client_id)
        if old is not None:
            self._end(old, fire_will=True)
            taken = IdentityTaken(old.identity) if self._tells_takeover else None
            reason = "another client took the MQTT session over" if taken else BROKER_CLOSED
            self._tell(old, 0, lambda: old.client.on_lost(old, reason, taken))
        self._connections[connection.client_id] = connection
        size = connack_size(protocol="3.1.1")
        self._tell(connection, size, lambda: connection.client.on_connack(size))

    def leave(self, connection: Connection, *, fire_will: bool) -> None:
        """Take a DISCONNECT, or the end of the stream."""
        self._end(connection, fire_will=fire_will)

    def subscribe(self, connection: Connection, filters: Mapping[str, int]) -> None:
        """Take a SUBSCRIBE: answer it, then send what is retained."""
        kept: dict[str, int] = {}
        for topic_filter, qos in filters.items():
            self._subscribers_of(topic_filter)[connection] = qos
            connection.filters[topic_filter] = None
            for packet in self._retained.matching(topic_filter):
                kept[packet.topic] = max(qos, kept.get(packet.topic, 0))
        size = suback_size(len(filters), protocol="3.1.1")
        self._tell(connection, size, lambda: connection.client.on_suback(size))
        for topic, qos in kept.items():
            self._send(connection, self._retained[topic].passed_on(qos=qos, retain=True))

    def unsubscribe(self, connection: Connection, topic_filter: str) -> None:
        """Take an UNSUBSCRIBE."""
        connection.filters.pop(topic_filter, None)
        subscribers = self._subscribers_of(topic_filter)
        subscribers.pop(connection, None)
        if not subscribers:
            del self._subscribers[topic_filter]

    def publish(self, packet: Publish) -> None:
        """Take a PUBLISH, keep it where it is retained, and pass it on: once to each client whose filters match."""
        if self.on_publish is not None:
            self.on_publish(packet)
        if packet.retain:
            if packet.payload:
                self._retained[packet.topic] = packet
            else:
                self._retained.discard(packet.topic)  # section 3.3.1.3
        receivers: dict[Connection, int] = {}
        for subscribers in self._subscribers.matching(packet.topic):
            for connection, qos in subscribers.items():
                receivers[connection] = max(qos, receivers.get(connection, 0))
        for connection, qos in receivers.items():
            self._send(connection, packet.passed_on(qos=qos, retain=False))

    def acknowledge(self, connection: Connection, then: Callable[[], None]) -> None:
        """Send a PUBACK."""
        self._tell(connection, PUBACK_BYTES, then)

    def _subscribers_of(self, topic_filter: str) -> dict[Connection, int]:
        found = self._subscribers.get(topic_filter)
        if found is None:
            found = self._subscribers[topic_filter] = {}
        return found

    def _tell(self, connection: Connection, wire_bytes: int, what: Callable[[], None]) -> None:
        # Control packets take time, but none is lost: TCP carries them.
        passage = connection.down.plan(wire_bytes, self._now_s, exempt=True)
        self.at(passage.through_s, lambda: what() if connection.client_listens else None)

    def _send(self, connection: Connection, packet: Publish) -> None:
        passage = connection.down.plan(packet.wire_bytes, self._now_s, qos=packet.qos, exempt=self.exempt(packet.topic))
        for when_s in passage.deliveries_s:
            self.at(when_s, lambda: connection.client.on_publish(packet) if connection.client_listens else None)

    def _end(self, connection: Connection, *, fire_will: bool) -> None:
        if not connection.broker_listens:
            return
        connection.broker_listens = False
        for topic_filter in list(connection.filters):
            self.unsubscribe(connection, topic_filter)
        if self._connections.get(connection.client_id) is connection:
            del self._connections[connection.client_id]
        will = connection.will
        if fire_will and will is not None:
            self.publish(Publish(will.topic, will.payload, will.qos, will.retain))
