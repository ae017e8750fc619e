"""Many agents and a worker in one process, in virtual time, over the in-memory broker.

Sessions, drivers, messages and codecs are the real ones; only the network, the clock and, where asked, the arithmetic
are not. Time jumps from one event to the next, so an hour of a slow link takes a moment, and a seed fixes every fault:
a run that fails is run again exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.runtime import AgentOptions, AgentRuntime

__all__ = ["SimulationStuck", "VirtualClock", "VirtualNetwork", "is_retained_topic"]


MAX_STEPS_AT_ONE_TIME = 10_000


class SimulationStuck(AssertionError):
    """Virtual time ran out before the run ended: a deadlock, or a time too short."""


class Pumped(Protocol):
    """A driver: `AgentRuntime` and `WorkerRuntime` are some."""

    def pump(self, now: float) -> float:
        """Do all that can be done now; return when to come back."""

    def start(self) -> None:
        """Start connecting."""


@dataclass(slots=True)
class VirtualClock:
    """A clock that moves when it is told to."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now_s


@dataclass(slots=True)
class _Member:
    driver: Pumped
    transport: MemoryTransport
    wake_at: float = 0.0
    is_done: Callable[[], bool] = field(default=lambda: False)


def is_retained_topic(topic: str) -> bool:
    """Return whether a topic holds state, run or model: what a broker keeps is not lost on the way to it."""
    return topic.endswith("/state") or topic.startswith(("cutlayer/run", "cutlayer/model/"))


class VirtualNetwork:
    """A broker in memory, the drivers connected to it, and the clock they share.

    Args:
        faults: What the links do to packets, in both directions.
        max_packet_bytes: The broker's packet limit.
        deadlines: When agents send again.
    """

    def __init__(
        self,
        faults: LinkFaults = NO_FAULTS,
        *,
        max_packet_bytes: int = 1_000_000,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.broker = MemoryBroker(
            self.clock, max_packet_bytes=max_packet_bytes, up=faults, down=faults, exempt=is_retained_topic
        )
        self._deadlines = deadlines or Deadlines()
        self._members: dict[str, _Member] = {}
        self._incarnation = 0
        self._caller_wakes_at: float | None = None

    def transport(
        self, client_id: str, *, up: LinkFaults | None = None, down: LinkFaults | None = None
    ) -> MemoryTransport:
        """Make a connection for a driver; `up` and `down` give its link faults of its own."""
        return MemoryTransport(self.broker, client_id, up=up, down=down)

    def next_incarnation(self) -> int:
        """Return a number above all earlier ones, as a process's start time would be."""
        self._incarnation += 1
        return self._incarnation

    def add(self, name: str, driver: Pumped, transport: MemoryTransport, is_done: Callable[[], bool]) -> None:
        """Add a driver and start it."""
        self._members[name] = _Member(driver, transport, self.clock(), is_done)
        driver.start()

    def add_agent(
        self, topic: str, dataset: Dataset, *, up: LinkFaults | None = None, down: LinkFaults | None = None
    ) -> AgentRuntime:
        """Start an agent with these samples; one of the same name takes over."""
        transport = self.transport(topic, up=up, down=down)
        agent = AgentRuntime(
            transport,
            topic,
            self.next_incarnation(),
            lambda _: dataset,
            options=AgentOptions(deadlines=self._deadlines),
            clock=self.clock,
        )
        self.add(topic, agent, transport, lambda: agent.is_finished)
        return agent

    def members(self) -> tuple[str, ...]:
        """Return the names of the drivers that are at work."""
        return tuple(self._members)

    def wake_at(self, when_s: float | None) -> None:
        """Let time not jump over a moment at which the caller has something to do; None for no such moment."""
        self._caller_wakes_at = when_s

    def kill(self, name: str) -> None:
        """End a driver as SIGKILL does: nothing more is sent, and its will fires."""
        self._members.pop(name).transport.close(graceful=False)

    def run(self, until: Callable[[], bool], *, max_virtual_s: float = 3_600.0) -> None:
        """Let everybody work until a condition holds.

        Raises:
            SimulationStuck: When `max_virtual_s` seconds of virtual time did not suffice.
        """
        stop_at = self.clock() + max_virtual_s
        moved_at, num_idle = self.clock(), 0
        while not until():
            if self.clock() > stop_at:
                raise SimulationStuck(f"not done after {max_virtual_s} virtual seconds")
            self.step()
            num_idle = num_idle + 1 if self.clock() == moved_at else 0
            moved_at = self.clock()
            if num_idle > MAX_STEPS_AT_ONE_TIME:
                raise SimulationStuck(f"time stands still at {moved_at} s: a driver asks to be woken in the past")

    def step(self) -> None:
        """Pump every driver that has something to do, then move the clock to what comes next."""
        self.broker.advance()
        for name, member in list(self._members.items()):
            if member.wake_at > self.clock() and not member.transport.has_events():
                continue
            member.wake_at = member.driver.pump(self.clock())
            if member.is_done():
                del self._members[name]
                member.transport.close(graceful=True)
        times = [member.wake_at for member in self._members.values()]
        delivery = self.broker.next_delivery_time()
        times += [time for time in (delivery, self._caller_wakes_at) if time is not None]
        if any(member.transport.has_events() for member in self._members.values()) or not times:
            return
        self.clock.now_s = max(self.clock.now_s, min(times))
