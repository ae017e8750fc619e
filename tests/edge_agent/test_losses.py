"""Cross-entropy: equal to PyTorch's, and stable where a naive one overflows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ClassificationSpec, MultiLabelSpec, RegressionSpec, TargetSpec, TaskSpec
from cutlayer.edge_agent.losses import CrossEntropy, LossResult, Task, task_from_spec

TASK = CrossEntropy()


def torch_result(outputs_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> tuple[float, NDArray[np.float32]]:
    outputs = torch.tensor(outputs_BC, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(labels_B), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, outputs)
    return loss.item(), gradient.numpy().astype(np.float32)


outputs_and_labels = st.tuples(st.integers(1, 9), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)),
        hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)),
    )
)


@settings(deadline=None)
@given(outputs_and_labels)
def test_loss_and_gradient_equal_torch(drawn: tuple[NDArray[np.float32], NDArray[np.int64]]) -> None:
    outputs_BC, labels_B = drawn
    result = TASK.loss_and_gradient(outputs_BC, labels_B)
    loss, gradient_BC = torch_result(outputs_BC, labels_B)
    assert result.loss_sum == pytest.approx(loss, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(result.gradient_BC, gradient_BC, atol=1e-6)
    assert result.gradient_BC.dtype == np.float32


def test_gradient_of_a_sample_sums_to_zero() -> None:
    rng = np.random.default_rng(0)
    result = TASK.loss_and_gradient(rng.normal(size=(32, 10)).astype(np.float32), np.arange(32) % 10)
    np.testing.assert_allclose(result.gradient_BC.sum(axis=1), 0.0, atol=1e-6)


def test_loss_is_summed_so_that_microbatches_add_up() -> None:
    rng = np.random.default_rng(1)
    outputs_BC, labels_B = rng.normal(size=(8, 10)).astype(np.float32), np.arange(8)
    whole = TASK.loss_and_gradient(outputs_BC, labels_B)
    halves = [TASK.loss_and_gradient(outputs_BC[part], labels_B[part]) for part in (slice(0, 4), slice(4, 8))]
    assert whole.loss_sum == pytest.approx(sum(half.loss_sum for half in halves))
    np.testing.assert_array_equal(whole.gradient_BC, np.concatenate([half.gradient_BC for half in halves]))


def test_outputs_far_apart_neither_overflow_nor_lose_the_loss() -> None:
    outputs_BC = np.array([[3e38, -3e38], [0.0, 1000.0]], dtype=np.float32)
    result = TASK.loss_and_gradient(outputs_BC, np.array([0, 0]))
    assert result.loss_sum == pytest.approx(1000.0)
    np.testing.assert_allclose(result.gradient_BC, [[0.0, 0.0], [-1.0, 1.0]], atol=1e-6)


def test_outputs_that_are_not_finite_give_a_loss_that_is_not_finite_without_a_warning() -> None:
    for poison in (np.nan, np.inf, -np.inf):
        result = TASK.loss_and_gradient(np.array([[poison, 0.0]], dtype=np.float32), np.array([0]))
        assert not np.isfinite(result.loss_sum)


def test_half_precision_outputs_are_taken() -> None:
    result = TASK.loss_and_gradient(np.zeros((2, 4), dtype=np.float16), np.array([0, 3]))
    assert result.loss_sum == pytest.approx(2 * np.log(4))
    assert result.gradient_BC.dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2], "labels from 0 to 2 with 2 outputs"),
        ([-1, 0], "labels from -1"),
        ([0], "shape"),
        ([0.0, 1.0], "float64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TASK.loss_and_gradient(np.zeros((2, 2), dtype=np.float32), np.array(labels))


def test_no_samples_is_refused() -> None:
    with pytest.raises(SettingsError, match="do not fit"):
        TASK.loss_and_gradient(np.zeros((0, 2), dtype=np.float32), np.zeros(0, dtype=np.int64))


AGE = TargetSpec(name="age", mean=50.0, std=10.0)
SPECS: list[tuple[TaskSpec, str]] = [
    (ClassificationSpec(classes=("cat", "dog")), "cross-entropy"),
    (MultiLabelSpec(classes=("cat", "dog")), "binary cross-entropy"),
    (RegressionSpec(targets=(AGE,)), "squared error"),
    (RegressionSpec(targets=(AGE,), huber_delta=1.0), "Huber loss"),
]


@pytest.mark.parametrize(("spec", "name"), SPECS)
def test_the_manifest_chooses_the_task(spec: TaskSpec, name: str) -> None:
    task: Task = task_from_spec(spec)
    assert task.name == name
    rows = [np.array(1)] * 3 if isinstance(spec, ClassificationSpec) else [np.ones(spec.num_outputs, np.float32)] * 3
    targets = task.batch(rows)
    assert targets.shape == ((3,) if isinstance(spec, ClassificationSpec) else (3, spec.num_outputs))
    result = task.loss_and_gradient(np.zeros((3, spec.num_outputs), dtype=np.float32), targets)
    assert isinstance(result, LossResult)
    assert (result.num_samples, result.gradient_BC.shape, result.gradient_BC.dtype.name) == (
        3,
        (3, spec.num_outputs),
        "float32",
    )
