"""What tokenizers begin with: tokens as large as their input, and as those of a pretrained ViT beside one."""

from __future__ import annotations

import math

import pytest
import torch

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.messages import MAX_PARAMETERS
from cutlayer.broker.modalities import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec, TextSpec, TokensSpec
from cutlayer.server_worker.timm_import import VisionTransformer, create_model
from cutlayer.server_worker.tokenizer_weights import MAX_TRAINED_BYTES, check_trainable, initial_weights
from cutlayer.server_worker.torch_tokenizers import torch_tokenizer

WIDTH = 64
NUM_SAMPLES = 200
SPECS: dict[str, ModalitySpec] = {
    "audio": AudioSpec(sample_rate_hz=1_000, num_frames=8, hop_samples=8, fft_samples=16, num_mels=8, patch=(8, 4)),
    "image": ImageSpec(height=8, width=8, channels=3, patch=4),
    "series": SeriesSpec(rate_hz=1.0, num_steps=40, channels=3, patch=10),
    "table": TableSpec.model_validate(
        {"columns": [f"c{i}" for i in range(20)], "categories": [{"name": "k", "values": ["x", "y", "z"]}]}
    ),
    "text": TextSpec(num_tokens=32),
}


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=WIDTH, depth=1, num_heads=2, num_classes=0
    )
    assert isinstance(model, VisionTransformer)
    torch.nn.init.normal_(model.patch_embed.proj.weight, std=0.3)
    return model


def features_of_variance_1(name: str) -> torch.Tensor:
    spec = SPECS[name]
    if isinstance(spec, TextSpec):
        return torch.randint(256, (NUM_SAMPLES, spec.num_tokens))
    if isinstance(spec, TableSpec):
        cells_BF = torch.randn(NUM_SAMPLES, spec.num_tokens)
        cells_BF[:, -1] = torch.randint(3, (NUM_SAMPLES,))
        return cells_BF
    assert not isinstance(spec, TokensSpec)
    return torch.randn(NUM_SAMPLES, spec.num_tokens, spec.patch_values)


def deviation_of_tokens(name: str, *, pretrained: bool) -> float:
    weights = initial_weights(vit(), SPECS, pretrained=pretrained)
    tokenizer = torch_tokenizer(name, SPECS[name], weights, torch.float32)
    return float(tokenizer(features_of_variance_1(name)).detach().std())


@pytest.mark.parametrize("name", SPECS)
def test_new_tokens_have_the_variance_of_their_input(name: str) -> None:
    assert deviation_of_tokens(name, pretrained=False) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", ["series", "table", "text"])
def test_new_tokens_are_as_large_as_those_of_the_pretrained_vit_beside_them(name: str) -> None:
    expected = deviation_of_tokens("image", pretrained=True)
    assert expected == pytest.approx(0.3 * math.sqrt(4 * 4 * 3), rel=0.1)
    assert deviation_of_tokens(name, pretrained=True) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("pretrained", [False, True])
def test_every_part_has_the_shape_that_its_specification_says(pretrained: bool) -> None:
    weights = initial_weights(vit(), SPECS, pretrained=pretrained)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        f"{name}.{part}": shape for name, spec in SPECS.items() for part, shape in spec.parameter_shapes(WIDTH).items()
    }
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_pretrained_patch_embedding_fits_patches_that_are_no_squares() -> None:
    model = vit()
    weights = initial_weights(model, SPECS, pretrained=True)
    # Twice as many rows: where a patch is even, the token is what the ViT's own patch would give.
    token_1D = torch.ones(1, 8 * 4) @ weights["audio.weight"] + weights["audio.bias"]
    kernel = model.patch_embed.proj.weight.detach()
    assert model.patch_embed.proj.bias is not None
    expected_D = kernel.sum(dim=(1, 2, 3)) + model.patch_embed.proj.bias.detach()
    torch.testing.assert_close(token_1D[0], expected_D, rtol=1e-3, atol=1e-3)


def test_more_modalities_leave_the_weights_of_those_before_them_alone() -> None:
    model = vit()
    torch.manual_seed(7)
    alone = initial_weights(model, {"audio": SPECS["audio"]}, pretrained=False)
    torch.manual_seed(7)
    together = initial_weights(model, SPECS, pretrained=False)
    assert torch.equal(alone["audio.weight"], together["audio.weight"])


def test_trained_weights_that_no_message_carries_are_refused() -> None:
    width = 64
    check_trainable({"text.embedding": torch.empty(MAX_TRAINED_BYTES // 4 // (4 * width), 4 * width)})
    for rows, columns in ((70_000, 1), (MAX_TRAINED_BYTES // 4 // (4 * width) + 1, 4 * width)):
        with pytest.raises(SettingsError, match=r"text.embedding \(\d+, \d+\) among them") as caught:
            check_trainable({"text.embedding": torch.empty(rows, columns)})
        assert "smaller vocabulary" in caught.value.fix


def test_a_message_holds_the_parameters_of_as_many_modalities_as_a_run_may_have() -> None:
    assert max(len(spec.parameter_shapes(1)) for spec in SPECS.values()) * 16 <= MAX_PARAMETERS
