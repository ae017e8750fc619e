"""Counts the worker's events in the catalogue's metrics, which Prometheus, the page and the reports read.

No label carries an agent's topic: the number of series does not grow with the number of agents. Single agents stand in
a table of their own (`agent_table.py`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Direction, RunPhase
from cutlayer.dashboards.metric_labels import OTHER_KINDS, REFUSALS, Side, Stage
from cutlayer.dashboards.metric_store import MetricStore, StoreCollector
from cutlayer.server_worker.agent_counters import AgentCounters
from cutlayer.server_worker.agent_table import AgentTable
from cutlayer.server_worker.events import (
    ActivationsAssembled,
    AgentCountChanged,
    BrokerReported,
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
    TensorsMoved,
    WindowCommitted,
    WorkerSampled,
)
from cutlayer.server_worker.run_figures import RunFigures
from cutlayer.server_worker.versions import versions

__all__ = ["WorkerMetrics"]


class WorkerMetrics:
    """One worker's metrics, in a store and a registry of its own.

    Args:
        worker: The worker's name.
        manifest: The run.
        num_client_parameters: Parameters of the tokenizers.
        joins_run: Whether another worker's process may have counted what agents had moved before.
        clock: Seconds, monotonic.

    Attributes:
        store: The values.
        registry: Shows them to Prometheus, with what its client tells of any process.
        agents: Figures of single agents.
    """

    def __init__(
        self,
        worker: str,
        manifest: Manifest,
        *,
        num_client_parameters: int = 0,
        joins_run: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store = MetricStore()
        self.agents = AgentTable(clock)
        self.registry = CollectorRegistry()
        self.registry.register(StoreCollector(store))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._counters = AgentCounters(store, manifest, joins_run=joins_run)
        self._figures = RunFigures(store, manifest, num_client_parameters)
        self._was_connected = False
        store.set("cutlayer_build", 1, worker, manifest.model, versions().get("cutlayer", ""))
        store.set("cutlayer_workers", 1)
        for kind, directions in OTHER_KINDS.items():
            for direction in directions:
                store.initialise("cutlayer_worker_payload_bytes_total", direction, kind)
        self._phase(RunPhase.WAITING)

    def __call__(self, event: Event) -> None:
        """Count one event."""
        store, worker = self.store, Side.WORKER.value
        match event:
            case StageTimed():
                store.observe("cutlayer_stage_seconds", event.seconds, event.stage)
            case TensorsMoved():
                store.observe("cutlayer_message_size_bytes", event.payload_bytes, event.direction.value)
            case ActivationsAssembled():
                store.add("cutlayer_activations_total", event.num_fresh, "tensors")
                store.add("cutlayer_activations_total", event.num_stored, "store")
            case TelemetryTaken():
                self._counters.take(event)
                self._figures.take(event.agent, event.telemetry, event.previous)
                self.agents.take(event.agent, event.telemetry, event.previous)
            case WindowCommitted():
                self._window(event)
            case WorkerSampled():
                self._sample(event)
            case BrokerReported():
                store.set(event.metric, event.value)
                store.set("cutlayer_broker_reports", 1)
            case MessageRefused():
                reason = event.label if event.label in REFUSALS else "unexpected"
                store.add("cutlayer_rejects_total", 1, worker, reason)
            case DuplicateReceived():
                store.add("cutlayer_duplicates_total", 1, worker)
            case ConnectionChanged():
                store.set("cutlayer_broker_connected", event.is_connected)
                if event.is_connected and self._was_connected:
                    store.add("cutlayer_reconnects_total", 1, worker)
                self._was_connected |= event.is_connected
            case AgentCountChanged():
                store.set("cutlayer_agents", event.num_agents)
            case BudgetComputed():
                store.set("cutlayer_broker_budget_bytes", event.total_bytes)
                store.set("cutlayer_agent_budget_bytes", event.agent_bytes)
            case PhaseChanged():
                self._phase(event.phase)
            case CheckpointSaved():
                store.set("cutlayer_checkpoint_window", event.window)
                store.set("cutlayer_checkpoint_seconds", event.seconds)
            case RoundEnded():
                store.add("cutlayer_pool_rounds_total", 1, "failed" if event.failed else "ok")
                store.observe("cutlayer_pool_round_seconds", event.seconds)
                store.set("cutlayer_pool_workers", event.num_workers)
            case StateTakenOver():
                store.add("cutlayer_pool_takeovers_total")

    def _phase(self, present: RunPhase) -> None:
        for phase in RunPhase:
            self.store.set("cutlayer_run_phase", phase is present, phase.value)

    def _window(self, event: WindowCommitted) -> None:
        store = self.store
        store.add("cutlayer_windows_total")
        store.add("cutlayer_steps_total", event.num_microbatches)
        store.add("cutlayer_samples_total", event.num_samples)
        store.set("cutlayer_weights_version", event.version)
        store.set("cutlayer_live_samples", event.live_samples)
        store.set("cutlayer_gradient_norm", event.gradient_norm)
        store.set("cutlayer_learning_rate", event.learning_rate)
        if event.wanted_samples:
            store.set("cutlayer_window_fill_ratio", event.num_samples / event.wanted_samples)
        for versions_behind in event.staleness:
            store.observe("cutlayer_staleness_versions", versions_behind)
        for seconds in event.waits_s:
            store.observe("cutlayer_stage_seconds", seconds, Stage.WAIT.value)

    def _sample(self, event: WorkerSampled) -> None:
        store = self.store
        store.set("cutlayer_worker_wire_bytes_total", event.wire_received_bytes, Direction.UP.value)
        store.set("cutlayer_worker_wire_bytes_total", event.wire_sent_bytes, Direction.DOWN.value)
        payloads: dict[tuple[str, str], int] = defaultdict(int)
        for row in event.traffic:
            payloads[row.direction.value, row.kind] += row.payload_bytes
        for labels, num_bytes in payloads.items():
            store.set("cutlayer_worker_payload_bytes_total", num_bytes, *labels)
        store.set("cutlayer_window_open_samples", event.open_samples)
        store.set("cutlayer_live_samples", event.live_samples)
        store.set("cutlayer_credits", event.credits_granted, "granted")
        store.set("cutlayer_credits", event.credits_used, "used")
        store.set("cutlayer_workers", event.num_workers)
