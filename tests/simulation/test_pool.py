"""Several workers train one encoder, in virtual time: they share windows, join, die, heal, drain and resume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.faults import LinkFaults
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.counting_engine import contribution_of
from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.events import StateTakenOver, WindowCommitted
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker

TOPICS = ("site/0", "site/1", "site/2", "site/3")
LOSSY = LinkFaults(loss=0.1, duplication=0.1, reordering=0.1, delay_s=0.02, jitter_s=0.02)
QUICK = Deadlines(hello_s=0.5, step_s=1.0, longest_s=8.0)
ASYNCHRONOUS = {"mode": "asynchronous", "samples": 16, "deadline_s": 0.2}


class Pool:
    """A virtual network with a lighthouse, agents, and workers that come and go."""

    def __init__(self, settings: RunSettings, faults: LinkFaults | None = None, *, computes: bool = False) -> None:
        self.network = VirtualNetwork(faults or LinkFaults(delay_s=0.01), deadlines=QUICK)
        self.lighthouse = MemoryLighthouse(self.network.clock, join_timeout_s=5.0, fails=lambda name: self.fails(name))
        self.settings = settings
        self.computes = computes
        self.workers: dict[str, Worker] = {}
        self.agents: list[AgentRuntime] = []
        self.failing: list[str] = []

    def fails(self, name: str) -> bool:
        """Whether a worker loses the others in this round: once for each time it is named in `failing`."""
        if name not in self.failing:
            return False
        self.failing.remove(name)
        return True

    def start(self, *names: str, store: CheckpointStore | None = None, resumes: bool = False) -> None:
        for name in names:
            self.workers[name] = Worker(
                self.network,
                self.settings,
                computes=self.computes,
                name=name,
                lighthouse=self.lighthouse,
                store=store,
                resumes=resumes,
                every_windows=3,
            )

    def kill(self, name: str) -> None:
        self.workers.pop(name).kill()

    def add_agents(self, topics: Sequence[str] = TOPICS, num_train: int = 16) -> None:
        for index, topic in enumerate(topics):
            self.agents.append(self.network.add_agent(topic, small_dataset(index, num_train)))

    def run_for_windows(self, name: str, num_windows: int) -> None:
        session = self.workers[name].session
        self.network.run(lambda: session.window >= num_windows)

    def finish(self) -> None:
        """Run to the end, and check that every step of every agent is in the weights once, at each worker alike."""
        self.network.run(
            lambda: (
                all(agent.is_finished for agent in self.agents)
                and all(worker.runtime.is_finished for worker in self.workers.values())
            )
        )
        workers = list(self.workers.values())
        assert len({worker.engine.fingerprint() for worker in workers}) == 1, "replicas differ"
        assert len({worker.session.ledger.to_bytes() for worker in workers}) == 1
        assert len({worker.session.window for worker in workers}) == 1

    def assert_all_committed_once(self, num_steps: int, topics: Sequence[str] = TOPICS) -> None:
        wanted = sum(contribution_of((topic, "train", step)) for topic in topics for step in range(num_steps))
        for worker in self.workers.values():
            assert worker.counter.weight == wanted % (1 << 62)
            assert {agent: list(worker.session.ledger.of(agent)) for agent in topics} == {
                agent: [(0, num_steps)] for agent in topics
            }


@pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("faults", [LinkFaults(delay_s=0.01), LOSSY], ids=["good", "lossy"])
def test_two_workers_share_the_windows_of_one_encoder(window: dict[str, object], faults: LinkFaults) -> None:
    pool = Pool(small_settings(window=window), faults)
    pool.start("w0", "w1")
    pool.add_agents()
    pool.finish()
    pool.assert_all_committed_once(8)
    forwarded = [worker.counter.num_forwarded_samples for worker in pool.workers.values()]
    assert min(forwarded) > 0.2 * sum(forwarded), f"the load is not spread: {forwarded}"


def test_a_pool_of_one_trains() -> None:
    pool = Pool(small_settings())
    pool.start("w0")
    pool.add_agents()
    pool.finish()
    pool.assert_all_committed_once(8)


@pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_a_killed_worker_costs_nothing_but_time(window: dict[str, object]) -> None:
    pool = Pool(small_settings(window=window))
    pool.start("w0", "w1", "w2")
    pool.add_agents()
    pool.run_for_windows("w1", 3)
    pool.kill("w0")
    pool.finish()
    pool.assert_all_committed_once(8)


@pytest.mark.parametrize("victim", ["w0", "w1"])
def test_whoever_dies_whenever_in_synchronous_mode_the_one_that_is_left_trains_to_the_end(victim: str) -> None:
    """What the dead one had is earlier than what holds all credits of the other: each would wait for the other."""
    for num_windows in range(1, 9):
        pool = Pool(small_settings())
        pool.start("w0", "w1")
        pool.add_agents(num_train=24)
        pool.run_for_windows(victim, num_windows)
        pool.kill(victim)
        pool.finish()
        pool.assert_all_committed_once(12)


@pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_a_worker_that_joins_takes_the_weights_over_and_takes_part(window: dict[str, object]) -> None:
    pool = Pool(small_settings(window=window))
    pool.start("w0")
    pool.add_agents(num_train=40)
    pool.run_for_windows("w0", 4)
    pool.start("w1")
    pool.finish()
    pool.assert_all_committed_once(20)
    joined = pool.workers["w1"]
    assert any(isinstance(event, StateTakenOver) for event in joined.events)
    assert joined.counter.committed, "the worker that has joined has trained nothing"
    assert joined.session.manifest.run_id == "small-w0"


@pytest.mark.parametrize("window", [{"mode": "synchronous"}, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])
def test_a_worker_that_loses_the_others_in_a_round_heals_and_nothing_is_lost(window: dict[str, object]) -> None:
    pool = Pool(small_settings(window=window))
    pool.start("w0", "w1")
    pool.add_agents()
    pool.run_for_windows("w0", 2)
    pool.failing = ["w1", "w1", "w0"]
    pool.finish()
    assert not pool.failing
    pool.assert_all_committed_once(8)
    assert any(isinstance(event, StateTakenOver) for event in pool.workers["w1"].events)


def test_a_worker_that_drains_finishes_what_it_has_and_leaves_the_rest_to_the_others() -> None:
    pool = Pool(small_settings(window=ASYNCHRONOUS))
    pool.start("w0", "w1")
    pool.add_agents(num_train=40)
    pool.run_for_windows("w0", 3)
    pool.workers["w1"].runtime.drain()
    pool.network.run(lambda: "w1" not in pool.network.members())
    assert pool.workers.pop("w1").session.num_live == 0
    resends = [agent.reporter for agent in pool.agents]
    assert resends
    pool.finish()
    pool.assert_all_committed_once(20)


def losses(worker: Worker) -> list[float]:
    return [event.gradient_norm for event in worker.events if isinstance(event, WindowCommitted)]


def weights_of(worker: Worker) -> dict[str, torch.Tensor]:
    assert isinstance(worker.engine, Engine)
    return worker.engine.state_dict().weights


def assert_same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, torch.Tensor]:
    """Return the final weights of the synchronous run with one worker without a pool."""
    network = VirtualNetwork(LinkFaults(delay_s=0.01), deadlines=QUICK)
    worker = Worker(network, small_settings(run={"min_agents": 4}), computes=True)
    agents = [network.add_agent(topic, small_dataset(index, 16)) for index, topic in enumerate(TOPICS)]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert worker.session.window == 8
    return weights_of(worker)


def test_two_workers_reach_the_weights_of_one(undisturbed: dict[str, torch.Tensor]) -> None:
    pool = Pool(small_settings(run={"min_agents": 4}), computes=True)
    pool.start("w0", "w1")
    pool.add_agents()
    pool.finish()
    assert pool.workers["w0"].session.window == 8
    assert_same_weights(weights_of(pool.workers["w0"]), undisturbed)


@pytest.mark.parametrize("num_windows", range(1, 8))
def test_whenever_a_worker_dies_the_weights_are_those_of_an_undisturbed_run(
    undisturbed: dict[str, torch.Tensor], num_windows: int
) -> None:
    pool = Pool(small_settings(run={"min_agents": 4}), computes=True)
    pool.start("w0", "w1")
    pool.add_agents()
    pool.run_for_windows("w0", num_windows)
    pool.kill("w1")
    pool.start("w2")
    pool.finish()
    assert_same_weights(weights_of(pool.workers["w0"]), undisturbed)


def test_all_workers_killed_and_resumed_reach_the_weights_of_an_undisturbed_run(
    undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    pool = Pool(small_settings(run={"min_agents": 4}), computes=True)
    pool.start("w0", "w1", store=CheckpointStore(tmp_path))
    pool.add_agents()
    pool.run_for_windows("w0", 5)
    pool.kill("w1")
    pool.kill("w0")
    pool.network.run(lambda: pool.network.clock() > 5.0)
    pool.start("w0", "w1", store=CheckpointStore(tmp_path), resumes=True)
    pool.finish()
    assert pool.workers["w0"].session.window == 8
    assert_same_weights(weights_of(pool.workers["w0"]), undisturbed)
