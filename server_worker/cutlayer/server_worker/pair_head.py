"""The head of a retrieval run: each modality of a pair has an embedding, whose dot product says how well they match.

As CLIP (Radford et al., arXiv 2103.00020, section 2.3): a linear projection a modality, unit length, and a learned
temperature. Half of the temperature's logarithm is in each embedding, so that whoever has the outputs needs nothing
else, and the temperature learns from their gradient like any other parameter.

Axes: B batch, M modalities given, D width, E dimensions of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PairHead"]

_FIRST_SCALE = 1 / 0.07
_LARGEST_SCALE = 100.0


class PairHead(nn.Linear):
    """Embeds both modalities.

    Args:
        width: D.
        names: The two modalities, in the order of the outputs.
        dimensions: E.
    """

    def __init__(self, width: int, names: Sequence[str], dimensions: int) -> None:
        super().__init__(width, len(names) * dimensions, bias=False)
        nn.init.normal_(self.weight, std=width**-0.5)
        self.names = tuple(names)
        self.dimensions = dimensions
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))

    def embed(self, features_BMD: Tensor, given: Sequence[str], keep_BM: Tensor | None) -> Tensor:
        """Return the embeddings of both modalities one after the other, (B, 2 E); zeros for what is not there.

        Args:
            features_BMD: A feature for each modality given.
            given: Their names.
            keep_BM: Which of them each sample has; None for all.
        """
        root_of_scale = (0.5 * self.log_scale.clamp(max=math.log(_LARGEST_SCALE))).exp()
        parts: list[Tensor] = []
        for place, name in enumerate(self.names):
            if name not in given:
                parts.append(features_BMD.new_zeros(len(features_BMD), self.dimensions))
                continue
            column = list(given).index(name)
            weight_ED = self.weight[place * self.dimensions : (place + 1) * self.dimensions]
            embedding_BE = nn.functional.normalize(features_BMD[:, column] @ weight_ED.T, dim=1) * root_of_scale
            parts.append(embedding_BE if keep_BM is None else embedding_BE * keep_BM[:, column, None])
        return torch.cat(parts, dim=1)
