"""What leaves an agent as a sum: nothing of few samples, and nothing of the few that have a certain target."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.broker.messages import MetricSums
from cutlayer.broker.task_metrics import NOTHING, pooled
from cutlayer.broker.tasks import RegressionSpec, TargetSpec
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES
from cutlayer.edge_agent.losses import LossResult, SquaredError
from cutlayer.edge_agent.reported_sums import Sums

TWO = SquaredError(
    RegressionSpec(targets=tuple(TargetSpec(name=name, mean=0.0, std=1.0) for name in ("often", "seldom")))
)


def batch(num_often: int, num_seldom: int) -> LossResult:
    """Return the result of samples that each have one target of the two; errors are 1 and 2."""
    targets_BC = np.full((num_often + num_seldom, 2), np.nan, dtype=np.float32)
    targets_BC[:num_often, 0], targets_BC[num_often:, 1] = 1.0, 2.0
    return TWO.loss_and_gradient(np.zeros_like(targets_BC), targets_BC)


def test_sums_over_few_samples_are_not_reported() -> None:
    sums = Sums()
    sums.add(LossResult(31.0, np.zeros((31, 1), np.float32), 31, 31, {"wrong": 1.0}))
    assert sums.take() == NOTHING
    sums.add(LossResult(2.0, np.zeros((1, 1), np.float32), 0, 1, {"wrong": 2.0}))
    assert sums.take() == MetricSums(33.0, 31, 32, (("wrong", 3.0),))
    assert sums.take() == NOTHING
    assert sums.num_samples == 0


def test_a_target_that_few_samples_have_waits_with_its_part_of_the_loss() -> None:
    sums = Sums()
    sums.add(batch(40, 10))
    taken = sums.take()
    assert taken.num_samples == 50
    assert taken.loss_sum == 40 * 1.0 / 2
    assert dict(taken.sums) == {"count.0": 40, "absolute.0": 40, "squared.0": 40}
    sums.add(batch(40, 21))
    assert {name for name, _ in sums.take().sums} == {"count.0", "absolute.0", "squared.0"}
    sums.add(batch(40, 1))
    taken = sums.take()
    assert dict(taken.sums)["count.1"] == 32
    assert taken.loss_sum == 40 * 1.0 / 2 + 32 * 4.0 / 2


def test_nothing_leaves_while_every_target_is_scarce() -> None:
    sums = Sums()
    sums.add(batch(20, 20))
    assert sums.take() == NOTHING
    sums.add(batch(20, 0))
    assert sums.take().num_samples == 60


def test_sums_of_targets_leave_only_when_they_are_asked_for() -> None:
    for with_targets in (False, True):
        sums = Sums()
        sums.add(batch(40, 0))
        names = {name for name, _ in sums.take(with_targets=with_targets).sums}
        assert ("target.0" in names) is with_targets
        assert ("target_squared.0" in names) is with_targets


def test_the_site_itself_sees_all() -> None:
    sums = Sums()
    sums.add(batch(2, 1))
    assert dict(sums.all().sums)["absolute.1"] == 2.0
    assert sums.all().num_samples == 3
    assert sums.take() == NOTHING


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(any), max_size=30))
def test_what_two_reports_differ_by_is_of_many_samples_in_every_target(batches: list[tuple[int, int]]) -> None:
    sums, reports, total = Sums(), [NOTHING], NOTHING
    for num_often, num_seldom in batches:
        sums.add(batch(num_often, num_seldom))
        total = pooled((total, sums.take()))
        reports.append(total)
    for earlier, later in itertools.combinations(reports, 2):
        grown = Counter(dict(later.sums))
        grown.subtract(dict(earlier.sums))
        for number in (0, 1):
            assert grown[f"count.{number}"] == 0 or grown[f"count.{number}"] >= MIN_REPORTED_SAMPLES
        # The loss is that of the targets that are told of, or the others' could be had as a difference.
        squared = sum(value for name, value in grown.items() if name.startswith("squared."))
        assert later.loss_sum - earlier.loss_sum == pytest.approx(squared / 2)
