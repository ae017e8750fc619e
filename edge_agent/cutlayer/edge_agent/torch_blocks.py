"""The first blocks of a ViT at an agent: images to the tokens that its later blocks take. A part of a user's tokenizer.

    import timm
    from cutlayer.edge_agent.torch_blocks import FirstBlocks

    def build(spec, width, seed):
        weights = {"file": "vit_base.safetensors"}
        vit = timm.create_model("vit_base_patch16_224", pretrained=True, pretrained_cfg_overlay=weights)
        return FirstBlocks(vit, blocks=2, mean=0.5, std=0.5)

The worker's encoder then begins behind them (`[model] first_block = 2`), and adds nothing: position and prefix tokens
(class and register tokens) are added here, before the first block, and travel with the others, in front of them.

Axes: B samples, H rows, W columns, C channels, P prefix tokens, N patches, S = P + N, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["FirstBlocks"]


class FirstBlocks(nn.Module):
    """Patch embedding, positions, prefix tokens and the first blocks of a timm VisionTransformer.

    Args:
        vit: The model; its parts are used, not copied.
        blocks: How many blocks, k: from 1 to all but one.
        mean: Subtracted from pixels, which are scaled to 0..1: one number, or one a channel.
        std: Divides them afterwards.

    Raises:
        ValueError: When the model has fewer blocks.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, vit: Any, blocks: int, *, mean: float | Sequence[float] = 0.5, std: float | Sequence[float] = 0.5
    ) -> None:
        super().__init__()
        depth = len(vit.blocks)
        if not 1 <= blocks < depth:
            raise ValueError(f"blocks = {blocks} of a model that has {depth}: take 1 to {depth - 1}")
        self.patch_embed: nn.Module = vit.patch_embed
        self.norm_pre: nn.Module = vit.norm_pre
        self.blocks = nn.Sequential(*list(vit.blocks)[:blocks])
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        self.prefix = None if not prefix else nn.Parameter(torch.cat([token.detach() for token in prefix], dim=1))
        self.position = None if vit.pos_embed is None else nn.Parameter(vit.pos_embed.detach().clone())
        self._places_prefix = not vit.no_embed_class
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    @property
    def num_prefix_tokens(self) -> int:
        """Prefix tokens P."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return tokens (B, S, D) of images (B, H, W, C), bytes or floats from 0 to 1."""
        pixels = images if images.is_floating_point() else images.float() / 255
        normal_BHWC = (pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype)
        x_BND = self.patch_embed(normal_BHWC.permute(0, 3, 1, 2))
        prefix_BPD = None if self.prefix is None else self.prefix.expand(len(images), -1, -1)
        if self.position is not None and (prefix_BPD is None or not self._places_prefix):
            x_BND = x_BND + self.position
        x_BSD = x_BND if prefix_BPD is None else torch.cat([prefix_BPD, x_BND], dim=1)
        if self.position is not None and prefix_BPD is not None and self._places_prefix:
            x_BSD = x_BSD + self.position
        return cast("Tensor", self.blocks(self.norm_pre(x_BSD)))
