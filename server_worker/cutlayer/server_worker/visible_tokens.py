"""Which tokens of a sequence a sample has: what it lacks is hidden from attention and left out of the pooling.

Axes: B batch, S prefix and other tokens of a modality, K tokens, M modalities, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from cutlayer.server_worker.timm_import import VisionTransformer

__all__ = ["drop_patches", "kept_modalities", "pool"]


def kept_modalities(
    names: Sequence[str],
    keep: Mapping[str, Tensor] | None,
    present: Mapping[str, Tensor],
) -> Tensor | None:
    """Return which modalities of each sample count, bool (B, M); None for all of all samples.

    What modality dropout hides counts after all where nothing else of that sample would be left.

    Args:
        names: The modalities.
        keep: What modality dropout leaves, bool (B,), by modality.
        present: Which tokens there are, bool (B, K), of the modalities whose samples may lack some.
    """
    has_B = {name: present_BK.any(dim=1) for name, present_BK in present.items()}
    if keep is None and not has_B:
        return None
    like = next(iter(has_B.values())) if keep is None else next(iter(keep.values()))
    all_B = torch.ones_like(like)
    has_BM = torch.stack([has_B.get(name, all_B) for name in names], dim=1)
    if keep is None:
        return has_BM
    both_BM = has_BM & torch.stack([keep[name] for name in names], dim=1)
    return torch.where(both_BM.any(dim=1, keepdim=True), both_BM, has_BM)


def drop_patches(vit: VisionTransformer, part_BSD: Tensor, visible_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Apply timm's patch dropout to a modality's tokens, and to what is known of them."""
    if visible_BS is None or isinstance(vit.patch_drop, torch.nn.Identity):
        return vit.patch_drop(part_BSD), visible_BS
    joined_BSE = vit.patch_drop(torch.cat([part_BSD, visible_BS.to(part_BSD.dtype)[:, :, None]], dim=2))
    return joined_BSE[:, :, :-1], joined_BSE[:, :, -1] > 0.5


def pool(vit: VisionTransformer, part_BSD: Tensor, visible_BS: Tensor | None) -> Tensor:
    """Return a modality's feature, (B, D), of its tokens as they leave the blocks, as timm's `forward_head` does.

    Args:
        vit: Has the pooling.
        part_BSD: The tokens.
        visible_BS: Which of them there are, at least one of each sample; None for all.
    """
    attn_pool = cast("torch.nn.Module | None", vit.attn_pool)
    if visible_BS is None or (attn_pool is None and vit.global_pool == "token"):
        return vit.forward_head(part_BSD, pre_logits=True)
    first = 0 if vit.pool_include_prefix else vit.num_prefix_tokens
    x_BKD, visible_BK = part_BSD[:, first:], visible_BS[:, first:]
    if attn_pool is not None:
        feature_BD = attn_pool(x_BKD, attn_mask=visible_BK[:, None, None])
    else:
        weight_BK1 = visible_BK.to(x_BKD.dtype)[:, :, None]
        mean_BD = (x_BKD * weight_BK1).sum(dim=1) / weight_BK1.sum(dim=1)
        largest_BD = x_BKD.masked_fill(~visible_BK[:, :, None], float("-inf")).amax(dim=1)
        feature_BD = {"avg": mean_BD, "max": largest_BD, "avgmax": 0.5 * (mean_BD + largest_BD)}[vit.global_pool]
    return cast("Tensor", vit.head_drop(vit.fc_norm(feature_BD)))
