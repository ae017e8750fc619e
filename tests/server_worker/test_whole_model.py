"""The uncut model with samples that lack tokens and modalities: as if what is not there had never been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from cutlayer.edge_agent.tokenizers import load_tokenizers
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.settings import RunSettings
from cutlayer.server_worker.whole_model import WholeModel
from support.modalities import EVERY_KIND, RAGGED, raw_samples

NUM_SAMPLES, CLASSES = 6, ["a", "b", "c"]
ALL = torch.ones(NUM_SAMPLES, dtype=torch.bool)


def settings(fusion: Literal["early", "late"] = "early", **sections: object) -> RunSettings:
    document: dict[str, Any] = {
        "model": {
            "fusion": fusion,
            "options": {"img_size": 4, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2},
        },
        "modalities": {name: spec.model_dump() for name, spec in EVERY_KIND.items()},
        "task": {"classes": CLASSES},
    }
    return RunSettings.model_validate(document | sections)


def built_and_whole(run: RunSettings) -> tuple[BuiltModel, WholeModel]:
    built = build(run, 0)
    return built, WholeModel(built.encoder, built.tokenizer_file, run.modalities).eval()


def features_of(built: BuiltModel, *, whole: bool = False) -> dict[str, Tensor]:
    tokenizers = load_tokenizers(EVERY_KIND, built.tokenizer_file)
    return {
        name: torch.from_numpy(tokenizers[name].features(raw_samples(name, NUM_SAMPLES, whole=whole)))
        for name in EVERY_KIND
    }


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_every_kind_goes_through_at_once(fusion: Literal["early", "late"]) -> None:
    built, whole = built_and_whole(settings(fusion))
    for is_whole in (False, True):
        outputs_BC = whole(features_of(built, whole=is_whole), present=None)
        assert outputs_BC.shape == (NUM_SAMPLES, len(CLASSES))
        assert outputs_BC.isfinite().all()


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_a_sample_does_not_depend_on_its_company(fusion: Literal["early", "late"]) -> None:
    built, whole = built_and_whole(settings(fusion))
    features = features_of(built)
    together_BC = whole(features)
    for row in range(NUM_SAMPLES):
        alone_BC = whole({name: values[row : row + 1] for name, values in features.items()})
        torch.testing.assert_close(alone_BC[0], together_BC[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_a_modality_that_nobody_has_is_as_good_as_not_given(name: str) -> None:
    built, whole = built_and_whole(settings())
    features = features_of(built, whole=True)
    others = {other: values for other, values in features.items() if other != name}
    torch.testing.assert_close(whole(features, present={name: ~ALL}), whole(others), rtol=1e-4, atol=1e-5)


def changed_where_there(features: Tensor, present_BN: Tensor) -> Tensor:
    """Other features of tokens that are there only."""
    return torch.where(present_BN if features.ndim == 2 else present_BN[:, :, None], features + 1, features)


@pytest.mark.parametrize("name", RAGGED)
def test_tokens_that_are_there_count(name: str) -> None:
    built, whole = built_and_whole(settings())
    features = features_of(built)
    present_BN = whole.tokenizers[f"{name}_tokens"].presence(features[name])  # type: ignore[operator]
    if name == "table":
        present_BN = present_BN & torch.tensor([True, True, False, False])  # a category is no number to add one to
    other: Mapping[str, Tensor] = {**features, name: changed_where_there(features[name], present_BN)}
    has_any_B = present_BN.any(dim=1)
    differs_B = (whole(features) - whole(other)).abs().amax(dim=1) > 1e-5
    assert has_any_B.any()
    assert torch.equal(differs_B, has_any_B)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_weights_of_every_kind_train(name: str) -> None:
    run = settings()
    built = build(run, 0)
    whole = WholeModel(built.encoder, built.tokenizer_file, run.modalities, train_tokenizers=True)
    whole(features_of(built)).square().sum().backward()
    for parameter in whole.tokenizers[f"{name}_tokens"].parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()
