"""A worker's reports of a made-up run, and a broker on which it makes them."""

from __future__ import annotations

from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import (
    Message,
    RunManifest,
    RunPhase,
    SeriesDistribution,
    SeriesNumber,
    WorkerReport,
    WorkerState,
    serialize,
)
from cutlayer.broker.topics import RUN, WorkerTopics
from cutlayer.dashboards.catalogue import AGENT_METRICS, METRICS
from cutlayer.dashboards.metric_labels import PHASES
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.simulation.top_feed import TopFeed
from support.manual_clock import ManualClock
from support.synthetic_run import synthetic_manifest

__all__ = ["EVERY_S", "Reporters", "grown_store", "report_of", "worker_state"]

EVERY_S = 2.0
URL = "mqtt://hub"
AGENTS = {"clinic/00": 0.040, "clinic/01": 0.045, "clinic/02": 0.400}
"""And the round trip that each waits in 95 of 100 steps."""


def grown_store(seconds: float, *, agents: dict[str, float] | None = None) -> MetricStore:
    """Return a worker's metrics so many seconds into a made-up run; agents with the round trips that they wait."""
    store = MetricStore((*METRICS, *AGENT_METRICS))
    shown = AGENTS if agents is None else agents
    store.set("cutlayer_agents", len(shown))
    store.set("cutlayer_workers", 1)
    store.set("cutlayer_broker_connected", 1)
    for phase in PHASES:
        store.set("cutlayer_run_phase", phase == "training", phase)
    store.set("cutlayer_run_progress_ratio", seconds / 100)
    store.set("cutlayer_samples_total", 640 * seconds)
    store.set("cutlayer_accuracy_ratio", min(0.1 + seconds / 100, 0.9), "train")
    for direction, rate, raw in (("up", 2_000_000.0, 8_000_000.0), ("down", 20_000.0, 30_000.0)):
        kind = "Activations" if direction == "up" else "Outputs"
        store.set("cutlayer_wire_bytes_total", rate * seconds, direction, kind, "int8+zstd")
        store.set("cutlayer_messages_total", 40 * seconds, direction, kind, "int8+zstd")
        for measure, value in (("raw", raw), ("payload", rate * 0.98), ("wire", rate)):
            store.set("cutlayer_run_bytes", value * seconds, direction, measure)
    store.set("cutlayer_resends_total", 0.4 * seconds)
    store.observe("cutlayer_round_trip_seconds", 0.04, times=int(38 * seconds))
    store.observe("cutlayer_round_trip_seconds", 0.4, times=int(2 * seconds))
    for stage, each_s in (("tokenize", 0.002), ("network", 0.012), ("forward", 0.02), ("backward", 0.03)):
        store.observe("cutlayer_stage_seconds", each_s, stage, times=int(10 * seconds))
    for agent, p95_s in shown.items():
        store.set("cutlayer_agent_wire_bytes_total", 700_000.0 * seconds, agent, "up")
        store.set("cutlayer_agent_wire_bytes_total", 7_000.0 * seconds, agent, "down")
        store.set("cutlayer_agent_raw_bytes_total", 2_700_000.0 * seconds, agent, "up")
        store.set("cutlayer_agent_samples_total", 213.0 * seconds, agent)
        store.set("cutlayer_agent_round_trip_seconds", p95_s / 2, agent, "0.5")
        store.set("cutlayer_agent_round_trip_seconds", p95_s, agent, "0.95")
        store.set("cutlayer_agent_progress_ratio", seconds / 100, agent)
        store.set("cutlayer_agent_silence_seconds", 0.5, agent)
    return store


def report_of(
    store: MetricStore,
    sequence: int,
    *,
    worker: str = "worker-0",
    incarnation: int = 1_000,
    run_id: str = "digits-4f1c22aa",
) -> WorkerReport:
    """Return a store's values as a worker reports them: what is 0 is left out."""
    return WorkerReport(
        worker,
        incarnation,
        sequence,
        run_id,
        EVERY_S,
        tuple(SeriesNumber(name, labels, value) for (name, labels), value in store.numbers().items() if value),
        tuple(
            SeriesDistribution(name, labels, tuple(each.counts), each.total)
            for (name, labels), each in store.distributions().items()
            if each.count
        ),
    )


def worker_state(
    worker: str = "worker-0",
    phase: RunPhase = RunPhase.TRAINING,
    *,
    online: bool = True,
    incarnation: int = 1_000,
    reason: str = "",
) -> WorkerState:
    """Return what a worker retains of itself."""
    return WorkerState(online, worker, incarnation, bytes(32), phase, 3, 7, reason)


class Reporters:
    """A broker in memory, a feed that listens there, and a client that speaks for all workers."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        broker = MemoryBroker(self.clock)
        self.feed = TopFeed(MemoryTransport(broker, "top"), URL, self.clock)
        self._speaker = MemoryTransport(broker, "speaker")
        self._speaker.connect(None)

    def start(self) -> None:
        """Announce a run, and a worker that trains; then let the feed connect."""
        self.say(RUN, RunManifest(synthetic_manifest().to_bytes()), retain=True)
        self.state(worker_state())
        self.feed.start()
        self.pump()

    def say(self, topic: str, message: Message, *, retain: bool = False) -> bool:
        """Publish a message; return whether the feed has made a picture of it."""
        self._speaker.publish(topic, serialize(message), retain=retain)
        return self.pump()

    def state(self, state: WorkerState) -> None:
        """Retain a worker's state."""
        self.say(WorkerTopics(state.worker).state, state, retain=True)

    def report(self, store: MetricStore, sequence: int, *, worker: str = "worker-0", incarnation: int = 1_000) -> bool:
        """Let a worker report."""
        message = report_of(store, sequence, worker=worker, incarnation=incarnation)
        return self.say(WorkerTopics(worker).report, message)

    def pump(self) -> bool:
        """Let everything arrive; return whether the feed has made a picture."""
        self._speaker.poll()
        return self.feed.pump()

    def run(self, num_reports: int) -> None:
        """Let the worker report every two seconds, so many times."""
        for sequence in range(1, num_reports + 1):
            self.report(grown_store(10 + EVERY_S * sequence), sequence)
            self.clock.now_s += EVERY_S
