"""Follows a run over its broker as any onlooker may: no file and no process of the run is touched."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, RunManifest, Telemetry, WorkerState
from cutlayer.broker.topics import RUN, AgentTopics, WorkerTopics, agent_of
from cutlayer.broker.transport import Connected, Disconnected, Received, Transport
from cutlayer.simulation.run_status import RunStatus

__all__ = ["TelemetryFeed"]

log = logging.getLogger(__name__)


class TelemetryFeed:
    """Keeps a `RunStatus` up to date.

    Args:
        transport: A connection of its own.
        agents: Topics of the agents to follow.
        worker: Name of the worker to follow.
        since_ms: Milliseconds since the epoch; what a worker of that name that started earlier has left on the
            broker is another run's.

    Attributes:
        status: What is known.
        is_connected: Whether there is a connection.
        problem: Why there is none, as the transport has said last.
    """

    def __init__(self, transport: Transport, agents: Iterable[str], worker: str, *, since_ms: int = 0) -> None:
        topics = [AgentTopics(agent) for agent in agents]
        self.status = RunStatus.of_agents(topic.root for topic in topics)
        self.is_connected = False
        self.problem = ""
        self._transport = transport
        self._worker = worker
        self._since_ms = since_ms
        # It sends nothing; what agents send up is what it receives.
        self._courier = Courier(transport, Direction.DOWN)
        self._filters = [RUN, WorkerTopics(worker).state, *(topic.telemetry for topic in topics)]

    def start(self) -> None:
        """Start connecting."""
        self._transport.connect(None)
        for topic_filter in self._filters:
            self._transport.subscribe(topic_filter)

    def pump(self) -> None:
        """Take what has arrived.

        Raises:
            CutlayerError: When the broker refuses this client for good.
        """
        for event in self._transport.poll():
            match event:
                case Received():
                    self._take(event)
                case Connected():
                    self.is_connected = True
                case Disconnected():
                    self.is_connected = False
                    self.problem = event.reason
                    if event.fatal is not None:
                        raise event.fatal

    def wait(self, timeout_s: float) -> None:
        """Sleep until something has arrived or `timeout_s` seconds have passed."""
        self._transport.wait(timeout_s)

    def close(self) -> None:
        """Disconnect."""
        self._transport.close()

    def _take(self, packet: Received) -> None:
        try:
            match self._courier.receive(packet):
                case Telemetry() as telemetry:
                    agent = agent_of(packet.topic)
                    if agent is not None:
                        self.status.take_telemetry(agent, telemetry)
                case RunManifest() as manifest:
                    self.status.take_manifest(Manifest.from_bytes(manifest.document))
                case WorkerState() as state if state.worker == self._worker and state.incarnation >= self._since_ms:
                    self.status.worker = state
                case _:
                    pass
        except MalformedMessage as error:
            log.debug("dropped a message on %s: %s", packet.topic, error)
