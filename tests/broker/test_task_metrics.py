"""Metrics from sums: those that scikit-learn computes from the samples, however these are divided among agents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference  # type: ignore[import-untyped]

from cutlayer.broker.messages import MetricSums
from cutlayer.broker.task_metrics import (
    NOTHING,
    is_plausible,
    mean_loss,
    metric_values,
    metrics_of,
    pooled,
    primary_metric,
)
from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.losses import task_from_spec
from cutlayer.edge_agent.reported_sums import Sums

CLASSES = ClassificationSpec(classes=("a", "b", "c"))
LABELS = MultiLabelSpec(classes=("a", "b", "c"))
AGE = TargetSpec(name="age", mean=50.0, std=12.0, unit="years")
DOSE = TargetSpec(name="dose", mean=-3.0, std=0.5, unit="mg")
ONE, TWO = RegressionSpec(targets=(AGE,)), RegressionSpec(targets=(AGE, DOSE))
SITES = (40, 75, 200)


def told(spec: TaskSpec, outputs_BC: NDArray[np.float32], targets: Targets) -> MetricSums:
    """Return what three agents tell of their samples, put together."""
    reports = []
    for end, size in zip(np.cumsum(SITES), SITES, strict=True):
        own, sums = slice(end - size, end), Sums()
        sums.add(task_from_spec(spec).loss_and_gradient(outputs_BC[own], targets[own]))
        reports.append(sums.take(with_targets=True))
    return pooled(reports)


def drawn(num_outputs: int) -> tuple[np.random.Generator, NDArray[np.float32]]:
    rng = np.random.default_rng(4)
    return rng, rng.normal(size=(sum(SITES), num_outputs)).astype(np.float32)


def test_accuracy_is_that_of_all_samples_together() -> None:
    rng, outputs_BC = drawn(3)
    labels_B = rng.integers(0, 3, size=len(outputs_BC))
    accuracy = reference.accuracy_score(labels_B, outputs_BC.argmax(axis=1))
    assert metric_values(CLASSES, told(CLASSES, outputs_BC, labels_B)) == pytest.approx({"accuracy": accuracy})


def test_micro_f1_and_exact_match_are_those_of_all_samples_together() -> None:
    rng, outputs_BC = drawn(3)
    labels_BC = (rng.random(outputs_BC.shape) < 0.3).astype(np.float32)
    found_BC = outputs_BC > 0
    assert metric_values(LABELS, told(LABELS, outputs_BC, labels_BC)) == pytest.approx(
        {
            "micro_f1": reference.f1_score(labels_BC, found_BC, average="micro"),
            "exact_match": reference.accuracy_score(labels_BC, found_BC),
        }
    )


def test_errors_are_in_the_users_unit_and_those_of_all_samples_together() -> None:
    rng, outputs_BC = drawn(1)
    ages_BC = (AGE.mean + AGE.std * (outputs_BC + rng.normal(size=outputs_BC.shape))).astype(np.float32)
    predicted_BC = AGE.mean + AGE.std * outputs_BC
    assert metric_values(ONE, told(ONE, outputs_BC, ages_BC)) == pytest.approx(
        {
            "mae": reference.mean_absolute_error(ages_BC, predicted_BC),
            "rmse": reference.mean_squared_error(ages_BC, predicted_BC) ** 0.5,
            "r2": reference.r2_score(ages_BC, predicted_BC),
        },
        rel=1e-5,
    )


def test_each_of_several_targets_has_its_own_errors_over_the_samples_that_have_it() -> None:
    rng, outputs_BC = drawn(2)
    means, stds = np.array([AGE.mean, DOSE.mean]), np.array([AGE.std, DOSE.std])
    predicted_BC = means + stds * outputs_BC
    true_BC = (predicted_BC + stds * rng.normal(size=outputs_BC.shape)).astype(np.float32)
    true_BC[::5, 1] = np.nan
    has_dose_B = ~np.isnan(true_BC[:, 1])
    values = metric_values(TWO, told(TWO, outputs_BC, true_BC))
    mae = reference.mean_absolute_error(true_BC[has_dose_B, 1], predicted_BC[has_dose_B, 1])
    assert values["mae.dose"] == pytest.approx(mae, rel=1e-5)
    assert values["mae"] == pytest.approx((values["mae.age"] / AGE.std + values["mae.dose"] / DOSE.std) / 2)
    r2 = (
        reference.r2_score(true_BC[:, 0], predicted_BC[:, 0]),
        reference.r2_score(true_BC[has_dose_B, 1], predicted_BC[has_dose_B, 1]),
    )
    assert values["r2"] == pytest.approx(sum(r2) / 2, rel=1e-4)
    assert set(values) == {metric.name for metric in metrics_of(TWO)}


def test_without_the_targets_sums_of_everybody_there_is_no_r2() -> None:
    rng, outputs_BC = drawn(1)
    ages_BC = rng.normal(50.0, 12.0, size=outputs_BC.shape).astype(np.float32)
    whole, other = Sums(), Sums()
    for sums in (whole, other):
        sums.add(task_from_spec(ONE).loss_and_gradient(outputs_BC, ages_BC))
    first, second = whole.take(with_targets=True), other.take()
    assert "r2" in metric_values(ONE, first)
    assert set(metric_values(ONE, second)) == {"mae", "rmse"}
    assert set(metric_values(ONE, pooled((first, second)))) == {"mae", "rmse"}


def test_targets_that_are_all_alike_have_no_r2() -> None:
    sums = Sums()
    alike_BC = np.full((40, 1), 62.0, np.float32)
    sums.add(task_from_spec(ONE).loss_and_gradient(np.zeros((40, 1), np.float32), alike_BC))
    assert metric_values(ONE, sums.take(with_targets=True)) == {"mae": 12.0, "rmse": 12.0}


def test_nothing_has_no_metrics() -> None:
    for spec in (CLASSES, LABELS, ONE, TWO):
        assert metric_values(spec, NOTHING) == {}
    assert mean_loss(NOTHING) is None


def test_where_no_class_is_there_and_none_is_found_nothing_is_wrong() -> None:
    assert metric_values(LABELS, MetricSums(1.0, 32, 32)) == {"micro_f1": 1.0, "exact_match": 1.0}


def test_the_primary_metric_says_its_unit_and_which_way_is_better() -> None:
    assert [primary_metric(spec).name for spec in (CLASSES, LABELS, ONE, TWO)] == ["accuracy", "micro_f1", "mae", "mae"]
    age, both = primary_metric(ONE), primary_metric(TWO)
    assert (age.better, age.unit, age.with_unit) == ("less", "years", "mean absolute error, years")
    assert both.unit == "std", "errors of two units have none in common"
    assert [metric.unit for metric in metrics_of(TWO) if metric.name.startswith("mae.")] == ["years", "mg"]


IMPLAUSIBLE: list[tuple[TaskSpec, MetricSums]] = [
    (CLASSES, MetricSums(1.0, 33, 32)),
    (CLASSES, MetricSums(1e300, 1, 32)),
    (CLASSES, MetricSums(1.0, 1, 32, (("wrong", 1.0),))),
    (LABELS, MetricSums(1.0, 1, 32, (("wrong", 97.0),))),
    (LABELS, MetricSums(1.0, 1, 32, (("true_positives", -1.0),))),
    (LABELS, MetricSums(1.0, 1, 32, (("absolute", 1.0),))),
    (ONE, MetricSums(1.0, 0, 32, (("absolute.0", 1.0),))),
    (ONE, MetricSums(1.0, 0, 32, (("absolute", 1.0), ("count", 0.0)))),
    (ONE, MetricSums(1.0, 0, 32, (("count", 32.0), ("squared", -1.0)))),
    (ONE, MetricSums(1.0, 0, 32, (("count", 32.0), ("squared", 1e200)))),
    (ONE, MetricSums(1.0, 0, 32, (("count", 32.0), ("target_count", 33.0)))),
    (ONE, MetricSums(1.0, 0, 32, (("count", 32.0), ("target_count", 32.0), ("target", -1e200)))),
    (ONE, MetricSums(0.0, 0, 0, (("count", 32.0),))),
    (TWO, MetricSums(1.0, 0, 32, (("count.2", 32.0),))),
]


@pytest.mark.parametrize(("spec", "sums"), IMPLAUSIBLE)
def test_sums_that_cannot_be_are_seen(spec: TaskSpec, sums: MetricSums) -> None:
    assert not is_plausible(spec, sums)


@given(st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_sums_of_real_samples_are_plausible(which: int, seed: int) -> None:
    spec: TaskSpec = (CLASSES, LABELS, ONE, TWO)[which]
    rng = np.random.default_rng(seed)
    outputs_BC = (rng.normal(size=(64, spec.num_outputs)) * 10 ** rng.uniform(-3, 2)).astype(np.float32)
    targets: Targets = rng.integers(0, spec.num_outputs, size=64)
    if isinstance(spec, MultiLabelSpec):
        targets = rng.integers(-1, 2, size=outputs_BC.shape).astype(np.float32)
    if isinstance(spec, RegressionSpec):
        targets = rng.normal(30.0, 30.0, size=outputs_BC.shape).astype(np.float32)
        targets[rng.random(outputs_BC.shape) < 0.3] = np.nan
    sums = Sums()
    sums.add(task_from_spec(spec).loss_and_gradient(outputs_BC, targets))
    assert is_plausible(spec, sums.take(with_targets=True))
