"""Runs with a head at each agent: split equals whole, a killed agent changes nothing, and digits are learned."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.manifest import ImageSpec
from cutlayer.broker.memory_broker import Publish
from cutlayer.edge_agent import private_head
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split
from cutlayer.edge_agent.head_optimizer import HeadState
from cutlayer.edge_agent.site_parts import SiteParts
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import SmallWorker, small_dataset, small_settings
from support.virtual_run import Worker, run_until_over
from support.whole_heads import train_with_heads

MESSY = LinkFaults(seed=7, duplication=0.3, reordering=0.3, delay_s=0.002, jitter_s=0.01)
OPTIMIZERS: dict[str, tuple[dict[str, object], str]] = {
    "sgd-float32": ({"name": "sgd", "lr": 0.05, "weight_decay": 0.01, "warmup_ratio": 0.2}, "float32"),
    "adamw-float64": ({"name": "adamw", "lr": 2e-3, "clip_norm": 0.5}, "float64"),
}


def settings_of(optimizer: str, num_agents: int) -> RunSettings:
    """Return settings of a run of 20 windows, whose reports and leases outlast it."""
    own, dtype = OPTIMIZERS[optimizer]
    model = small_settings().model.model_dump() | {"head": "agent", "dtype": dtype}
    return small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 4, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0},
        evaluation={"every_epochs": 0},
        optimizer=own,
        model=model,
    )


def sites_of(num_agents: int) -> dict[str, ArrayDataset]:
    """Return sites of different sizes: 5 steps an epoch at the first, fewer at the others."""
    return {f"site/{index}": small_dataset(index, 20 - 5 * index) for index in range(num_agents)}


def head_of(folder: Path, topic: str) -> dict[str, torch.Tensor]:
    found = safetensors.torch.load_file(folder / f"{topic.replace('/', '-')}.safetensors")
    return {name: found[name] for name in ("weight", "bias")}


def site_at(folder: Path, topic: str) -> SiteParts:
    return SiteParts(head=folder / f"{topic.replace('/', '-')}.safetensors")


def assert_same(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> None:
    assert found.keys() == whole.keys()
    for name, weight in whole.items():
        difference = (found[name] - weight).norm() / weight.norm().clamp_min(1e-12)
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("num_agents", "faults"), [(1, NO_FAULTS), (1, MESSY), (3, MESSY)], ids=["one", "one, messy", "three, messy"]
)
def test_split_equals_whole_with_a_head_at_each_agent(
    tmp_path: Path, optimizer: str, num_agents: int, faults: LinkFaults
) -> None:
    settings, sites = settings_of(optimizer, num_agents), sites_of(num_agents)
    network = VirtualNetwork(faults)
    worker = SmallWorker(network, settings)
    agents = [network.add_agent(topic, data, site=site_at(tmp_path, topic)) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert worker.session.window == 20
    encoder, heads = train_with_heads(settings, sites)
    assert not any(name.startswith("head") for name in encoder)
    assert_same(dict(worker.built.encoder.named_parameters()), encoder)
    for topic, head in heads.items():
        assert_same(head_of(tmp_path, topic), head)


@pytest.mark.parametrize("window", [3, 11])
def test_an_agent_that_is_killed_goes_on_with_the_head_in_its_file(tmp_path: Path, window: int) -> None:
    settings, sites = settings_of("sgd-float32", 2), sites_of(2)
    network = VirtualNetwork(LinkFaults(delay_s=0.01))
    worker = SmallWorker(network, settings)
    agents = {topic: network.add_agent(topic, data, site=site_at(tmp_path, topic)) for topic, data in sites.items()}
    network.run(lambda: worker.session.window >= window)
    network.kill("site/0")
    agents["site/0"] = network.add_agent("site/0", sites["site/0"], site=site_at(tmp_path, "site/0"))
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents.values()))
    encoder, heads = train_with_heads(settings, sites)
    assert_same(dict(worker.built.encoder.named_parameters()), encoder)
    for topic, head in heads.items():
        assert_same(head_of(tmp_path, topic), head)


def test_an_agent_that_comes_back_without_its_head_says_so(caplog: pytest.LogCaptureFixture) -> None:
    settings, data = settings_of("sgd-float32", 1), small_dataset(0, 20)
    network = VirtualNetwork(LinkFaults(delay_s=0.01))
    worker = SmallWorker(network, settings)
    network.add_agent("site/0", data)
    network.run(lambda: worker.session.window >= 5)
    network.kill("site/0")
    with caplog.at_level(logging.WARNING):
        agent = network.add_agent("site/0", data)
        network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    assert "its head, which they have trained, is not here: it begins anew" in caplog.text


def test_neither_the_head_nor_its_outputs_leave_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    network = VirtualNetwork()
    worker = SmallWorker(network, settings_of("sgd-float32", 1))
    agent = network.add_agent("site/0", small_dataset(0, 20))
    sent: list[bytes] = []
    features: list[NDArray[np.float32]] = []
    private: list[NDArray[np.float32]] = []
    publish, outputs_of = network.broker.publish, private_head._outputs

    def recorded(packet: Publish) -> None:
        sent.append(packet.payload)
        publish(packet)

    def spied(state: HeadState, features_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        features.append(features_BD)
        private.extend([outputs_of(state, features_BD), state.parts["weight"].astype(np.float32)])
        return private[-2]

    monkeypatch.setattr(network.broker, "publish", recorded)
    monkeypatch.setattr(private_head, "_outputs", spied)
    network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    everything = b"|".join(sent)
    assert len(private) >= 40
    # What is there is found: features come down as they are.
    assert all(row.tobytes() in everything for part in features for row in part)
    for array in private:
        for dtype in (np.float32, np.float64, np.float16):
            assert not any(row.astype(dtype).tobytes() in everything for row in array)


def test_a_frozen_encoder_with_heads_at_the_agents_is_refused() -> None:
    model = small_settings().model.model_dump() | {"head": "agent"}
    with pytest.raises(SettingsError, match="leave nothing that the worker trains"):
        build(small_settings(model=model, tuning={"mode": "frozen", "embeddings": "none"}), 0)


def test_pairs_are_not_matched_by_heads_at_the_agents() -> None:
    model = small_settings().model.model_dump() | {"head": "agent", "fusion": "late"}
    task = {"kind": "retrieval", "between": ["audio", "image"]}
    document = small_settings(model=model).model_dump() | {"task": task}
    with pytest.raises(ValueError, match=r'set model\.head to "server"'):
        RunSettings.model_validate(document)


DIGIT = ImageSpec(height=8, width=8, channels=1, patch=2)


def digits(index: int, count: int) -> ArrayDataset:
    """Return a site's share of real scans of digits: 8 x 8 pixels, 16 shades."""
    found = load_digits()
    images = (found.images * 15).astype(np.uint8)[:, :, :, None]
    rows, tests = np.arange(index, 1_400, count), np.arange(1_400 + index, len(images), count)
    splits: dict[Split, Batch] = {}
    chosen: tuple[tuple[Split, NDArray[np.int64]], ...] = (("train", rows), ("test", tests))
    for split, rows_B in chosen:
        splits[split] = Batch({"image": images[rows_B]}, found.target[rows_B].astype(np.int64))
    names = tuple(str(digit) for digit in range(10))
    return ArrayDataset("scans", names, {"image": DIGIT}, splits)


@pytest.mark.slow
def test_many_agents_with_heads_of_their_own_learn_digits_asynchronously() -> None:
    options = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 48, "depth": 2, "num_heads": 3}
    settings = RunSettings.model_validate(
        {
            "run": {"epochs": 10, "microbatch_samples": 20, "min_agents": 5},
            "model": {"options": options | {"weight_init": "jax"}, "head": "agent"},
            "modalities": {"image": DIGIT.model_dump()},
            "task": {"classes": [str(digit) for digit in range(10)]},
            "window": {"mode": "asynchronous", "samples": 60},
            "optimizer": {"lr": 3e-3},
            "evaluation": {"every_epochs": 0},
        }
    )
    network = VirtualNetwork(LinkFaults(seed=1, delay_s=0.01, jitter_s=0.02))
    worker = Worker(network, settings, computes=True, kept_in=MemoryActivationStore())
    agents = [network.add_agent(f"site/{index}", digits(index, 5)) for index in range(5)]
    run_until_over(network, worker, agents)
    finals = [evaluation for _, entry in worker.book.latest() for evaluation in entry.evaluations if evaluation.final]
    num_correct = sum(evaluation.sums.num_correct for evaluation in finals)
    num_samples = sum(evaluation.sums.num_samples for evaluation in finals)
    assert num_samples == 397
    assert num_correct / num_samples > 0.8
