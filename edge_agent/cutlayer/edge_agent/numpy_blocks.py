"""The first blocks of a plain ViT in NumPy, forward alone: frozen ones at an agent without torch.

    from cutlayer.edge_agent.numpy_blocks import NumpyBlocks

    def build(spec, width, seed):
        return NumpyBlocks.read("vit_base.safetensors", blocks=2, num_heads=12)

Weights have timm's names. A block is `x + attention(norm(x))`, then `x + perceptron(norm(x))`, as in ViT (arXiv
2010.11929, equations 2 and 3), with layer scale where the weights have it.

Axes: B samples, H rows, W columns, C channels, P prefix tokens, N patches, S = P + N, D width, A heads, E = D / A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

__all__ = ["NumpyBlocks", "erf", "gelu", "layer_norm"]

Array = NDArray[np.float32]
LAYER_NORM_EPSILON = 1e-6
"""Of timm's ViTs."""
_KNOWN = ("norm1", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp.fc1", "mlp.fc2", "ls2")


class NumpyBlocks:
    """Patch embedding, positions, prefix tokens and the first blocks of a plain ViT, frozen.

    Args:
        weights: Of the ViT, by timm's names; those of later blocks are left alone.
        blocks: How many blocks.
        num_heads: Heads A of the attention.
        mean: Subtracted from pixels, which are scaled to 0..1: one number, or one a channel.
        std: Divides them afterwards.

    Raises:
        ValueError: When weights are missing, or are of blocks that are not plain.
    """

    def __init__(
        self,
        weights: Mapping[str, NDArray[Any]],
        blocks: int,
        num_heads: int,
        *,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        self._weights = {
            name: np.asarray(value, np.float32) for name, value in weights.items() if _is_early(name, blocks)
        }
        self._blocks = blocks
        self._num_heads = num_heads
        self._mean, self._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        for name in self._weights:
            if name.startswith("blocks.") and name.split(".", 2)[2].rpartition(".")[0] not in _KNOWN:
                raise ValueError(f"{name} is no part of a plain block: use FirstBlocks, which needs torch")
        lacking = [f"blocks.{index}.attn.qkv.weight" for index in range(blocks)] + ["patch_embed.proj.weight"]
        if lacking := [name for name in lacking if name not in self._weights]:
            raise ValueError(f"the weights have no {', '.join(lacking)}: name those of a timm ViT")
        prefix = [self._weights[name] for name in ("cls_token", "reg_token") if name in self._weights]
        self._prefix = np.concatenate(prefix, axis=1) if prefix else None

    @classmethod
    def read(cls, path: str | Path, blocks: int, num_heads: int, **normalization: Any) -> NumpyBlocks:
        """Read the weights of a safetensors file.

        Args:
            path: The file.
            blocks: How many blocks.
            num_heads: Heads of the attention.
            normalization: `mean` and `std`.
        """
        return cls(safetensors.numpy.load_file(path), blocks, num_heads, **normalization)

    def __call__(self, images: NDArray[Any]) -> Array:
        """Return tokens, float32 (B, S, D), of images (B, H, W, C), bytes or floats from 0 to 1."""
        pixels = images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images.astype(np.float32)
        x = self._embed((pixels - self._mean) / self._std)
        if "norm_pre.weight" in self._weights:
            x = self._norm("norm_pre", x)
        for index in range(self._blocks):
            name = f"blocks.{index}"
            x = x + self._scaled(f"{name}.ls1", self._attention(name, self._norm(f"{name}.norm1", x)))
            hidden = gelu(self._linear(f"{name}.mlp.fc1", self._norm(f"{name}.norm2", x)))
            x = x + self._scaled(f"{name}.ls2", self._linear(f"{name}.mlp.fc2", hidden))
        return x

    def _embed(self, pixels_BHWC: Array) -> Array:
        """Return (B, S, D): patches through the convolution, positions, prefix tokens in front."""
        kernel_DCHW = self._weights["patch_embed.proj.weight"]
        width, channels, down, across = kernel_DCHW.shape
        batch, height, columns, _ = pixels_BHWC.shape
        blocks = pixels_BHWC.reshape(batch, height // down, down, columns // across, across, channels)
        patches_BNP = blocks.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, channels * down * across)
        x = patches_BNP @ kernel_DCHW.reshape(width, -1).T
        if "patch_embed.proj.bias" in self._weights:
            x = x + self._weights["patch_embed.proj.bias"]
        if "patch_embed.norm.weight" in self._weights:
            x = self._norm("patch_embed.norm", x)
        position = self._weights.get("pos_embed")
        if position is not None and position.shape[1] == x.shape[1]:
            x = x + position
        if self._prefix is not None:
            x = np.concatenate([np.broadcast_to(self._prefix, (batch, *self._prefix.shape[1:])), x], axis=1)
        if position is not None and self._prefix is not None and position.shape[1] == x.shape[1]:
            x = x + position
        return x

    def _attention(self, block: str, x_BSD: Array) -> Array:
        batch, length, width = x_BSD.shape
        size = width // self._num_heads
        qkv = self._linear(f"{block}.attn.qkv", x_BSD).reshape(batch, length, 3, self._num_heads, size)
        queries, keys, values = qkv.transpose(2, 0, 3, 1, 4)  # (B, A, S, E) each
        scores_BASS = queries @ keys.swapaxes(2, 3) / np.float32(math.sqrt(size))
        scores_BASS = np.exp(scores_BASS - scores_BASS.max(axis=3, keepdims=True))
        mixed_BASE = scores_BASS / scores_BASS.sum(axis=3, keepdims=True) @ values
        return self._linear(f"{block}.attn.proj", mixed_BASE.transpose(0, 2, 1, 3).reshape(batch, length, width))

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Array) -> Array:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _scaled(self, name: str, x: Array) -> Array:
        scale = self._weights.get(f"{name}.gamma")
        return x if scale is None else x * scale


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    """Return x with mean 0 and variance 1 over its last axis, scaled and shifted (arXiv 1607.06450)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    normal: Array = centred / np.sqrt(variance + np.float32(LAYER_NORM_EPSILON)) * weight + bias
    return normal


def gelu(x: Array) -> Array:
    """Return `x Phi(x)` (arXiv 1606.08415), by the error function and not by the tanh that approximates it."""
    found: Array = (0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))).astype(np.float32)
    return found


def erf(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the error function, within 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    size = np.abs(x.astype(np.float64))
    t = 1.0 / (1.0 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    found: NDArray[np.float64] = np.sign(x) * (1.0 - series * np.exp(-size * size))
    return found


def _is_early(name: str, blocks: int) -> bool:
    """Return whether weights are of what comes before block `blocks`."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0]) < blocks
    return first in ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
