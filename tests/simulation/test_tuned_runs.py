"""Runs that train a part of the encoder: split equals whole, checkpoints and pools, in each mode of [tuning]."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cutlayer.broker.errors import CheckpointError
from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.dashboards.metric_labels import Stage
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.checkpoint import CheckpointStore
from cutlayer.server_worker.events import StageTimed
from cutlayer.server_worker.memory_pool import MemoryLighthouse
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import SmallWorker, small_dataset, small_settings
from support.virtual_run import Worker, run_until_over
from support.whole import train_whole

MESSY = LinkFaults(seed=7, duplication=0.3, reordering=0.3, delay_s=0.002, jitter_s=0.01)
LINK = LinkFaults(delay_s=0.01)
MODES: dict[str, dict[str, object]] = {
    "last": {"mode": "last", "blocks": 1, "embeddings": "none"},
    "last, with embeddings": {"mode": "last", "blocks": 1},
    "lora": {"mode": "lora", "rank": 4, "targets": ["qkv", "proj", "fc1", "fc2"]},
    "frozen": {"mode": "frozen"},
}
LORA = MODES["lora"]


def settings_of(tuning: dict[str, object], num_agents: int, **sections: dict[str, object]) -> RunSettings:
    """Return settings of a run of 20 windows, whose reports and leases outlast it."""
    return small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 4, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0},
        evaluation={"every_epochs": 0},
        optimizer={"name": "sgd", "lr": 0.05},
        tuning=tuning,
        **sections,
    )


def sites_of(num_agents: int) -> dict[str, ArrayDataset]:
    """Return sites of different sizes: 5 steps an epoch at the first, fewer at the others."""
    return {f"site/{index}": small_dataset(index, 20 - 5 * index) for index in range(num_agents)}


def trained(settings: RunSettings) -> tuple[set[str], dict[str, torch.Tensor]]:
    """Return the names of what a run trains, and the weights that it begins with."""
    encoder = build(settings, settings.run.seed).encoder
    names = {name for name, value in encoder.named_parameters() if value.requires_grad}
    return names, dict(encoder.state_dict())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("num_agents", "faults", "is_kept"),
    [
        pytest.param(1, NO_FAULTS, False, id="one agent"),
        pytest.param(1, MESSY, True, id="one agent, messy, sent once"),
        pytest.param(3, MESSY, True, marks=pytest.mark.slow, id="three agents, messy, sent once"),
    ],
)
def test_split_equals_whole(mode: str, num_agents: int, faults: LinkFaults, is_kept: bool) -> None:
    settings, sites = settings_of(MODES[mode], num_agents), sites_of(num_agents)
    network = VirtualNetwork(faults)
    worker = SmallWorker(network, settings, kept_in=MemoryActivationStore() if is_kept else None)
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert worker.session.window == 20
    weights = dict(worker.built.encoder.named_parameters())
    whole, whole_loss_sum = train_whole(settings, sites)
    assert weights.keys() == whole.keys()
    names, before = trained(settings)
    for name, weight in whole.items():
        if name not in names:
            assert torch.equal(weights[name], before[name]), f"{name} is frozen, and has changed"
            continue
        difference = (weights[name] - weight).norm() / weight.norm().clamp_min(1e-12)
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"
        assert not torch.equal(weights[name], before[name]), f"{name} trains, and has not changed"
    loss_sum = sum(entry.train.loss_sum for _, entry in worker.book.latest())
    assert loss_sum == pytest.approx(whole_loss_sum, rel=1e-5)


def run_to_window(network: VirtualNetwork, worker: Worker, window: int) -> None:
    network.run(lambda: worker.session.window >= window)


def test_a_run_with_lora_that_is_stopped_and_resumed_reaches_the_same_weights(tmp_path: Path) -> None:
    settings = settings_of(LORA, 3)

    def train(*stop_at: int) -> dict[str, torch.Tensor]:
        network = VirtualNetwork(LINK)
        store = CheckpointStore(tmp_path / str(len(stop_at)))
        worker = Worker(network, settings, computes=True, store=store)
        agents = [network.add_agent(topic, data) for topic, data in sites_of(3).items()]
        for window in stop_at:
            run_to_window(network, worker, window)
            worker.runtime.stop()
            network.kill("w0")
            network.run(lambda: not any(agent.is_leased for agent in agents))
            worker = Worker(network, settings, computes=True, store=store, resumes=True)
            assert worker.session.window == window
        run_until_over(network, worker, agents)
        assert worker.session.window == 20
        return dict(worker.built.encoder.named_parameters())

    undisturbed, disturbed = train(), train(3, 11)
    for name, weights in undisturbed.items():
        # The order of arrival is the order in a batch, and the order of a sum is seen in its last bits.
        assert (disturbed[name] - weights).norm() <= 1e-5 * weights.norm(), name


def test_a_run_is_not_resumed_in_another_mode(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    network = VirtualNetwork(LINK)
    worker = Worker(network, settings_of(LORA, 1), computes=True, store=store)
    agents = [network.add_agent(topic, data) for topic, data in sites_of(1).items()]
    run_until_over(network, worker, agents)
    for other in (MODES["last"], LORA | {"alpha": 1.0}):
        with pytest.raises(CheckpointError, match=r"other settings \(.*tuning\."):
            Worker(VirtualNetwork(LINK), settings_of(other, 1), computes=True, store=store, resumes=True)


def num_forwarded(worker: Worker) -> int:
    """Return how many samples have gone forward at a worker."""
    return sum(
        event.num_samples for event in worker.events if isinstance(event, StageTimed) and event.stage is Stage.FORWARD
    )


def pooled(settings: RunSettings, *joins_at: int) -> list[Worker]:
    """Train with a pool of workers, of which all but the first join at a window."""
    network = VirtualNetwork(LINK)
    lighthouse = MemoryLighthouse(network.clock, join_timeout_s=5.0)
    workers = [Worker(network, settings, computes=True, name="w0", lighthouse=lighthouse)]
    agents = [network.add_agent(topic, data) for topic, data in sites_of(3).items()]
    for number, window in enumerate(joins_at, 1):
        run_to_window(network, workers[0], window)
        workers.append(Worker(network, settings, computes=True, name=f"w{number}", lighthouse=lighthouse))
    network.run(
        lambda: all(agent.is_finished for agent in agents) and all(worker.runtime.is_finished for worker in workers)
    )
    return workers


@pytest.mark.parametrize("joins_at", [0, 4])
def test_two_workers_with_lora_reach_the_weights_of_one(joins_at: int) -> None:
    settings = settings_of(LORA, 3)
    (alone,) = pooled(settings)
    first, second = pooled(settings, joins_at)
    assert first.engine.fingerprint() == second.engine.fingerprint()
    assert num_forwarded(first) > 0
    assert num_forwarded(second) > 0
    for name, weights in alone.built.encoder.named_parameters():
        theirs = dict(second.built.encoder.named_parameters())[name]
        torch.testing.assert_close(theirs, weights, rtol=1e-5, atol=1e-6)
