"""The tokenizers as PyTorch modules: for the uncut model, which split training has to equal.

Each takes what `features` of its twin at the agent gives, and has parameters of the same names and shapes.

Axes: B batch, N tokens, P values of a patch, V tokens of a vocabulary, F columns, D width.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TorchTokenizer", "torch_tokenizer"]


class TorchTokenizer(nn.Module, abc.ABC):
    """One modality's map from features to tokens.

    Args:
        parts: Its parameters, by part.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__()
        for part, tensor in parts.items():
            self.register_parameter(part, nn.Parameter(tensor))

    def presence(self, features: Tensor) -> Tensor | None:
        """Return which tokens are there, bool (B, N); None where all always are."""
        del features
        return None

    @abc.abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Return tokens (B, N, D); zeros where there is none."""


class _Patches(TorchTokenizer):
    weight: Tensor  # (P, D)
    bias: Tensor  # (D)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


class _SeriesPatches(_Patches):
    def presence(self, features: Tensor) -> Tensor | None:
        return ~features[:, :, 0].isnan()

    def forward(self, features: Tensor) -> Tensor:
        present_BN1 = ~features[:, :, :1].isnan()
        return torch.where(present_BN1, super().forward(features.nan_to_num(nan=0.0)), 0.0)


class _Words(TorchTokenizer):
    embedding: Tensor  # (V, D)

    def presence(self, features: Tensor) -> Tensor | None:
        return features >= 0

    def forward(self, features: Tensor) -> Tensor:
        ids_BN = features.long()
        return torch.where((ids_BN >= 0)[:, :, None], self.embedding[ids_BN.clamp(min=0)], 0.0)


class _Cells(TorchTokenizer):
    bias: Tensor  # (F, D)

    def __init__(self, spec: Any, parts: Mapping[str, Tensor]) -> None:
        super().__init__(parts)
        self._num_numbers = len(spec.columns)
        sizes = [len(category.values) for category in spec.categories]
        self._first_rows = [sum(sizes[:place]) for place in range(len(sizes))]

    def presence(self, features: Tensor) -> Tensor | None:
        return ~features.isnan()

    def forward(self, features: Tensor) -> Tensor:
        cells_BF = features.nan_to_num(nan=0.0)
        tokens = []
        if self._num_numbers:
            tokens.append(cells_BF[:, : self._num_numbers, None] * self.get_parameter("weight"))
        if self._first_rows:
            rows = cells_BF[:, self._num_numbers :].long() + torch.tensor(self._first_rows)
            tokens.append(self.get_parameter("embedding")[rows])
        return torch.where(features.isnan()[:, :, None], 0.0, torch.cat(tokens, dim=1) + self.bias)


class _Tokens(TorchTokenizer):
    """Tokens that a site's own tokenizer has made."""

    def forward(self, features: Tensor) -> Tensor:
        return features


def torch_tokenizer(modality: str, spec: Any, weights: Mapping[str, Tensor], dtype: torch.dtype) -> TorchTokenizer:
    """Build the tokenizer of one modality.

    Args:
        modality: Its name, the prefix of its weights' names.
        spec: Its specification, or anything with the same attributes.
        weights: Has `<modality>.<part>` for each of its parts.
        dtype: Of the parameters.
    """
    of_modality = {name.removeprefix(f"{modality}."): tensor for name, tensor in weights.items()}
    parts = {
        part: of_modality[part].to(dtype) for part in ("bias", "embedding", "weight") if f"{modality}.{part}" in weights
    }
    if spec.kind == "text":
        return _Words(parts)
    if spec.kind == "tokens":
        return _Tokens({})
    if spec.kind == "series":
        return _SeriesPatches(parts)
    return _Cells(spec, parts) if spec.kind == "table" else _Patches(parts)
