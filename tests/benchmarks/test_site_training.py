"""Training in one process: every kind of task, samples that lack something, and the loss of the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.site_training import Trainer, mean_sums, train_alone
from benchmarks.task_schemes import settings_of
from benchmarks.task_sites import Site, make_site

from benchmarks import centralized
from cutlayer.broker.task_metrics import metrics_of
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch, Split
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import RunSettings
from support.modalities import IMAGE, TEXT, raw_samples
from support.small_benchmark import small_task
from support.small_run import small_dataset, small_settings
from support.small_tasks import TASKS, task_dataset, task_settings


def site_of(settings: RunSettings, data: ArrayDataset, batch_samples: int | None = None) -> tuple[BuiltModel, Site]:
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    return built, make_site(manifest, built.tokenizer_file, data, "site/0", batch_samples=batch_samples)


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_every_kind_of_task_is_learned_and_has_its_metrics(kind: str) -> None:
    task = TASKS[kind]
    settings = task_settings(task, run={"epochs": 6}, optimizer={"name": "adamw", "lr": 5e-3})
    data = task_dataset(task, 0, num_train=64)
    built, site = site_of(settings, data, 8)
    before = Trainer(settings, build(settings, 0)).evaluate([site])
    after = train_alone(settings, built, site).evaluate([site])
    metric = metrics_of(task)[0]
    assert set(after) == {each.name for each in metrics_of(task)}
    better, worse = (after, before) if metric.better == "more" else (before, after)
    assert better[metric.name] > worse[metric.name]


def ragged(num_train: int = 24, num_test: int = 33) -> ArrayDataset:
    """Texts of any length, images that some samples lack; each has one of the two."""

    def split(num_samples: int, seed: int) -> Batch:
        texts = raw_samples("text", num_samples, seed)
        has_image_B = np.random.default_rng(seed).random(num_samples) < 0.5
        has_image_B |= texts == ""
        inputs = {"text": texts, "image": raw_samples("image", num_samples, seed)}
        return Batch(inputs, np.arange(num_samples) % 3, {"image": has_image_B})

    splits: dict[Split, Batch] = {"train": split(num_train, 0), "test": split(num_test, 1)}
    return ArrayDataset("ragged", ("no", "perhaps", "yes"), {"text": TEXT, "image": IMAGE}, splits)


def test_what_stands_beside_a_sample_changes_nothing_of_it() -> None:
    settings = small_settings(modalities={"text": TEXT.model_dump(), "image": IMAGE.model_dump()})
    settings = settings.model_copy(update={"modalities": {"text": TEXT, "image": IMAGE}})
    losses = []
    for size in (1, 8, 33):
        built, site = site_of(settings, ragged(), size)
        sums = Trainer(settings, built)._evaluated(site, ("image", "text"))
        losses.append(sums.loss_sum / sums.num_samples)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_samples_that_lack_something_are_trained_on() -> None:
    settings = small_settings(run={"epochs": 2}, modalities={"text": TEXT.model_dump(), "image": IMAGE.model_dump()})
    settings = settings.model_copy(update={"modalities": {"text": TEXT, "image": IMAGE}})
    built, site = site_of(settings, ragged(), 8)
    before = Trainer(settings, build(settings, 0)).digest()
    trainer = train_alone(settings, built, site)
    assert trainer.digest() != before
    assert trainer.state.version == 2 * 3


def test_a_model_whose_outputs_are_not_finite_is_not_judged() -> None:
    settings = small_settings()
    built, site = site_of(settings, small_dataset(0))
    trainer = Trainer(settings, built)
    state = trainer.state
    state.weights["head.bias"][:] = float("nan")
    trainer.load(state)
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.evaluate([site])


def test_the_mean_of_models_is_that_of_their_outputs() -> None:
    settings = small_settings(model={**small_settings().model.model_dump(), "fusion": "late"})
    built, site = site_of(settings, small_dataset(0))
    model, other = train_alone(settings, built, site), Trainer(settings, build(settings, 1))
    # Late fusion averages features and the head is linear: given both is the mean of given each.
    both = mean_sums([(model, ("audio", "image"))], site)
    each = mean_sums([(model, ("audio",)), (model, ("image",))], site)
    assert each.loss_sum == pytest.approx(both.loss_sum, rel=1e-5)
    assert each.num_samples == both.num_samples == site.plan.num_test
    audio = mean_sums([(model, ("audio",))], site).loss_sum
    mixed = mean_sums([(model, ("audio",)), (other, ("image",))], site).loss_sum
    assert len({round(loss, 3) for loss in (both.loss_sum, audio, mixed)}) == 3


def test_the_centralized_reference_tells_the_metric_given_all_and_each(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    found = centralized.train(task, settings_of(task, 0), ("audio", "image"))
    assert set(found) == {"joint", "audio", "image"}
    alone = centralized.train(task, settings_of(task, 0), ("audio",))
    assert list(alone) == ["joint"]
    assert all(0.0 <= value <= 1.0 for value in [*found.values(), *alone.values()])
