"""The run's gauges are what its book says, however the reports come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutlayer.broker.messages import Evaluation, MetricSums, Telemetry
from cutlayer.broker.tasks import TaskSpec
from cutlayer.dashboards.metric_store import MetricStore
from cutlayer.server_worker.federated_averaging import federated_averaging_bytes
from cutlayer.server_worker.run_book import RunBook
from cutlayer.server_worker.run_figures import RunFigures
from support.synthetic_run import NUM_EPOCHS, STEPS_PER_EPOCH, synthetic_manifest, synthetic_telemetry
from support.synthetic_tasks import AGE, AGE_AND_DOSE, FINDINGS, task_manifest, task_telemetry

MANIFEST = synthetic_manifest(812_042)
NUM_CLIENT_PARAMETERS = 11_000


class Desk:
    """A book and the gauges, fed with the same reports."""

    def __init__(self) -> None:
        self.store = MetricStore()
        self.book = RunBook(MANIFEST, NUM_CLIENT_PARAMETERS)
        self._figures = RunFigures(self.store, MANIFEST, NUM_CLIENT_PARAMETERS)

    def take(self, agent: str, telemetry: Telemetry) -> None:
        before = self.book.of(agent, telemetry.incarnation)
        assert self.book.take(agent, telemetry)
        self._figures.take(agent, telemetry, before)

    def check_bytes(self) -> None:
        for direction, sums in self.book.bytes_moved().items():
            for measure, num_bytes in sums.items():
                assert self.store.value("cutlayer_run_bytes", direction, measure) == num_bytes > 0


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_bytes_are_those_of_the_book_over_reports_and_processes(desk: Desk) -> None:
    for epoch in range(1, NUM_EPOCHS + 1):
        desk.take("clinic/07", synthetic_telemetry(epoch, sequence=epoch))
        desk.take("clinic/08", synthetic_telemetry(epoch, incarnation=1_000 + epoch))
        desk.check_bytes()


def test_progress_and_epochs_are_of_all_agents_that_have_reported(desk: Desk) -> None:
    desk.take("clinic/07", synthetic_telemetry(NUM_EPOCHS))
    assert desk.store.value("cutlayer_run_progress_ratio") == 1.0
    desk.take("clinic/08", replace(synthetic_telemetry(1), steps=0, epoch=0))
    assert desk.store.value("cutlayer_agents_seen") == 2
    assert desk.store.value("cutlayer_run_progress_ratio") == 0.5
    assert desk.store.value("cutlayer_run_epochs") == NUM_EPOCHS / 2


def test_federated_averaging_is_counted_for_the_epochs_so_far(desk: Desk) -> None:
    num_parameters = 812_042 + NUM_CLIENT_PARAMETERS
    part = replace(synthetic_telemetry(1), steps=10)
    desk.take("clinic/07", part)
    moved = 2 * 4 * num_parameters * 10 / STEPS_PER_EPOCH
    assert desk.store.value("cutlayer_federated_averaging_bytes") == pytest.approx(moved)
    desk.take("clinic/07", synthetic_telemetry(NUM_EPOCHS, sequence=2))
    desk.take("clinic/08", synthetic_telemetry(NUM_EPOCHS))
    whole = federated_averaging_bytes(num_parameters, NUM_EPOCHS, 2)
    assert desk.store.value("cutlayer_federated_averaging_bytes") == pytest.approx(whole)


def test_an_agent_that_came_back_stands_where_its_latest_process_does(desk: Desk) -> None:
    desk.take("clinic/07", synthetic_telemetry(1, incarnation=1))
    desk.take("clinic/07", synthetic_telemetry(2, incarnation=2))
    desk.take("clinic/07", synthetic_telemetry(1, incarnation=1, sequence=2))  # late
    assert desk.store.value("cutlayer_run_epochs") == 2
    assert desk.store.value("cutlayer_agents_seen") == 1


def test_training_loss_is_the_mean_over_the_last_reports_of_all_agents(desk: Desk) -> None:
    recent = synthetic_telemetry(1)
    desk.take("clinic/07", replace(recent, recent=MetricSums(64.0, 32, 64)))
    desk.take("clinic/08", replace(recent, recent=MetricSums(1.0, 1, 32)))
    desk.take("clinic/08", replace(recent, sequence=2, recent=MetricSums(96.0, 16, 32)))
    desk.take("clinic/08", replace(recent, sequence=3, recent=MetricSums(0.0, 0, 0)))  # nothing since
    assert desk.store.value("cutlayer_loss", "train") == pytest.approx(160 / 96)
    assert desk.store.value("cutlayer_accuracy_ratio", "train") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("task", "labels", "errors"),
    [
        (AGE, ("mean absolute error, years", "less"), (12.0 / 2, 12.0 / 4)),
        (AGE_AND_DOSE, ("mean absolute error, std", "less"), (1 / 2, 1 / 4)),
        (FINDINGS, ("micro-F1", "more"), (2 / 2.5, 2 / 2.25)),
    ],
    ids=["one number", "numbers of two units", "several classes"],
)
def test_the_metric_of_another_task_is_that_of_the_last_reports_of_all_agents(
    task: TaskSpec, labels: tuple[str, str], errors: tuple[float, float]
) -> None:
    store = MetricStore()
    figures = RunFigures(store, task_manifest(task), NUM_CLIENT_PARAMETERS)
    before = None
    for epoch, error in zip((2, 4), errors, strict=True):
        telemetry = replace(task_telemetry(task, epoch), sequence=epoch)
        for agent in ("clinic/07", "clinic/08"):
            figures.take(agent, telemetry, before)
        before = telemetry
        assert store.value("cutlayer_task_metric", *labels, "train") == pytest.approx(error)
        assert store.value("cutlayer_task_metric", *labels, "test") == pytest.approx(error)
    assert "cutlayer_accuracy_ratio" not in {name for name, _ in store.numbers()}


def test_test_accuracy_is_that_of_the_last_evaluations_with_all_modalities(desk: Desk) -> None:
    def evaluated(*evaluations: tuple[str, int], sequence: int = 1) -> Telemetry:
        made = tuple(Evaluation(1, given, False, MetricSums(10.0, right, 100), 0) for given, right in evaluations)
        return replace(synthetic_telemetry(1, sequence=sequence), evaluations=made)

    desk.take("clinic/07", evaluated(("audio+image", 50)))
    desk.take("clinic/08", evaluated(("audio+image", 70)))
    assert desk.store.value("cutlayer_accuracy_ratio", "test") == 0.6
    desk.take("clinic/07", evaluated(("audio+image", 50), ("audio+image", 90), ("audio", 10), sequence=2))
    assert desk.store.value("cutlayer_accuracy_ratio", "test") == 0.8
    assert desk.store.value("cutlayer_loss", "test") == pytest.approx(0.1)
