"""Many agents and a worker in one process, in virtual time, over the in-memory broker.

Sessions, drivers, messages and codecs are the real ones; only the network, the clock and, where asked, the arithmetic
are not. Time jumps from one event to the next, so an hour of a slow link takes a moment, and a seed fixes every fault:
a run that fails is run again exactly.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.edge_agent.site_parts import SiteParts

__all__ = ["SimulationStuck", "VirtualClock", "VirtualNetwork", "is_retained_topic"]


MAX_WAKES_AT_ONE_TIME = 10_000
"""How often one driver may be woken at one moment before that counts as a fault of its."""


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
    name: str
    driver: Pumped
    transport: MemoryTransport
    is_done: Callable[[], bool]
    entry: int | None = None
    is_at_work: bool = False
    woken_at: float = -1.0
    num_wakes: int = 0


def is_retained_topic(topic: str) -> bool:
    """Return whether a topic holds state, run or model: what a broker keeps is not lost on the way to it."""
    return topic.endswith("/state") or topic.startswith(("cutlayer/run", "cutlayer/model/"))


class VirtualNetwork:
    """A broker in memory, the drivers connected to it, and the clock they share.

    Args:
        faults: What the links do to packets, in both directions.
        max_packet_bytes: The broker's packet limit.
        deadlines: When agents send again.

    Attributes:
        clock: The time that all share.
        broker: The broker.
        last_woken: Name of the driver that the last step has woken; None when it has woken none.
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
        # A heap of (when, number of the entry, whom): who has asked first is woken first. A member's valid entry is
        # the last one made for it; another is passed over when it comes up.
        self._wakes: list[tuple[float, int, _Member]] = []
        self._entries = itertools.count()
        self._incarnation = 0
        self.last_woken: str | None = None
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
        """Add a driver and start it; one of the same name before it is not woken any more."""
        if name in self._members:
            self._remove(self._members[name])
        member = self._members[name] = _Member(name, driver, transport, is_done)
        transport.on_news = lambda: self._has_news(member)
        self._wake(member, self.clock())
        driver.start()

    def add_agent(
        self,
        topic: str,
        dataset: Dataset,
        *,
        up: LinkFaults | None = None,
        down: LinkFaults | None = None,
        may_be_kept: bool = True,
        max_uplink_bytes_per_s: float | None = None,
        site: SiteParts | None = None,
    ) -> AgentRuntime:
        """Start an agent with these samples; one of the same name takes over."""
        transport = self.transport(topic, up=up, down=down)
        agent = AgentRuntime(
            transport,
            topic,
            self.next_incarnation(),
            lambda _: dataset,
            options=AgentOptions(
                deadlines=self._deadlines,
                may_be_kept=may_be_kept,
                max_uplink_bytes_per_s=max_uplink_bytes_per_s,
                site=site or SiteParts(),
            ),
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
        member = self._members[name]
        self._remove(member)
        member.transport.close(graceful=False)

    def run(self, until: Callable[[], bool], *, max_virtual_s: float = 3_600.0) -> None:
        """Let everybody work until a condition holds, which is looked at after each step.

        Raises:
            SimulationStuck: When `max_virtual_s` seconds of virtual time did not suffice, or time stands still.
        """
        stop_at = self.clock() + max_virtual_s
        is_idle = False
        while not until():
            if is_idle:
                raise SimulationStuck(f"nobody has anything to do at {self.clock()} s, or ever again")
            if self.clock() > stop_at:
                raise SimulationStuck(f"not done after {max_virtual_s} virtual seconds")
            is_idle = not self.step()

    def step(self) -> bool:
        """Let time pass until a driver has something to do, and wake it; or until the caller's appointment.

        Returns:
            Whether anything was left to do.

        Raises:
            SimulationStuck: When one driver is woken again and again at one time.
        """
        self.last_woken = None
        while True:
            self.broker.advance()
            now = self.clock()
            while self._wakes and self._wakes[0][1] != self._wakes[0][2].entry:
                heapq.heappop(self._wakes)
            if self._wakes and self._wakes[0][0] <= now:
                self._pump(heapq.heappop(self._wakes)[2], now)
                return True
            times = [self._wakes[0][0]] if self._wakes else []
            times += [time for time in (self.broker.next_delivery_time(), self._caller_wakes_at) if time is not None]
            times = [time for time in times if time > now]
            if not times:
                return False
            self.clock.now_s = min(times)
            if self.clock.now_s == self._caller_wakes_at:
                self.broker.advance()
                return True

    def _pump(self, member: _Member, now: float) -> None:
        self.last_woken = member.name
        member.num_wakes = member.num_wakes + 1 if member.woken_at == now else 0
        member.woken_at = now
        if member.num_wakes > MAX_WAKES_AT_ONE_TIME:
            raise SimulationStuck(f"time stands still at {now} s: {member.name} asks to be woken in the past")
        member.is_at_work = True
        wake_at = member.driver.pump(now)
        member.is_at_work = False
        if member.is_done():
            self._remove(member)
            member.transport.close(graceful=True)
        elif member.name in self._members:  # nobody has killed it meanwhile
            self._wake(member, now if member.transport.num_events else max(wake_at, now))

    def _has_news(self, member: _Member) -> None:
        if not member.is_at_work:  # else what has come is seen to after its work
            self._wake(member, self.clock())

    def _wake(self, member: _Member, when: float) -> None:
        member.entry = next(self._entries)
        heapq.heappush(self._wakes, (when, member.entry, member))

    def _remove(self, member: _Member) -> None:
        del self._members[member.name]
        member.transport.on_news = None
        member.entry = None
