"""What a run has cost and reached, put together from the agents' counters: the source of `run.json`.

Agents count cumulatively since their start, so the latest message of each process of an agent says all; a process
that came back is another incarnation, and both count.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, Evaluation, Telemetry
from cutlayer.broker.process_usage import cpu_seconds, peak_rss_bytes
from cutlayer.broker.selection import Selection
from cutlayer.broker.task_metrics import metrics_of
from cutlayer.broker.telemetry import LogHistogram
from cutlayer.dashboards.metric_labels import AGENT_STAGES, OTHER, REFUSALS, Side, Stage
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.run_results import (
    JOINT,
    Evaluated,
    candidate_metrics,
    final_metrics,
    history,
    only_accuracy,
    tells_what_can_be,
)

__all__ = [
    "RUN_FORMAT",
    "RunBook",
    "federated_averaging_bytes",
    "num_exchanged_parameters",
    "selection_json",
    "versions",
]

RUN_FORMAT = 1
FLOAT32_BYTES = 4
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
            stage: _stage(int(count), seconds, times[stage].quantile(0.5), times[stage].quantile(0.95))
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

    def as_json(
        self,
        *,
        worker: str,
        windows: int,
        committed_samples: int,
        duration_s: float,
        training_s: float,
        reason: str,
        store: MetricStore | None = None,
    ) -> dict[str, Any]:
        """Return the content of `run.json`.

        Args:
            worker: The worker's name.
            windows: Windows committed.
            committed_samples: Training samples committed, each epoch's again.
            duration_s: Seconds from the start of training to the end of the run.
            training_s: Seconds of that until the last commit.
            reason: Why the run ended.
            store: The worker's metrics: the stages that it has timed, and the messages that it has not taken.
        """
        latest = self.latest()
        round_trips = self.round_trips()
        moved = self.bytes_moved()
        wire_bytes = moved["up"]["wire"] + moved["down"]["wire"]
        manifest = self._manifest
        processes: list[dict[str, Any]] = [
            {"role": "worker", "id": worker, "peak_rss_bytes": peak_rss_bytes(), "cpu_s": cpu_seconds()}
        ]
        processes += [
            {"role": "agent", "id": agent, "peak_rss_bytes": entry.peak_rss_bytes, "cpu_s": entry.cpu_s}
            for agent, entry in latest
        ]
        return {
            "format": RUN_FORMAT,
            "run_id": manifest.run_id,
            "reason": reason,
            "measures": [asdict(metric) for metric in metrics_of(manifest.task)],
            "metrics": self.metrics(),
            "accuracy": self.accuracy(),
            "history": self.history(),
            "bytes": moved,
            "bytes_per_sample": wire_bytes / committed_samples if committed_samples else None,
            "traffic": self.traffic(),
            "federated_averaging": {
                "bytes": self._federated_bytes(),
                "rounds": manifest.epochs,
                "agents": len(self._agents),
                "parameters": self._num_parameters(),
            },
            "samples": committed_samples,
            "steps": sum({agent: entry.steps for agent, entry in latest}.values()),
            "windows": windows,
            "duration_s": duration_s,
            "training_s": training_s,
            "round_trip_s": {"p50": round_trips.quantile(0.5), "p95": round_trips.quantile(0.95)},
            "resends": sum(entry.resends for _, entry in latest),
            "duplicates": sum(entry.duplicates for _, entry in latest),
            "reconnects": sum(entry.reconnects for _, entry in latest),
            "rejects": {"agent": self.rejects(), "worker": _rejects_of(store)},
            "stages": _in_order_of_a_step({**self.stages(), **_stages_of(store)}),
            "processes": processes,
            "seed": manifest.seed,
            "manifest": manifest.model_dump(mode="json"),
            "versions": versions(),
        }

    def _num_parameters(self) -> int:
        return num_exchanged_parameters(self._manifest, self._num_client_parameters)

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

    def _federated_bytes(self) -> int:
        """Return the comparison for as many epochs as each agent has trained: some leave, or come late."""
        one_round_bytes = federated_averaging_bytes(self._num_parameters(), 1, 1)
        shares = {
            agent: min(entry.steps / entry.total_steps, 1.0) for agent, entry in self.latest() if entry.total_steps
        }
        return round(one_round_bytes * self._manifest.epochs * sum(shares.values()))

    def _given(self, evaluation: Evaluation) -> str:
        return JOINT if evaluation.given == "+".join(sorted(self._manifest.modalities)) else evaluation.given


def num_exchanged_parameters(manifest: Manifest, num_client_parameters: int) -> int:
    """Return how many parameters federated averaging of the same training exchanges each round.

    The whole model where all of the encoder trains. Where a part of it does, that part, and the tokenizers where they
    train: what is frozen a client may have from elsewhere, so its first download is not counted.

    Args:
        manifest: The run.
        num_client_parameters: Parameters of the tokenizers.
    """
    if manifest.tuning.mode == "full" or manifest.num_trained_parameters is None:
        return manifest.num_parameters + num_client_parameters
    return manifest.num_trained_parameters + (manifest.tokenizers.mode == "trainable") * num_client_parameters


def federated_averaging_bytes(num_parameters: int, num_rounds: int, num_agents: int) -> int:
    """Return what federated averaging moves: its parameters in float32, down and up, each agent, each round.

    McMahan et al., arXiv 1602.05629, algorithm 1, with every client in every round and one local epoch a round.
    """
    return 2 * num_rounds * num_agents * num_parameters * FLOAT32_BYTES


def selection_json(selection: Selection | None, book: RunBook) -> dict[str, Any]:
    """Return what `run.json` says of the weights that were judged; nothing where none were.

    Args:
        selection: What was judged and chosen.
        book: Has the other metrics.
    """
    if selection is None:
        return {}
    metrics = book.candidate_metrics()
    document = {key: value for key, value in selection.as_json().items() if key != "state"}
    rows = [{**row, "metrics": metrics.get(row["name"], {})} for row in document["candidates"]]
    return {"selection": {**document, "candidates": rows}}


def versions() -> dict[str, str]:
    """Return the versions of what a run depends on."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for package in ("cutlayer", "torch", "timm", "numpy", "paho-mqtt", "msgpack", "lz4", "zstandard"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _stages_of(store: MetricStore | None) -> dict[str, dict[str, float]]:
    """Return the stages that a worker times itself; agents' own are in its metrics, too, in coarser buckets."""
    found = store.distributions() if store is not None else {}
    return {
        labels[0]: _stage(times.count, times.total, times.quantile(0.5), times.quantile(0.95))
        for (name, labels), times in found.items()
        if name == "cutlayer_stage_seconds" and times.count and labels[0] not in AGENT_STAGES
    }


def _rejects_of(store: MetricStore | None) -> dict[str, int]:
    """Return the messages that a worker has not taken, by label."""
    found = store.numbers() if store is not None else {}
    return {
        labels[1]: int(count)
        for (name, labels), count in sorted(found.items())
        if name == "cutlayer_rejects_total" and labels[0] == Side.WORKER and count
    }


def _stage(count: int, seconds: float, p50_s: float | None, p95_s: float | None) -> dict[str, Any]:
    return {"count": count, "mean_s": seconds / count, "p50_s": p50_s, "p95_s": p95_s}


def _in_order_of_a_step(stages: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    names = [*(stage.value for stage in Stage), OTHER]
    return {name: stages[name] for name in names if name in stages}
