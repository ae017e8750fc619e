"""The tokenizers where agents train them: the worker holds their weights, and agents their samples.

They stand beside the encoder and take no part in its forward pass: their gradients come from the agents. But they are
parameters like all others, so that clipping, the optimizer, learning rates, a pool's sums, checkpoints and digests
treat them so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["HeldTokenizers", "held_name", "tokenizer_weights"]

_PREFIX = "tokenizers."
_SUFFIX = "_tokens"  # keeps modalities called "type" or "train" apart from nn.Module's own names


class HeldTokenizers(nn.ModuleDict):
    """The weights of all tokenizers.

    Args:
        tokenizer_file: The client side, from `model_builder.BuiltModel`.
        dtype: Of the parameters.
    """

    def __init__(self, tokenizer_file: bytes, dtype: torch.dtype) -> None:
        tensors = safetensors.torch.load(tokenizer_file)
        held: dict[str, nn.ParameterDict] = {}
        for name, tensor in sorted(tensors.items()):
            if tensor.is_floating_point():  # a vocabulary is none
                modality, _, part = name.rpartition(".")
                held.setdefault(f"{modality}{_SUFFIX}", nn.ParameterDict())[part] = nn.Parameter(tensor.to(dtype))
        super().__init__(held)


def held_name(parameter: str) -> str:
    """Return the name in the encoder of a parameter that the tokenizers' file calls `parameter`."""
    modality, _, part = parameter.rpartition(".")
    return f"{_PREFIX}{modality}{_SUFFIX}.{part}"


def tokenizer_weights(weights: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    """Return the tokenizers among an encoder's weights, float32 copies, as the tokenizers' file names them."""
    found = {}
    for name, value in weights.items():
        if name.startswith(_PREFIX):
            held, _, part = name.removeprefix(_PREFIX).rpartition(".")
            array = value.detach().cpu().numpy().astype(np.float32)
            found[f"{held.removesuffix(_SUFFIX)}.{part}"] = np.ascontiguousarray(array)
    return found
