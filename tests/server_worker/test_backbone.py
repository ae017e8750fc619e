from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from cutlayer.broker.errors import SettingsError
from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.settings import ModelSettings
from cutlayer.server_worker.timm_import import create_model
from server_worker.small_model import OPTIONS


def model(name: str = "vit_tiny_patch16_224", **fields: object) -> ModelSettings:
    return ModelSettings.model_validate({"name": name, "options": OPTIONS, **fields})


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224", "deit3_small_patch16_224", "vit_small_patch14_dinov2"]
)
def test_any_plain_vit_is_taken(name: str) -> None:
    assert create_vit(model(name)).embed_dim == OPTIONS["embed_dim"]


@pytest.mark.parametrize(
    ("settings", "problem", "fix"),
    [
        (model("vit_tiny_patch16_244"), "timm has no such model", "did you mean vit_tiny_patch16_224?"),
        (model("vit_tinny"), "timm has no such model", "did you mean vit_tiny_patch16_"),
        (model("completely_else"), "timm has no such model", "name a plain ViT, such as vit_tiny_patch16_224"),
        (model("resnet18", options={}), "is a ResNet", "name a plain ViT"),
        (model("deit_tiny_distilled_patch16_224"), "VisionTransformerDistilled", "name a plain ViT"),
        (model("vit_tiny_r_s16_p8_224", options={"img_size": 64}), "HybridEmbed", "one convolution"),
        (model(options={"depht": 2}), "'depht'", "arguments of timm's VisionTransformer"),
        (model(options={"global_pool": ""}), "global_pool", "'token' or 'avg'"),
        (model(weights="nowhere.safetensors"), "nowhere.safetensors", "name an existing file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unfit_model_is_explained(settings: ModelSettings, problem: str, fix: str) -> None:
    with pytest.raises(SettingsError) as caught:
        create_vit(settings)
    assert problem in caught.value.problem
    assert fix in caught.value.fix


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_are_read_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    trained = create_model("vit_tiny_patch16_224", num_classes=7, **OPTIONS)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(trained.state_dict(), path)
    else:
        safetensors.torch.save_file(trained.state_dict(), path)
    vit = create_vit(model(weights=path))
    for name, value in vit.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name]), name


def test_weights_of_another_size_are_explained(tmp_path: Path) -> None:
    trained = create_model("vit_tiny_patch16_224", **(OPTIONS | {"embed_dim": 64}))
    path = tmp_path / "wide.safetensors"
    safetensors.torch.save_file(trained.state_dict(), path)
    with pytest.raises(SettingsError, match=r"wide\.safetensors"):
        create_vit(model(weights=path))


def test_torn_weights_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(SettingsError, match=r"torn\.safetensors"):
        create_vit(model(weights=path))


class _Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_a_file_of_weights_runs_no_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({"state_dict": _Runs(ran)}, tmp_path / "hostile.pth")
    with pytest.raises(SettingsError, match=r"hostile\.pth"):
        create_vit(model(weights=tmp_path / "hostile.pth"))
    assert not ran.exists()


def test_timms_own_checkpoints_are_read(tmp_path: Path) -> None:
    trained = create_model("vit_tiny_patch16_224", num_classes=7, **OPTIONS)
    torch.save({"state_dict": trained.state_dict(), "epoch": 3, "arch": "vit"}, tmp_path / "checkpoint.pth.tar")
    vit = create_vit(model(weights=tmp_path / "checkpoint.pth.tar"))
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(vit.state_dict()[name], trained.state_dict()[name])
