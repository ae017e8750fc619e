"""ViTs that timm has names for: each trains one step through the engine, or is refused with what to do instead.

Sizes are cut down (width, depth, patch); all else is the model's own: norms, prefix tokens, blocks, pooling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.run_parts import make_engine
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.timm_import import create_model
from server_worker.small_model import OPTIONS, output_gradient, small_settings, train_item

VITS = {
    "as in the paper": "vit_tiny_patch16_224",
    "scaled residuals": "vit_small_patch14_dinov2",
    "registers": "vit_small_patch14_reg4_dinov2",
    "a norm before the blocks": "vit_base_patch16_clip_224",
    "no position of the class token": "deit3_small_patch16_224",
    "no class token": "vit_medium_patch16_gap_240",
    "no class token, registers": "vit_little_patch16_reg4_gap_256",
    "attention pooling": "vit_base_patch16_siglip_224",
    "attention pooling, registers": "vit_so150m_patch16_reg4_map_256",
    "norms behind attention": "vit_base_patch16_rpn_224",
    "differential attention": "vit_dwee_patch16_reg1_gap_256",
    "gated perceptrons": "vit_giant_patch14_dinov2",
    "a norm in the patch embedding": "aimv2_large_patch14_224",
    "any patch": "flexivit_small",
    "the mean of the tokens": "beit3_base_patch16_224",
}
FUSED = {
    "fused maps, normed queries and keys": "vit_base_patch16_xp_224",
    "fused maps, differential attention": "vit_dpwee_patch16_reg1_gap_256",
}
PARALLEL = {"parallel blocks": "vit_small_patch16_18x2_224"}
ALL = VITS | FUSED | PARALLEL
LORA = {"mode": "lora", "rank": 4}


def settings_of(name: str, tuning: dict[str, object]) -> RunSettings:
    return small_settings(
        model={"name": name, "options": OPTIONS, "modality_dropout": 0.5},
        tuning=tuning,
        optimizer={"name": "sgd", "lr": 0.1, "warmup_ratio": 0.0, "weight_decay": 0.0},
    )


def take_a_step(settings: RunSettings, built: BuiltModel, item: ForwardItem) -> None:
    """Train a step, and check that all that trains has a gradient."""
    engine = make_engine(settings, built)
    forwarded = engine.forward([item])
    assert forwarded.group_id is not None
    gradient = output_gradient(forwarded.outputs[item.key], np.arange(item.num_samples) % 3)
    engine.backward(forwarded.group_id, {item.key: gradient}, last=True)
    names = [name for name, value in built.encoder.named_parameters() if value.requires_grad]
    without = [name for name, there in zip(names, engine.gradients_present(), strict=True) if not there]
    assert not without
    assert engine.commit(item.num_samples, None).applied


@pytest.mark.parametrize("name", ALL.values(), ids=ALL)
@pytest.mark.parametrize("mode", ["full", "last", "frozen"])
def test_a_vit_trains_a_step(name: str, mode: str) -> None:
    settings = settings_of(name, {"mode": mode})
    take_a_step(settings, build(settings, 0), train_item(0, 8))


@pytest.mark.parametrize("name", (VITS | PARALLEL).values(), ids=VITS | PARALLEL)
def test_a_vit_trains_a_step_with_lora(name: str) -> None:
    settings = settings_of(name, LORA)
    take_a_step(settings, build(settings, 0), train_item(0, 8))


@pytest.mark.parametrize("name", FUSED.values(), ids=FUSED)
def test_a_vit_with_fused_maps_has_no_lora_and_says_so(name: str) -> None:
    with pytest.raises(SettingsError, match=r"targets has 'qkv'") as caught:
        build(settings_of(name, LORA), 0)
    assert "its linear maps are" in caught.value.fix


@pytest.mark.parametrize("name", ALL.values(), ids=ALL)
def test_images_have_the_features_that_timm_gives_them(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = create_model(name, num_classes=0, **OPTIONS).eval()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(whole.state_dict(), path)
    settings = small_settings(
        model={"name": name, "options": OPTIONS, "weights": path}, tuning={"mode": "frozen", "embeddings": "none"}
    )
    built = build(settings, 0)
    tokenizer = safetensors.torch.load(built.tokenizer_file)
    image = torch.randn(2, 1, 8, 8)
    # Patches row by row, the values of each in the order channels, rows, columns.
    patches_BNP = image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, 4)
    with torch.no_grad():
        outputs_BC = built.encoder.eval()({"image": patches_BNP @ tokenizer["image.weight"] + tokenizer["image.bias"]})
        torch.testing.assert_close(outputs_BC, built.encoder.head(whole(image)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", pytest.param("vit_small_patch14_dinov2", marks=pytest.mark.slow)]
)
def test_a_vit_of_full_size_trains_a_step(name: str) -> None:
    settings = small_settings(model={"name": name, "options": {}}, tuning={"mode": "last", "embeddings": "none"})
    built = build(settings, 0)
    generator = np.random.default_rng(0)
    tokens = {
        modality: generator.standard_normal((2, spec.num_tokens, built.width), dtype=np.float32)
        for modality, spec in settings.modalities.items()
    }
    take_a_step(settings, built, ForwardItem("full size", "train", tokens))


REFUSED = {
    "rotary positions": ("eva02_tiny_patch14_224", "is a Eva"),
    "relative positions": ("vit_relpos_small_patch16_224", "is a VisionTransformerRelPos"),
    "a distillation token": ("deit_tiny_distilled_patch16_224", "is a VisionTransformerDistilled"),
    "windows": ("samvit_base_patch16", "is a VisionTransformerSAM"),
    "any aspect": ("naflexvit_base_patch16_gap", "is a NaFlexVit"),
    "convolutions first": ("vit_tiny_r_s16_p8_224", "has a HybridEmbed before its blocks"),
    "a hierarchy": ("maxvit_tiny_tf_224", "is a MaxxVit"),
    "BEiT's blocks": ("beit_base_patch16_224", "is a Beit"),
}


@pytest.mark.parametrize(("name", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_the_cut_cannot_carry_is_refused_with_a_name_that_it_can(name: str, problem: str) -> None:
    settings = small_settings(model={"name": name, "options": {}}).model
    with torch.device("meta"), pytest.raises(SettingsError) as caught:
        create_vit(settings)
    assert problem in caught.value.problem
    assert "vit_tiny_patch16_224" in caught.value.fix
