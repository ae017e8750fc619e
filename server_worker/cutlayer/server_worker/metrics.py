"""Counts the worker's events for Prometheus. The only module of this room that knows `prometheus_client`.

No label carries an agent's topic: the number of series does not grow with the number of agents.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics

from cutlayer.broker.messages import Direction, RunPhase, Telemetry
from cutlayer.server_worker.events import (
    AgentCountChanged,
    BudgetComputed,
    CheckpointSaved,
    ConnectionChanged,
    DuplicateReceived,
    Event,
    MessageRefused,
    PhaseChanged,
    RoundEnded,
    StageTimed,
    StateTakenOver,
    TelemetryTaken,
    WindowCommitted,
)
from cutlayer.server_worker.run_book import versions

__all__ = ["WorkerMetrics"]

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROUND_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
STAGES = ("decode", "forward", "encode", "backward", "commit")
REFUSALS = (
    "malformed",
    "oversized",
    "version",
    "content",
    "lease",
    "state",
    "credits",
    "codec",
    "manifest",
    "topic",
    "incarnation",
    "departed",
    "busy",
    "unexpected",
)


class WorkerMetrics:
    """One worker's metrics, in a registry of its own.

    Args:
        worker: The worker's name.
        model: Name of the encoder.
    """

    def __init__(self, worker: str, model: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # or every counter and bucket would have a second series
        self.registry = CollectorRegistry()
        build = Info("cutlayer_build", "What this worker runs.", registry=self.registry)
        build.info({"worker": worker, "model": model, "version": versions().get("cutlayer", "")})
        self._connected = self._gauge("cutlayer_broker_connected", "1 while the broker is connected.")
        self._agents = self._gauge("cutlayer_agents", "Agents that hold a lease.")
        self._budget = self._gauge(
            "cutlayer_broker_budget_bytes",
            "Most bytes of messages in flight, with as many agents as the run starts with.",
        )
        self._agent_budget = self._gauge("cutlayer_agent_budget_bytes", "Most of them that are one agent's.")
        self._phase = Gauge(
            "cutlayer_run_phase", "1 for the phase that the run is in.", ["phase"], registry=self.registry
        )
        self._windows = self._counter("cutlayer_windows", "Windows committed: optimizer steps.")
        self._steps = self._counter("cutlayer_steps", "Microbatches committed.")
        self._samples = self._counter("cutlayer_samples", "Training samples committed.")
        self._version = self._gauge("cutlayer_weights_version", "Version of the weights.")
        self._live_samples = self._gauge("cutlayer_live_samples", "Samples whose graphs are alive.")
        self._gradient_norm = self._gauge("cutlayer_gradient_norm", "Norm of the last mean gradient before clipping.")
        self._learning_rate = self._gauge("cutlayer_learning_rate", "Learning rate of the last step.")
        self._loss = self._gauge("cutlayer_training_loss", "Mean training loss of the agents' last reports.")
        self._accuracy = self._gauge(
            "cutlayer_training_accuracy_ratio", "Training accuracy of the agents' last reports, 0 to 1."
        )
        self._refused = Counter(
            "cutlayer_messages_refused", "Messages that were not taken.", ["reason"], registry=self.registry
        )
        self._duplicates = self._counter("cutlayer_duplicates", "Messages that came twice.")
        self._resends = self._counter("cutlayer_resends", "Messages that agents sent again.")
        self._stage = Histogram(
            "cutlayer_stage_seconds",
            "Time of each stage at the worker.",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._payload = Counter(
            "cutlayer_payload_bytes", "MQTT payloads, as agents count them.", ["direction"], registry=self.registry
        )
        self._raw = Counter(
            "cutlayer_raw_bytes", "Tensors as float32, as agents count them.", ["direction"], registry=self.registry
        )
        self._wire = Counter(
            "cutlayer_wire_bytes",
            "All that crossed the agents' connections at the MQTT layer.",
            ["direction"],
            registry=self.registry,
        )
        self._checkpoint = self._gauge("cutlayer_checkpoint_window", "Window of the last checkpoint.")
        self._checkpoint_s = self._gauge("cutlayer_checkpoint_seconds", "Time that the last checkpoint took.")
        self._pool_workers = self._gauge("cutlayer_pool_workers", "Workers in the last round of the pool.")
        self._rounds = Counter(
            "cutlayer_pool_rounds", "Rounds with the other workers of the pool.", ["result"], registry=self.registry
        )
        self._round = Histogram(
            "cutlayer_pool_round_seconds", "Time of one round.", buckets=ROUND_BUCKETS_S, registry=self.registry
        )
        self._takeovers = self._counter("cutlayer_pool_takeovers", "Times this worker took over the pool's weights.")
        self._recent: dict[str, Telemetry] = {}
        # Every series exists from the start, so that panels show 0 and not "no data".
        for stage in STAGES:
            self._stage.labels(stage)
        for reason in REFUSALS:
            self._refused.labels(reason)
        for direction in Direction:
            for counter in (self._payload, self._raw, self._wire):
                counter.labels(direction.value)
        for phase in RunPhase:
            self._phase.labels(phase.value).set(phase is RunPhase.WAITING)
        for result in ("ok", "failed"):
            self._rounds.labels(result)

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case ConnectionChanged():
                self._connected.set(event.is_connected)
            case AgentCountChanged():
                self._agents.set(event.num_agents)
            case BudgetComputed():
                self._budget.set(event.total_bytes)
                self._agent_budget.set(event.agent_bytes)
            case PhaseChanged():
                for phase in RunPhase:
                    self._phase.labels(phase.value).set(phase is event.phase)
            case MessageRefused():
                self._refused.labels(event.label if event.label in REFUSALS else "unexpected").inc()
            case DuplicateReceived():
                self._duplicates.inc()
            case StageTimed():
                self._stage.labels(event.stage).observe(event.seconds)
            case WindowCommitted():
                self._windows.inc()
                self._steps.inc(event.num_microbatches)
                self._samples.inc(event.num_samples)
                self._version.set(event.version)
                self._live_samples.set(event.live_samples)
                self._gradient_norm.set(event.gradient_norm)
                self._learning_rate.set(event.learning_rate)
            case TelemetryTaken():
                self._telemetry(event)
            case CheckpointSaved():
                self._checkpoint.set(event.window)
                self._checkpoint_s.set(event.seconds)
            case RoundEnded():
                self._rounds.labels("failed" if event.failed else "ok").inc()
                self._round.observe(event.seconds)
                self._pool_workers.set(event.num_workers)
            case StateTakenOver():
                self._takeovers.inc()

    def _telemetry(self, event: TelemetryTaken) -> None:
        """Add what an agent has counted since its last report; a new process of it starts from zero."""
        now, before = event.telemetry, event.previous
        for direction, total in _bytes(now).items():
            earlier = _bytes(before)[direction] if before else (0, 0, 0)
            counters = (self._raw, self._payload, self._wire)
            for counter, new, old in zip(counters, total, earlier, strict=True):
                counter.labels(direction.value).inc(max(new - old, 0))
        self._resends.inc(max(now.resends - (before.resends if before else 0), 0))
        if now.recent.num_samples:
            self._recent[event.agent] = now
        recents = [telemetry.recent for telemetry in self._recent.values()]
        num_samples = sum(recent.num_samples for recent in recents)
        if num_samples:
            self._loss.set(sum(recent.loss_sum for recent in recents) / num_samples)
            self._accuracy.set(sum(recent.num_correct for recent in recents) / num_samples)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)


def _bytes(telemetry: Telemetry) -> dict[Direction, tuple[int, int, int]]:
    """Return raw, payload and wire bytes of each direction."""
    wire = {Direction.UP: telemetry.wire_sent_bytes, Direction.DOWN: telemetry.wire_received_bytes}
    return {
        direction: (
            sum(entry.raw_bytes for entry in telemetry.traffic if entry.direction is direction),
            sum(entry.payload_bytes for entry in telemetry.traffic if entry.direction is direction),
            wire[direction],
        )
        for direction in Direction
    }
