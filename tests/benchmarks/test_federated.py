"""Federated averaging is what its name says, and what it is tuned on is never what it is tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.federated import Choice, average, chosen, grid, num_bytes, train_federated
from benchmarks.site_training import train_alone, train_each_alone
from benchmarks.task_schemes import tuning_sites
from benchmarks.task_sites import NUM_SITES, Site, held, make_site, only, topic_of, with_validation
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import RunSettings
from support.small_benchmark import Watched, small_task
from support.small_run import small_dataset, small_settings

SETTINGS = small_settings(run={"epochs": 4}, model={"modality_dropout": 0.3}, optimizer={"name": "adamw"})


def sites_of(settings: RunSettings, *num_train: int) -> tuple[BuiltModel, list[Site]]:
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    sites = [
        make_site(manifest, built.tokenizer_file, small_dataset(index, num_train=number), topic_of(index))
        for index, number in enumerate(num_train)
    ]
    return built, sites


def test_the_mean_is_weighted_by_samples() -> None:
    first, second = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.5])
    mean = average([(1, {"weight": first}), (3, {"weight": second})])["weight"]
    assert mean.tolist() == [(1 * 1.0 + 3 * 4.0) / 4, (1 * -2.0 + 3 * 0.5) / 4]
    assert mean.dtype == torch.float32


@given(
    value=st.floats(allow_nan=False, allow_infinity=False, width=32),
    counts=st.lists(st.integers(1, 100_000), min_size=1, max_size=8),
)
def test_the_mean_of_equal_weights_is_these_weights_to_the_bit(value: float, counts: list[int]) -> None:
    weight = torch.tensor([value])
    mean = average([(count, {"weight": weight}) for count in counts])["weight"]
    assert torch.equal(mean, weight)


def test_whole_numbers_are_not_averaged() -> None:
    assert average([(1, {"steps": torch.tensor(3)}), (1, {"steps": torch.tensor(8)})])["steps"].item() == 3


def test_one_site_and_one_round_are_local_training_to_the_bit() -> None:
    built, (site,) = sites_of(SETTINGS, 24)
    federated = train_federated(SETTINGS, built, [site], Choice(1.0, SETTINGS.run.epochs))
    built, (site,) = sites_of(SETTINGS, 24)
    assert federated.digest() == train_alone(SETTINGS, built, site).digest()


def test_a_round_is_the_mean_of_what_sites_have_trained_by_themselves() -> None:
    sizes = 24, 40
    alone = []
    for place in range(2):
        built, sites = sites_of(SETTINGS, *sizes)
        alone.append((sizes[place], train_alone(SETTINGS, built, sites[place]).state.weights))
    built, sites = sites_of(SETTINGS, *sizes)
    federated = train_federated(SETTINGS, built, sites, Choice(1.0, SETTINGS.run.epochs)).state.weights
    for name, expected in average(alone).items():
        assert torch.equal(federated[name], expected), name


def test_optimizers_start_anew_each_round() -> None:
    """With one site nothing is averaged, so that only the optimizer's state tells rounds from none."""
    built, (site,) = sites_of(SETTINGS, 24)
    rounds = train_federated(SETTINGS, built, [site], Choice(1.0, 1))
    built, (site,) = sites_of(SETTINGS, 24)
    assert rounds.digest() != train_alone(SETTINGS, built, site).digest()
    adam_steps = {
        value.item() for name, value in train_alone(SETTINGS, *_one()).state.optimizer.items() if "step" in name
    }
    assert adam_steps == {SETTINGS.run.epochs * site.plan.steps_per_epoch}


def _one() -> tuple[BuiltModel, Site]:
    built, (site,) = sites_of(SETTINGS, 24)
    return built, site


def test_sites_that_are_alone_begin_with_the_same_weights() -> None:
    built, sites = sites_of(SETTINGS, 24, 24)
    values, cpu_s = train_each_alone(SETTINGS, built, sites, "accuracy")
    built, sites = sites_of(SETTINGS, 24, 24)
    assert values[1] == train_alone(SETTINGS, built, sites[1]).evaluate(sites)["accuracy"]
    assert cpu_s > 0


def test_bytes_are_of_float32_both_ways() -> None:
    assert num_bytes(808_202, 4, 10) == 2 * 4 * 808_202 * 4 * 10


def test_local_epochs_divide_the_run() -> None:
    assert {choice.local_epochs for choice in grid(10)} == {1, 2}
    assert {choice.local_epochs for choice in grid(12)} == {1, 3}
    assert {choice.local_epochs for choice in grid(7)} == {1}
    assert len(grid(10)) == 6


def test_the_best_choice_on_validation_samples_is_taken() -> None:
    found: dict[Choice, float | None] = {Choice(1.0, 1): 0.7, Choice(0.3, 1): 0.8, Choice(3.0, 1): None}
    assert chosen(found, is_more_better=True) == Choice(0.3, 1)
    assert chosen(found, is_more_better=False) == Choice(1.0, 1)
    assert chosen({Choice(1.0, 1): 0.5, Choice(0.3, 1): 0.5}, is_more_better=True) == Choice(1.0, 1)
    with pytest.raises(ValueError, match="diverged"):
        chosen({Choice(1.0, 1): None}, is_more_better=True)


def test_validation_samples_are_of_the_training_samples_and_apart() -> None:
    data = small_dataset(0, num_train=100, num_test=40)
    split = with_validation(data)
    train, validation = split.splits["train"], split.splits["test"]
    assert (len(train.targets), len(validation.targets)) == (90, 10)
    rows = {image.tobytes() for image in data.splits["train"].inputs["image"]}
    parts = [{image.tobytes() for image in batch.inputs["image"]} for batch in (train, validation)]
    assert parts[0] | parts[1] == rows
    assert not parts[0] & parts[1]
    assert not parts[1] & {image.tobytes() for image in data.splits["test"].inputs["image"]}


def test_neighbours_stay_on_one_side_of_a_validation_split() -> None:
    data = small_dataset(0, num_train=400)
    numbered = ArrayDataset(data.name, data.classes, data.modalities, data.splits)
    numbered.splits["train"].targets[:] = np.arange(400)
    validation = with_validation(numbered).splits["test"].targets
    assert len(validation) == 40
    assert set(np.diff(validation)[np.arange(39) % 8 != 7]) == {1}


def test_tuning_never_trains_or_validates_on_test_samples(tmp_path: Path) -> None:
    opened: list[ArrayDataset] = []

    def open_(shard: Shard, seed: int, alpha: float | None) -> ArrayDataset:
        del alpha
        opened.append(small_dataset(10 * seed + shard.index, num_train=40))
        return opened[-1]

    sites = tuning_sites(small_task(tmp_path, opened=open_), "iid", 0)
    assert len(sites) == NUM_SITES
    for site, whole in zip(sites, opened, strict=True):
        tested = {image.tobytes() for image in whole.splits["test"].inputs["image"]}
        for batch in site.splits.values():
            assert not tested & {image.tobytes() for image in batch.inputs["image"]}


def test_data_are_read_once_and_modalities_can_be_left_out() -> None:
    watched = Watched(small_dataset(0), set())
    data = only(held(watched), ["audio"])
    assert watched.read == {"train", "test"}
    assert set(data.modalities) == set(data.splits["test"].inputs) == {"audio"}
