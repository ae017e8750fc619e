"""What a run has cost and reached, put together from the agents' counters.

Agents count cumulatively since their start, so the latest message of each process of an agent says all; a process
that came back is another incarnation, and both count.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, Evaluation, Telemetry
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.metric_labels import AGENT_STAGES, OTHER, REFUSALS
from cutlayer.server_worker.federated_averaging import federated_averaging_bytes, num_exchanged_parameters
from cutlayer.server_worker.run_results import (
    JOINT,
    Evaluated,
    candidate_metrics,
    final_metrics,
    history,
    only_accuracy,
    tells_what_can_be,
)

__all__ = ["RunBook", "stage_times"]

MAX_PROCESSES = 64
"""Of one agent whose counters are kept: an agent that came back more often is not counted any more."""


@dataclass(slots=True)
class _Agent:
    telemetry: dict[int, Telemetry] = field(default_factory=dict)


class RunBook:
    """The latest counters of every process of every agent.

    Args:
        manifest: The run.
        num_client_parameters: Parameters of the tokenizers.
    """

    def __init__(self, manifest: Manifest, num_client_parameters: int) -> None:
        self._manifest = manifest
        self._num_client_parameters = num_client_parameters
        self._agents: dict[str, _Agent] = defaultdict(_Agent)

    def take(self, agent: str, telemetry: Telemetry) -> bool:
        """Take an agent's counters; return False for ones that are not taken.

        Those are older than what is known, of one process too many, or claim what cannot be: more right answers than
        samples, or a loss beyond all measure, which would stay in the sums of all agents.
        """
        processes = self._agents[agent].telemetry
        known = processes.get(telemetry.incarnation)
        if known is None and len(processes) >= MAX_PROCESSES:
            return False
        if known is not None and known.sequence >= telemetry.sequence:
            return False
        if not tells_what_can_be(self._manifest.task, telemetry):
            return False
        processes[telemetry.incarnation] = telemetry
        return True

    def adopt(self, manifest: Manifest) -> None:
        """Take notice that the run has another id: this worker has joined others."""
        self._manifest = manifest

    @property
    def manifest(self) -> Manifest:
        """The run."""
        return self._manifest

    def of(self, agent: str, incarnation: int) -> Telemetry | None:
        """Return the latest counters of one process of an agent."""
        return self._agents[agent].telemetry.get(incarnation) if agent in self._agents else None

    def latest(self) -> list[tuple[str, Telemetry]]:
        """Return the latest counters of every process, oldest process first."""
        return [
            (name, agent.telemetry[incarnation])
            for name, agent in sorted(self._agents.items())
            for incarnation in sorted(agent.telemetry)
        ]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return the final metrics on test samples, given all modalities (`joint`) and given each alone."""
        return final_metrics(self._manifest.task, self._evaluations())

    def accuracy(self) -> dict[str, float]:
        """Return the final test accuracy, as `metrics`; empty where the task has none."""
        found = {given: only_accuracy(values) for given, values in self.metrics().items()}
        return {given: values["accuracy"] for given, values in found.items() if values}

    def history(self) -> list[dict[str, Any]]:
        """Return pooled metrics and loss after each epoch that was evaluated, and the bytes moved until then."""
        return history(self._manifest.task, self._evaluations())

    def candidate_metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics on validation samples of each candidate, by its name."""
        return candidate_metrics(self._manifest.task, self._evaluations())

    def bytes_moved(self) -> dict[str, dict[str, int]]:
        """Return bytes up and down: tensors as float32, MQTT payloads, and all that crossed the agents' connections."""
        moved = {direction.value: {"raw": 0, "payload": 0, "wire": 0} for direction in Direction}
        for _, telemetry in self.latest():
            for traffic in telemetry.traffic:
                moved[traffic.direction]["raw"] += traffic.raw_bytes
                moved[traffic.direction]["payload"] += traffic.payload_bytes
            moved["up"]["wire"] += telemetry.wire_sent_bytes
            moved["down"]["wire"] += telemetry.wire_received_bytes
        return moved

    def traffic(self) -> list[dict[str, Any]]:
        """Return messages and bytes by direction, kind of message and codec, over all agents."""
        rows: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        for _, telemetry in self.latest():
            for entry in telemetry.traffic:
                row = rows[entry.direction.value, entry.kind, entry.codec]
                counts = (entry.messages, entry.raw_bytes, entry.payload_bytes, entry.wire_bytes)
                row[:] = [total + count for total, count in zip(row, counts, strict=True)]
        names = ("messages", "raw_bytes", "payload_bytes", "wire_bytes")
        return [
            {"direction": direction, "kind": kind, "codec": codec, **dict(zip(names, row, strict=True))}
            for (direction, kind, codec), row in sorted(rows.items())
        ]

    def round_trips(self) -> LogHistogram:
        """Return the round trips of all agents."""
        merged = LogHistogram()
        for _, telemetry in self.latest():
            merged.merge(LogHistogram(telemetry.round_trips))
        return merged

    def stages(self) -> dict[str, dict[str, float]]:
        """Return the time of each stage of the agents: how often, mean, median and 95th percentile in seconds."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        times: dict[str, LogHistogram] = defaultdict(LogHistogram)
        for _, telemetry in self.latest():
            for entry in telemetry.stages:
                stage = entry.stage if entry.stage in AGENT_STAGES else OTHER  # a peer names it
                sums[stage][0] += entry.count
                sums[stage][1] += entry.seconds
                times[stage].merge(LogHistogram(entry.buckets))
        return {
            stage: stage_times(int(count), seconds, times[stage].quantile(0.5), times[stage].quantile(0.95))
            for stage, (count, seconds) in sums.items()
            if count
        }

    def rejects(self) -> dict[str, int]:
        """Return the messages that agents have not taken, by label."""
        counts: Counter[str] = Counter()
        for _, telemetry in self.latest():
            for label, count in telemetry.rejects_by:
                counts[label if label in REFUSALS else OTHER] += count
        return dict(sorted(counts.items()))

    def federated_averaging(self) -> dict[str, int]:
        """Return the comparison for as many epochs as each agent has trained: some leave, or come late."""
        num_parameters = num_exchanged_parameters(self._manifest, self._num_client_parameters)
        one_round_bytes = federated_averaging_bytes(num_parameters, 1, 1)
        shares = {
            agent: min(entry.steps / entry.total_steps, 1.0) for agent, entry in self.latest() if entry.total_steps
        }
        return {
            "bytes": round(one_round_bytes * self._manifest.epochs * sum(shares.values())),
            "rounds": self._manifest.epochs,
            "agents": len(self._agents),
            "parameters": num_parameters,
        }

    def _evaluations(self) -> list[Evaluated]:
        """Return each agent's evaluations in order."""
        evaluations: list[Evaluated] = []
        moved: dict[str, int] = defaultdict(int)
        for agent, entry in self.latest():
            evaluations += [
                Evaluated(agent, self._given(evaluation), evaluation, moved[agent] + evaluation.wire_bytes)
                for evaluation in entry.evaluations
            ]
            moved[agent] += entry.wire_sent_bytes + entry.wire_received_bytes
        return evaluations

    def _given(self, evaluation: Evaluation) -> str:
        return JOINT if evaluation.given == "+".join(sorted(self._manifest.modalities)) else evaluation.given


def stage_times(count: int, seconds: float, p50_s: float | None, p95_s: float | None) -> dict[str, Any]:
    """Return the times of a stage as `run.json` has them: how often, mean, median and 95th percentile in seconds."""
    return {"count": count, "mean_s": seconds / count, "p50_s": p50_s, "p95_s": p95_s}
