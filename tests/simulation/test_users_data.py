"""Sites with folders of their own train together, as they would on arrays of the same samples in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cutlayer.broker.manifest import Manifest, TableSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import SPLITS, Dataset
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.data_samples import UserDataset
from cutlayer.edge_agent.datasets import open_dataset
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_run import AUDIO, CLASSES, SmallWorker, small_settings
from support.user_data import write_image, write_sound, write_table, write_truncated_image

VITALS = TableSpec(columns=("hr", "temp"), mean=(80.0, 37.0), std=(10.0, 1.0))
NUM_ROWS = 24


def settings() -> RunSettings:
    return small_settings(run={"min_agents": 2}, modalities={"vitals": VITALS.model_dump()})


def folder(path: Path, *, has_sound: bool, seed: int) -> Path:
    """Make a site: every third row lacks its image, every fourth a temperature."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(NUM_ROWS):
        label = row % len(CLASSES)
        image, sound = f"images/{row}.png", f"sounds/{row}.wav"
        write_image(path / image, 60 + 60 * label + int(rng.integers(-20, 20)), width=9, height=7)
        cells: list[Any] = ["" if row % 3 == 0 else image, CLASSES[label], 70 + 10 * label + rng.normal()]
        cells.append("" if row % 4 == 0 else 37 + rng.normal())
        if has_sound:
            loudness = 0.1 + 0.3 * label
            write_sound(path / sound, loudness * rng.uniform(-1, 1, (AUDIO.num_samples, 1)), rate_hz=1_000)
            cells.append(sound)
        rows.append(cells)
    header = ["image", "label", "hr", "temp", *(["audio"] if has_sound else [])]
    return write_table(path / "data.csv", header, rows).parent


def opened(path: Path, manifest: Manifest) -> Dataset:
    return open_dataset(str(path), seed=manifest.seed, manifest=manifest)


def in_memory(dataset: Dataset) -> ArrayDataset:
    splits = {split: dataset.batch(split, np.arange(dataset.num_samples(split))) for split in SPLITS}
    return ArrayDataset(dataset.name, dataset.classes, dataset.modalities, splits)


def trained(*sites: Dataset) -> dict[str, torch.Tensor]:
    network = VirtualNetwork()
    worker = SmallWorker(network, settings())
    agents = [network.add_agent(f"site/{index}", dataset) for index, dataset in enumerate(sites)]
    network.run(lambda: worker.runtime.is_finished and all(agent.is_finished for agent in agents))
    return {name: weight.detach().clone() for name, weight in worker.built.encoder.named_parameters()}


def test_sites_with_folders_train_as_sites_with_the_same_samples_in_memory(tmp_path: Path) -> None:
    manifest = SmallWorker(VirtualNetwork(), settings()).manifest
    heard = opened(folder(tmp_path / "heard", has_sound=True, seed=0), manifest)
    unheard = opened(folder(tmp_path / "unheard", has_sound=False, seed=1), manifest)
    assert set(heard.modalities) == {"audio", "image", "vitals"}
    assert set(unheard.modalities) == {"image", "vitals"}
    from_files, from_memory = trained(heard, unheard), trained(in_memory(heard), in_memory(unheard))
    before = dict(SmallWorker(VirtualNetwork(), settings()).built.encoder.named_parameters())
    assert all(torch.equal(from_files[name], from_memory[name]) for name in before)
    assert any(not torch.equal(from_files[name], before[name]) for name in before)


def test_sample_without_an_image_goes_up_without_its_tokens(tmp_path: Path) -> None:
    worker = SmallWorker(VirtualNetwork(), settings())
    dataset = opened(folder(tmp_path, has_sound=True, seed=0), worker.manifest)
    client = ClientSide(worker.manifest, worker.built.tokenizer_file, dataset)
    everything = np.arange(dataset.num_samples("train"))
    positions = dict(client.tokenize("train", everything, ("image", "vitals")).positions)
    lacking = (positions["image"] == worker.manifest.modalities["image"].num_tokens).all(axis=1)
    assert lacking.any()
    assert (lacking == ~dataset.batch("train", everything).present["image"]).all()
    assert ((positions["vitals"] == VITALS.num_tokens).sum(axis=1) == 1).any()


def test_site_without_a_row_for_testing_trains_and_comes_to_its_end(tmp_path: Path) -> None:
    network = VirtualNetwork()
    worker = SmallWorker(network, small_settings(modalities={"vitals": VITALS.model_dump()}), counting=True)
    path = folder(tmp_path, has_sound=True, seed=0)
    dataset = open_dataset(str(path), options={"test_share": 0}, manifest=worker.manifest)
    assert dataset.num_samples("test") == 0
    agent = network.add_agent("site/0", dataset)
    network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    num_steps = 2 * NUM_ROWS // 4
    assert dict(worker.counter.committed) == {("site/0", "train", step): 1 for step in range(num_steps)}


def test_file_that_fails_late_leaves_steps_as_they_were_planned(tmp_path: Path) -> None:
    network = VirtualNetwork()
    worker = SmallWorker(network, small_settings(), counting=True)
    path = folder(tmp_path, has_sound=True, seed=0)
    for row in (1, 2, 4):
        write_truncated_image(path / "images" / f"{row}.png")
    dataset = open_dataset(str(path), options={"max_unreadable": 0.2, "test_share": 0}, manifest=worker.manifest)
    assert isinstance(dataset, UserDataset)
    assert not dataset.unreadable.reasons
    agent = network.add_agent("site/0", dataset)
    network.run(lambda: worker.runtime.is_finished and agent.is_finished)
    num_steps = 2 * NUM_ROWS // 4
    assert dict(worker.counter.committed) == {("site/0", "train", step): 1 for step in range(num_steps)}
    assert len(dataset.unreadable.reasons) == 3
    num_lacking = (~dataset.batch("train", np.arange(NUM_ROWS)).present["image"]).sum()
    assert num_lacking == NUM_ROWS // 3 + 3
