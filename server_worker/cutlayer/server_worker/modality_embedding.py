"""What the encoder adds to a modality's tokens: their places, prefix tokens in front, and which modality it is.

Axes: B batch, N tokens of one modality, K of them that came, P prefix tokens (class and register tokens), S = P + N,
D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cutlayer.server_worker.timm_import import VisionTransformer, resample_abs_pos_embed

__all__ = ["Grid", "ModalityEmbedding", "Order"]

Grid = tuple[int, int]
Order = Literal["grid", "line", "set"]


class ModalityEmbedding(nn.Module):
    """Turns a modality's tokens into its part of the sequence.

    Adds a position embedding, prepends a copy of the ViT's prefix tokens, and adds the modality's embedding to all.
    Positions of a plane are resampled from the ViT's (as AST does, arXiv 2104.01778, section 2.2); those of a line, as
    words and time are, are new, since a plane's rows mean nothing there; a set, as columns of a table are, has none.

    Args:
        vit: Where positions and prefix tokens come from; left as it is.
        grid: Tokens down and across; N is their product.
        order: What the places of its tokens are: a `grid`, a `line` or a `set`.
        has_missing: Whether it has a token that stands in for the modality where a sample lacks it.
        is_inside: Whether tokens come from blocks at the agents, where all this has been added: nothing is, then.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        grid: Grid,
        *,
        order: Order = "grid",
        has_missing: bool = False,
        is_inside: bool = False,
    ) -> None:
        super().__init__()
        self.num_tokens = grid[0] * grid[1]
        self.prefix: nn.Parameter | None = None  # (1, P, D)
        self.position: nn.Parameter | None = None  # (1, N, D)
        self.modality: nn.Parameter | None = None  # (1, 1, D)
        self.missing: nn.Parameter | None = None  # (1, 1, D)
        if is_inside:
            return
        num_prefix = vit.num_prefix_tokens
        prefix = [token.detach() for token in (vit.cls_token, vit.reg_token) if token is not None]
        prefix_1PD = torch.cat(prefix, dim=1) if prefix else None
        position_1ND = None
        if vit.pos_embed is not None:
            num_placed = 0 if vit.no_embed_class else num_prefix
            position_1SD = vit.pos_embed.detach()
            if order == "grid":
                position_1SD = resample_abs_pos_embed(
                    position_1SD,
                    new_size=list(grid),
                    old_size=list(vit.patch_embed.grid_size),
                    num_prefix_tokens=num_placed,
                )
                position_1ND = position_1SD[:, num_placed:]
            elif order == "line":
                position_1ND = nn.init.trunc_normal_(torch.empty(1, grid[0] * grid[1], vit.embed_dim), std=0.02)
            if num_placed and prefix_1PD is not None:
                # A prefix token has one place for good, so its position is simply part of it.
                prefix_1PD = prefix_1PD + position_1SD[:, :num_placed]
        self.prefix = None if prefix_1PD is None else nn.Parameter(prefix_1PD.clone())
        self.position = None if position_1ND is None else nn.Parameter(position_1ND.clone())
        self.modality = nn.Parameter(torch.empty(1, 1, vit.embed_dim))
        nn.init.trunc_normal_(self.modality, std=0.02)
        if has_missing:
            self.missing = nn.Parameter(torch.empty(1, 1, vit.embed_dim))
            nn.init.trunc_normal_(self.missing, std=0.02)

    def forward(self, tokens_BND: Tensor, positions_BK: Tensor | None = None) -> Tensor:
        """Return (B, S, D).

        Args:
            tokens_BND: All N tokens, or K of them.
            positions_BK: Which ones: each gets the position embedding of its own place, so that a shorter sequence
                means what the whole one does; N for none. None for all.
        """
        x = tokens_BND
        if self.position is not None:
            x = x + (self.position if positions_BK is None else self._at(positions_BK))  # (B, K, D)
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)  # (B, S, D)
        return x if self.modality is None else x + self.modality

    def _at(self, positions_BK: Tensor) -> Tensor:
        """Return the position embeddings of some places, (B, K, D); zeros for none."""
        assert self.position is not None
        places_SD = torch.cat([self.position[0], self.position.new_zeros(1, self.position.shape[2])])
        return places_SD[positions_BK]
