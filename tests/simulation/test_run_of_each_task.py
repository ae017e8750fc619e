"""Whole runs of every task: they learn, and what is told of them is that of all sites' samples together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from cutlayer.broker.task_metrics import metric_values, primary_metric
from cutlayer.broker.tasks import RegressionSpec, TaskSpec
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES
from cutlayer.dashboards.report import render_report
from cutlayer.dashboards.run_record import parse_run
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.losses import LossResult, task_from_spec
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.server_worker.run_json import run_json
from cutlayer.simulation.virtual import VirtualNetwork
from support.small_tasks import LABELS, NUMBERS, ONE_NUMBER, task_dataset, task_settings
from support.virtual_run import Worker, run_until_over

NUM_SITES, NUM_TRAIN, NUM_TEST, EPOCHS = 3, 96, 60, 12
SITES = tuple(f"site/{number}" for number in range(NUM_SITES))


@dataclass
class Run:
    """A run that is over, and the data it was of."""

    task: TaskSpec
    worker: Worker
    data: dict[str, ArrayDataset]

    def content(self) -> dict[str, Any]:
        book = self.worker.book
        content = run_json(
            book, worker="w0", windows=1, committed_samples=1, duration_s=1.0, training_s=1.0, reason="all is done"
        )
        again: dict[str, Any] = json.loads(json.dumps(content))
        return again


def finished(task: TaskSpec, *, missing_share: float = 0.0) -> Run:
    torch.set_num_threads(1)
    settings = task_settings(
        task,
        0.05,
        run={"min_agents": NUM_SITES, "epochs": EPOCHS, "microbatch_samples": 16},
        optimizer={"name": "adamw", "lr": 4e-3},
        evaluation={"every_epochs": 4, "samples": 48},
    )
    data = {
        site: task_dataset(task, number, NUM_TRAIN, NUM_TEST, missing_share=missing_share)
        for number, site in enumerate(SITES)
    }
    network = VirtualNetwork()
    worker = Worker(network, settings, computes=True)
    agents = [network.add_agent(site, each) for site, each in data.items()]
    run_until_over(network, worker, agents)
    return Run(task, worker, data)


@pytest.fixture(scope="module")
def labels() -> Run:
    return finished(LABELS)


@pytest.fixture(scope="module")
def number() -> Run:
    return finished(ONE_NUMBER)


@pytest.fixture(scope="module")
def numbers() -> Run:
    return finished(NUMBERS, missing_share=0.2)


def joined(run: Run) -> LossResult:
    """Compute the loss of all sites' test samples at once, with the trained model in this process."""
    manifest, built = run.worker.manifest, run.worker.built
    outputs, targets = [], []
    for data in run.data.values():
        indices_B = np.arange(NUM_TEST)
        tokenized = ClientSide(manifest, built.tokenizer_file, data).tokenize("test", indices_B, ("audio", "image"))
        built.encoder.eval()
        with torch.no_grad():
            outputs.append(built.encoder({name: torch.from_numpy(tokens) for name, tokens in tokenized.tokens}).numpy())
        targets.append(tokenized.targets)
    all_targets: Targets = np.concatenate(targets)  # type: ignore[assignment]
    return task_from_spec(run.task).loss_and_gradient(np.concatenate(outputs), all_targets)


def test_classes_of_which_several_may_be_there_are_learned(labels: Run) -> None:
    final = labels.worker.book.metrics()["joint"]
    assert set(final) == {"micro_f1", "exact_match"}
    # Whoever says yes to all has 0.6: of 3 classes, 1.25 are there on average.
    assert final["micro_f1"] > 0.85
    assert final["exact_match"] > 0.7


def test_a_number_is_learned_in_its_unit(number: Run) -> None:
    final = number.worker.book.metrics()["joint"]
    # Brightness is uniform from 0 to 1,000 lux: whoever says 500 errs by 250 on average, and has an R2 of 0.
    assert final["mae"] < 100.0
    assert final["rmse"] < 125.0
    assert final["r2"] > 0.8
    assert primary_metric(number.task).unit == "lux"


def test_several_numbers_are_learned_though_some_are_missing(numbers: Run) -> None:
    final = numbers.worker.book.metrics()["joint"]
    assert final["mae.brightness"] < 130.0
    assert final["mae.loudness"] < 15.0
    assert final["r2"] > 0.8


def test_each_modality_alone_tells_what_it_knows(numbers: Run) -> None:
    final = numbers.worker.book.metrics()
    assert final["image"]["mae.brightness"] < final["audio"]["mae.brightness"]
    assert final["audio"]["mae.loudness"] < final["image"]["mae.loudness"]


@pytest.mark.parametrize("name", ["labels", "number", "numbers"])
def test_what_the_sites_tell_gives_the_metrics_of_their_samples_together(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    sums = Sums()
    sums.add(joined(run))
    expected = metric_values(run.task, sums.all())
    assert run.worker.book.metrics()["joint"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["labels", "number", "numbers"])
def test_the_gauge_shows_the_metric_its_unit_and_which_way_is_better(name: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(name)
    metric = primary_metric(run.task)
    shown = run.worker.metric("cutlayer_task_metric", metric=metric.with_unit, better=metric.better, split="test")
    assert shown == pytest.approx(run.worker.book.metrics()["joint"][metric.name])
    names = {name for name, _ in run.worker.metrics.store.numbers()}
    assert "cutlayer_accuracy_ratio" not in names


@pytest.mark.parametrize("name", ["labels", "number", "numbers"])
def test_run_json_has_every_metric_after_each_evaluation_and_the_report_shows_it(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    record = parse_run(run.content())
    assert record.metric == primary_metric(run.task)
    assert record.accuracy == {}
    assert [row.epoch for row, _ in record.curve] == [4, 8, 12]
    first, last = record.curve[0][1], record.curve[-1][1]
    assert last > first if record.metric.better == "more" else last < first
    assert f"test {record.metric.title}, all modalities" in render_report(run.content())


def test_sums_of_targets_leave_only_with_evaluations_of_all_test_samples(number: Run, numbers: Run) -> None:
    for run in (number, numbers):
        assert isinstance(run.task, RegressionSpec)
        for _, telemetry in run.worker.book.latest():
            told = [telemetry.train, telemetry.recent]
            told += [each.sums for each in telemetry.evaluations if not each.final]
            assert not [name for sums in told for name, _ in sums.sums if "target" in name]
            whole = [each.sums for each in telemetry.evaluations if each.final]
            assert all(any(name.startswith("target_squared") for name, _ in sums.sums) for sums in whole)


def test_no_report_is_of_few_values_of_any_target(numbers: Run) -> None:
    for _, telemetry in numbers.worker.book.latest():
        entries = [telemetry.train, telemetry.recent, *(each.sums for each in telemetry.evaluations)]
        counts = [value for sums in entries for name, value in sums.sums if "count" in name]
        assert counts
        assert min(counts) >= MIN_REPORTED_SAMPLES
