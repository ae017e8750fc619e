"""Many virtual agents and one worker over bad links, in virtual time, and what must hold whatever happens.

Agents come at different times, some are killed and come back; packets are lost, doubled, late and out of order. After
every step of the clock the books are checked; at the end each training step of each agent has to be committed, once.
The worker counts instead of computing (`CountingEngine`), so that what is simulated is the protocol.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np

from cutlayer.broker.faults import LinkFaults
from cutlayer.broker.manifest import ImageSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.worker_options import WorkerOptions
from cutlayer.simulation.virtual import VirtualNetwork

__all__ = ["InvariantBroken", "Scenario", "SimulationResult", "simulate"]

_IMAGE = ImageSpec(height=2, width=2, channels=1, patch=2)
_CLASSES = ("no", "yes")
WORKER = "worker-0"


class InvariantBroken(AssertionError):
    """Something that must hold did not. The seed in the text runs the same simulation again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated.

    Attributes:
        seed: Fixes everything.
        num_agents: Virtual agents.
        epochs: Passes of each over its samples.
        mode: Kind of window.
        faults: What every link does, in both directions.
        num_kills: Agents killed at random moments; each comes back after up to 20 s.
        arrival_s: Agents come within so many seconds.
        max_virtual_s: Time after which the run counts as stuck.
    """

    seed: int = 0
    num_agents: int = 50
    epochs: int = 2
    mode: str = "asynchronous"
    faults: LinkFaults = LinkFaults(loss=0.02, duplication=0.05, reordering=0.1, delay_s=0.02, jitter_s=0.1)  # noqa: RUF009
    num_kills: int = 5
    arrival_s: float = 5.0
    max_virtual_s: float = 7_200.0


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What came of it.

    Attributes:
        virtual_s: Virtual seconds until the last agent had left.
        num_steps: Training steps committed, each once.
        num_windows: Windows.
        num_repeats: Messages that agents sent again.
        num_duplicates: Messages that arrived twice and were recognized.
        num_kills: Agents killed.
        most_live: Most microbatches that were at the worker at one time.
    """

    virtual_s: float
    num_steps: int
    num_windows: int
    num_repeats: int
    num_duplicates: int
    num_kills: int
    most_live: int


def simulate(scenario: Scenario) -> SimulationResult:
    """Run a scenario to its end.

    Raises:
        InvariantBroken: When a step is committed twice or never, or an agent exceeds its credits.
        SimulationStuck: When the run does not end.
    """
    return _Simulation(scenario).run()


class _Simulation:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._random = random.Random(scenario.seed)  # noqa: S311 - a simulation, not a secret
        faults = {name: getattr(scenario.faults, name) for name in LinkFaults.__slots__}
        self._network = VirtualNetwork(LinkFaults(**{**faults, "seed": scenario.seed}))
        settings = _settings(scenario)
        built = build(settings, scenario.seed)
        manifest = make_manifest(settings, built, run_id="simulation")
        self._credits = settings.worker.credits
        self._epochs, self._microbatch_samples = manifest.epochs, manifest.microbatch_samples
        self._engine = CountingEngine(len(_CLASSES))
        self._session = make_session(
            settings, manifest, WORKER, incarnation=self._network.next_incarnation(), lease_seed=scenario.seed
        )
        self._book = RunBook(manifest, built.num_tokenizer_parameters)
        transport = self._network.transport(WORKER)
        self._worker = WorkerRuntime(
            transport,
            self._session,
            self._engine,
            built.tokenizer_file,
            self._book,
            options=WorkerOptions(claim_s=0.1),
            clock=self._network.clock,
        )
        self._network.add(WORKER, self._worker, transport, lambda: self._worker.is_finished)
        self._datasets = {
            f"site/{index}": _dataset(scenario.seed, index, self._random.randint(1, 40))
            for index in range(scenario.num_agents)
        }
        self._to_come = sorted((self._random.uniform(0.0, scenario.arrival_s), topic) for topic in self._datasets)
        self._to_kill = sorted(
            self._random.uniform(scenario.arrival_s, scenario.arrival_s + 20.0) for _ in range(scenario.num_kills)
        )
        self._num_kills = 0
        self._most_live = 0

    def run(self) -> SimulationResult:
        """Let everybody work until the run has ended."""
        self._network.run(self._is_over, max_virtual_s=self._scenario.max_virtual_s)
        self._check_end()
        latest = [telemetry for _, telemetry in self._book.latest()]
        return SimulationResult(
            virtual_s=self._network.clock(),
            num_steps=len(self._engine.committed),
            num_windows=self._session.window,
            num_repeats=sum(telemetry.resends for telemetry in latest),
            num_duplicates=sum(telemetry.duplicates for telemetry in latest),
            num_kills=self._num_kills,
            most_live=self._most_live,
        )

    def _is_over(self) -> bool:
        now = self._network.clock()
        while self._to_come and self._to_come[0][0] <= now:
            _, topic = self._to_come.pop(0)
            self._network.add_agent(topic, self._datasets[topic])
        while self._to_kill and self._to_kill[0] <= now:
            self._to_kill.pop(0)
            present = [name for name in self._network.members() if name != WORKER]
            if present:
                victim = self._random.choice(present)
                self._network.kill(victim)
                self._num_kills += 1
                self._to_come.append((now + self._random.uniform(0.0, 20.0), victim))
                self._to_come.sort()
        moments = [when for when, _ in self._to_come] + self._to_kill
        self._network.wake_at(min(moments, default=None))
        self._check_books()
        return self._worker.is_finished

    def _check_books(self) -> None:
        live = Counter(key.agent for key in self._session.live_keys())
        self._most_live = max(self._most_live, live.total())
        # An agent that came back may have microbatches of its earlier process in the open window beside its own.
        greedy = [agent for agent, count in live.items() if count > 2 * self._credits]
        doubled = [key for key, count in self._engine.committed.items() if count > 1]
        if greedy or doubled:
            raise InvariantBroken(f"seed {self._scenario.seed}: over their credits {greedy}, committed twice {doubled}")

    def _check_end(self) -> None:
        wanted = {
            (topic, "train", step)
            for topic, data in self._datasets.items()
            for step in range(self._epochs * -(-data.num_samples("train") // self._microbatch_samples))
        }
        missing = wanted - set(self._engine.committed)
        if missing or self._engine.num_live_graphs or self._session.num_live:
            raise InvariantBroken(
                f"seed {self._scenario.seed}: {len(missing)} steps were never committed, such as "
                f"{sorted(missing, key=str)[:3]}; {self._engine.num_live_graphs} graphs are still alive"
            )


def _settings(scenario: Scenario) -> RunSettings:
    return RunSettings.model_validate(
        {
            "run": {
                "name": "simulation",
                "seed": scenario.seed,
                "epochs": scenario.epochs,
                "microbatch_samples": 4,
                # All are waited for: one that comes after the others' last epoch would find the run over.
                "min_agents": scenario.num_agents,
                "absence_grace_s": 600.0,
            },
            "model": {"options": {"img_size": 2, "patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 1}},
            "modalities": {"image": _IMAGE.model_dump()},
            "task": {"classes": list(_CLASSES)},
            "window": {"mode": scenario.mode, "samples": 64, "deadline_s": 0.5},
            "evaluation": {"every_epochs": 1, "samples": 8},
        }
    )


def _dataset(seed: int, index: int, num_train: int) -> ArrayDataset:
    rng = np.random.default_rng((seed, index))

    def split(num_samples: int) -> Batch:
        images = rng.integers(256, size=(num_samples, 2, 2, 1), dtype=np.uint8)
        return Batch({"image": images}, rng.integers(len(_CLASSES), size=num_samples))

    return ArrayDataset("random", _CLASSES, {"image": _IMAGE}, {"train": split(num_train), "test": split(8)})
