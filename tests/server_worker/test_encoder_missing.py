"""What a sample lacks has no influence: the result is that of the shorter sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pytest
import torch
from torch import Tensor

from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.settings import ModelSettings
from cutlayer.server_worker.visible_tokens import kept_modalities
from server_worker.small_model import CLASSES, GRIDS, OPTIONS, random_tokens

# Axes: B batch, K places, D width.

POOLS: list[dict[str, object]] = [
    {},
    {"class_token": False, "global_pool": "avg"},
    {"class_token": False, "global_pool": "max"},
    {"global_pool": "avgmax"},
    {"global_pool": "map"},
    {"pool_include_prefix": True, "global_pool": "avg"},
]


def torch_tokens(num_samples: int) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in random_tokens(num_samples, 0).items()}


def encoder_of(
    fusion: Literal["early", "late"] = "early",
    missing: Literal["hide", "token"] = "hide",
    options: Mapping[str, object] | None = None,
) -> SplitEncoder:
    torch.manual_seed(0)
    vit = create_vit(ModelSettings(options={**OPTIONS, **(options or {})}))
    return SplitEncoder(vit, GRIDS, num_classes=CLASSES, fusion=fusion, missing=missing).eval()


def places(name: str, *lengths: int) -> Tensor:
    """Return positions of samples that have their first tokens and no more."""
    num_tokens = GRIDS[name][0] * GRIDS[name][1]
    rows = [[place if place < length else num_tokens for place in range(num_tokens)] for length in lengths]
    return torch.tensor(rows)


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("options", POOLS)
def test_a_sample_with_fewer_tokens_is_the_shorter_sequence(
    fusion: Literal["early", "late"], options: dict[str, object]
) -> None:
    encoder, tokens = encoder_of(fusion, options=options), torch_tokens(2)
    padded = encoder(tokens, None, {"image": places("image", 5, 16)})
    shorter = {"audio": tokens["audio"][:1], "image": tokens["image"][:1, :5]}
    alone = encoder(shorter, None, {"image": torch.arange(5)[None]})
    whole = encoder({name: value[1:] for name, value in tokens.items()})
    torch.testing.assert_close(padded, torch.cat([alone, whole]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("options", POOLS)
def test_a_sample_without_a_modality_is_the_others_alone(
    fusion: Literal["early", "late"], options: dict[str, object]
) -> None:
    encoder, tokens = encoder_of(fusion, options=options), torch_tokens(3)
    mixed = encoder(tokens, None, {"image": places("image", 0, 16, 7), "audio": places("audio", 8, 0, 3)})
    third = {"audio": tokens["audio"][2:, :3], "image": tokens["image"][2:, :7]}
    alone = [
        encoder({"audio": tokens["audio"][:1]}),
        encoder({"image": tokens["image"][1:2]}),
        encoder(third, None, {"audio": torch.arange(3)[None], "image": torch.arange(7)[None]}),
    ]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_what_stands_in_places_without_a_token_does_not_matter(fusion: Literal["early", "late"]) -> None:
    encoder, tokens = encoder_of(fusion, options={"class_token": False, "global_pool": "avg"}), torch_tokens(2)
    positions = {"image": places("image", 3, 0)}
    before = encoder(tokens, None, positions)
    changed = tokens["image"].clone()
    changed[0, 3:], changed[1] = 1e4, -1e4
    torch.testing.assert_close(encoder({**tokens, "image": changed}, None, positions), before, rtol=1e-5, atol=1e-5)
    leaf = tokens["image"].clone().requires_grad_()
    encoder({**tokens, "image": leaf}, None, positions).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[0, :3].abs().min() > 0
    assert not leaf.grad[0, 3:].any()
    assert not leaf.grad[1].any()


def test_modality_dropout_never_hides_the_last_that_a_sample_has() -> None:
    keep = {"audio": torch.tensor([True, True, False]), "image": torch.tensor([False, True, True])}
    present = {"audio": torch.tensor([[False] * 4, [True] * 4, [True] * 4])}
    kept_BM = kept_modalities(["audio", "image"], keep, present)
    assert kept_BM is not None
    assert kept_BM.tolist() == [[False, True], [True, True], [False, True]]


def test_patches_that_are_dropped_take_their_masks_with_them() -> None:
    encoder, tokens = encoder_of(options={"patch_drop_rate": 0.5}), torch_tokens(4)
    encoder.train()
    positions = {"image": places("image", 2, 16, 1, 9)}
    changed = tokens["image"].clone()
    changed[0, 2:], changed[2, 1:], changed[3, 9:] = 1e4, 1e4, 1e4
    torch.manual_seed(5)
    before = encoder(tokens, None, positions)
    torch.manual_seed(5)
    torch.testing.assert_close(encoder({**tokens, "image": changed}, None, positions), before, rtol=1e-5, atol=1e-5)


def test_a_stand_in_is_seen_where_a_modality_is_missing_and_nowhere_else() -> None:
    encoder, tokens = encoder_of(missing="token"), torch_tokens(2)
    whole = encoder({name: value[1:] for name, value in tokens.items()})
    image_only = encoder({"image": tokens["image"][:1]})
    mixed = encoder(tokens, None, {"audio": places("audio", 0, 8)})
    torch.testing.assert_close(mixed, torch.cat([image_only, whole]), rtol=1e-5, atol=1e-5)
    hidden = encoder(tokens, {"audio": torch.tensor([False, True]), "image": torch.tensor([True, True])})
    torch.testing.assert_close(hidden, mixed, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        missing_11D = encoder.embeddings["audio_tokens"].missing
        assert isinstance(missing_11D, Tensor)
        missing_11D += torch.randn(missing_11D.shape)  # a constant would be lost in the first norm
    changed = encoder(tokens, None, {"audio": places("audio", 0, 8)})
    assert (changed[0] - mixed[0]).abs().max() > 1e-4
    torch.testing.assert_close(changed[1], mixed[1], rtol=1e-5, atol=1e-5)


def test_late_fusion_has_no_stand_in() -> None:
    with pytest.raises(ValueError, match="late fusion"):
        encoder_of("late", "token")
