"""Low-rank additions to linear maps (LoRA, arXiv 2106.09685, section 4.1): W x + alpha / rank * B A x, W frozen.

B begins at zero, so that the model begins as it was, and A is random (normal, as in the paper; its variance keeps that
of x). Both are applied to x, one after the other: adding B A to W first would need the gradient of all of W in each
backward pass, which is most of what LoRA spares.

Axes: I input width, O output width, R rank, T all tokens; `...` whatever stands before the width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LoraLinear", "merged_weights"]


class LoraLinear(nn.Linear):
    """A linear map with a low-rank addition; its own weight and bias are the given map's, under the same names.

    Args:
        base: The map; its parameters are taken over, and frozen.
        rank: R.
        alpha: The addition counts alpha / rank times.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(
            base.in_features, base.out_features, bias="bias" in dict(base.named_parameters()), device="meta"
        )
        for name, parameter in base.named_parameters():
            setattr(self, name, parameter.requires_grad_(False))
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))  # (R, I)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))  # (O, R)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return (..., O) of (..., I)."""
        low = functional.linear(input, self.lora_a).flatten(0, -2) * self.scale  # (T, R)
        outputs = functional.linear(input, self.weight, self.bias)
        # Added where the product is made: one pass over the outputs instead of three.
        return torch.addmm(outputs.flatten(0, -2), low, self.lora_b.T).view(outputs.shape)

    def merged_weight(self) -> Tensor:
        """Return the weight (O, I) of the one linear map that does the same."""
        return self.weight + self.scale * (self.lora_b @ self.lora_a)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers with the additions in the weights: what loads into the model without any.

    Copies, which later steps do not change.
    """
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            prefix = f"{name}." if name else ""
            weights[f"{prefix}weight"] = module.merged_weight().detach().clone()
            del weights[f"{prefix}lora_a"], weights[f"{prefix}lora_b"]
    return weights
