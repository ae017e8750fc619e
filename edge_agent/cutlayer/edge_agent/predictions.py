"""What outputs say in a user's words: classes and probabilities, numbers in their units, the best matches.

Axes: B samples, C outputs, E dimensions of an embedding, Q queries, b of them, S items, k matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.tasks import ClassificationSpec, MultiLabelSpec, RegressionSpec, RetrievalSpec, TaskSpec

__all__ = ["Cell", "Column", "Match", "best_matches", "prediction_columns", "predictions"]

Cell = str | int | float | None
_ROWS_AT_ONCE = 512


class Column(NamedTuple):
    """A column of a file of predictions.

    Attributes:
        name: Its name.
        kind: What is in it.
    """

    name: str
    kind: Literal["text", "whole", "number"]


class Match(NamedTuple):
    """A sample that another was matched with.

    Attributes:
        sample: The one that is asked for.
        rank: Its place among the answers, from 1.
        found: The answer.
        similarity: Cosine of the angle between their embeddings.
    """

    sample: int
    rank: int
    found: int
    similarity: float


def prediction_columns(task: TaskSpec) -> tuple[Column, ...]:
    """Return the columns that a task's predictions have, besides those that name the row; of retrieval none."""
    match task:
        case ClassificationSpec():
            return (Column("predicted", "text"), *(Column(f"probability {name}", "number") for name in task.classes))
        case MultiLabelSpec():
            return tuple(Column(f"probability {name}", "number") for name in task.classes)
        case RegressionSpec():
            return tuple(Column(f"predicted {target.name}", "number") for target in task.targets)
        case RetrievalSpec():
            return ()


def predictions(task: TaskSpec, outputs_BC: NDArray[np.float32]) -> list[list[Cell]]:
    """Return the cells of each sample, in the order of `prediction_columns`.

    Args:
        task: What is learned: classification, multi-label or regression.
        outputs_BC: Logits, or standardized numbers.
    """
    outputs_BC = outputs_BC.astype(np.float64)
    if isinstance(task, ClassificationSpec):
        exponentials_BC = np.exp(outputs_BC - outputs_BC.max(axis=1, keepdims=True))
        shares_BC = exponentials_BC / exponentials_BC.sum(axis=1, keepdims=True)
        best_B = outputs_BC.argmax(axis=1)
        return [
            [task.classes[best], *shares_C] for best, shares_C in zip(best_B.tolist(), shares_BC.tolist(), strict=True)
        ]
    if isinstance(task, MultiLabelSpec):
        rows: list[list[Cell]] = np.exp(-np.logaddexp(0.0, -outputs_BC)).tolist()
        return rows
    assert isinstance(task, RegressionSpec), "embeddings are no predictions"
    means_C, stds_C = np.array([(target.mean, target.std) for target in task.targets]).T
    numbers: list[list[Cell]] = (outputs_BC * stds_C + means_C).tolist()
    return numbers


def best_matches(
    query_QE: NDArray[np.float32], item_SE: NDArray[np.float32], queries: Sequence[int], items: Sequence[int], best: int
) -> list[Match]:
    """Return the best few items of each query, by the cosine of their angle.

    Args:
        query_QE: Embeddings of one modality.
        item_SE: Embeddings of the other.
        queries: Numbers of the samples that the first are of.
        items: Numbers of those that the second are of.
        best: Matches of each query.
    """
    query_QE, item_SE = _unit(query_QE), _unit(item_SE)
    num_best = min(best, len(items))
    found: list[Match] = []
    for start in range(0, len(queries), _ROWS_AT_ONCE):
        cosines_bS = query_QE[start : start + _ROWS_AT_ONCE] @ item_SE.T
        # Equal ones in the order of the data: the same file comes of the same embeddings.
        best_bk = np.argsort(-cosines_bS, axis=1, kind="stable")[:, :num_best]
        for place, (best_k, cosines_S) in enumerate(zip(best_bk, cosines_bS, strict=True)):
            found += [
                Match(queries[start + place], rank, items[int(item)], float(cosines_S[item]))
                for rank, item in enumerate(best_k, 1)
            ]
    return found


def _unit(embeddings_SE: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_S1 = np.linalg.norm(embeddings_SE, axis=1, keepdims=True)
    unit_SE: NDArray[np.float32] = embeddings_SE / np.maximum(lengths_S1, np.finfo(np.float32).tiny)
    return unit_SE
