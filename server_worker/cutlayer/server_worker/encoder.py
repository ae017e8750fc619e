"""The server side of the model: one timm Vision Transformer over the tokens of every modality, and the head.

Axes: B batch, N tokens of one modality, P prefix tokens (class and register tokens), S = P + N, T tokens of the
whole sequence, D width, C classes.

Early fusion is one sequence of all modalities, as in the paper's encoder (arXiv 2502.06355, section III):

    [prefix_a, tokens_a, prefix_b, tokens_b, ...] -> blocks -> one feature a modality -> mean -> head

Late fusion is one pass a modality through the same blocks, with the same mean and head. Modalities come in
alphabetical order, so that every party has the same sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from cutlayer.server_worker.held_tokenizers import HeldTokenizers
from cutlayer.server_worker.timm_import import VisionTransformer, resample_abs_pos_embed

__all__ = ["ModalityEmbedding", "SplitEncoder"]

Grid = tuple[int, int]


class ModalityEmbedding(nn.Module):
    """Turns a modality's tokens into its part of the sequence.

    Adds a position embedding, resampled from the ViT's grid to the modality's (as AST does, arXiv 2104.01778,
    section 2.2), prepends a copy of the ViT's prefix tokens, and adds the modality's embedding to all.

    Args:
        vit: Where positions and prefix tokens come from; left as it is.
        grid: Tokens down and across; N is their product.
    """

    def __init__(self, vit: VisionTransformer, grid: Grid) -> None:
        super().__init__()
        num_prefix = vit.num_prefix_tokens
        prefix = [token.detach() for token in (vit.cls_token, vit.reg_token) if token is not None]
        prefix_1PD = torch.cat(prefix, dim=1) if prefix else None
        position_1ND = None
        if vit.pos_embed is not None:
            num_placed = 0 if vit.no_embed_class else num_prefix
            position_1SD = resample_abs_pos_embed(
                vit.pos_embed.detach(),
                new_size=list(grid),
                old_size=list(vit.patch_embed.grid_size),
                num_prefix_tokens=num_placed,
            )
            position_1ND = position_1SD[:, num_placed:]
            if num_placed and prefix_1PD is not None:
                # A prefix token has one place for good, so its position is simply part of it.
                prefix_1PD = prefix_1PD + position_1SD[:, :num_placed]
        self.num_tokens = grid[0] * grid[1]
        self.prefix = None if prefix_1PD is None else nn.Parameter(prefix_1PD.clone())  # (1, P, D)
        self.position = None if position_1ND is None else nn.Parameter(position_1ND.clone())  # (1, N, D)
        self.modality = nn.Parameter(torch.empty(1, 1, vit.embed_dim))  # (1, 1, D)
        nn.init.trunc_normal_(self.modality, std=0.02)

    def forward(self, tokens_BND: Tensor, positions_BK: Tensor | None = None) -> Tensor:
        """Return (B, S, D).

        Args:
            tokens_BND: All N tokens, or K of them.
            positions_BK: Which ones: each gets the position embedding of its own place, so that a shorter sequence
                means what the whole one does. None for all.
        """
        x = tokens_BND
        if self.position is not None:
            x = x + (self.position if positions_BK is None else self.position[0][positions_BK])  # (B, K, D)
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)  # (B, S, D)
        return x + self.modality


class SplitEncoder(nn.Module):
    """A timm ViT's blocks, norms and pooling over the tokens of several modalities, and a linear head.

    Args:
        vit: A plain timm VisionTransformer (`cutlayer.server_worker.backbone.create_vit`). It is taken over: its
            patch embedding, position embedding, prefix tokens and head are removed from it.
        grids: Tokens down and across of each modality, by name.
        num_classes: C.
        fusion: `early` or `late`.

    Attributes:
        names: Modalities, in the order of the sequence.
        num_tokens: N of each modality.
        width: D.
        num_classes: C.
        tokenizers: The tokenizers, where they are trained; no part of the forward pass.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        grids: Mapping[str, Grid],
        *,
        num_classes: int,
        fusion: Literal["early", "late"] = "early",
    ) -> None:
        super().__init__()
        self.names = tuple(sorted(grids))
        self.num_tokens = {name: grids[name][0] * grids[name][1] for name in self.names}
        self.width = int(vit.embed_dim)
        self.num_classes = num_classes
        self.fusion = fusion
        # The suffix keeps modalities called "type" or "train" apart from nn.Module's own names.
        self.embeddings = nn.ModuleDict({f"{name}_tokens": ModalityEmbedding(vit, grids[name]) for name in self.names})
        self.token_norm = vit.patch_embed.norm  # an identity in all but a few models
        self.vit = _without_ends(vit)
        self.tokenizers: HeldTokenizers | None = None
        self.head = nn.Linear(self.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def no_weight_decay(self) -> set[str]:
        """Return patterns of the parameters that weight decay spares, as timm's models do: tokens, embeddings."""
        return {"embeddings.*"}

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        keep: Mapping[str, Tensor] | None = None,
        positions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Run a batch.

        Args:
            tokens: Activations (B, N, D) by modality. A modality that the whole batch lacks is left out, and the
                sequence is that much shorter.
            keep: Bool (B,) by modality: False hides the modality of that sample, as if the sample lacked it. At
                least one modality of each sample is kept. None keeps everything, without the cost of a mask.
            positions: (B, K) by modality, where only K of its tokens are there: which ones.

        Returns:
            Logits (B, C): the head over the mean feature of the modalities kept. The head is linear, so this is
            the mean of the modalities' logits too.
        """
        names = [name for name in self.names if name in tokens]
        keep_BM = None if keep is None else torch.stack([keep[name] for name in names], dim=1)
        places = positions or {}
        parts = [
            self.embeddings[f"{name}_tokens"](self.token_norm(tokens[name]), places.get(name)) for name in names
        ]  # (B, S, D) each
        parts = [self.vit.patch_drop(self.vit.pos_drop(part)) for part in parts]
        if self.fusion == "early":
            lengths = [part.shape[1] for part in parts]
            visible_B11T = None
            if keep_BM is not None:
                # True where a key may be seen; the same for every head and query.
                visible_B11T = keep_BM.repeat_interleave(torch.tensor(lengths, device=keep_BM.device), dim=1)[
                    :, None, None
                ]
            parts = list(torch.split(self._blocks(torch.cat(parts, dim=1), visible_B11T), lengths, dim=1))
        else:
            parts = [self._blocks(part, None) for part in parts]
        features_BMD = torch.stack([self.vit.forward_head(part, pre_logits=True) for part in parts], dim=1)
        return cast("Tensor", self.head(_mean_of_kept(features_BMD, keep_BM)))

    def _blocks(self, x_BTD: Tensor, visible_B11T: Tensor | None) -> Tensor:
        x_BTD = self.vit.norm_pre(x_BTD)
        for block in self.vit.blocks:
            x_BTD = block(x_BTD, attn_mask=visible_B11T)
        return cast("Tensor", self.vit.norm(x_BTD))


def _mean_of_kept(features_BMD: Tensor, keep_BM: Tensor | None) -> Tensor:
    if keep_BM is None:
        return features_BMD.mean(dim=1)
    share_BM = keep_BM.to(features_BMD.dtype)
    share_BM = share_BM / share_BM.sum(dim=1, keepdim=True)
    return (features_BMD * share_BM[:, :, None]).sum(dim=1)


def _without_ends(vit: VisionTransformer) -> VisionTransformer:
    """Remove what the agents (patch embedding) and `SplitEncoder` (the rest) hold instead."""
    vit.patch_embed = nn.Identity()
    vit.head = nn.Identity()
    vit.cls_token = vit.reg_token = vit.pos_embed = None
    return vit
