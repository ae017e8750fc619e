"""A run with every kind of modality at once, with gaps everywhere: it trains as the uncut model does."""

from __future__ import annotations

import numpy as np
import pytest

from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.modalities import EVERY_KIND, raw_samples
from support.small_run import CLASSES, SmallWorker, small_settings
from support.whole import train_whole

LOSSY = LinkFaults(seed=7, loss=0.1, duplication=0.3, reordering=0.3, delay_s=0.02, jitter_s=0.05)
TRAINABLE: dict[str, dict[str, object]] = {
    "codecs": {"activation_gradients": "identity"},
    "activations": {"mode": "every-step"},
    "tokenizers": {"mode": "trainable", "every_steps": 1, "every_windows": 1},
    "optimizer": {"name": "sgd", "lr": 0.1},
}


def settings_of(num_agents: int, **sections: dict[str, object]) -> RunSettings:
    return small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 3, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0, "credits": 1},
        evaluation={"every_epochs": 0},
        modalities={name: spec.model_dump() for name, spec in EVERY_KIND.items()},
        **sections,
    )


def site(seed: int, num_samples: int) -> ArrayDataset:
    """Random samples: a fifth of them lacks each modality, and those that are there have gaps of their own."""
    rng = np.random.default_rng(seed)
    lacks = rng.random((len(EVERY_KIND), num_samples)) < 0.2
    lacks[0] = False  # of one each sample has something
    batch = Batch(
        {name: raw_samples(name, num_samples, seed) for name in EVERY_KIND},
        rng.integers(len(CLASSES), size=num_samples),
        {name: ~lacks_B for name, lacks_B in zip(sorted(EVERY_KIND), lacks, strict=True)},
    )
    splits: dict[Split, Batch] = {"train": batch, "test": batch}
    return ArrayDataset("every kind", CLASSES, EVERY_KIND, splits)


def assert_trains_as_whole(
    settings: RunSettings, sites: dict[str, ArrayDataset], faults: LinkFaults = NO_FAULTS, *, is_kept: bool = False
) -> None:
    network = VirtualNetwork(faults)
    worker = SmallWorker(network, settings, kept_in=MemoryActivationStore() if is_kept else None)
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    assert bool(worker.num_stored_samples) is is_kept
    whole_weights, whole_loss_sum = train_whole(settings, sites)
    weights = dict(worker.built.encoder.named_parameters())
    assert weights.keys() == whole_weights.keys()
    for name, weight in whole_weights.items():
        difference = (weights[name] - weight).norm() / weight.norm().clamp_min(1e-12)
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"
    loss_sum = sum(entry.train.loss_sum for _, entry in worker.book.latest())
    assert loss_sum == pytest.approx(whole_loss_sum, rel=1e-5)


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize(("faults", "is_kept"), [(NO_FAULTS, False), (LOSSY, True)], ids=["sent", "kept, lossy"])
def test_every_kind_trains_as_in_the_uncut_model(fusion: str, faults: LinkFaults, is_kept: bool) -> None:
    sites = {f"site/{index}": site(index, 20 - 5 * index) for index in range(2)}
    assert_trains_as_whole(settings_of(2, model={"fusion": fusion}), sites, faults, is_kept=is_kept)


def test_tokenizers_of_every_kind_train_as_in_the_uncut_model() -> None:
    sites = {f"site/{index}": site(index, 20 - 5 * index) for index in range(2)}
    assert_trains_as_whole(settings_of(2, **TRAINABLE), sites)
