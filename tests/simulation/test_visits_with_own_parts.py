"""Visits of sites that have a head or a tokenizer of their own: what they have learned is used, and left as it is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cutlayer.broker.errors import ManifestUnsatisfiable, SettingsError
from cutlayer.broker.manifest import TokensSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import SPLITS, Batch
from cutlayer.edge_agent.site_parts import SiteParts, TokenizerSource
from cutlayer.edge_agent.visit_evaluation import EvaluationVisit
from cutlayer.edge_agent.visit_prediction import PredictionVisit
from cutlayer.server_worker.export import export_model
from cutlayer.server_worker.exported_model import load
from cutlayer.server_worker.settings import RunSettings
from cutlayer.simulation.virtual import VirtualNetwork
from support.own_tokenizers import Convolutions
from support.small_run import CLASSES, IMAGE, small_dataset, small_settings
from support.virtual_run import Worker
from support.visits import add_visit, trained_store

VISIT = "visitor/1"
FACTORY = "support.own_tokenizers:build"


def with_heads() -> RunSettings:
    return small_settings(model=small_settings().model.model_dump() | {"head": "agent"})


def probabilities(path: Path) -> NDArray[np.float64]:
    """Return what a file of predictions says, (S, C)."""
    with path.open(encoding="utf-8", newline="") as file:
        return np.array([[float(row[f"probability {name}"]) for name in CLASSES] for row in csv.DictReader(file)])


def raw(dataset: ArrayDataset, name: str) -> NDArray[np.generic]:
    return np.concatenate([dataset.splits[split].inputs[name] for split in SPLITS])


@pytest.fixture
def trained(tmp_path: Path) -> tuple[RunSettings, Path, Worker, VirtualNetwork]:
    """Return a run that has ended, the head that its agent has kept, and a worker that serves it."""
    settings, head = with_heads(), tmp_path / "head.safetensors"
    store = trained_store(tmp_path / "store", settings, [small_dataset(0)], [SiteParts(head=head)])
    network = VirtualNetwork()
    return settings, head, Worker(network, settings, computes=True, store=store, only_visits=True), network


def test_predictions_come_from_the_sites_own_head_which_stays_as_it_is(
    tmp_path: Path, trained: tuple[RunSettings, Path, Worker, VirtualNetwork]
) -> None:
    settings, head, worker, network = trained
    before, dataset = head.read_bytes(), small_dataset(1)
    visit = PredictionVisit(tmp_path / "out.csv", clock=network.clock)
    agent = add_visit(network, VISIT, visit, dataset, site=SiteParts(head=head))
    network.run(lambda: agent.is_finished)
    found_BC = probabilities(visit.finish())
    export_model(tmp_path / "model", settings, worker.built, "# A model\n", with_onnx=False)
    inputs = {name: torch.from_numpy(raw(dataset, name)) for name in dataset.modalities}
    expected_BC = load(tmp_path / "model", head=head).predict(inputs).numpy()
    np.testing.assert_allclose(found_BC, expected_BC, atol=1e-4)
    assert np.abs(expected_BC - 1 / len(CLASSES)).max() > 0.01  # a head that has learned nothing says about a third
    assert head.read_bytes() == before


def test_an_evaluation_uses_the_sites_own_head(
    tmp_path: Path, trained: tuple[RunSettings, Path, Worker, VirtualNetwork]
) -> None:
    settings, head, worker, network = trained
    dataset = small_dataset(0)
    visit = EvaluationVisit(clock=network.clock)
    agent = add_visit(network, VISIT, visit, dataset, site=SiteParts(head=head))
    network.run(lambda: agent.is_finished)
    export_model(tmp_path / "model", settings, worker.built, "# A model\n", with_onnx=False)
    inputs = {name: torch.from_numpy(raw(dataset, name)) for name in dataset.modalities}
    labels_B = torch.from_numpy(np.concatenate([dataset.splits[split].targets for split in SPLITS]))
    with torch.no_grad():
        outputs_BC = load(tmp_path / "model", head=head)(inputs)
    (together, *_) = visit.results()
    expected = float(torch.nn.functional.cross_entropy(outputs_BC, labels_B, reduction="sum"))
    assert together.sums.num_samples == len(labels_B)
    assert together.sums.loss_sum == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("is_named", "said"), [(False, "its heads are at the agents"), (True, "is not there")])
def test_a_visit_without_its_head_is_told_which_file_to_name(
    tmp_path: Path, trained: tuple[RunSettings, Path, Worker, VirtualNetwork], said: str, *, is_named: bool
) -> None:
    network = trained[3]
    site = SiteParts(head=tmp_path / "no_head.safetensors") if is_named else SiteParts()
    agent = add_visit(network, VISIT, EvaluationVisit(clock=network.clock), small_dataset(1), site=site)
    with pytest.raises(ManifestUnsatisfiable, match=said) as caught:
        network.run(lambda: agent.is_finished)
    assert "--head FILE" in str(caught.value)
    assert not (tmp_path / "no_head.safetensors").exists()


def test_a_head_of_another_run_is_refused(
    tmp_path: Path, trained: tuple[RunSettings, Path, Worker, VirtualNetwork]
) -> None:
    _, head, _, network = trained
    other = tmp_path / "other.safetensors"
    with safe_open(head, framework="pt") as file:
        save_file(load_file(head), other, (file.metadata() or {}) | {"run": "another-run"})
    agent = add_visit(
        network, VISIT, EvaluationVisit(clock=network.clock), small_dataset(1), site=SiteParts(head=other)
    )
    with pytest.raises(SettingsError, match="has run"):
        network.run(lambda: agent.is_finished)


def with_tokens() -> RunSettings:
    document = small_settings(
        activations={"mode": "every-step"}, tokenizers={"mode": "trainable", "every_steps": 1, "every_windows": 1}
    ).model_dump()
    tokens = TokensSpec(num_tokens=4, layout="grid", rows=2, raw=IMAGE)
    return RunSettings.model_validate(document | {"modalities": {"image": tokens.model_dump()}})


def images_of(seed: int) -> ArrayDataset:
    data = small_dataset(seed)
    splits = {split: Batch({"image": batch.inputs["image"]}, batch.targets) for split, batch in data.splits.items()}
    return ArrayDataset("small", data.classes, {"image": IMAGE}, splits)


def test_a_trained_tokenizer_of_the_sites_own_is_given_by_its_state_which_stays_as_it_is(tmp_path: Path) -> None:
    settings, state = with_tokens(), tmp_path / "tokenizer.safetensors"
    site = SiteParts(tokenizers={"image": TokenizerSource(FACTORY, state=state)})
    store = trained_store(tmp_path / "store", settings, [images_of(0)], [site])
    before, dataset = state.read_bytes(), images_of(1)
    network = VirtualNetwork()
    worker = Worker(network, settings, computes=True, store=store, only_visits=True)
    visit = PredictionVisit(tmp_path / "out.csv", clock=network.clock)
    learned = SiteParts(tokenizers={"image": TokenizerSource(FACTORY, weights=state)})
    agent = add_visit(network, VISIT, visit, dataset, site=learned)
    network.run(lambda: agent.is_finished)
    found_BC = probabilities(visit.finish())
    export_model(tmp_path / "model", settings, worker.built, "# A model\n", with_onnx=False)
    tokenizer = Convolutions(worker.built.width)
    weights = {name: value for name, value in load_file(state).items() if name in tokenizer.state_dict()}
    tokenizer.load_state_dict(weights)
    with torch.no_grad():
        tokens_BND = tokenizer(torch.from_numpy(raw(dataset, "image")))
    expected_BC = load(tmp_path / "model").predict({"image": tokens_BND}).numpy()
    np.testing.assert_allclose(found_BC, expected_BC, atol=1e-4)
    assert state.read_bytes() == before


def test_a_trained_tokenizer_is_not_left_as_it_began(tmp_path: Path) -> None:
    settings = with_tokens()
    site = SiteParts(tokenizers={"image": TokenizerSource(FACTORY)})
    store = trained_store(tmp_path / "store", settings, [images_of(0)], [site])
    network = VirtualNetwork()
    Worker(network, settings, computes=True, store=store, only_visits=True)
    agent = add_visit(network, VISIT, EvaluationVisit(clock=network.clock), images_of(1), site=site)
    with pytest.raises(ManifestUnsatisfiable, match="--tokenizer-weights image=FILE"):
        network.run(lambda: agent.is_finished)
