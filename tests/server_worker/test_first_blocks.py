"""The first blocks at an agent and the others at the worker are the whole ViT, forward and backward, of every kind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cutlayer.broker.errors import SettingsError
from cutlayer.edge_agent.torch_blocks import FirstBlocks
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.timm_import import create_model
from cutlayer.server_worker.tuning import num_trained
from support.small_run import small_settings

KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers": {"reg_tokens": 2},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True},
    "no prefix, mean": {"class_token": False, "global_pool": "avg"},
    "norm before the blocks": {"pre_norm": True},
    "layer scale, attention pooling": {"init_values": 0.1, "global_pool": "map", "class_token": False},
    "no positions": {"pos_embed": "none"},
}
IMAGES = torch.rand(5, 8, 8, 3, generator=torch.Generator().manual_seed(0))
TOKENS = {"kind": "tokens", "num_tokens": 5}


def vit_of(kind: str) -> Any:
    torch.manual_seed(0)
    vit = create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=8,
        patch_size=4,
        embed_dim=24,
        depth=4,
        num_heads=3,
        **KINDS[kind],
    )
    for parameter in vit.parameters():  # none is left at what it begins with, such as zeros
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_split_in_the_middle_equals_whole(kind: str, blocks: int) -> None:
    whole, parts = vit_of(kind), vit_of(kind)
    first = FirstBlocks(copy.deepcopy(parts), blocks)
    num_tokens = 4 + first.num_prefix_tokens
    encoder = SplitEncoder(
        parts, {"image": (1, num_tokens)}, num_classes=0, fusion="late", orders={"image": "set"}, first_block=blocks
    ).eval()
    expected_BD = whole(((IMAGES - 0.5) / 0.5).permute(0, 3, 1, 2))
    tokens_BSD = first(IMAGES)
    assert tokens_BSD.shape == (5, num_tokens, 24)
    cut_BSD = tokens_BSD.detach().requires_grad_()
    found_BD = encoder({"image": cut_BSD})
    torch.testing.assert_close(found_BD, expected_BD, rtol=1e-5, atol=1e-5)
    gradient_BD = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    expected_BD.backward(gradient_BD)
    found_BD.backward(gradient_BD)
    tokens_BSD.backward(cut_BSD.grad)
    of_whole = dict(whole.named_parameters())
    pairs = [(f"blocks.{index}", first.blocks[index]) for index in range(blocks)]
    pairs += [(f"blocks.{blocks + index}", block) for index, block in enumerate(encoder.vit.blocks)]
    pairs += [("patch_embed", first.patch_embed), ("norm", encoder.vit.norm), ("norm_pre", first.norm_pre)]
    for name, module in pairs:
        for part, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, of_whole[f"{name}.{part}"].grad, rtol=1e-4, atol=1e-4)
    if first.position is not None:
        torch.testing.assert_close(first.position.grad, whole.pos_embed.grad, rtol=1e-4, atol=1e-4)
    if first.prefix is not None:
        grads = [token.grad for token in (whole.cls_token, whole.reg_token) if token is not None]
        torch.testing.assert_close(first.prefix.grad, torch.cat(grads, dim=1), rtol=1e-4, atol=1e-4)


def test_early_fusion_joins_modalities_behind_the_first_blocks() -> None:
    vit = vit_of("class token")
    first = FirstBlocks(copy.deepcopy(vit), 2)
    grids = {"left": (1, 5), "right": (1, 5)}
    encoder = SplitEncoder(copy.deepcopy(vit), grids, num_classes=0, fusion="early", first_block=2).eval()
    tokens = first(IMAGES)
    x = torch.cat([tokens, tokens.flip(0)], dim=1)
    for block in list(vit.blocks)[2:]:
        x = block(x)
    parts = torch.split(vit.norm(x), 5, dim=1)
    expected_BD = torch.stack([vit.forward_head(part, pre_logits=True) for part in parts]).mean(dim=0)
    torch.testing.assert_close(encoder({"left": tokens, "right": tokens.flip(0)}), expected_BD, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 4])
def test_all_blocks_or_none_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"blocks = {blocks} of a model that has 4: take 1 to 3"):
        FirstBlocks(vit_of("class token"), blocks)


def settings_of(first_block: int, modality: dict[str, Any], **sections: Any) -> RunSettings:
    base = small_settings()
    model = base.model.model_dump() | {"first_block": first_block}
    document = base.model_dump() | {"model": model, "modalities": {"image": modality}, **sections}
    return RunSettings.model_validate(document)


def test_the_worker_has_the_later_blocks_alone() -> None:
    encoder = build(settings_of(1, TOKENS), 0).encoder
    assert len(encoder.vit.blocks) == 1
    assert num_trained(encoder.embeddings) == 0


def test_what_first_block_needs_is_told() -> None:
    with pytest.raises(SettingsError, match="choose 0 to 1"):
        build(settings_of(2, TOKENS), 0)
    with pytest.raises(SettingsError, match="no place for the 1 prefix tokens"):
        build(settings_of(1, TOKENS | {"num_tokens": 1}), 0)
    with pytest.raises(ValueError, match='set its kind to "tokens"'):
        settings_of(1, {"kind": "image", "height": 4, "width": 4, "patch": 2})
    with pytest.raises(ValueError, match="could drop prefix tokens"):
        settings_of(1, TOKENS, activations={"reduction": {"image": {"keep": 0.5}}})
