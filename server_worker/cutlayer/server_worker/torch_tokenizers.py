"""The tokenizers as PyTorch modules: for the uncut model, which split training has to equal.

Each takes what `features` of its twin at the agent gives, and has parameters of the same names and shapes.

Axes: B batch, N tokens, P values of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cutlayer.broker.modalities import ModalitySpec

__all__ = ["TorchTokenizer", "torch_tokenizer"]


class TorchTokenizer(nn.Module):
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

    def forward(self, features: Tensor) -> Tensor:
        """Return tokens (B, N, D); zeros where there is none."""
        raise NotImplementedError


class _Patches(TorchTokenizer):
    weight: Tensor
    bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


def torch_tokenizer(
    modality: str, spec: ModalitySpec, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> TorchTokenizer:
    """Build the tokenizer of one modality.

    Args:
        modality: Its name, the prefix of its weights' names.
        spec: Its specification.
        weights: Has `<modality>.<part>` for each part that `spec` names.
        dtype: Of the parameters.
    """
    parts = {part: weights[f"{modality}.{part}"].to(dtype) for part in spec.parameter_shapes(1)}
    return _Patches(parts)
