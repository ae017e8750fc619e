"""Hundreds of virtual agents and a worker in a storm that one number decides, and what must hold all the while.

Agents and workers are the real drivers with real messages and codecs; only network, clock and arithmetic are not.
Packets are lost, doubled, late and out of order; agents and workers are killed and come back, or never; connections
break; the broker forgets; agents come late. After every event the invariants are looked at (`StormChecks`), and at the
end each step of each agent that has stayed is part of the model, once.

A seed decides everything: `run_seed` gives the same events, to the last byte, in any process. What a storm is made of
stands in `StormSettings`.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import itertools
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.ledger import Ledger
from cutlayer.broker.memory_broker import Publish
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.server_worker.memory_pool import MemoryLighthouse, MemoryPool
from cutlayer.server_worker.resuming import Resumed, resume_from
from cutlayer.server_worker.run_parts import make_manifest, make_session
from cutlayer.simulation.storm_books import Books, InvariantBroken, Step, WatchedEngine
from cutlayer.simulation.storm_checks import StormChecks
from cutlayer.simulation.storm_members import (
    CLASSES,
    MemoryCheckpoints,
    StormAgent,
    StormStore,
    StormWorker,
    any_model,
    make_data,
    run_settings,
)
from cutlayer.simulation.storm_settings import StormResult, StormSettings, draw_weather
from cutlayer.simulation.virtual import VirtualNetwork

__all__ = ["Storm", "StormFailed", "run_seed"]

AFTER_THE_END_S = 100.0
"""Who has come too late is listened to so long: it must not be harmed by what it hears."""


class StormFailed(AssertionError):
    """A seed has broken an invariant, an assertion or a driver; the text says how to run it again."""


def run_seed(seed: int, settings: StormSettings | None = None) -> StormResult:
    """Run one seed to its end.

    Raises:
        StormFailed: When anything that must hold does not; it names the command that runs the seed again.
    """
    return Storm(seed, settings or StormSettings()).run()


class Storm:
    """One seed's storm. A subclass may make another engine or session, to see that what is wrong with it is found.

    Attributes of use to it: `network`, `agents` and `workers` (who is there now), `num_events`.

    Args:
        seed: Decides everything.
        settings: What may happen.
    """

    def __init__(self, seed: int, settings: StormSettings) -> None:
        self.seed = seed
        self.settings = settings
        self._random = random.Random(f"storm/{seed}")  # noqa: S311 - a simulation, not a secret
        self.weather = draw_weather(seed, settings, self._random)
        self.network = VirtualNetwork(self.weather.faults, max_packet_bytes=self.weather.max_packet_bytes)
        self.network.broker.on_publish = self._note_packet
        self.run_settings = run_settings(seed, settings, self.weather)
        self.manifest = make_manifest(self.run_settings, any_model(), run_id="storm")
        self.agents: dict[str, StormAgent] = {}
        self.workers: dict[str, StormWorker] = {}
        self.books = Books(lambda agent, step: len(self.labels_of(agent, step)))
        self.checks = StormChecks(settings, self.network, self.books, self.agents, self.workers)
        self.lighthouse = MemoryLighthouse(self.network.clock, join_timeout_s=5.0)
        self._checkpoints = {f"worker-{index}": MemoryCheckpoints() for index in range(settings.num_workers)}
        self._stores = self._make_stores()
        self._plans: dict[str, EpochPlan] = {}
        self._data: dict[str, ArrayDataset] = {}
        self._labels: dict[Step, NDArray[np.int64]] = {}
        # A heap of (when, order of entry, what).
        self._to_come: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._counts: Counter[str] = Counter()
        self.num_events = 0
        self._dead: set[str] = set()
        self._away: set[str] = set()
        self._has_anybody_left = False
        self._has_run_ended = False
        self._is_over = False
        self._history = hashlib.blake2b(digest_size=16)
        self._draw()

    def make_engine(self) -> WatchedEngine:
        """Make the arithmetic of one process of the worker."""
        return WatchedEngine(len(CLASSES), self.labels_of)

    def make_session(self, name: str, resumed: Resumed, version: int) -> WorkerSession:
        """Make the conversation of one process of the worker."""
        incarnation = self.network.next_incarnation()
        return make_session(
            self.run_settings,
            self.manifest,
            name,
            is_pooled=self.settings.num_workers > 1,
            resumed=resumed,
            version=version,
            incarnation=incarnation,
            lease_seed=1_000 * self.seed + incarnation,
        )

    def labels_of(self, agent: str, step: int) -> NDArray[np.int64]:
        """Return the labels, int64 (B), of an agent's training step."""
        labels_B = self._labels.get((agent, step))
        if labels_B is None:
            indices_B = self._plans[agent].train_indices(step)
            targets_B = self._data[agent].splits["train"].targets[indices_B]
            labels_B = self._labels[agent, step] = targets_B.astype(np.int64)
        return labels_B

    def run(self) -> StormResult:
        """Let the storm blow over.

        Raises:
            StormFailed: When anything that must hold does not.
        """
        try:
            for name in self._checkpoints:
                self.start_worker(name)
            self.network.run(self.after_event, max_virtual_s=self.settings.max_virtual_s)
            self.checks.everything()
            self._check_end()
        except Exception as error:
            raise StormFailed(
                f"seed {self.seed}, at {self.network.clock():.6f} s, event {self.num_events}: "
                f"{type(error).__name__}: {error}\n  run it again: {self._command()}"
            ) from error
        return self._result()

    # What comes when ------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Draw who comes when with how much data, and what happens when."""
        draw, settings, weather = self._random, self.settings, self.weather
        for index in range(settings.num_agents):
            topic = f"site/{index}"
            # Two epochs take hardly longer than one.
            most = -(-settings.most_steps // weather.epochs) * settings.microbatch_samples
            num_train = draw.randint(1, most)
            self._data[topic] = make_data(self.seed, topic, num_train)
            self._plans[topic] = EpochPlan(self.seed, topic, weather.epochs, num_train, 1, settings.microbatch_samples)
            is_late = draw.random() < settings.late_share
            first_s, last_s = (
                (settings.arrival_s, settings.arrival_s + settings.late_s) if is_late else (0.0, settings.arrival_s)
            )
            self._at(draw.uniform(first_s, last_s), functools.partial(self._arrive, topic))
        for number, what in (
            (weather.num_kills, self._kill_agent),
            (weather.num_worker_kills, self._kill_worker),
            (weather.num_cuts, self._cut),
            (weather.num_broker_stops, self._stop_broker),
        ):
            for _ in range(number):
                self._at(draw.uniform(0.0, settings.trouble_s), what)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._to_come, (when, next(self._order), what))

    def _soon(self, most_s: float, what: Callable[[], None]) -> None:
        self._at(self.network.clock() + self._random.uniform(0.1, most_s), what)

    def _arrive(self, topic: str) -> None:
        self._counts["late"] += bool(self.books.ever) and topic not in self.agents
        may_be_kept = zlib.crc32(topic.encode()) % 100 >= 100 * self.weather.forbidding_share
        self.agents[topic] = StormAgent(self.network, topic, self._data[topic], may_be_kept=may_be_kept)

    def _kill_agent(self) -> None:
        present = [name for name in self.network.members() if name not in self._checkpoints]
        if not present:
            return
        topic = self._random.choice(present)
        self.network.kill(topic)
        self._counts["kills"] += 1
        if self._random.random() < self.settings.death_share:
            self._dead.add(topic)
        else:
            self._away.add(topic)
            self._soon(self.settings.most_away_s, functools.partial(self._arrive, topic))

    def _make_stores(self) -> dict[str, StormStore]:
        weather = self.weather
        stores = [
            StormStore(
                weather.store_samples,
                weather.store_loss,
                random.Random(f"store/{self.seed}/{number}"),  # noqa: S311 - a simulation, not a secret
                self.network.clock,
            )
            for number in range({"none": 0, "shared": 1, "own": self.settings.num_workers}[weather.store])
        ]
        return {name: stores[index % len(stores)] for index, name in enumerate(self._checkpoints)} if stores else {}

    def start_worker(self, name: str) -> None:
        """Start a worker, from its last checkpoint where it has one."""
        engine, checkpoints = self.make_engine(), self._checkpoints[name]
        resumed = Resumed(self.manifest)
        if checkpoints.latest is not None:
            resumed = resume_from(checkpoints, engine, self.manifest)
        if not self.workers:
            self.books.roll_back(resumed.window)
        self.workers[name] = StormWorker(
            self.network,
            self.make_session(name, resumed, engine.version),
            engine,
            any_model(),
            checkpoints,
            self.weather.checkpoint_every_windows,
            MemoryPool(self.lighthouse, name) if self.settings.num_workers > 1 else None,
            self._stores.get(name),
        )

    def _kill_worker(self) -> None:
        # Once an agent has left for good, nobody can do again the steps that a checkpoint does not know.
        present = [name for name in self.workers if name in self.network.members()]
        if self._has_anybody_left or not present:
            return
        name = self._random.choice(present)
        self.network.kill(name)
        worker = self.workers.pop(name)
        if worker.pool is not None:
            worker.pool.close()
        self._counts["worker_kills"] += 1
        self._soon(8.0, functools.partial(self.start_worker, name))

    def _cut(self) -> None:
        present = self.network.members()
        if present:
            self.network.broker.cut(self._random.choice(present))
            self._counts["cuts"] += 1

    def _stop_broker(self) -> None:
        self.network.broker.stop()
        self._counts["broker_stops"] += 1
        self._soon(4.0, self.network.broker.start)

    # After each event -----------------------------------------------------------------------------------------

    def after_event(self) -> bool:
        """Look at everything that must hold, do what is due, and return whether all is over."""
        now, woken = self.network.clock(), self.network.last_woken
        self._history.update(struct.pack("<d", now) + (woken or "").encode())
        self.num_events += 1
        self.checks.after_event()
        if self._random.random() < self.settings.full_check_share:
            self.checks.everything()
        self._has_anybody_left |= woken in self.agents and self.agents[woken].has_left
        if woken in self.workers and self.workers[woken].runtime.is_finished and not self._has_run_ended:
            self._has_run_ended = True
            self._to_come.clear()
            self._at(now + AFTER_THE_END_S, self._give_up)
        while self._to_come and self._to_come[0][0] <= now:
            heapq.heappop(self._to_come)[2]()
        self.network.wake_at(self._to_come[0][0] if self._to_come else None)
        return self._is_over or (self._has_run_ended and not self.network.members())

    def _give_up(self) -> None:
        self._is_over = True

    def _note_packet(self, packet: Publish) -> None:
        self._counts["packets"] += 1
        # Counters hold the real time and memory that this process has used: no two runs agree on them.
        holds_counters = packet.topic.endswith("/telemetry") or "/inbox/" in packet.topic
        content = len(packet.payload) if holds_counters else zlib.crc32(packet.payload)
        self._history.update(struct.pack("<dI", self.network.broker.now_s, content) + packet.topic.encode())

    # The end --------------------------------------------------------------------------------------------------

    def _check_end(self) -> None:
        """Check that each agent that has stayed has each of its steps in the model."""
        for worker in self.workers.values():
            if worker.engine.num_live_graphs or worker.session.num_live:
                raise InvariantBroken(
                    f"at the end {worker.engine.num_live_graphs} graphs and {worker.session.num_live} microbatches are "
                    f"alive at {worker.name}"
                )
        incarnations = {worker.session.incarnation for worker in self.workers.values()}
        for topic, plan in self._plans.items():
            missing = [step for step in range(plan.total_steps) if step not in self._ledger().of(topic)]
            agent = self.agents.get(topic)
            if topic in self._dead | self._away or agent is None:
                continue
            is_owed = bool(agent.admitted_by & incarnations)
            if is_owed and missing:
                raise InvariantBroken(f"{topic} has stayed to the end, and its steps {missing} are not in the model")
            if is_owed and not agent.runtime.is_finished:
                raise InvariantBroken(f"{topic} has stayed to the end, and nobody has told it that the run is over")
            self._counts["too_late"] += bool(missing)

    def _ledger(self) -> Ledger:
        """Return the ledger of the worker that is furthest."""
        return max((worker.session for worker in self.workers.values()), key=lambda session: session.window).ledger

    def _result(self) -> StormResult:
        counts = self._counts
        stores = {id(store): store for store in self._stores.values()}.values()  # workers may share one
        return StormResult(
            seed=self.seed,
            virtual_s=self.network.clock(),
            num_events=self.num_events,
            num_packets=counts["packets"],
            num_steps=sum(len(self._ledger().of(topic)) for topic in self._plans),
            num_windows=max(worker.session.window for worker in self.workers.values()),
            num_kills=counts["kills"],
            num_deaths=len(self._dead),
            num_worker_kills=counts["worker_kills"],
            num_cuts=counts["cuts"],
            num_broker_stops=counts["broker_stops"],
            num_late=counts["late"],
            num_too_late=counts["too_late"],
            num_stored=sum(store.num_stored for store in stores),
            num_lacking=sum(store.num_lacking for store in stores),
            most_live=self.checks.most_live,
            most_scheduled=self.checks.most_scheduled,
            digest=self._history.hexdigest(),
        )

    def _command(self) -> str:
        changed = {
            entry.name: getattr(self.settings, entry.name)
            for entry in fields(StormSettings)
            if getattr(self.settings, entry.name) != getattr(StormSettings(), entry.name)
        }
        if set(changed) <= {"num_agents", "num_workers"}:
            options = [f" --{name.removeprefix('num_')} {value}" for name, value in changed.items()]
            return f"python -m cutlayer.simulation.storm_seeds {self.seed}{''.join(options)}"
        arguments = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        return f"run_seed({self.seed}, StormSettings({arguments}))"
