"""Retrieval at the agent: the loss of its own pairs, and whose partner is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import MetricSums
from cutlayer.broker.task_metrics import is_plausible, metric_values, metrics_of, primary_metric
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.edge_agent.retrieval import Retrieval, recall_sums
from cutlayer.server_worker.contrastive import info_nce

SPEC = RetrievalSpec(between=("image", "text"), dimensions=4, negatives="agent")


def outputs(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num_samples, 8)).astype(np.float32)


def test_loss_and_gradient_are_those_of_the_worker() -> None:
    outputs_BC = outputs(6)
    leaf = torch.from_numpy(outputs_BC.astype(np.float64)).requires_grad_()
    loss = info_nce(leaf).sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    result = Retrieval(SPEC).loss_and_gradient(outputs_BC, np.zeros(6, np.int64))
    assert result.loss_sum == pytest.approx(loss.item())
    np.testing.assert_allclose(result.gradient_BC, gradient.numpy(), atol=1e-6)
    assert result.num_samples == 6


def test_a_sample_that_lacks_a_modality_counts_for_nothing() -> None:
    outputs_BC = outputs(5)
    outputs_BC[2, :4] = 0
    task, others = Retrieval(SPEC), np.delete(outputs_BC, 2, axis=0)
    result = task.loss_and_gradient(outputs_BC, np.zeros(5, np.int64))
    alone = task.loss_and_gradient(others, np.zeros(4, np.int64))
    assert result.loss_sum == pytest.approx(alone.loss_sum)
    assert result.num_samples == 4
    assert not result.gradient_BC[2].any()
    np.testing.assert_allclose(np.delete(result.gradient_BC, 2, axis=0), alone.gradient_BC)


def test_a_microbatch_without_any_pair_has_no_loss() -> None:
    outputs_BC = outputs(3)
    outputs_BC[:, 4:] = 0
    result = Retrieval(SPEC).loss_and_gradient(outputs_BC, np.zeros(3, np.int64))
    assert (result.loss_sum, result.num_samples) == (0.0, 0)
    assert not result.gradient_BC.any()


def test_losses_that_the_worker_computed_are_passed_on() -> None:
    losses_B1 = np.array([[0.5], [1.5]], np.float32)
    result = Retrieval(SPEC).loss_and_gradient(losses_B1, np.zeros(2, np.int64))
    assert (result.loss_sum, result.num_samples, result.gradient_BC.tolist()) == (2.0, 2, [[0.0], [0.0]])


def test_outputs_of_other_samples_are_refused() -> None:
    with pytest.raises(SettingsError, match="3 samples"):
        Retrieval(SPEC).loss_and_gradient(outputs(2), np.zeros(3, np.int64))


def test_recall_counts_who_finds_the_partner_among_the_best() -> None:
    first_SE = np.eye(4, dtype=np.float32)
    # The second finds the third's before its own, and the other way round; the others find their own.
    second_SE = first_SE[[0, 2, 1, 3]]
    second_SE[1:3] += 0.5 * first_SE[1:3]
    sums = recall_sums([np.concatenate([first_SE, second_SE], axis=1)[:3], np.eye(4, 8, dtype=np.float32)[:0]])
    assert sums == {"forth.1": 1.0, "forth.5": 3.0, "forth.10": 3.0, "back.1": 1.0, "back.5": 3.0, "back.10": 3.0}


def test_embeddings_that_are_all_the_same_find_nobody() -> None:
    sums = recall_sums([np.ones((20, 8), np.float32)])
    assert set(sums.values()) == {0.0}


def test_many_samples_are_ranked_as_few_are() -> None:
    embeddings_SC = outputs(1_100)
    first_SE, second_SE = embeddings_SC[:, :4], embeddings_SC[:, 4:]
    scores_SS = first_SE @ second_SE.T
    ranks_S = (scores_SS >= np.diag(scores_SS)[:, None]).sum(axis=1)
    assert recall_sums([embeddings_SC[:700], embeddings_SC[700:]])["forth.10"] == (ranks_S <= 10).sum()


def test_pooled_sums_give_recall_both_ways() -> None:
    names = [metric.name for metric in metrics_of(SPEC)]
    assert primary_metric(SPEC).name == "recall_1"
    sums = MetricSums(3.0, 0, 10, (("back.1", 2.0), ("back.5", 6.0), ("forth.1", 4.0), ("forth.5", 8.0)))
    values = metric_values(SPEC, sums)
    assert values == {
        "recall_1": pytest.approx(0.3),
        "recall_5": pytest.approx(0.7),
        "recall_1.image-to-text": 0.4,
        "recall_5.image-to-text": 0.8,
        "recall_1.text-to-image": 0.2,
        "recall_5.text-to-image": 0.6,
    }
    assert set(values) <= set(names)
    assert is_plausible(SPEC, sums)
    assert not is_plausible(SPEC, MetricSums(3.0, 0, 10, (("forth.1", 11.0),)))
    assert not is_plausible(SPEC, MetricSums(3.0, 0, 10, (("sideways.1", 1.0),)))
