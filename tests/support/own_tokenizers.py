"""Tokenizers as a site may bring them: torch modules from raw samples to tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cutlayer.broker.modalities import TokensSpec
from cutlayer.edge_agent.torch_blocks import FirstBlocks
from cutlayer.server_worker.timm_import import create_model

__all__ = [
    "Convolutions",
    "build",
    "fails",
    "gives_nothing",
    "halves",
    "no_module",
    "nothing",
    "small_vit",
    "too_few",
    "two_blocks",
]


class Convolutions(nn.Module):
    """Two convolutions over grey images (B, H, W, 1) of bytes, to a token for each 2 x 2 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, width, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        pixels_B1HW = images.to(self.first.weight.dtype).permute(0, 3, 1, 2) / 255
        hidden = nn.functional.gelu(self.norm(self.first(pixels_B1HW)))
        tokens: Tensor = self.second(hidden).flatten(2).transpose(1, 2)
        return tokens


def build(spec: TokensSpec, width: int, seed: int) -> nn.Module:
    del spec, seed
    return Convolutions(width)


def fails(spec: TokensSpec, width: int, seed: int) -> nn.Module:
    del spec, width, seed
    raise RuntimeError("no weights today")


def no_module(spec: TokensSpec, width: int, seed: int) -> Any:
    del spec, width, seed
    return "a string"


class _Wrong(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * torch.zeros(len(images), 3, 16) / self.share


def too_few(spec: TokensSpec, width: int, seed: int) -> nn.Module:
    del spec, width, seed
    return _Wrong(1.0)


def gives_nothing(spec: TokensSpec, width: int, seed: int) -> nn.Module:
    del spec, width, seed
    return _Wrong(0.0)


def small_vit() -> Any:
    """Return a ViT of the small run's kind, of three blocks; drawn from torch's global generator."""
    return create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=4, patch_size=2, in_chans=1, embed_dim=16, depth=3, num_heads=2
    )


def two_blocks(spec: TokensSpec, width: int, seed: int) -> nn.Module:
    del spec, width, seed
    return FirstBlocks(small_vit(), 2)


def halves(spec: TokensSpec, width: int, seed: int) -> Any:
    """A factory as a site without torch has it: a callable of arrays."""
    del seed
    return lambda raw: np.full((len(raw), spec.num_tokens, width), 0.5)


def nothing(spec: TokensSpec, width: int, seed: int) -> Any:
    del spec, width, seed
    return lambda raw: np.full((len(raw), 1, 1), np.nan)
