"""Training with Cutlayer itself: worker and agents in one process, over the broker in memory, in virtual time.

Its packets have the sizes of MQTT's (tests/simulation/test_wire_bytes.py). Links take 10 to 30 ms, so that microbatches
arrive one by one and windows hold what is there, as on a network; arithmetic takes no virtual time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.task_sites import topic_of

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.memory import MemoryTransport
from cutlayer.broker.messages import MetricSums
from cutlayer.broker.transport import WireCount
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.batches import Dataset
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.model_builder import BuiltModel
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork

DELAY_S, JITTER_S = 0.01, 0.02


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave.

    Attributes:
        sums: Each site's sums over its own test samples, given all modalities that it has.
        up_bytes: All bytes of all agents' connections to the broker, until their last training step is committed.
        down_bytes: The same from the broker.
        total_bytes: Both to the end, with the evaluation on all test samples.
        cpu_s: Processor seconds of all agents, until their last training step is committed.
        num_train: Training samples of all sites.
        state: The worker's weights afterwards.
    """

    sums: tuple[MetricSums, ...]
    up_bytes: int
    down_bytes: int
    total_bytes: int
    cpu_s: float
    num_train: int
    state: EngineState


class _Timed:
    """An agent whose work until its last training step is timed: it and the worker share a process.

    Attributes:
        agent: The agent.
        cpu_s: Processor seconds of its training.
        trained: What its connection has carried when its training was done; None before.
    """

    def __init__(self, agent: AgentRuntime, transport: MemoryTransport) -> None:
        self.agent = agent
        self.cpu_s = 0.0
        self.trained: WireCount | None = None
        self._transport = transport

    @property
    def wire(self) -> WireCount:
        """What its connection has carried."""
        return self._transport.wire

    def start(self) -> None:
        """Start connecting."""
        self.agent.start()

    def pump(self, now: float) -> float:
        """Do what can be done now."""
        started_s = time.process_time()
        wake_at = self.agent.pump(now)
        if self.trained is None:
            self.cpu_s += time.process_time() - started_s
            foreman = self.agent._foreman
            if foreman is not None and foreman.told_done:
                self.trained = self.wire
        return wake_at


def train(settings: RunSettings, built: BuiltModel, sites: Sequence[Dataset]) -> Trained:
    """Train once and evaluate on all test samples.

    Args:
        settings: The run; all sites take part from its start.
        built: Its model, taken over.
        sites: The data of each site.
    """
    seed, network = settings.run.seed, VirtualNetwork()
    manifest = make_manifest(settings, built, run_id=f"tasks-{seed}")
    book = RunBook(manifest, built.num_tokenizer_parameters)
    transport = network.transport("worker-0")
    store = MemoryActivationStore()
    engine = make_engine(settings, built)
    worker = WorkerRuntime(
        transport,
        make_session(settings, manifest, "worker-0", incarnation=network.next_incarnation(), lease_seed=seed),
        engine,
        built.tokenizer_file,
        book,
        options=WorkerOptions(claim_s=0.1),
        clock=network.clock,
        keeper=StoreKeeper(None if settings.activations.mode == "every-step" else lambda _: store),
    )
    network.add("worker-0", worker, transport, lambda: worker.is_finished)
    agents = [_add_agent(network, topic_of(index), data, seed) for index, data in enumerate(sites)]
    network.run(lambda: worker.is_finished and all(agent.agent.is_finished for agent in agents), max_virtual_s=1e7)
    reports = dict(book.latest())
    given = "+".join(sorted(settings.modalities))
    sums = tuple(
        next(entry.sums for entry in reports[topic_of(index)].evaluations if entry.final and entry.given == given)
        for index in range(len(sites))
    )
    trained = [agent.trained or agent.wire for agent in agents]
    return Trained(
        sums,
        sum(wire.sent_bytes for wire in trained),
        sum(wire.received_bytes for wire in trained),
        sum(agent.wire.sent_bytes + agent.wire.received_bytes for agent in agents),
        sum(agent.cpu_s for agent in agents),
        sum(data.num_samples("train") for data in sites),
        engine.state_dict(),
    )


def _add_agent(network: VirtualNetwork, topic: str, data: Dataset, seed: int) -> _Timed:
    link = LinkFaults(seed=seed, delay_s=DELAY_S, jitter_s=JITTER_S)
    transport = network.transport(topic, up=link, down=link)
    agent = AgentRuntime(
        transport,
        topic,
        network.next_incarnation(),
        lambda _: data,
        options=AgentOptions(deadlines=Deadlines()),
        clock=network.clock,
    )
    timed = _Timed(agent, transport)
    network.add(topic, timed, transport, lambda: agent.is_finished)
    return timed
