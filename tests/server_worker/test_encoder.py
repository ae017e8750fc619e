from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.server_worker.backbone import create_vit
from cutlayer.server_worker.encoder import SplitEncoder
from cutlayer.server_worker.modality_embedding import ModalityEmbedding
from cutlayer.server_worker.settings import ModelSettings
from server_worker.small_model import CLASSES, GRIDS, OPTIONS, WIDTH, random_tokens, small_model

# Axes: B batch, D width.


def torch_tokens(num_samples: int = 6, seed: int = 0) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in random_tokens(num_samples, seed).items()}


def small_encoder(fusion: str = "early", options: dict[str, object] | None = None) -> SplitEncoder:
    return small_model(fusion=fusion, options=OPTIONS | (options or {})).encoder.eval()


def embedding(encoder: SplitEncoder, name: str) -> ModalityEmbedding:
    module = encoder.embeddings[f"{name}_tokens"]
    assert isinstance(module, ModalityEmbedding)
    return module


def keep_mask(**kept: list[bool]) -> dict[str, Tensor]:
    return {name: torch.tensor(values) for name, values in kept.items()}


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_logits_have_one_row_a_sample(fusion: str) -> None:
    assert small_encoder(fusion)(torch_tokens()).shape == (6, CLASSES)


@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}, {"global_pool": "map"}])
def test_hidden_modality_equals_the_shorter_sequence(fusion: str, options: dict[str, object]) -> None:
    encoder, tokens = small_encoder(fusion, options), torch_tokens()
    masked = encoder(tokens, keep_mask(audio=[False] * 6, image=[True] * 6))
    shorter = encoder({"image": tokens["image"]})
    torch.testing.assert_close(masked, shorter, rtol=1e-5, atol=1e-5)


def test_each_sample_has_its_own_mask() -> None:
    encoder, tokens = small_encoder(), torch_tokens(3)
    mixed = encoder(tokens, keep_mask(audio=[True, False, True], image=[True, True, False]))
    alone = [
        encoder({name: value[:1] for name, value in tokens.items()}),
        encoder({"image": tokens["image"][1:2]}),
        encoder({"audio": tokens["audio"][2:]}),
    ]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_mask_that_keeps_everything_changes_nothing() -> None:
    encoder, tokens = small_encoder(), torch_tokens()
    kept = encoder(tokens, keep_mask(audio=[True] * 6, image=[True] * 6))
    torch.testing.assert_close(kept, encoder(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_all_positions_given_equal_none(fusion: str) -> None:
    encoder, tokens = small_encoder(fusion), torch_tokens()
    positions = {
        name: torch.arange(encoder.num_tokens[name]).expand(6, encoder.num_tokens[name]) for name in encoder.names
    }
    torch.testing.assert_close(encoder(tokens, None, positions), encoder(tokens))


def test_each_token_left_has_the_embedding_of_its_own_place() -> None:
    encoder, tokens = small_encoder(), torch_tokens(2)
    positions_BK = torch.tensor([[0, 2], [1, 3]])
    module = embedding(encoder, "image")
    whole_BSD = module(tokens["image"])
    num_prefix = whole_BSD.shape[1] - encoder.num_tokens["image"]
    kept_BKD = torch.stack([tokens["image"][row, places] for row, places in enumerate(positions_BK)])
    expected = torch.stack([whole_BSD[row, num_prefix + places] for row, places in enumerate(positions_BK)])
    torch.testing.assert_close(module(kept_BKD, positions_BK)[:, num_prefix:], expected)


def test_fewer_tokens_are_a_shorter_sequence_that_depends_on_which_they_are() -> None:
    encoder, tokens = small_encoder(), torch_tokens(1)
    kept = {"image": tokens["image"][:, :2], "audio": tokens["audio"]}
    first = encoder(kept, None, {"image": torch.tensor([[0, 1]])})
    last = encoder(kept, None, {"image": torch.tensor([[2, 3]])})
    assert first.shape == (1, CLASSES)
    assert not torch.allclose(first, last)


def test_hidden_tokens_have_no_gradient() -> None:
    encoder, tokens = small_encoder(), torch_tokens(2)
    audio = tokens["audio"].requires_grad_()
    encoder(tokens, keep_mask(audio=[False, True], image=[True, True])).sum().backward()
    assert audio.grad is not None
    assert not audio.grad[0].any()
    assert audio.grad[1].any()


@pytest.mark.parametrize(("fusion", "is_blind"), [("early", False), ("late", True)])
def test_modalities_see_each_other_in_early_fusion_only(fusion: str, is_blind: bool) -> None:
    """In late fusion, what the audio adds to the logits does not depend on the image."""
    encoder, tokens, other = small_encoder(fusion), torch_tokens(seed=0), torch_tokens(seed=1)
    changes = [
        encoder({"audio": tokens["audio"], "image": image}) - encoder({"audio": other["audio"], "image": image})
        for image in (tokens["image"], other["image"])
    ]
    assert torch.allclose(changes[0], changes[1], atol=1e-6) is is_blind


def test_order_of_the_dictionary_does_not_matter() -> None:
    encoder, tokens = small_encoder(), torch_tokens()
    backwards = dict(reversed(tokens.items()))
    torch.testing.assert_close(encoder(backwards), encoder(tokens), rtol=0, atol=0)


def test_encoder_equals_the_vit_it_was_made_from() -> None:
    """One modality on the ViT's own grid is the ViT itself, once the modality embedding is taken out."""
    model = ModelSettings(options=OPTIONS)
    torch.manual_seed(0)
    vit = create_vit(model)
    pixels = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        wanted_BD = vit.eval()(pixels)
        tokens = {"image": vit.patch_embed(pixels)}
        encoder = SplitEncoder(vit, {"image": (4, 4)}, num_classes=WIDTH).eval()
        modality = embedding(encoder, "image").modality
        assert modality is not None
        modality.zero_()
        encoder.get_parameter("head.weight").copy_(torch.eye(WIDTH))
        torch.testing.assert_close(encoder(tokens), wanted_BD)


def test_positions_are_resampled_to_the_grid_of_the_modality() -> None:
    encoder = small_encoder()
    for name, (down, across) in GRIDS.items():
        position_1ND = embedding(encoder, name).position
        assert position_1ND is not None
        assert position_1ND.shape == (1, down * across, WIDTH)


def test_each_modality_has_its_own_class_token() -> None:
    encoder = small_encoder()
    audio, image = embedding(encoder, "audio").prefix, embedding(encoder, "image").prefix
    assert audio is not None
    assert image is not None
    torch.testing.assert_close(audio, image)
    assert audio.data_ptr() != image.data_ptr()


@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 2, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 1},
        {"pre_norm": True, "fc_norm": True},
        {"pos_embed": "none"},
        {"init_values": 1e-5, "qk_norm": True},
        {"patch_drop_rate": 0.25, "drop_path_rate": 0.1},
    ],
    ids=str,
)
def test_variants_of_the_vit_train(options: dict[str, object]) -> None:
    encoder = small_encoder(options=options).train()
    keep = keep_mask(audio=[True, False], image=[True, True])
    encoder(torch_tokens(2), keep).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["type", "train", "keys", "0", "a-b_c"])
def test_a_modality_may_have_any_name(name: str) -> None:
    encoder = SplitEncoder(create_vit(ModelSettings(options=OPTIONS)), {name: (2, 2)}, num_classes=2)
    assert encoder({name: torch.from_numpy(np.zeros((1, 4, WIDTH), np.float32))}).shape == (1, 2)
