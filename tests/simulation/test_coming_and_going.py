"""Agents and workers come late, leave, vanish and come back; the broker forgets. Each step is committed once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cutlayer.broker.faults import NO_FAULTS, LinkFaults, nothing_exempt
from cutlayer.broker.messages import GoodbyeReason, RunPhase
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, committed_once, run_until_over

MODES = pytest.mark.parametrize("mode", ["asynchronous", "synchronous"])
LINK = LinkFaults(delay_s=0.01, jitter_s=0.01)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Arrays this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SAMPLES = {"site/0": 16, "site/1": 24, "site/2": 40}
STEPS = {"site/0": 16, "site/1": 24, "site/2": 40}


def settings_of(mode: str = "synchronous", *, min_agents: int = 2, telemetry_s: float = 1.0) -> RunSettings:
    """Four epochs of microbatches of four samples: as many steps an agent as it has samples."""
    return small_settings(telemetry_s, run={"min_agents": min_agents, "epochs": 4}, window={"mode": mode, "samples": 8})


def start(network: VirtualNetwork, *topics: str) -> list[AgentRuntime]:
    return [network.add_agent(topic, small_dataset(int(topic[-1]), SAMPLES[topic])) for topic in topics]


def run_until(network: VirtualNetwork, time_s: float) -> None:
    network.run(lambda: network.clock() >= time_s)


def run_to_window(network: VirtualNetwork, worker: Worker, window: int) -> None:
    network.run(lambda: worker.session.window >= window)


@MODES
def test_agent_that_comes_late_takes_part(mode: str) -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(mode))
    agents = start(network, "site/0", "site/1")
    run_to_window(network, worker, 5)
    agents += start(network, "site/2")
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once(STEPS)


@MODES
def test_agent_that_leaves_early_and_comes_back_goes_on_where_it_was(mode: str) -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(mode))
    first, leaver = start(network, "site/1", "site/2")
    run_to_window(network, worker, 5)
    leaver.leave(GoodbyeReason.LEFT, network.clock())
    network.run(lambda: leaver.is_finished)
    committed = len(worker.session.ledger.of("site/2"))
    assert 0 < committed < 40
    run_to_window(network, worker, 10)
    agents = [first, *start(network, "site/2")]
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once({"site/1": 24, "site/2": 40})


@MODES
def test_agent_that_is_killed_and_comes_back_as_a_new_process_goes_on_where_it_was(mode: str) -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(mode, telemetry_s=0.05))
    first, _ = start(network, "site/0", "site/2")
    run_to_window(network, worker, 5)
    network.kill("site/2")
    network.run(lambda: worker.session.num_live == 0 or worker.session.window >= 7)
    agents = [first, *start(network, "site/2")]
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once({"site/0": 16, "site/2": 40})
    assert len({entry.incarnation for topic, entry in worker.book.latest() if topic == "site/2"}) == 2


@MODES
def test_agent_that_is_killed_for_good_is_waited_for_and_then_given_up(mode: str) -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(mode))
    first, _ = start(network, "site/0", "site/2")
    run_to_window(network, worker, 5)
    network.kill("site/2")
    run_until_over(network, worker, [first])
    assert set(worker.counter.committed.values()) == {1}
    assert set(committed_once({"site/0": 16})) <= set(worker.counter.committed)


@MODES
@pytest.mark.parametrize("seed", range(4))
def test_connections_that_break_again_and_again_lose_nothing(mode: str, seed: int) -> None:
    network = VirtualNetwork(LinkFaults(seed=seed, delay_s=0.02, jitter_s=0.1))
    worker = Worker(network, settings_of(mode, min_agents=3))
    agents = start(network, *STEPS)
    for number in range(24):
        cut_at = network.clock() + 0.25 + 0.1 * number
        run_until(network, cut_at)
        network.broker.cut(("site/0", "site/1", "site/2", "w0")[(number + seed) % 4])
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once(STEPS)
    trained_on = {agent: entry.samples for agent, entry in worker.book.latest()}
    assert trained_on == {"site/0": 64, "site/1": 96, "site/2": 160}


@MODES
@pytest.mark.parametrize("down_s", [0.5, 20.0])
def test_run_survives_a_broker_that_forgets_everything(mode: str, down_s: float) -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(mode))
    agents = start(network, "site/0", "site/1")
    run_to_window(network, worker, 5)
    break_broker(network, down_s)
    agents += start(network, "site/2")
    run_until_over(network, worker, agents)
    assert worker.counter.committed == committed_once(STEPS)


@MODES
def test_run_ends_after_a_broker_was_away_for_longer_than_leases_last(mode: str) -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(mode))
    agents = start(network, "site/0", "site/1")
    run_to_window(network, worker, 5)
    break_broker(network, 300.0)
    run_until_over(network, worker, agents)
    assert set(worker.counter.committed.values()) == {1}


def break_broker(network: VirtualNetwork, down_s: float) -> None:
    network.broker.stop()
    run_until(network, network.clock() + down_s)
    network.broker.start()


@MODES
def test_agent_that_comes_while_others_evaluate_does_not_change_the_weights(mode: str) -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.5))
    worker = Worker(network, settings_of(mode))
    agents = start(network, "site/0", "site/1")
    network.run(lambda: worker.session.phase is RunPhase.EVALUATING)
    version = worker.session.version
    agents += start(network, "site/2")
    run_until_over(network, worker, agents)
    assert worker.session.version == version
    assert worker.counter.committed == committed_once({"site/0": 16, "site/1": 24})
    assert sum(evaluation.final for _, entry in worker.book.latest() for evaluation in entry.evaluations) == 9


def test_agent_that_comes_after_the_end_waits_for_the_next_run() -> None:
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of())
    agents = start(network, "site/0", "site/1")
    run_until_over(network, worker, agents)
    late = start(network, "site/2")
    ended_at = network.clock()
    network.run(lambda: network.clock() > ended_at + 100.0)
    assert not late[0].is_finished
    again = Worker(network, settings_of(min_agents=1), name="w1")
    run_until_over(network, again, late)
    assert again.counter.committed == committed_once({"site/2": 40})


def test_worker_that_is_stopped_and_resumed_reaches_the_same_weights(tmp_path: Path) -> None:
    settings = settings_of(min_agents=3)

    def train(*stop_at: int) -> dict[str, torch.Tensor]:
        network = VirtualNetwork(LINK)
        store = CheckpointStore(tmp_path / str(len(stop_at)))
        worker = Worker(network, settings, computes=True, store=store)
        agents = start(network, *STEPS)
        for window in stop_at:
            run_to_window(network, worker, window)
            worker.runtime.stop()
            network.kill("w0")
            network.run(lambda: not any(agent.is_leased for agent in agents))
            worker = Worker(network, settings, computes=True, store=store, resumes=True)
            assert worker.session.window == window
        run_until_over(network, worker, agents)
        assert worker.session.window == 40
        return dict(worker.built.encoder.named_parameters())

    undisturbed, disturbed = train(), train(7, 18, 33)
    for name, weights in undisturbed.items():
        # The order of arrival is the order in a batch, and the order of a sum is seen in its last bits.
        assert (disturbed[name] - weights).norm() <= 1e-5 * weights.norm(), name


@MODES
@pytest.mark.parametrize("seed", range(3))
def test_steps_that_a_checkpoint_does_not_know_are_done_again(mode: str, seed: int, tmp_path: Path) -> None:
    network = VirtualNetwork(LinkFaults(seed=seed, delay_s=0.01, jitter_s=0.05))
    store = CheckpointStore(tmp_path)
    settings = settings_of(mode, min_agents=3)
    worker = Worker(network, settings, store=store, every_windows=6)
    agents = start(network, *STEPS)
    run_to_window(network, worker, 17)
    network.kill("w0")
    worker = Worker(network, settings, store=store, resumes=True)
    ledger = worker.session.ledger
    assert worker.session.window == 12
    known = {key for key in committed_once(STEPS) if key[2] in ledger.of(key[0])}
    run_until_over(network, worker, agents)
    assert worker.counter.committed == {key: 1 for key in committed_once(STEPS) if key not in known}
    assert all(not entry.rejects for _, entry in worker.book.latest())


@MODES
def test_worker_that_is_killed_while_agents_evaluate_gets_its_lost_steps_again(mode: str, tmp_path: Path) -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.2))
    store = CheckpointStore(tmp_path)
    settings = settings_of(mode, min_agents=3)
    worker = Worker(network, settings, store=store, every_windows=7)
    agents = start(network, *STEPS)
    network.run(lambda: worker.session.phase is RunPhase.EVALUATING)
    window, evaluating_at = worker.session.window, network.clock()
    network.run(lambda: network.clock() > evaluating_at + 1.0)
    network.kill("w0")
    newest = max(tmp_path.glob("checkpoint-*"))  # the one from the end of training: its disk is lost
    shutil.rmtree(newest)
    worker = Worker(network, settings, store=store, resumes=True)
    assert worker.session.window == window // 7 * 7 < window
    run_until_over(network, worker, agents)
    assert {agent: len(worker.session.ledger.of(agent)) for agent in STEPS} == STEPS
    # All 40 test samples of each agent, given both modalities and each alone, on the weights that are the last ones.
    assert worker.counter.num_forwarded_samples >= 3 * 3 * 40 + 4 * len(worker.counter.committed)
    for _, entry in worker.book.latest():
        finals = [evaluation.given for evaluation in entry.evaluations if evaluation.final]
        assert sorted(finals) == ["audio", "audio+image", "image"]


@MODES
def test_worker_that_is_killed_while_agents_evaluate_has_lost_no_step(mode: str, tmp_path: Path) -> None:
    network = VirtualNetwork(LinkFaults(delay_s=0.2))
    store = CheckpointStore(tmp_path)
    settings = settings_of(mode, min_agents=3)
    worker = Worker(network, settings, store=store, every_windows=1_000)
    agents = start(network, *STEPS)
    network.run(lambda: worker.session.phase is RunPhase.EVALUATING)
    window = worker.session.window
    network.kill("w0")
    worker = Worker(network, settings, store=store, resumes=True)
    assert worker.session.window == window
    run_until_over(network, worker, agents)
    assert not worker.counter.committed, "there was nothing left to train"


def test_agent_asks_again_for_what_the_broker_did_not_deliver() -> None:
    network = VirtualNetwork()
    network.broker.exempt = nothing_exempt
    worker = Worker(network, settings_of(min_agents=1))
    lossy = LinkFaults(seed=3, loss=0.5)
    agent = network.add_agent("site/0", small_dataset(0, 16), up=NO_FAULTS, down=lossy)
    run_until_over(network, worker, [agent])
    assert worker.counter.committed == committed_once({"site/0": 16})
