"""Who is out in a storm: agents and a worker with their real drivers, and checkpoints that stay in memory."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.errors import CheckpointError, Rejected
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.manifest import ImageSpec
from cutlayer.broker.messages import RejectReason
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.edge_agent.agent_options import AgentOptions
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import Fetched, MemoryActivationStore
from cutlayer.server_worker.checkpoint import Checkpoint, CheckpointStore, RestoredCheckpoint
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.memory_pool import MemoryPool
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.store_keeper import StoreKeeper
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.storm_settings import StormSettings, Weather, draw_weather
from cutlayer.simulation.virtual import VirtualNetwork

__all__ = [
    "CLASSES",
    "MemoryCheckpoints",
    "StormAgent",
    "StormStore",
    "StormWorker",
    "any_model",
    "make_data",
    "run_settings",
]

CLASSES = tuple("abcdefgh")

_IMAGE = ImageSpec(height=8, width=8, channels=1, patch=2)
_WIDTH = 8
_LONG_S = 1_000.0


class MemoryCheckpoints(CheckpointStore):
    """The newest checkpoint, in memory: what a disk would have after a SIGKILL."""

    def __init__(self) -> None:
        super().__init__(Path("memory"))
        self.latest: Checkpoint | None = None

    def save(self, checkpoint: Checkpoint) -> Path:
        """Keep a checkpoint in place of the one before it."""
        self.latest = checkpoint
        return Path("memory")

    def load_latest(self) -> RestoredCheckpoint:
        """Return the newest checkpoint.

        Raises:
            CheckpointError: When there is none.
        """
        if self.latest is None:
            raise CheckpointError("memory", "there is no checkpoint")
        return RestoredCheckpoint(self.latest, Path("memory"), ())


class StormStore(MemoryActivationStore):
    """A store that loses some of what it is asked for, for good.

    Args:
        samples: Room in it.
        loss: Share of the samples asked for that are lost.
        rng: Decides which.
        clock: Seconds.

    Attributes:
        num_stored: Samples that it had when they were asked for.
        num_lacking: Samples that it had lost.
    """

    def __init__(self, samples: int, loss: float, rng: random.Random, clock: Callable[[], float]) -> None:
        super().__init__(samples * _IMAGE.num_tokens * _WIDTH * 4, idle_s=5.0, clock=clock)
        self.id = f"{rng.getrandbits(64):016x}"  # part of a history that has to come out the same again
        self.num_stored = self.num_lacking = 0
        self._loss = loss
        self._rng = rng

    def get(self, agent: str, samples: NDArray[np.int64], names: Sequence[str]) -> Fetched:
        """Return what is left."""
        fetched = super().get(agent, samples, names)
        for row in range(len(samples)):
            if not fetched.is_missing[row] and self._rng.random() < self._loss:
                fetched.is_missing[row] = True
        self.num_lacking += int(fetched.is_missing.sum())
        self.num_stored += int((~fetched.is_missing).sum())
        return fetched


class StormWorker:
    """One process of a worker.

    Args:
        network: Where it lives.
        session: Its conversation.
        engine: Its arithmetic.
        built: The model that nobody trains.
        checkpoints: Where it saves.
        every_windows: Windows from one checkpoint to the next.
        pool: The other workers of the run, or None.
        kept_in: Where it keeps activations: what a disk would have after a SIGKILL; None for nowhere.
    """

    def __init__(
        self,
        network: VirtualNetwork,
        session: WorkerSession,
        engine: CountingEngine,
        built: BuiltModel,
        checkpoints: CheckpointStore,
        every_windows: int,
        pool: MemoryPool | None = None,
        kept_in: StormStore | None = None,
    ) -> None:
        self.name = session.name
        self.session = session
        self.engine = engine
        self.pool = pool
        self.transport = network.transport(self.name)
        self.runtime = WorkerRuntime(
            self.transport,
            session,
            engine,
            built.tokenizer_file,
            RunBook(session.manifest, built.num_tokenizer_parameters),
            checkpoints=checkpoints,
            pool=pool,
            options=WorkerOptions(claim_s=0.1, checkpoint_every_windows=every_windows, connect_timeout_s=_LONG_S),
            clock=network.clock,
            keeper=StoreKeeper(None if kept_in is None else lambda _: kept_in),
        )
        network.add(self.name, self.runtime, self.transport, self._has_ended)

    @property
    def unfinished_bytes(self) -> int:
        """What it keeps for messages that are not whole yet."""
        return self.runtime._courier._reassembler.reserved_bytes

    def _has_ended(self) -> bool:
        if self.runtime.is_finished:
            self.runtime.stop()
        return self.runtime.is_finished


class StormAgent:
    """One process of an agent.

    Args:
        network: Where it lives.
        topic: Its topic.
        dataset: Its samples.
        may_be_kept: Whether workers may keep its activations.

    Attributes:
        is_turned_away: Whether it has come too late: the run had ended.
        admitted_by: Incarnations of the workers that have served it while there was training to do.
    """

    def __init__(self, network: VirtualNetwork, topic: str, dataset: ArrayDataset, *, may_be_kept: bool = True) -> None:
        self.topic = topic
        self.is_turned_away = False
        self.admitted_by: set[int] = set()
        self.transport = network.transport(topic)
        self.runtime = AgentRuntime(
            self.transport,
            topic,
            network.next_incarnation(),
            lambda _: dataset,
            options=AgentOptions(
                connect_timeout_s=_LONG_S,
                deadlines=Deadlines(hello_s=1.0, step_s=3.0, longest_s=5.0),
                may_be_kept=may_be_kept,
            ),
            clock=network.clock,
        )
        network.add(topic, self, self.transport, lambda: self.has_left)

    @property
    def has_left(self) -> bool:
        """Whether it is done, for better or worse."""
        return self.runtime.is_finished or self.is_turned_away

    @property
    def leases(self) -> dict[str, int]:
        """Number of its lease with each worker, as it knows it."""
        workers = self.runtime._session._workers.leased()
        return {worker.name: worker.lease for worker in workers if worker.lease is not None}

    @property
    def num_outstanding(self) -> int:
        """Microbatches that it has submitted and that have not reached their end."""
        return self.runtime._session.num_outstanding

    @property
    def committed(self) -> StepRanges:
        """Its own view of the ledger."""
        foreman = self.runtime._foreman
        return StepRanges() if foreman is None else foreman.bench.items.committed

    @property
    def unfinished_bytes(self) -> int:
        """What it keeps for messages that are not whole yet."""
        return self.runtime._courier._reassembler.reserved_bytes

    def start(self) -> None:
        """Start connecting."""
        self.runtime.start()

    def pump(self, now: float) -> float:
        """Do all that can be done now."""
        try:
            return self.runtime.pump(now)
        except Rejected as error:
            if error.reason is not RejectReason.ENDED:
                raise
            self.is_turned_away = True
            return now + _LONG_S


def run_settings(seed: int, settings: StormSettings, weather: Weather) -> RunSettings:
    """Write the run settings of a seed."""
    return RunSettings.model_validate(
        {
            "run": {
                "name": "storm",
                "seed": seed,
                "epochs": weather.epochs,
                "microbatch_samples": settings.microbatch_samples,
                # Most are waited for: the first might be done before the others have come. Not all: some may die.
                "min_agents": max(1, int(0.7 * settings.num_agents)),
                "absence_grace_s": settings.grace_s,
            },
            "model": {"options": {"img_size": 8, "patch_size": 2, "embed_dim": _WIDTH, "depth": 1, "num_heads": 1}},
            "modalities": {"image": _IMAGE.model_dump()},
            "task": {"classes": list(CLASSES)},
            "codecs": {"activations": weather.codec},
            "window": {"mode": weather.mode, "samples": weather.window_samples, "deadline_s": 0.5},
            "worker": {"credits": settings.credits, "lease_s": 15.0},
            "evaluation": {"every_epochs": 0, "samples": 1},
            "activations": {"mode": "every-step" if weather.store == "none" else "once"},
            "telemetry_s": 10.0,
        }
    )


def make_data(seed: int, topic: str, num_train: int) -> ArrayDataset:
    """Draw the samples of an agent."""
    rng = np.random.default_rng((seed, *topic.encode()))

    def split(num_samples: int) -> Batch:
        images = rng.integers(256, size=(num_samples, 8, 8, 1), dtype=np.uint8)
        return Batch({"image": images}, rng.integers(len(CLASSES), size=num_samples))

    return ArrayDataset("random", CLASSES, {"image": _IMAGE}, {"train": split(num_train), "test": split(1)})


@functools.cache
def any_model() -> BuiltModel:
    """Build the model that nobody trains, once for all seeds."""
    settings = StormSettings()
    return build(run_settings(0, settings, draw_weather(0, settings, random.Random(0))), 0)  # noqa: S311
