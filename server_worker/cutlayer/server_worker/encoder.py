"""The server side of the model: one timm Vision Transformer over the tokens of every modality, and the head.

Axes: B batch, N tokens of one modality, P prefix tokens (class and register tokens), S = P + N, T tokens of the
whole sequence, D width, C classes.

Early fusion is one sequence of all modalities, as in the paper's encoder (arXiv 2502.06355, section III):

    [prefix_a, tokens_a, prefix_b, tokens_b, ...] -> blocks -> one feature a modality -> mean -> head

Late fusion is one pass a modality through the same blocks, with the same mean and head. Modalities come in
alphabetical order, so that every party has the same sequence.

What a sample lacks (a modality, the tokens behind a text's end, an empty cell) is hidden from attention and left out of
the pooling and of the mean. With `missing = "token"` a learned token of the modality stands in for all that it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.server_worker.held_tokenizers import HeldTokenizers
from cutlayer.server_worker.modality_embedding import Grid, ModalityEmbedding, Order
from cutlayer.server_worker.pair_head import PairHead
from cutlayer.server_worker.timm_import import VisionTransformer
from cutlayer.server_worker.visible_tokens import drop_patches, kept_modalities, pool

__all__ = ["SplitEncoder"]


class SplitEncoder(nn.Module):
    """A timm ViT's blocks, norms and pooling over the tokens of several modalities, and a linear head.

    Args:
        vit: A plain timm VisionTransformer (`cutlayer.server_worker.backbone.create_vit`). It is taken over: its
            patch embedding, position embedding, prefix tokens and head are removed from it.
        grids: Tokens down and across of each modality, by name.
        num_classes: C; 0 for no head, where each agent has its own: outputs are then the mean features, (B, D).
        fusion: `early` or `late`.
        pair: The task where two modalities are to be matched; None otherwise.
        first_block: Blocks that are at the agents, k: each modality's tokens, its prefix tokens in front, come as they
            left the k-th block, and go into the next one.
        orders: What the places of a modality's tokens are; a modality that is not here has a grid.
        missing: `hide`: what a sample lacks is not there. `token`: a learned token says so; with early fusion.

    Attributes:
        names: Modalities, in the order of the sequence.
        num_tokens: N of each modality.
        width: D.
        num_classes: C; 0 for no head.
        tokenizers: The tokenizers, where they are trained; no part of the forward pass.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        grids: Mapping[str, Grid],
        *,
        num_classes: int,
        fusion: Literal["early", "late"] = "early",
        orders: Mapping[str, Order] | None = None,
        missing: Literal["hide", "token"] = "hide",
        pair: RetrievalSpec | None = None,
        first_block: int = 0,
    ) -> None:
        super().__init__()
        if pair is not None and (fusion == "early" or set(pair.between) != grids.keys()):
            raise ValueError("two modalities that do not see each other are matched: late fusion of two")
        if missing == "token" and fusion == "late":
            raise ValueError("in late fusion no modality sees what stands in for another")
        self.names = tuple(sorted(grids))
        self.num_tokens = {name: grids[name][0] * grids[name][1] for name in self.names}
        self.width = int(vit.embed_dim)
        self.num_classes = num_classes
        self.fusion = fusion
        # The suffix keeps modalities called "type" or "train" apart from nn.Module's own names.
        self.embeddings = nn.ModuleDict(
            {
                f"{name}_tokens": ModalityEmbedding(
                    vit,
                    grids[name],
                    order=(orders or {}).get(name, "grid"),
                    has_missing=missing == "token",
                    is_inside=first_block > 0,
                )
                for name in self.names
            }
        )
        # An identity in all but a few models.
        self.token_norm = nn.Identity() if first_block else vit.patch_embed.norm
        self.vit = _without_ends(vit, first_block)
        self.tokenizers: HeldTokenizers | None = None
        self.head: nn.Linear | PairHead | nn.Identity
        if pair is not None:
            self.head = PairHead(self.width, pair.between, pair.dimensions)
            return
        if num_classes == 0:
            self.head = nn.Identity()
            return
        self.head = nn.Linear(self.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @property
    def any_parameter(self) -> Tensor:
        """A parameter: its device and dtype are those of all."""
        return next(self.vit.parameters())

    def no_weight_decay(self) -> set[str]:
        """Return patterns of the parameters that weight decay spares, as timm's models do: tokens, embeddings."""
        return {"embeddings.*", "head.log_scale", "tokenizers.*.bias", "tokenizers.*.embedding"}

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
            positions: (B, K) by modality, where only some of its tokens are there: which ones, N for none. Each
                sample has at least one token.

        Returns:
            Logits (B, C): the head over the mean feature of the modalities kept. The head is linear, so this is
            the mean of the modalities' logits too. Of a pair the embeddings of both (`PairHead`). Without a head that
            mean feature, (B, D).
        """
        names = [name for name in self.names if name in tokens]
        places = positions or {}
        present = {name: places[name] < self.num_tokens[name] for name in names if name in places}
        if not torch.compiler.is_exporting():  # a graph for export knows no values
            present = {name: present_BK for name, present_BK in present.items() if not bool(present_BK.all())}
        keep_BM = kept_modalities(names, keep, present)
        parts = []
        for column, name in enumerate(names):
            x_BSD = self.embeddings[f"{name}_tokens"](self.token_norm(tokens[name]), places.get(name))
            x_BSD, visible_BS = drop_patches(self.vit, self.vit.pos_drop(x_BSD), _visible(x_BSD, present.get(name)))
            parts.append(_Part(x_BSD, visible_BS, None if keep_BM is None else keep_BM[:, column]))
        through = self._together(parts, self._stand_ins(names, parts)) if self.fusion == "early" else self._apart(parts)
        features_BMD = torch.stack(
            [pool(self.vit, x_BSD, part.visible_BS) for x_BSD, part in zip(through, parts, strict=True)], dim=1
        )
        if isinstance(self.head, PairHead):
            return self.head.embed(features_BMD, names, keep_BM)
        return cast("Tensor", self.head(_mean_of_kept(features_BMD, keep_BM)))

    def _together(self, parts: Sequence[_Part], stand_ins: Sequence[_Part]) -> Sequence[Tensor]:
        """Run all modalities as one sequence; return what becomes of each, (B, S, D)."""
        sequence = [*parts, *stand_ins]
        lengths = [part.x_BSD.shape[1] for part in sequence]
        visible_B11T = None
        if any(part.is_masked for part in sequence):
            # True where a key may be seen; the same for every head and query.
            visible_B11T = torch.cat([part.mask_BS() for part in sequence], dim=1)[:, None, None]
        x_BTD = self._blocks(torch.cat([part.x_BSD for part in sequence], dim=1), visible_B11T)
        return torch.split(x_BTD, lengths, dim=1)[: len(parts)]

    def _apart(self, parts: Sequence[_Part]) -> Sequence[Tensor]:
        """Run one modality after the other; return what becomes of each, (B, S, D)."""
        return [
            self._blocks(part.x_BSD, None if part.visible_BS is None else part.visible_BS[:, None, None])
            for part in parts
        ]

    def _stand_ins(self, names: Sequence[str], parts: Sequence[_Part]) -> list[_Part]:
        """Return the learned tokens of modalities that samples lack, (B, 1, D) each, seen where these do."""
        kept = dict(zip(names, (part.keep_B for part in parts), strict=True))
        stand_ins = []
        for name in self.names:
            embedding = self.embeddings[f"{name}_tokens"]
            assert isinstance(embedding, ModalityEmbedding)
            keep_B = kept.get(name)
            if embedding.missing is None or (name in kept and keep_B is None):
                continue
            batch = parts[0].x_BSD.shape[0]
            assert embedding.modality is not None
            x_B1D = (embedding.missing + embedding.modality).expand(batch, -1, -1)
            stand_ins.append(_Part(x_B1D, None, None if keep_B is None else ~keep_B))
        return stand_ins

    def _blocks(self, x_BTD: Tensor, visible_B11T: Tensor | None) -> Tensor:
        x_BTD = self.vit.norm_pre(x_BTD)
        for block in self.vit.blocks:
            x_BTD = block(x_BTD, attn_mask=visible_B11T)
        return cast("Tensor", self.vit.norm(x_BTD))


@dataclass(frozen=True, slots=True)
class _Part:
    """A modality's part of the sequence.

    Attributes:
        x_BSD: Its prefix and other tokens.
        visible_BS: Which of them there are; None for all.
        keep_B: Which samples' may be seen; None for all.
    """

    x_BSD: Tensor
    visible_BS: Tensor | None
    keep_B: Tensor | None

    @property
    def is_masked(self) -> bool:
        return self.visible_BS is not None or self.keep_B is not None

    def mask_BS(self) -> Tensor:  # noqa: N802 - its axes
        """Return which of its tokens may be seen."""
        mask_BS = self.visible_BS
        if mask_BS is None:
            mask_BS = torch.ones(self.x_BSD.shape[:2], dtype=torch.bool, device=self.x_BSD.device)
        return mask_BS if self.keep_B is None else mask_BS & self.keep_B[:, None]


def _visible(x_BSD: Tensor, present_BK: Tensor | None) -> Tensor | None:
    """Return which tokens of a part there are, (B, S): the prefix always, and everything of a sample without any."""
    if present_BK is None:
        return None
    # What a sample lacks wholly is hidden by modality; here it would leave attention and pooling nothing at all.
    present_BK = present_BK | ~present_BK.any(dim=1, keepdim=True)
    if not torch.compiler.is_exporting() and bool(present_BK.all()):
        return None
    prefix_BP = present_BK.new_ones(x_BSD.shape[0], x_BSD.shape[1] - present_BK.shape[1])
    return torch.cat([prefix_BP, present_BK], dim=1)


def _mean_of_kept(features_BMD: Tensor, keep_BM: Tensor | None) -> Tensor:
    if keep_BM is None:
        return features_BMD.mean(dim=1)
    share_BM = keep_BM.to(features_BMD.dtype)
    share_BM = share_BM / share_BM.sum(dim=1, keepdim=True)
    return (features_BMD * share_BM[:, :, None]).sum(dim=1)


def _without_ends(vit: VisionTransformer, first_block: int) -> VisionTransformer:
    """Remove what the agents (patch embedding, first blocks) and `SplitEncoder` (the rest) hold instead."""
    if first_block:
        vit.blocks = nn.Sequential(*list(vit.blocks)[first_block:])
        vit.norm_pre = nn.Identity()
        vit.pos_drop = nn.Dropout(0.0)
        setattr(vit, "patch_drop", nn.Identity())  # noqa: B010 - typed as what it is with dropout
    vit.patch_embed = nn.Identity()
    vit.head = nn.Identity()
    vit.cls_token = vit.reg_token = vit.pos_embed = None
    return vit
