"""Samples that lack modalities, and sites that have none of some: they train together as one uncut model would."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cutlayer.broker.errors import ManifestUnsatisfiable
from cutlayer.broker.faults import NO_FAULTS, LinkFaults
from cutlayer.broker.manifest import ImageSpec
from cutlayer.broker.messages import Activations, Mode
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split
from cutlayer.server_worker.activation_store import MemoryActivationStore
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import CLASSES, SmallWorker, small_dataset, small_settings
from support.tapped import TappedBroker
from support.whole import train_whole

LOSSY = LinkFaults(seed=7, loss=0.1, duplication=0.3, reordering=0.3, delay_s=0.02, jitter_s=0.05)
NAMES = ("audio", "image")


def settings_of(num_agents: int, **sections: dict[str, object]) -> RunSettings:
    return small_settings(
        telemetry_s=3_000.0,
        run={"min_agents": num_agents, "epochs": 3, "absence_grace_s": 3_600.0},
        worker={"lease_s": 3_600.0, "credits": 1},
        evaluation={"every_epochs": 0},
        **sections,
    )


def with_gaps(data: ArrayDataset, seed: int) -> ArrayDataset:
    """Take one of the modalities, or none, from each sample."""
    splits: dict[Split, Batch] = {}
    for split, batch in data.splits.items():
        lacks_B = np.random.default_rng(seed).integers(3, size=len(batch.targets))
        present = {name: lacks_B != place for place, name in enumerate(NAMES)}
        # What stands in the place of what is not there must not matter.
        image = np.where(present["image"][:, None, None, None], batch.inputs["image"], 255).astype(np.uint8)
        splits[split] = dataclasses.replace(batch, inputs={**batch.inputs, "image": image}, present=present)
    return dataclasses.replace(data, splits=splits)


def without(data: ArrayDataset, name: str) -> ArrayDataset:
    """Return the data of a site that does not have a modality at all."""
    splits: dict[Split, Batch] = {
        split: Batch({other: values for other, values in batch.inputs.items() if other != name}, batch.targets)
        for split, batch in data.splits.items()
    }
    modalities = {other: spec for other, spec in data.modalities.items() if other != name}
    return dataclasses.replace(data, modalities=modalities, splits=splits)


def as_absent(data: ArrayDataset, name: str) -> ArrayDataset:
    """Return the same data with the modality marked as absent from every sample: what the uncut model takes."""
    splits: dict[Split, Batch] = {
        split: dataclasses.replace(batch, present={name: np.zeros(len(batch.targets), bool)})
        for split, batch in data.splits.items()
    }
    return dataclasses.replace(data, splits=splits)


def assert_trains_as_whole(
    settings: RunSettings,
    sites: dict[str, ArrayDataset],
    whole_sites: dict[str, ArrayDataset],
    *,
    faults: LinkFaults = NO_FAULTS,
    is_kept: bool = False,
) -> SmallWorker:
    network = VirtualNetwork(faults)
    worker = SmallWorker(network, settings, kept_in=MemoryActivationStore() if is_kept else None)
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    whole_weights, whole_loss_sum = train_whole(settings, whole_sites)
    weights = dict(worker.built.encoder.named_parameters())
    for name, weight in whole_weights.items():
        difference = (weights[name] - weight).norm() / weight.norm().clamp_min(1e-12)
        assert difference < 1e-5, f"{name} differs by {difference:.2e}"
    loss_sum = sum(entry.train.loss_sum for _, entry in worker.book.latest())
    assert loss_sum == pytest.approx(whole_loss_sum, rel=1e-5)
    return worker


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("faults", [NO_FAULTS, LOSSY], ids=["perfect", "lossy"])
@pytest.mark.parametrize("is_kept", [False, True], ids=["sent each time", "sent once"])
def test_samples_that_lack_modalities_train_as_in_the_uncut_model(
    fusion: str, faults: LinkFaults, is_kept: bool
) -> None:
    settings = settings_of(2, model={"fusion": fusion})
    sites = {f"site/{index}": with_gaps(small_dataset(index, 20 - 5 * index), index) for index in range(2)}
    worker = assert_trains_as_whole(settings, sites, sites, faults=faults, is_kept=is_kept)
    assert bool(worker.num_stored_samples) is is_kept


def test_a_learned_token_trains_as_in_the_uncut_model() -> None:
    settings = settings_of(2, model={"missing": "token"})
    sites = {f"site/{index}": with_gaps(small_dataset(index, 20), index) for index in range(2)}
    worker = assert_trains_as_whole(settings, sites, sites)
    before = train_whole(settings_of(2, model={"missing": "token"}, optimizer={"lr": 1e-12}), sites)[0]
    name = "embeddings.audio_tokens.missing"
    trained = dict(worker.built.encoder.named_parameters())[name]
    assert (trained - before[name]).norm() > 1e-4


@pytest.mark.parametrize("mode", ["every-step", "delta"])
def test_trained_tokenizers_learn_from_what_is_there(mode: str) -> None:
    settings = settings_of(
        2,
        codecs={"activation_gradients": "identity"},
        activations={"mode": mode},
        tokenizers={"mode": "trainable", "every_steps": 1, "every_windows": 1},
        optimizer={"name": "sgd", "lr": 0.2},
    )
    sites = {f"site/{index}": with_gaps(small_dataset(index, 20), index) for index in range(2)}
    if mode == "every-step":
        assert_trains_as_whole(settings, sites, sites)
        return
    # Changes go through float16, so the weights are only near those of the uncut model.
    network = VirtualNetwork()
    worker = SmallWorker(network, settings, kept_in=MemoryActivationStore())
    agents = [network.add_agent(topic, data) for topic, data in sites.items()]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    whole_weights, _ = train_whole(settings, sites)
    for name, weight in dict(worker.built.encoder.named_parameters()).items():
        assert (weight - whole_weights[name]).norm() / whole_weights[name].norm().clamp_min(1e-12) < 1e-2, name


@pytest.mark.parametrize("is_kept", [False, True], ids=["sent each time", "sent once"])
def test_sites_with_different_modalities_train_one_model(is_kept: bool) -> None:
    both, image, audio = (small_dataset(index, 20) for index in range(3))
    sites = {"site/0": both, "site/1": without(image, "audio"), "site/2": without(audio, "image")}
    whole_sites = {"site/0": both, "site/1": as_absent(image, "audio"), "site/2": as_absent(audio, "image")}
    worker = assert_trains_as_whole(settings_of(3), sites, whole_sites, is_kept=is_kept)
    assert bool(worker.num_stored_samples) is is_kept
    finals = {
        (topic, entry.given): entry.sums.num_samples
        for topic, telemetry in worker.book.latest()
        for entry in telemetry.evaluations
        if entry.final
    }
    # With all that a site has counts as with all; alone are evaluated those of a site that has both.
    assert finals == {
        ("site/0", "audio+image"): 40,
        ("site/0", "audio"): 40,
        ("site/0", "image"): 40,
        ("site/1", "audio+image"): 40,
        ("site/2", "audio+image"): 40,
    }


def test_what_is_not_there_does_not_travel() -> None:
    settings = settings_of(1)
    data = small_dataset(0, 20)
    sites = {"gaps": with_gaps(data, 3), "full": data}
    num_bytes, num_rows = {}, {}
    for name, site in sites.items():
        network = VirtualNetwork()
        tapped = network.broker = TappedBroker(network)
        worker = SmallWorker(network, settings)
        agent = network.add_agent("site/0", site)
        network.run(lambda worker=worker, agent=agent: worker.runtime.is_finished and agent.is_finished)  # type: ignore[misc]
        sent = [message for message in tapped.messages(Activations) if message.mode is Mode.TRAIN]
        num_bytes[name] = sum(len(tensor.data) for message in sent for _, tensor in message.tensors)
        num_rows[name] = sum(tensor.shape[0] * tensor.shape[1] for message in sent for _, tensor in message.tensors)
    present = sites["gaps"].splits["train"].present
    share = np.mean([present[name].mean() for name in NAMES])
    assert num_rows["gaps"] == round(share * num_rows["full"])
    assert num_bytes["gaps"] < (share + 0.05) * num_bytes["full"]


def test_a_site_with_nothing_of_the_run_is_told_so() -> None:
    network = VirtualNetwork()
    SmallWorker(network, settings_of(1))
    spec = ImageSpec(height=4, width=4, channels=1, patch=2)
    labels_B = np.zeros(8, np.int64)
    batch = Batch({"scan": np.zeros((8, 4, 4, 1), np.uint8)}, labels_B)
    data = ArrayDataset("scans", CLASSES, {"scan": spec}, {"train": batch, "test": batch})
    network.add_agent("site/0", data)
    with pytest.raises(ManifestUnsatisfiable, match=r"audio, image.*none of them but scan"):
        network.run(lambda: False, max_virtual_s=60)
