from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.timm_import import create_model
from cutlayer.server_worker.whole_model import WholeModel
from server_worker.small_model import CLASSES, OPTIONS, WIDTH, small_model, small_settings

IMAGE_VALUES, AUDIO_VALUES = 2 * 2, 4 * 4


def tensors_of(built: BuiltModel) -> dict[str, Tensor]:
    return safetensors.torch.load(built.tokenizer_file)


def weights_file(folder: Path, **options: Any) -> Path:
    torch.manual_seed(1)
    path = folder / "weights.safetensors"
    safetensors.torch.save_file(create_model("vit_tiny_patch16_224", **(OPTIONS | options)).state_dict(), path)
    return path


def test_same_seed_gives_the_same_bytes() -> None:
    first, second = small_model(3), small_model(3)
    assert first.tokenizer_file == second.tokenizer_file
    for one, other in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_seed_gives_other_weights() -> None:
    assert small_model(3).tokenizer_file != small_model(4).tokenizer_file


def test_building_leaves_torchs_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    small_model()
    assert torch.equal(torch.rand(3), wanted)


def test_tokenizers_have_a_row_for_each_value_of_a_patch() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(small_model()).items()}
    assert shapes == {
        "audio.bias": (WIDTH,),
        "audio.weight": (AUDIO_VALUES, WIDTH),
        "image.bias": (WIDTH,),
        "image.weight": (IMAGE_VALUES, WIDTH),
    }


def test_random_tokenizers_keep_the_variance() -> None:
    patches_BP = torch.randn(4_000, AUDIO_VALUES)
    variance = (patches_BP @ tensors_of(small_model())["audio.weight"]).var()
    assert 0.8 < variance < 1.2


def test_counts_and_name_describe_the_model() -> None:
    built = small_model()
    assert built.num_parameters == sum(value.numel() for value in built.encoder.state_dict().values())
    assert built.num_tokenizer_parameters == (IMAGE_VALUES + AUDIO_VALUES + 2) * WIDTH
    assert built.width == WIDTH
    assert built.name.startswith("vit_tiny_patch16_224 (depth=2, embed_dim=32, ")


def test_tokenizers_stay_float32_beside_a_float64_encoder() -> None:
    built = small_model(dtype="float64")
    assert {tensor.dtype for tensor in tensors_of(built).values()} == {torch.float32}
    assert {parameter.dtype for parameter in built.encoder.parameters()} == {torch.float64}


def test_pretrained_image_tokenizer_is_the_patch_embedding(tmp_path: Path) -> None:
    path = weights_file(tmp_path)
    image = torch.randn(2, 1, 8, 8)
    vit: Any = create_model("vit_tiny_patch16_224", **OPTIONS)
    vit.load_state_dict(safetensors.torch.load_file(path))
    # Patches row by row, the values of each in the order channels, rows, columns.
    patches_BNP = image.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 16, IMAGE_VALUES)
    tensors = tensors_of(small_model(weights=path))
    tokens_BND = patches_BNP @ tensors["image.weight"] + tensors["image.bias"]
    torch.testing.assert_close(tokens_BND, vit.patch_embed(image))


def test_pretrained_tokenizers_fit_other_channels_and_patches(tmp_path: Path) -> None:
    options = OPTIONS | {"in_chans": 3}
    path = weights_file(tmp_path, **options)
    kernel = safetensors.torch.load_file(path)["patch_embed.proj.weight"]  # (D, 3, 2, 2)
    tensors = tensors_of(small_model(weights=path, options=options))
    # The image has the ViT's patch, and one channel that stands for three equal ones.
    torch.testing.assert_close(tensors["image.weight"], kernel.sum(dim=1).reshape(WIDTH, -1).T)
    # The spectrogram has twice its patch: where it is even, the token is what the small patch would give.
    even = torch.ones(1, AUDIO_VALUES) @ tensors["audio.weight"]
    torch.testing.assert_close(even, kernel.sum(dim=(1, 2, 3))[None], rtol=1e-4, atol=1e-5)


def test_whole_model_is_tokenizers_and_encoder() -> None:
    built = small_model()
    whole = WholeModel(built.encoder, built.tokenizer_file, small_settings().modalities).eval()
    patches = {"image": torch.randn(2, 16, IMAGE_VALUES), "audio": torch.randn(2, 8, AUDIO_VALUES)}
    tensors = tensors_of(built)
    tokens = {name: values @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"] for name, values in patches.items()}
    assert whole(patches).shape == (2, CLASSES)
    torch.testing.assert_close(whole(patches), built.encoder(tokens))


@pytest.mark.parametrize("train_tokenizers", [False, True])
def test_whole_model_trains_its_tokenizers_on_request(train_tokenizers: bool) -> None:
    built = small_model()
    whole = WholeModel(
        built.encoder, built.tokenizer_file, small_settings().modalities, train_tokenizers=train_tokenizers
    )
    num_trainable = sum(parameter.numel() for parameter in whole.parameters() if parameter.requires_grad)
    assert num_trainable == built.num_parameters + train_tokenizers * built.num_tokenizer_parameters


def test_fusion_comes_from_the_settings() -> None:
    assert build(small_settings(model={"fusion": "late"}), 0).encoder.fusion == "late"
