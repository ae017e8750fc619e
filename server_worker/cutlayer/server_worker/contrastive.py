"""The loss of image-text retrieval and its like, at the worker: who belongs together is implied by position.

InfoNCE (van den Oord et al., arXiv 1807.03748) in both directions, as CLIP (arXiv 2103.00020, figure 3): each sample's
own partner against those of all samples of the window. An agent alone has only its microbatch's for negatives; the
worker has everybody's, and no label is revealed by that.

The embeddings of a window come from several graphs. The gradient at the embeddings needs no graph, so it is computed
once for the whole window when it closes, and each graph then gets its own rows of it (GradCache, arXiv 2101.06983).

Axes: W samples of a window, B samples of a group, E dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["WindowContrast", "info_nce"]


def info_nce(embeddings_W2E: Tensor) -> Tensor:
    """Return each sample's loss, (W,), in nats: the mean of both directions; 0 for one that lacks a modality.

    Args:
        embeddings_W2E: Both embeddings of each sample, one after the other; their dot products are the logits.
    """
    first_WE, second_WE = embeddings_W2E.chunk(2, dim=1)
    # Embeddings have a length, but for those of what a sample lacks: it has no partner, and is nobody's negative.
    is_pair_W = (first_WE.detach() != 0).any(dim=1) & (second_WE.detach() != 0).any(dim=1)
    pairs_w = is_pair_W.nonzero()[:, 0]
    logits_ww = first_WE[pairs_w] @ second_WE[pairs_w].T
    partner_w = torch.arange(len(pairs_w), device=pairs_w.device)
    forth_w = torch.nn.functional.cross_entropy(logits_ww, partner_w, reduction="none")
    back_w = torch.nn.functional.cross_entropy(logits_ww.T, partner_w, reduction="none")
    return torch.zeros_like(first_WE[:, 0]).index_put((pairs_w,), 0.5 * (forth_w + back_w))


@dataclass(slots=True)
class _Waiting:
    outputs_B2E: Tensor  # with its graph
    parameters: Sequence[Tensor]  # that it was computed with
    rows: list[slice] = field(default_factory=list)
    is_last: bool = False


class WindowContrast:
    """The open window's embeddings, whose gradient is computed when it closes.

    Args:
        add: Takes the gradients of a graph's parameters, in their order; returns whether they are finite.
    """

    def __init__(self, add: Callable[[Sequence[Tensor | None]], bool]) -> None:
        self._add = add
        self._waiting: dict[int, _Waiting] = {}

    @property
    def num_graphs(self) -> int:
        """Groups whose graphs are kept for the window."""
        return len(self._waiting)

    def collect(
        self, group: int, outputs_B2E: Tensor, parameters: Sequence[Tensor], rows: Sequence[slice], *, is_last: bool
    ) -> None:
        """Take microbatches of a group into the window.

        Args:
            group: Names it.
            outputs_B2E: Its embeddings, with their graph.
            parameters: What their gradient is wanted of.
            rows: Which of its samples.
            is_last: Whether nothing else of it will come: its graph is then freed when the window closes.
        """
        waiting = self._waiting.setdefault(group, _Waiting(outputs_B2E, parameters))
        waiting.rows += rows
        waiting.is_last |= is_last

    def close(self) -> bool:
        """Add the gradients of the whole window; return whether all of them are finite."""
        groups, self._waiting = list(self._waiting.values()), {}
        if not groups:
            return True
        rows = [(group, row) for group in groups for row in group.rows]
        leaf_W2E = torch.cat([group.outputs_B2E.detach()[row] for group, row in rows]).requires_grad_()
        (gradient_W2E,) = torch.autograd.grad(info_nce(leaf_W2E).sum(), leaf_W2E)
        pieces = torch.split(gradient_W2E, [row.stop - row.start for _, row in rows])
        by_group: dict[int, Tensor] = {
            id(group): torch.zeros_like(group.outputs_B2E, requires_grad=False) for group in groups
        }
        for (group, row), piece in zip(rows, pieces, strict=True):
            by_group[id(group)][row] = piece
        is_finite = True
        for group in groups:
            found = torch.autograd.grad(
                group.outputs_B2E,
                tuple(group.parameters),
                by_group[id(group)],
                retain_graph=not group.is_last,
                allow_unused=True,
            )
            is_finite &= self._add(found)
        return is_finite

    def drop(self) -> None:
        """Forget the window."""
        self._waiting.clear()
