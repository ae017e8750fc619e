"""Small runs in virtual time whose members come, go and break: workers with checkpoints, taps, a hostile client."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cutlayer.broker.memory import MemoryTransport
from cutlayer.broker.messages import Message, serialize
from cutlayer.broker.transport import Received
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import ActivationStore
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import Event
from cutlayer.server_worker.memory_pool import MemoryLighthouse, MemoryPool
from cutlayer.server_worker.metrics import WorkerMetrics
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.resuming import load_trained, resume_from
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.server_worker.worker_reports import WorkerReports
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import CLASSES

__all__ = ["Client", "Worker", "committed_once", "run_until_over"]


class Worker:
    """A worker in a virtual network.

    Args:
        network: The network.
        settings: The run.
        computes: Whether it trains; otherwise it counts.
        store: Where it keeps checkpoints.
        resumes: Whether it starts from the newest of them.
        every_windows: Windows from one checkpoint to the next.
        name: Its name.
        lighthouse: Where it meets the other workers of its pool; None for a worker that trains alone.
        watches: Whether it asks its broker for figures and publishes its own, as a worker process does.
        kept_in: Keeps activations; None for nothing.
        only_visits: Whether it serves its checkpoint and trains nothing.
    """

    def __init__(
        self,
        network: VirtualNetwork,
        settings: RunSettings,
        *,
        computes: bool = False,
        store: CheckpointStore | None = None,
        resumes: bool = False,
        every_windows: int = 1_000,
        name: str = "w0",
        lighthouse: MemoryLighthouse | None = None,
        watches: bool = False,
        kept_in: ActivationStore | None = None,
        only_visits: bool = False,
    ) -> None:
        self.name = name
        self._network = network
        self.pool = None if lighthouse is None else MemoryPool(lighthouse, name)
        self.built = build(settings, settings.run.seed) if computes else _any_model(settings.model_dump_json())
        self.counter = CountingEngine(len(CLASSES))
        engine: Engine | CountingEngine = make_engine(settings, self.built) if computes else self.counter
        self.engine = engine
        # The workers of a pool find out which of them names the run.
        self.manifest = make_manifest(settings, self.built, run_id="small-0" if lighthouse is None else f"small-{name}")
        resumed = None
        if only_visits:
            assert store is not None
            resumed, _ = load_trained(store, engine, self.manifest, "serve")
        elif resumes:
            assert store is not None
            resumed = resume_from(store, engine, self.manifest)
        self.session = make_session(
            settings,
            self.manifest,
            name,
            is_pooled=self.pool is not None,
            resumed=resumed,
            version=engine.version,
            incarnation=network.next_incarnation(),
            lease_seed=network.next_incarnation(),
            only_visits=only_visits,
        )
        self.book = RunBook(self.manifest, self.built.num_tokenizer_parameters)
        self.metrics = WorkerMetrics(
            name,
            self.manifest,
            num_client_parameters=self.built.num_tokenizer_parameters,
            joins_run=resumes or lighthouse is not None,
            clock=network.clock,
        )
        self.events: list[Event] = []
        self.transport = network.transport(name)
        self.runtime = WorkerRuntime(
            self.transport,
            self.session,
            engine,
            self.built.tokenizer_file,
            self.book,
            checkpoints=None if only_visits else store,
            pool=self.pool,
            on_event=self._take,
            reports=WorkerReports(self.metrics.store, self.metrics.agents) if watches else None,
            options=WorkerOptions(claim_s=0.1, checkpoint_every_windows=every_windows, asks_broker=watches),
            clock=network.clock,
            keeper=StoreKeeper(None if kept_in is None else lambda _: kept_in),
        )
        network.add(name, self.runtime, self.transport, self._has_ended)

    def _has_ended(self) -> bool:
        if not self.runtime.is_finished and not self.runtime.is_drained:
            return False
        self.runtime.stop()
        if self.pool is not None:
            self.pool.close()
        return True

    def kill(self) -> None:
        """End it as SIGKILL does."""
        self._network.kill(self.name)
        if self.pool is not None:
            self.pool.close()

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self.metrics(event)

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a series of `/metrics`."""
        value = self.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"there is no {name}{labels}"
        return value


@functools.cache
def _any_model(settings: str) -> BuiltModel:
    """Build a model that nobody trains, once for all runs with the same settings."""
    return build(RunSettings.model_validate_json(settings), 0)


def run_until_over(network: VirtualNetwork, worker: Worker, agents: Sequence[AgentRuntime]) -> None:
    """Let everybody work until the run has ended for the worker and these agents."""
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))


def committed_once(steps: Mapping[str, int]) -> dict[tuple[str, str, int], int]:
    """Return what a counting engine has seen when each of an agent's steps was committed once.

    Args:
        steps: Training steps of each agent, by its topic.
    """
    return {(topic, "train", step): 1 for topic, num_steps in steps.items() for step in range(num_steps)}


@dataclass
class Client:
    """Anybody who can reach the broker: sees all that is published, and publishes whatever it likes."""

    network: VirtualNetwork
    name: str = "stranger"
    seen: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transport: MemoryTransport = self.network.transport(self.name)
        self.transport.subscribe("#")
        self.network.add(self.name, self, self.transport, lambda: False)

    def start(self) -> None:
        """Start connecting."""
        self.transport.connect(None)

    def pump(self, now: float) -> float:
        """Note what has come."""
        self.seen += [event for event in self.transport.poll() if isinstance(event, Received)]
        return now + 1_000.0

    def say(self, topic: str, message: Message | bytes) -> None:
        """Publish a message, or bytes that are none."""
        self.transport.publish(topic, message if isinstance(message, bytes) else serialize(message))
