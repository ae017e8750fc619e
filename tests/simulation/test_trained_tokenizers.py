"""Tokenizers that agents train: in every mode, and whoever is lost on the way, all end with the worker's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.held_tokenizers import tokenizer_weights
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import small_dataset, small_settings
from support.virtual_run import Worker, run_until_over

STEPS = 10
LOSSY = LinkFaults(seed=5, loss=0.1, duplication=0.2, reordering=0.3, delay_s=0.02, jitter_s=0.05)

Weights = Mapping[str, NDArray[np.float32]]


def settings_of(num_agents: int = 1, **sections: Mapping[str, object]) -> RunSettings:
    defaults: dict[str, Mapping[str, object]] = {
        "run": {"epochs": 2, "min_agents": num_agents},
        "activations": {"mode": "every-step"},
        "tokenizers": {"mode": "trainable", "every_steps": 2, "every_windows": 2},
    }
    return small_settings(1.0, **{**defaults, **sections})


def start(network: VirtualNetwork, num_agents: int = 1) -> list[AgentRuntime]:
    return [network.add_agent(f"site/{index}", small_dataset(index, 20, 40)) for index in range(num_agents)]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Weights]:
    """Return the weights that agents have taken, in their order."""
    found: list[Weights] = []
    take = ClientSide.take_weights

    def noted(self: ClientSide, weights: Weights) -> None:
        found.append(weights)
        take(self, weights)

    monkeypatch.setattr(ClientSide, "take_weights", noted)
    return found


def weights_of(worker: Worker) -> Weights:
    return tokenizer_weights(dict(worker.built.encoder.named_parameters()))


def are_equal(some: Weights, others: Weights) -> bool:
    assert some.keys() == others.keys()
    return all(np.array_equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("faults", [NO_FAULTS, pytest.param(LOSSY, marks=pytest.mark.slow)], ids=["perfect", "lossy"])
@pytest.mark.parametrize(
    "sections",
    [
        {"window": {"mode": "synchronous"}},
        {"window": {"mode": "asynchronous"}},
        {"optimizer": {"name": "adamw", "lr": 0.01, "momentum": 0.0}},
        {"activations": {"mode": "every-step", "reduction": {"image": {"kind": "content", "keep": 0.5}}}},
    ],
    ids=["synchronous", "asynchronous", "adamw", "fewer tokens"],
)
def test_weights_change_and_come_down(
    sections: Mapping[str, Mapping[str, object]], faults: LinkFaults, taken: list[Weights]
) -> None:
    network = VirtualNetwork(faults)
    worker = Worker(network, settings_of(2, **sections), computes=True)
    before = weights_of(worker)
    run_until_over(network, worker, start(network, 2))
    after = weights_of(worker)
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    assert are_equal(taken[0], before)
    assert are_equal(taken[-1], after), "the finished model is evaluated with its own tokenizers"
    assert [worker.session.ledger.of(f"site/{index}").first_missing() for index in range(2)] == [STEPS] * 2


def test_a_new_process_of_an_agent_gets_the_weights_of_the_run(taken: list[Weights]) -> None:
    network = VirtualNetwork()
    worker = Worker(network, settings_of(), computes=True)
    start(network)
    network.run(lambda: worker.session.window >= 5)
    network.kill("site/0")
    now, num_taken = weights_of(worker), len(taken)
    agents = start(network)
    network.run(lambda: len(taken) > num_taken)
    assert are_equal(taken[num_taken], now)
    run_until_over(network, worker, agents)
    assert worker.session.ledger.of("site/0").first_missing() == STEPS


def test_a_worker_that_starts_again_has_the_tokenizers_of_its_checkpoint(tmp_path: Path, taken: list[Weights]) -> None:
    network, checkpoints = VirtualNetwork(), CheckpointStore(tmp_path)
    first = Worker(network, settings_of(), computes=True, store=checkpoints, every_windows=1)
    agents = start(network)
    network.run(lambda: first.session.window >= 6)
    first.kill()
    second = Worker(network, settings_of(), computes=True, store=checkpoints, resumes=True, every_windows=1)
    assert are_equal(weights_of(second), weights_of(first))
    run_until_over(network, second, agents)
    assert not are_equal(weights_of(second), weights_of(first))
    assert are_equal(taken[-1], weights_of(second))


def test_the_workers_of_a_pool_have_the_same_tokenizers(taken: list[Weights]) -> None:
    network = VirtualNetwork()
    lighthouse = MemoryLighthouse(network.clock)
    workers = [
        Worker(network, settings_of(4), computes=True, name=name, lighthouse=lighthouse) for name in ("w0", "w1")
    ]
    before = weights_of(workers[0])
    agents = start(network, 4)
    network.run(lambda: all(agent.is_finished for agent in agents) and all(w.runtime.is_finished for w in workers))
    assert are_equal(weights_of(workers[0]), weights_of(workers[1]))
    assert not are_equal(weights_of(workers[0]), before)
    assert are_equal(taken[-1], weights_of(workers[0]))
