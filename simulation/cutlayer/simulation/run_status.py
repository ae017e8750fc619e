"""What is known of a run while it goes on, from the agents' telemetry and the worker's retained state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import MetricSums, RunPhase, Telemetry, WorkerState
from cutlayer.broker.task_metrics import Metric, primary_metric
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.server_worker.run_book import RunBook

__all__ = ["AgentStatus", "RunStatus"]


@dataclass(slots=True)
class AgentStatus:
    """What one agent has said last.

    Attributes:
        telemetry: Its latest counters, or None before the first.
        recent: The latest training sums that were over any samples.
        test: The latest evaluation given all modalities.
    """

    telemetry: Telemetry | None = None
    recent: MetricSums | None = None
    test: MetricSums | None = None

    @property
    def done_share(self) -> float:
        """Share of the training steps that are committed."""
        if self.telemetry is None or not self.telemetry.total_steps:
            return 0.0
        return min(self.telemetry.steps / self.telemetry.total_steps, 1.0)

    @property
    def raw_bytes(self) -> int:
        """Tensors sent and received, as float32."""
        return sum(row.raw_bytes for row in self.telemetry.traffic) if self.telemetry else 0

    @property
    def wire_bytes(self) -> int:
        """All bytes sent and received."""
        return self.telemetry.wire_sent_bytes + self.telemetry.wire_received_bytes if self.telemetry else 0

    @property
    def round_trip_s(self) -> float | None:
        """Median round trip."""
        return LogHistogram(self.telemetry.round_trips).quantile(0.5) if self.telemetry else None


@dataclass(slots=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        agents: By topic, in the order in which they are shown.
        manifest: The run's manifest, once it is published.
        book: Counters of all agents, once there is a manifest.
        worker: The worker's latest state.
    """

    agents: dict[str, AgentStatus] = field(default_factory=dict)
    manifest: Manifest | None = None
    book: RunBook | None = None
    worker: WorkerState | None = None

    @classmethod
    def of_agents(cls, topics: Iterable[str]) -> RunStatus:
        """Return the status of a run before anything is known."""
        return cls({topic: AgentStatus() for topic in topics})

    @property
    def metric(self) -> Metric | None:
        """What models of the run are compared by; None before its manifest is there."""
        return primary_metric(self.manifest.task) if self.manifest is not None else None

    @property
    def phase(self) -> RunPhase | None:
        """Where the run stands; None while no worker has said."""
        return self.worker.phase if self.worker is not None else None

    @property
    def done_share(self) -> float:
        """Share of all agents' training steps that are committed."""
        known = [agent.telemetry for agent in self.agents.values() if agent.telemetry is not None]
        total = sum(telemetry.total_steps for telemetry in known)
        if not total:
            return 0.0
        # An agent that has not spoken yet counts as one with the others' mean amount of work.
        total = total * len(self.agents) // len(known)
        return min(sum(telemetry.steps for telemetry in known) / total, 1.0)

    def take_manifest(self, manifest: Manifest) -> None:
        """Take the run's manifest; another run's starts the counters anew."""
        if self.manifest is None or manifest.digest() != self.manifest.digest():
            self.manifest = manifest
            self.agents = {topic: AgentStatus() for topic in self.agents}
            # Parameters matter to the record of a finished run only, which the worker writes.
            self.book = RunBook(manifest, num_client_parameters=0)

    def take_telemetry(self, topic: str, telemetry: Telemetry) -> None:
        """Take an agent's counters; old ones and other agents' change nothing."""
        agent = self.agents.get(topic)
        if agent is None or self.book is None or self.manifest is None or not self.book.take(topic, telemetry):
            return
        agent.telemetry = telemetry
        if telemetry.recent.num_samples:
            agent.recent = telemetry.recent
        all_given = "+".join(sorted(self.manifest.modalities))
        for evaluation in telemetry.evaluations:
            if evaluation.given == all_given and evaluation.sums.num_samples and not evaluation.candidate:
                agent.test = evaluation.sums
