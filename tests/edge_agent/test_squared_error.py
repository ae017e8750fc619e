"""Squared error and Huber's loss of standardized targets: equal to PyTorch's, and blind to what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import RegressionSpec, TargetSpec
from cutlayer.edge_agent.losses import SquaredError

Drawn = tuple[NDArray[np.float32], NDArray[np.float32], float | None]
TARGETS = (
    TargetSpec(name="age", mean=48.5, std=13.0, unit="years"),
    TargetSpec(name="pressure", mean=94.6, std=0.5, unit="mmHg"),
    TargetSpec(name="progression", mean=-150.0, std=77.0),
)


def task_of(num_targets: int, delta: float | None = None) -> SquaredError:
    return SquaredError(RegressionSpec(targets=TARGETS[:num_targets], huber_delta=delta))


def torch_result(
    outputs_BC: NDArray[np.float32], targets_BC: NDArray[np.float32], delta: float | None
) -> tuple[float, NDArray[np.float32]]:
    outputs = torch.tensor(outputs_BC, dtype=torch.float64, requires_grad=True)
    means = torch.tensor([target.mean for target in TARGETS[: outputs.shape[1]]], dtype=torch.float64)
    stds = torch.tensor([target.std for target in TARGETS[: outputs.shape[1]]], dtype=torch.float64)
    standardized = (torch.tensor(targets_BC, dtype=torch.float64) - means) / stds
    is_known = ~standardized.isnan()
    if delta is None:
        losses = torch.nn.functional.mse_loss(outputs[is_known], standardized[is_known], reduction="none")
    else:
        losses = torch.nn.functional.huber_loss(
            outputs[is_known], standardized[is_known], reduction="none", delta=delta
        )
    loss = losses.sum() / outputs.shape[1]
    (gradient,) = torch.autograd.grad(loss, outputs)
    return loss.item(), gradient.numpy().astype(np.float32)


@st.composite
def outputs_targets_and_delta(draw: st.DrawFn) -> Drawn:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 3)))
    return (
        draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))),
        draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32) | st.just(float("nan")))),
        draw(st.none() | st.floats(0.125, 10.0)),
    )


@settings(deadline=None)
@given(outputs_targets_and_delta())
def test_loss_and_gradient_equal_torch(drawn: Drawn) -> None:
    outputs_BC, targets_BC, delta = drawn
    result = task_of(outputs_BC.shape[1], delta).loss_and_gradient(outputs_BC, targets_BC)
    loss, gradient_BC = torch_result(outputs_BC, targets_BC, delta)
    assert result.loss_sum == pytest.approx(loss, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(result.gradient_BC, gradient_BC, rtol=1e-6, atol=1e-6)
    assert result.gradient_BC.dtype == np.float32


@settings(deadline=None)
@given(hnp.arrays(np.float32, (3, 2), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_no_output_gives_a_loss_or_a_gradient_that_cannot_be_sent(outputs_BC: NDArray[np.float32]) -> None:
    for delta in (None, 1.0):
        result = task_of(2, delta).loss_and_gradient(outputs_BC, np.zeros((3, 2), np.float32))
        assert np.isfinite(result.loss_sum)
        assert np.isfinite(result.gradient_BC).all()
        assert all(np.isfinite(list(part.sums.values())).all() for part in result.parts)


def test_the_loss_does_not_depend_on_the_unit() -> None:
    outputs_BC = np.array([[0.5], [-1.0]], dtype=np.float32)
    years, months = (
        SquaredError(RegressionSpec(targets=(TargetSpec(name="age", mean=factor * 50.0, std=factor * 10.0),)))
        for factor in (1.0, 12.0)
    )
    ages_BC = np.array([[40.0], [70.0]], dtype=np.float32)
    first, second = years.loss_and_gradient(outputs_BC, ages_BC), months.loss_and_gradient(outputs_BC, 12 * ages_BC)
    assert first.loss_sum == pytest.approx(1.5**2 + 3.0**2)
    assert second.loss_sum == pytest.approx(first.loss_sum)
    np.testing.assert_allclose(first.gradient_BC, second.gradient_BC)


def test_sums_are_of_each_target_and_of_those_samples_that_have_it() -> None:
    targets_BC = np.array([[61.5, np.nan], [48.5, 94.6], [np.nan, np.nan]], dtype=np.float32)
    result = task_of(2).loss_and_gradient(np.zeros((3, 2), np.float32), targets_BC)
    assert result.num_samples == 2, "nothing is known of the third"
    age, pressure = result.parts
    assert (age.num_values, pressure.num_values) == (2, 1)
    assert age.sums == pytest.approx({"count.0": 2, "absolute.0": 1.0, "squared.0": 1.0})
    assert age.target_sums == pytest.approx({"target_count.0": 2, "target.0": 1.0, "target_squared.0": 1.0})
    assert pressure.sums["absolute.1"] == pytest.approx(0.0, abs=1e-4)
    assert age.loss_sum + pressure.loss_sum == pytest.approx(result.loss_sum)


def test_one_targets_sums_have_no_number() -> None:
    [part] = task_of(1).loss_and_gradient(np.zeros((1, 1), np.float32), np.array([[61.5]], np.float32)).parts
    assert set(part.sums) | set(part.target_sums) == {
        "count",
        "absolute",
        "squared",
        "target_count",
        "target",
        "target_squared",
    }


def test_outputs_that_are_not_finite_give_a_loss_that_is_not_finite_without_a_warning() -> None:
    for poison in (np.nan, np.inf, -np.inf):
        for delta in (None, 1.0):
            outputs_BC = np.array([[poison]], dtype=np.float32)
            result = task_of(1, delta).loss_and_gradient(outputs_BC, np.array([[50.0]], dtype=np.float32))
            assert not np.isfinite(result.loss_sum)


@pytest.mark.parametrize(
    ("targets", "message"), [([[np.inf], [0.0]], "'age' is infinite"), ([[0.0]], "shape"), ([0.0, 1.0], "shape")]
)
def test_targets_that_do_not_fit_are_refused(targets: list[object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        task_of(1).loss_and_gradient(np.zeros((2, 1), dtype=np.float32), np.array(targets, dtype=np.float32))
