"""Faults of a link: loss, duplication, reordering, delay, jitter and a rate, planned from a seed.

`LinkFaults` says what a link does, `Link` plans it packet by packet. `MemoryBroker` has a `Link` in each direction
of each client; `FaultyTransport` puts the same two around any transport, a real broker's included.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.mqtt_packets import publish_size
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport, TransportEvent, Will, WireCount

__all__ = ["NO_FAULTS", "FaultyTransport", "Link", "LinkFaults", "Passage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """What a link does to packets, in one direction. The default is a perfect link.

    Attributes:
        seed: Start of the random sequence; the same seed gives the same faults.
        loss: Probability that a packet vanishes, 0 to 1. (MQTT runs over TCP; what is lost is what a broker
            acknowledges and then drops, measured with Mosquitto at 177 of 1,280 under overload.)
        duplication: Probability that a packet arrives twice.
        reordering: Probability that a packet is held back so that later ones overtake it.
        delay_s: Seconds that each packet takes at least.
        jitter_s: Up to so many seconds more, uniformly.
        bytes_per_s: Rate; packets queue behind one another. None is no limit.
    """

    seed: int = 0
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "duplication", "reordering"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise SettingsError(f"{name} is {value}", "use a probability from 0 to 1")
        for name in ("delay_s", "jitter_s"):
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise SettingsError(f"{name} is {value}", "use seconds, 0 or more")
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise SettingsError(f"bytes_per_s is {self.bytes_per_s}", "use bytes a second above 0, or leave it out")


NO_FAULTS = LinkFaults()
"""A link that delivers everything, once, in order, at once."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What becomes of one packet.

    Attributes:
        through_s: When the link is done with it: the moment of its acknowledgement.
        deliveries_s: When it arrives; empty when it is lost, two times when it is doubled.
    """

    through_s: float
    deliveries_s: tuple[float, ...]


class Link:
    """Plans what one direction of a link does to each packet.

    Args:
        faults: What the link does.
        name: Name of the link; links with one seed and different names have different faults.
    """

    def __init__(self, faults: LinkFaults, name: str) -> None:
        self.faults = faults
        self._random = random.Random(f"{faults.seed}/{name}")  # noqa: S311 - a simulation, not a secret
        self._free_at_s = 0.0
        self._last_in_order_s = 0.0

    def plan(self, wire_bytes: int, now_s: float, *, qos: int = 1, exempt: bool = False) -> Passage:
        """Plan one packet.

        Args:
            wire_bytes: Its size on the wire in bytes.
            now_s: When it is sent.
            qos: 0 or 1. A QoS 0 packet is never doubled: nobody sends it again.
            exempt: Neither lost, doubled nor reordered; delay, jitter and rate hold nevertheless.
        """
        faults = self.faults
        # Drawn for each packet, wanted or not, so that one probability's value does not shift the other's draws.
        draw = self._random.random
        lost, doubled, held_back, jitter, late = draw(), draw(), draw(), draw(), draw()
        start_s = max(now_s, self._free_at_s)
        self._free_at_s = start_s + (wire_bytes / faults.bytes_per_s if faults.bytes_per_s is not None else 0.0)
        # TCP keeps the order, so jitter cannot make a packet overtake; only `reordering` does.
        arrival_s = max(self._free_at_s + faults.delay_s + jitter * faults.jitter_s, self._last_in_order_s)
        if not exempt and held_back < faults.reordering:
            deliveries_s = [arrival_s + self._hold_back_s(late)]
        else:
            self._last_in_order_s = arrival_s
            deliveries_s = [arrival_s]
        if not exempt and qos > 0 and doubled < faults.duplication:
            deliveries_s.append(arrival_s + self._hold_back_s(late))
        if not exempt and lost < faults.loss:
            deliveries_s = []
        return Passage(arrival_s, tuple(deliveries_s))

    def restart(self) -> None:
        """Forget what is queued on the link: its connection is a new one."""
        self._free_at_s = self._last_in_order_s = 0.0

    def _hold_back_s(self, late: float) -> float:
        # Long enough for packets sent soon after to overtake, also on a link without delay.
        return (0.5 + late) * max(self.faults.delay_s + self.faults.jitter_s, 0.01)


def nothing_exempt(topic: str) -> bool:
    """Exempt no topic."""
    del topic
    return False


@dataclass(frozen=True, slots=True)
class _Publish:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    wire_bytes: int


class FaultyTransport:
    """A transport behind a faulty link. What is late leaves, and arrives, during `poll` and `wait`.

    Args:
        inner: The transport to wrap.
        up: Faults of what is published.
        down: Faults of what is received.
        clock: Seconds; `time.monotonic`, or a simulation's clock.
        name: Name of the link, so that several with one seed differ.
        exempt: Topics whose packets are only delayed, such as those of retained states.
    """

    def __init__(
        self,
        inner: Transport,
        *,
        up: LinkFaults = NO_FAULTS,
        down: LinkFaults = NO_FAULTS,
        clock: Callable[[], float],
        name: str = "",
        exempt: Callable[[str], bool] = nothing_exempt,
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._exempt = exempt
        self._up = Link(up, f"{name}/up")
        self._down = Link(down, f"{name}/down")
        # Heaps of (when, order of entry, what); the order keeps what is due at one moment in sequence.
        self._late_up: list[tuple[float, int, _Publish]] = []
        self._late_down: list[tuple[float, int, Received]] = []
        self._order = itertools.count()
        self._held_bytes = 0

    @property
    def wire(self) -> WireCount:
        """What the inner transport has moved: a lost packet is not in it, a doubled one is in it twice."""
        return self._inner.wire

    @property
    def max_packet_bytes(self) -> int:
        """The inner transport's limit."""
        return self._inner.max_packet_bytes

    def connect(self, will: Will | None) -> None:
        """Start connecting."""
        self._inner.connect(will)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send one packet when, and as often as, the link says; see `Transport.publish`."""
        if len(payload) > self._inner.payload_limit(topic):
            return self._inner.publish(topic, payload, qos=qos, retain=retain)  # which refuses it
        wire_bytes = publish_size(topic, len(payload), qos=qos, protocol="3.1.1")
        passage = self._up.plan(wire_bytes, self._clock(), qos=qos, exempt=self._exempt(topic))
        packet = _Publish(topic, payload, qos, retain, wire_bytes)
        for due_s in passage.deliveries_s:
            heapq.heappush(self._late_up, (due_s, next(self._order), packet))
            self._held_bytes += wire_bytes
        self._send_due(self._clock())
        return wire_bytes

    def subscribe(self, topic_filter: str, *, qos: int = 1, is_optional: bool = False) -> None:
        """Ask for a topic filter."""
        self._inner.subscribe(topic_filter, qos=qos, is_optional=is_optional)

    def unsubscribe(self, topic_filter: str) -> None:
        """Give a topic filter up."""
        self._inner.unsubscribe(topic_filter)

    def payload_limit(self, topic: str) -> int:
        """Largest payload in bytes that fits one packet on this topic."""
        return self._inner.payload_limit(topic)

    def poll(self) -> list[TransportEvent]:
        """Send what is due, and take the events that are."""
        now_s = self._clock()
        self._send_due(now_s)
        events: list[TransportEvent] = []
        for event in self._inner.poll():
            match event:
                case Received():
                    # An event does not tell its QoS; it is taken for 1.
                    passage = self._down.plan(event.wire_bytes, now_s, exempt=self._exempt(event.topic))
                    for due_s in passage.deliveries_s:
                        heapq.heappush(self._late_down, (due_s, next(self._order), event))
                case Connected() | Disconnected():
                    events.append(event)
        while self._late_down and self._late_down[0][0] <= now_s:
            events.append(heapq.heappop(self._late_down)[2])
        return events

    def wait(self, timeout_s: float) -> None:
        """Sleep until an event may be there, something is due, or `timeout_s` seconds have passed."""
        due_s = self.next_due_time()
        if due_s is not None:
            timeout_s = min(timeout_s, max(0.0, due_s - self._clock()))
        self._inner.wait(timeout_s)

    def next_due_time(self) -> float | None:
        """When the next late packet is due, for a scheduler that jumps the clock; None when there is none."""
        times_s = [heap[0][0] for heap in (self._late_up, self._late_down) if heap]
        return min(times_s, default=None)

    def pending_bytes(self) -> int:
        """Bytes handed to `publish` that are still on their way, what the link holds included."""
        return self._inner.pending_bytes() + self._held_bytes

    def close(self, *, graceful: bool = True) -> None:
        """Disconnect; graceful sends at once what the link still holds."""
        if graceful:
            self._send_due(float("inf"))
        self._late_up.clear()
        self._late_down.clear()
        self._held_bytes = 0
        self._inner.close(graceful=graceful)

    def _send_due(self, now_s: float) -> None:
        while self._late_up and self._late_up[0][0] <= now_s:
            packet = heapq.heappop(self._late_up)[2]
            self._held_bytes -= packet.wire_bytes
            self._inner.publish(packet.topic, packet.payload, qos=packet.qos, retain=packet.retain)
