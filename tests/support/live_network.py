"""A `VirtualNetwork`'s twin in real time, over any broker: all drivers are pumped by the test's own thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pytest

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import FaultyTransport
from cutlayer.broker.messages import Chunk, parse
from cutlayer.broker.mqtt_packets import publish_size
from cutlayer.broker.transport import Transport
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.simulation.virtual import Pumped
from support.live_brokers import LiveBroker

__all__ = ["LiveNetwork"]

IDLE_S = 0.002
TIMEOUT_S = 240.0
DEADLINES = Deadlines(hello_s=0.3, step_s=1.0, longest_s=3.0)
"""Shorter than by default: what a test breaks here is mended by them, and nobody computes for long."""
PATIENT = Deadlines(step_s=TIMEOUT_S, longest_s=TIMEOUT_S)


@dataclass(slots=True)
class _Member:
    driver: Pumped
    transport: Transport
    is_done: Callable[[], bool]


class PiecesLost(FaultyTransport):
    """A transport that loses the second piece of the first chunked messages, once each.

    Args:
        inner: The transport to wrap.
        num_holes: How many messages.
    """

    def __init__(self, inner: Transport, num_holes: int) -> None:
        super().__init__(inner, clock=time.monotonic)
        self._num_holes = num_holes
        self._holed: set[bytes] = set()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Send one packet, or act as if."""
        message = parse(payload) if len(self._holed) < self._num_holes else None
        if isinstance(message, Chunk) and message.index == 1 and message.message_id not in self._holed:
            self._holed.add(message.message_id)
            return publish_size(topic, len(payload), qos=qos, protocol="3.1.1")
        return super().publish(topic, payload, qos=qos, retain=retain)


class LiveNetwork:
    """Drivers over a real broker. Use as a context manager: whoever is still at work at the end is cut off.

    Args:
        broker: The broker.
    """

    def __init__(self, broker: LiveBroker) -> None:
        self.clock = time.monotonic
        self._broker = broker
        self._members: dict[str, _Member] = {}
        self._incarnation = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._members):
            self.kill(name)

    def transport(self, client_id: str) -> Transport:
        """Make a connection for a driver."""
        return self._broker.transport(client_id)

    def next_incarnation(self) -> int:
        """Return a number above all earlier ones, as a process's start time would be."""
        self._incarnation += 1
        return self._incarnation

    def add(self, name: str, driver: Pumped, transport: Transport, is_done: Callable[[], bool]) -> None:
        """Add a driver and start it."""
        self._members[name] = _Member(driver, transport, is_done)
        driver.start()

    def add_agent(self, topic: str, dataset: Dataset, *, num_holes: int = 0) -> AgentRuntime:
        """Start an agent with these samples; one of the same name must be gone.

        Args:
            topic: Its topic.
            dataset: Its samples.
            num_holes: Messages of which a piece is lost on the way up. Where some are, it has deadlines that no
                loaded machine reaches: whole messages shall not go again.
        """
        transport = self.transport(topic)
        if num_holes:
            transport = PiecesLost(transport, num_holes)
        options = AgentOptions(deadlines=PATIENT if num_holes else DEADLINES)
        agent = AgentRuntime(transport, topic, self.next_incarnation(), lambda _: dataset, options=options)
        self.add(topic, agent, transport, lambda: agent.is_finished)
        return agent

    def kill(self, name: str) -> None:
        """End a driver as SIGKILL does: nothing more is sent, and its will fires."""
        self._members.pop(name).transport.close(graceful=False)

    def run(self, until: Callable[[], bool], *, resting: Container[str] = (), timeout_s: float = TIMEOUT_S) -> None:
        """Let everybody but the resting ones work until a condition holds, or fail."""
        end_s = self.clock() + timeout_s
        while not until():
            now = self.clock()
            if now > end_s:
                pytest.fail(f"not done after {timeout_s} s; at work: {', '.join(self._members)}")
            is_busy = False
            for name, member in list(self._members.items()):
                if name in resting:
                    continue
                is_busy |= member.driver.pump(now) <= now
                if member.is_done():
                    del self._members[name]
                    member.transport.close(graceful=True)
            if not is_busy:
                time.sleep(IDLE_S)
