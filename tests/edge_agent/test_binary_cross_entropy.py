"""Binary cross-entropy: equal to PyTorch's, stable for any logit, and blind to what is not known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.tasks import MultiLabelSpec
from cutlayer.edge_agent.losses import BinaryCrossEntropy

Drawn = tuple[NDArray[np.float32], NDArray[np.float32], tuple[float, ...] | None]


def task_of(num_classes: int, weights: tuple[float, ...] | None = None) -> BinaryCrossEntropy:
    names = tuple(f"class {number}" for number in range(num_classes))
    return BinaryCrossEntropy(MultiLabelSpec(classes=names, positive_weights=weights))


def torch_result(
    logits_BC: NDArray[np.float32], labels_BC: NDArray[np.float32], weights: tuple[float, ...] | None
) -> tuple[float, NDArray[np.float32]]:
    """Return loss and gradient by PyTorch: the mean over classes, the sum over samples, unknown labels left out."""
    logits = torch.tensor(logits_BC, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(labels_BC, dtype=torch.float64)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits,
        labels.clamp_min(0.0),
        reduction="none",
        pos_weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )
    loss = losses[labels >= 0].sum() / logits.shape[1]
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.item(), gradient.numpy().astype(np.float32)


@st.composite
def logits_labels_and_weights(draw: st.DrawFn) -> Drawn:
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 12)))
    weights = draw(st.none() | st.tuples(*[st.floats(0.125, 64.0)] * shape[1]))
    return (
        draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))),
        draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 1.0, -1.0]))),
        weights,
    )


@settings(deadline=None)
@given(logits_labels_and_weights())
def test_loss_and_gradient_equal_torch(drawn: Drawn) -> None:
    logits_BC, labels_BC, weights = drawn
    result = task_of(logits_BC.shape[1], weights).loss_and_gradient(logits_BC, labels_BC)
    loss, gradient_BC = torch_result(logits_BC, labels_BC, weights)
    assert result.loss_sum == pytest.approx(loss, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(result.gradient_BC, gradient_BC, rtol=1e-5, atol=1e-6)
    assert result.gradient_BC.dtype == np.float32


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_no_logit_overflows(logits_BC: NDArray[np.float32]) -> None:
    labels_BC = np.array([[1, 0, -1]] * 4, dtype=np.float32)
    result = task_of(3).loss_and_gradient(logits_BC, labels_BC)
    expected = np.maximum(-logits_BC[:, 0].astype(float), 0) + np.maximum(logits_BC[:, 1].astype(float), 0)
    # Past the corner, where a logit is 0, the loss is the logit itself; at the corner it is log 2 above.
    most = (expected.sum() + 8 * np.log(2)) / 3
    assert expected.sum() / 3 - 1e-6 <= result.loss_sum <= most * (1 + 1e-12)
    assert np.abs(result.gradient_BC).max() <= 1 / 3 + 1e-7


def test_logits_that_are_not_finite_give_a_loss_that_is_not_finite_without_a_warning() -> None:
    for poison in (np.nan, np.inf, -np.inf):
        logits_BC = np.array([[poison, poison]], dtype=np.float32)
        result = task_of(2).loss_and_gradient(logits_BC, np.array([[1, 0]], dtype=np.float32))
        assert not np.isfinite(result.loss_sum)


def test_what_is_not_known_of_a_sample_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    logits_BC = rng.normal(size=(8, 5)).astype(np.float32)
    labels_BC = rng.integers(0, 2, size=(8, 5)).astype(np.float32)
    labels_BC[:, 2] = -1
    result = task_of(5).loss_and_gradient(logits_BC, labels_BC)
    other_BC = logits_BC.copy()
    other_BC[:, 2] = -100 * logits_BC[:, 2]
    again = task_of(5).loss_and_gradient(other_BC, labels_BC)
    assert (result.loss_sum, result.sums, result.num_correct) == (again.loss_sum, again.sums, again.num_correct)
    assert not result.gradient_BC[:, 2].any()
    assert result.gradient_BC[:, [0, 1, 3, 4]].all()


def test_samples_of_which_nothing_is_known_are_not_counted() -> None:
    labels_BC = np.array([[-1, -1], [1, -1], [-1, -1]], dtype=np.float32)
    result = task_of(2).loss_and_gradient(np.ones((3, 2), np.float32), labels_BC)
    assert (result.num_samples, result.num_correct) == (1, 1)


def test_sums_count_classes_that_are_found_and_those_that_are_wrong() -> None:
    logits_BC = np.array([[1, -1, 2], [1, 1, -1], [-1, -1, -1]], dtype=np.float32)
    labels_BC = np.array([[1, 0, 1], [1, 0, 1], [0, 0, -1]], dtype=np.float32)
    result = task_of(3).loss_and_gradient(logits_BC, labels_BC)
    assert result.sums == {"true_positives": 3.0, "wrong": 2.0}
    assert (result.num_correct, result.num_samples) == (2, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[2, 0], [0, 0]], "a label is 2"),
        ([[np.nan, 0], [0, 0]], "a label is nan"),
        ([[0, 0]], "shape"),
        ([0, 1], "shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        task_of(2).loss_and_gradient(np.zeros((2, 2), dtype=np.float32), np.array(labels, dtype=np.float32))
