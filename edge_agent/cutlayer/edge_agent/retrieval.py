"""Retrieval at the agent: which sample of one modality belongs to which of another. No targets: position says it.

With the window's samples for negatives the loss is the worker's, and the agent only passes it on. With its own, as in
the paper (arXiv 2502.06355), it is InfoNCE (arXiv 1807.03748) over the microbatch, in both directions. Dot products of
outputs are logits: the temperature is in them.

Axes: B samples, b those that have both modalities, E dimensions of an embedding, S samples of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.task_metrics import RECALL_AT
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.loss_result import LossResult

__all__ = ["Retrieval", "recall_sums"]

_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Retrieval:
    """Pairs of two modalities.

    Args:
        spec: The task.
    """

    spec: RetrievalSpec

    @property
    def name(self) -> str:
        """The loss's name, for people."""
        return "InfoNCE"

    def batch(self, samples: Sequence[Targets]) -> NDArray[np.int64]:
        """Return a zero for each sample, int64 (B): there are no targets."""
        return np.zeros(len(samples), np.int64)

    def loss_and_gradient(self, outputs_BC: NDArray[np.float32], targets: Targets) -> LossResult:
        """Return the summed loss and its gradient.

        Args:
            outputs_BC: Both embeddings, (B, 2 E); or, of a training step whose loss is the worker's, (B, 1).
            targets: One a sample, of any value.

        Raises:
            SettingsError: When the shapes do not fit each other.
        """
        if outputs_BC.ndim != 2 or len(outputs_BC) != len(targets) or outputs_BC.size == 0:
            raise SettingsError(
                f"outputs of shape {outputs_BC.shape} for {len(targets)} samples do not fit", "give a row a sample"
            )
        if outputs_BC.shape[1] == 1:
            return LossResult(float(outputs_BC.sum()), np.zeros_like(outputs_BC), 0, len(outputs_BC))
        gradient_BC = np.zeros_like(outputs_BC)
        pairs_B = _are_pairs(outputs_BC)
        if not pairs_B.any():
            return LossResult(0.0, gradient_BC, 0, 0)
        with np.errstate(invalid="ignore"):
            first_bE, second_bE = np.split(outputs_BC[pairs_B].astype(np.float64), 2, axis=1)
            logits_bb = first_bE @ second_bE.T
            forth_b, forth_bb = _cross_entropy(logits_bb)
            back_b, back_bb = _cross_entropy(logits_bb.T)
            gradient_bb = 0.5 * (forth_bb + back_bb.T)
            gradient_BC[pairs_B] = np.concatenate([gradient_bb @ second_bE, gradient_bb.T @ first_bE], axis=1)
        return LossResult(
            loss_sum=float(0.5 * (forth_b + back_b).sum()),
            gradient_BC=gradient_BC,
            num_correct=0,
            num_samples=int(pairs_B.sum()),
            embeddings_BC=outputs_BC[pairs_B],
        )


def recall_sums(embeddings: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Return how many samples have their partner among the best of all, both ways.

    Args:
        embeddings: Both embeddings of the samples of an evaluation, (B, 2 E) a microbatch.

    Returns:
        `forth.1`: samples whose second embedding is nearer to their first than any other sample's is; `back.1`: the
        other way round; and those among the best 5 and 10. A tie counts against the sample.
    """
    first_SE, second_SE = np.split(np.concatenate(embeddings), 2, axis=1)
    sums: dict[str, float] = {}
    for way, query_SE, item_SE in (("forth", first_SE, second_SE), ("back", second_SE, first_SE)):
        ranks = [
            _ranks(query_SE[start : start + _ROWS_AT_ONCE], item_SE, start)
            for start in range(0, len(query_SE), _ROWS_AT_ONCE)
        ]
        ranks_S = np.concatenate(ranks)
        sums |= {f"{way}.{best}": float((ranks_S <= best).sum()) for best in RECALL_AT}
    return sums


def _are_pairs(outputs_BC: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which samples have both embeddings, bool (B): what a sample lacks has zeros, and all else a length."""
    first_BE, second_BE = np.split(outputs_BC, 2, axis=1)
    pairs_B: NDArray[np.bool_] = (first_BE != 0).any(axis=1) & (second_BE != 0).any(axis=1)
    return pairs_B


def _ranks(query_bE: NDArray[np.float32], item_SE: NDArray[np.float32], start: int) -> NDArray[np.intp]:
    """Return the place of each query's own item, (b,), from 1 on; its own is that of the same number."""
    scores_bS = query_bE @ item_SE.T
    rows_b = np.arange(len(query_bE))
    own_b = scores_bS[rows_b, start + rows_b].copy()
    ranks_b: NDArray[np.intp] = (scores_bS >= own_b[:, None]).sum(axis=1)
    return ranks_b


def _cross_entropy(logits_BB: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the loss of each row, whose own column is right, and its gradient."""
    shifted_BB = logits_BB - logits_BB.max(axis=1, keepdims=True)
    exponentials_BB = np.exp(shifted_BB)
    normalizer_B1 = exponentials_BB.sum(axis=1, keepdims=True)
    rows_B = np.arange(len(logits_BB))
    loss_B = np.log(normalizer_B1[:, 0]) - shifted_BB[rows_B, rows_B]
    gradient_BB = exponentials_BB / normalizer_B1
    gradient_BB[rows_B, rows_B] -= 1.0
    return loss_B, gradient_BB
