"""Tokenizers among the worker's parameters: the agents' weights, under names that nothing else has."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import torch

from cutlayer.server_worker.held_tokenizers import HeldTokenizers, held_name, tokenizer_weights
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.optimizer import make_optimizer
from support.modalities import EVERY_KIND
from support.small_run import small_settings

WEIGHTS = {
    "type.weight": np.arange(6, dtype=np.float32).reshape(3, 2),  # "type" and "train" are nn.Module's own names
    "type.bias": np.array([7, 8], np.float32),
    "train.weight": np.ones((1, 2), np.float32),
    "train.bias": np.zeros(2, np.float32),
}


def test_agents_get_what_the_file_had_under_the_files_names() -> None:
    held = HeldTokenizers(safetensors.numpy.save(WEIGHTS), torch.float32)
    encoder_names = {f"tokenizers.{name}": value for name, value in held.named_parameters()}
    assert set(encoder_names) == {held_name(name) for name in WEIGHTS}
    found = tokenizer_weights({**encoder_names, "head.weight": torch.zeros(2)})
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("mode", ["frozen", "trainable"])
def test_only_trained_ones_are_parameters_of_the_model(mode: str) -> None:
    settings = small_settings(tokenizers={"mode": mode}, activations={"mode": "every-step"})
    encoder = build(settings, 0).encoder
    assert bool(tokenizer_weights(dict(encoder.named_parameters()))) is (mode == "trainable")


def test_a_vocabulary_is_no_weight() -> None:
    file = safetensors.numpy.save({**WEIGHTS, "type.vocabulary": np.arange(9, dtype=np.uint8)})
    held = HeldTokenizers(file, torch.float32)
    assert {held_name(name) for name in WEIGHTS} == {f"tokenizers.{name}" for name, _ in held.named_parameters()}


def test_weight_decay_spares_biases_and_embeddings_of_every_kind() -> None:
    settings = small_settings(
        modalities={name: spec.model_dump() for name, spec in EVERY_KIND.items()},
        tokenizers={"mode": "trainable"},
        activations={"mode": "every-step"},
        optimizer={"weight_decay": 0.1},
    )
    encoder = build(settings, 0).encoder
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    decayed = {
        names[parameter]
        for group in make_optimizer(encoder, settings.optimizer).param_groups
        for parameter in group["params"]
        if group["weight_decay"] > 0
    }
    assert {name for name in decayed if name.startswith("tokenizers.")} == {
        f"tokenizers.{name}_tokens.weight" for name in EVERY_KIND if name != "text"
    }
