"""The headline test: training over the network equals training the uncut model in one process.

Identity codec, synchronous windows, frozen tokenizers; 1 and 3 agents; SGD in float32, AdamW with the server in
float64 (its first steps amplify rounding); with duplication and reordering; over memory and over real brokers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cutlayer.broker.broker_options import BrokerOptions
from cutlayer.broker.broker_settings import BrokerSettings
from cutlayer.broker.faults import NO_FAULTS, FaultyTransport, LinkFaults
from cutlayer.broker.launcher import launch_broker
from cutlayer.broker.launcher_mosquitto import find_mosquitto
from cutlayer.broker.mqtt import MqttTransport
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.runtime import AgentRuntime
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_parts import make_engine, make_manifest, make_session
from cutlayer.server_worker.runtime import WorkerRuntime
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork, is_retained_topic
from support.small_run import SmallWorker, small_dataset, small_settings
from support.small_tasks import TASKS, task_dataset
from support.waiting import LIMIT_S
from support.whole import train_whole

MESSY = LinkFaults(seed=7, duplication=0.3, reordering=0.3, delay_s=0.002, jitter_s=0.01)
LOSSY = LinkFaults(seed=7, loss=0.1, duplication=0.3, reordering=0.3, delay_s=0.02, jitter_s=0.05)
OPTIMIZERS: dict[str, dict[str, dict[str, object]]] = {
    "sgd-float32": {"optimizer": {"name": "sgd", "lr": 0.05}, "model": {"dtype": "float32"}},
    "adamw-float64": {"optimizer": {"name": "adamw", "lr": 2e-3}, "model": {"dtype": "float64"}},
}


def settings_of(optimizer: str, num_agents: int) -> RunSettings:
    """Return settings of a run of 20 steps for the agent with the most samples."""
    sections = OPTIMIZERS[optimizer]
    # Counters are reported once, at the end, so that they hold every step; they are the sign of life as well, so
    # leases have to outlast the longest silence of a lossy link.
    return small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 4, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0},
        evaluation={"every_epochs": 0},
        **sections,
    )


def trained_settings(num_agents: int) -> RunSettings:
    """Return settings of the same run with trained tokenizers, whose weights each window's steps have.

    The learning rate is high enough for weights that come a window late to show: that makes a difference of 6e-5 to
    2e-4, where there is one of 1e-6 otherwise; with 0.05 it is 8e-6, which rounding could have done.
    """
    return small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 4, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0, "credits": 1},
        evaluation={"every_epochs": 0},
        codecs={"activation_gradients": "identity"},
        activations={"mode": "every-step"},
        tokenizers={"mode": "trainable", "every_steps": 1, "every_windows": 1},
        optimizer={"name": "sgd", "lr": 0.3},
        model={"dtype": "float32"},
    )


def sites_of(num_agents: int) -> dict[str, ArrayDataset]:
    """Return sites of different sizes: 5 steps an epoch at the first, fewer at the others."""
    return {f"site/{index}": small_dataset(index, 20 - 5 * index) for index in range(num_agents)}


def assert_equal(
    worker_weights: dict[str, torch.Tensor], loss_sum: float, settings: RunSettings, sites: dict[str, ArrayDataset]
) -> None:
    whole_weights, whole_loss_sum = train_whole(settings, sites)
    assert_same_weights(worker_weights, whole_weights)
    assert loss_sum == pytest.approx(whole_loss_sum, rel=1e-5)


def assert_same_weights(worker_weights: dict[str, torch.Tensor], whole_weights: dict[str, torch.Tensor]) -> None:
    assert worker_weights.keys() == whole_weights.keys()
    for name, weight in whole_weights.items():
        difference = (worker_weights[name] - weight).norm() / weight.norm().clamp_min(1e-12)
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("num_agents", [1, 3])
@pytest.mark.parametrize("faults", [NO_FAULTS, MESSY, LOSSY], ids=["perfect", "messy", "lossy"])
@pytest.mark.parametrize("is_kept", [False, True], ids=["sent each time", "sent once"])
def test_split_equals_whole_over_memory(optimizer: str, num_agents: int, faults: LinkFaults, is_kept: bool) -> None:
    settings, sites = settings_of(optimizer, num_agents), sites_of(num_agents)
    network = VirtualNetwork(faults)
    worker = SmallWorker(network, settings, kept_in=MemoryActivationStore() if is_kept else None)
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert worker.session.window == 20
    assert bool(worker.num_stored_samples) is is_kept
    loss_sum = sum(entry.train.loss_sum for _, entry in worker.book.latest())
    assert_equal(dict(worker.built.encoder.named_parameters()), loss_sum, settings, sites)


@pytest.mark.parametrize("num_agents", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("faults", [NO_FAULTS, pytest.param(MESSY, marks=pytest.mark.slow)], ids=["perfect", "messy"])
def test_split_equals_whole_with_trained_tokenizers(num_agents: int, faults: LinkFaults) -> None:
    settings, sites = trained_settings(num_agents), sites_of(num_agents)
    network = VirtualNetwork(faults)
    worker = SmallWorker(network, settings)
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert worker.session.window == 20
    loss_sum = sum(entry.train.loss_sum for _, entry in worker.book.latest())
    assert_equal(dict(worker.built.encoder.named_parameters()), loss_sum, settings, sites)


@pytest.mark.parametrize("name", ["multi-label", "regression", "regression of two, Huber"])
@pytest.mark.parametrize("missing_share", [0.0, 0.3], ids=["all known", "some missing"])
def test_split_equals_whole_for_every_task(name: str, missing_share: float) -> None:
    task, num_agents = TASKS[name], 3
    settings = settings_of("sgd-float32", num_agents).model_copy(update={"task": task})
    sites = {
        f"site/{index}": task_dataset(task, index, 20 - 5 * index, missing_share=missing_share)
        for index in range(num_agents)
    }
    network = VirtualNetwork(MESSY)
    worker = SmallWorker(network, settings)
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert worker.session.window == 20
    whole_weights, _ = train_whole(settings, sites)
    assert_same_weights(dict(worker.built.encoder.named_parameters()), whole_weights)


@pytest.fixture(params=["amqtt", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("no mosquitto binary: apt install mosquitto")
    with launch_broker(BrokerOptions(kind=request.param, port=0)) as broker:
        yield broker.url


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("num_agents", [1, 3])
def test_split_equals_whole_over_mqtt(broker_url: str, optimizer: str, num_agents: int) -> None:
    settings, sites = settings_of(optimizer, num_agents), sites_of(num_agents)
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    book = RunBook(manifest, built.num_tokenizer_parameters)
    worker = WorkerRuntime(
        messy_transport(broker_url, "worker"),
        make_session(settings, manifest, "worker"),
        make_engine(settings, built),
        built.tokenizer_file,
        book,
    )
    agents = [agent_at(broker_url, topic, data) for topic, data in sites.items()]
    too_late = time.monotonic() + LIMIT_S
    threads = [threading.Thread(target=agent.run, args=(lambda: time.monotonic() > too_late,)) for agent in agents]
    for thread in threads:
        thread.start()
    worker.run(lambda: time.monotonic() > too_late)
    for thread in threads:
        thread.join()
    assert worker.is_finished
    assert all(agent.is_finished for agent in agents)
    loss_sum = sum(entry.train.loss_sum for _, entry in book.latest())
    assert_equal(dict(built.encoder.named_parameters()), loss_sum, settings, sites)


def agent_at(url: str, topic: str, data: ArrayDataset) -> AgentRuntime:
    return AgentRuntime(messy_transport(url, topic), topic, time.time_ns() // 1_000_000, lambda _: data)


def messy_transport(url: str, name: str) -> FaultyTransport:
    inner = MqttTransport(BrokerSettings(url=url), client_id=name.replace("/", "-"), identity=name)
    return FaultyTransport(inner, up=MESSY, down=MESSY, clock=time.monotonic, name=name, exempt=is_retained_topic)
