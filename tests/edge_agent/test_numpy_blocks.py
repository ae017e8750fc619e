"""The first blocks of a ViT in NumPy: those of torch, for every plain kind, and a run's tokenizer without torch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import TokensSpec
from cutlayer.edge_agent.frozen_tokenizer import FrozenTokenizer
from cutlayer.edge_agent.numpy_blocks import NumpyBlocks, erf
from cutlayer.edge_agent.own_tokenizers import open_own_tokenizers
from cutlayer.edge_agent.site_parts import SiteParts, TokenizerSource
from cutlayer.edge_agent.torch_blocks import FirstBlocks
from cutlayer.server_worker.timm_import import create_model
from support.small_side import WIDTH, small_manifest

KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "norm before the blocks, layer scale": {"pre_norm": True, "init_values": 0.1},
    "no positions, no biases": {"pos_embed": "none", "qkv_bias": False},
}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3)).astype(np.uint8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def vit_of(**options: Any) -> Any:
    torch.manual_seed(0)
    vit = create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        img_size=(8, 12),
        patch_size=4,
        embed_dim=24,
        depth=3,
        num_heads=3,
        **options,
    )
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_numpy_and_torch_agree(tmp_path: Path, kind: str) -> None:
    vit = vit_of(**KINDS[kind])
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    of_numpy = NumpyBlocks.read(tmp_path / "vit.safetensors", 2, 3, mean=MEAN, std=STD)(IMAGES)
    with torch.no_grad():
        of_torch = FirstBlocks(copy.deepcopy(vit), 2, mean=MEAN, std=STD)(torch.from_numpy(IMAGES)).numpy()
    assert of_numpy.dtype == np.float32
    np.testing.assert_allclose(of_numpy, of_torch, rtol=1e-5, atol=1e-5 * np.abs(of_torch).max())


@given(st.floats(-8.0, 8.0))
def test_the_error_function_is_within_its_bound(x: float) -> None:
    assert abs(erf(np.array([x]))[0] - math.erf(x)) < 1.6e-7


def test_blocks_that_are_not_plain_are_refused() -> None:
    weights = {name: value.numpy() for name, value in vit_of(qk_norm=True).state_dict().items()}
    with pytest.raises(ValueError, match=r"q_norm\.weight is no part of a plain block"):
        NumpyBlocks(weights, 1, 3)
    with pytest.raises(ValueError, match=r"have no blocks\.0\.attn\.qkv\.weight"):
        NumpyBlocks({}, 1, 3)


def opened(factory: str, **files: Path) -> FrozenTokenizer:
    manifest = small_manifest().model_copy(update={"modalities": {"image": TokensSpec(num_tokens=4)}})
    source = TokenizerSource(f"support.own_tokenizers:{factory}", **files)
    found = open_own_tokenizers(manifest, ("image",), SiteParts(tokenizers={"image": source}), 8)["image"]
    assert isinstance(found, FrozenTokenizer)
    return found


def test_a_callable_of_arrays_is_a_frozen_tokenizer() -> None:
    tokenizer = opened("halves")
    tokens_BND = tokenizer.tokenize(IMAGES)
    assert tokens_BND.shape == (5, 4, WIDTH)
    assert (tokens_BND == 0.5).all()
    assert tokenizer.gradients(IMAGES, tokens_BND) == {}


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="all finite"):
        opened("nothing").tokenize(IMAGES)
    with pytest.raises(SettingsError, match="which are for torch modules"):
        opened("halves", state=tmp_path / "state")
