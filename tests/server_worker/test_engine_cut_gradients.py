"""The gradient at the cut, and gradients of tokenizers that come from outside, against autograd of the uncut model."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.held_tokenizers import held_name
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.passes import Forwarded, ForwardItem
from cutlayer.server_worker.settings import OptimizerSettings
from server_worker.small_model import output_gradient, random_tokens, small_settings, train_item

# Axes: b samples of a microbatch, K tokens, D width, C classes.

TokenizerGradients = Mapping[Hashable, Mapping[str, NDArray[np.float32]]]

LABELS_b = np.array([0, 1, 2, 0])
OPTIMIZER = OptimizerSettings(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, warmup_ratio=0.0, clip_norm=None)


def trained_model() -> BuiltModel:
    settings = small_settings(tokenizers={"mode": "trainable"}, activations={"mode": "every-step"})
    return build(settings, 0)


def engine_of(built: BuiltModel, optimizer: OptimizerSettings = OPTIMIZER, modality_dropout: float = 0.0) -> Engine:
    return Engine(copy.deepcopy(built.encoder), optimizer, seed=0, modality_dropout=modality_dropout)


def wanted_gradients(built: BuiltModel, item: ForwardItem) -> dict[str, NDArray[np.float32]]:
    """Plain torch: the gradient of the summed loss at the tokens of one microbatch, alone."""
    tokens = {name: torch.tensor(array).requires_grad_() for name, array in item.tokens.items()}
    positions = {name: torch.from_numpy(places) for name, places in item.positions.items()}
    loss = torch.nn.functional.cross_entropy(
        built.encoder(tokens, None, positions), torch.from_numpy(LABELS_b), reduction="sum"
    )
    return {
        name: gradient.numpy()
        for name, gradient in zip(tokens, torch.autograd.grad(loss, tuple(tokens.values())), strict=True)
    }


def gradients_of(forwarded: Forwarded) -> dict[Hashable, NDArray[np.float32]]:
    return {key: output_gradient(outputs_bC, LABELS_b) for key, outputs_bC in forwarded.outputs.items()}


def reduced(item: ForwardItem) -> ForwardItem:
    """Leave six of the image's tokens."""
    places = np.sort(np.random.default_rng(0).permuted(np.tile(np.arange(16), (4, 1)), axis=1)[:, :6], axis=1)
    tokens = {**item.tokens, "image": np.take_along_axis(item.tokens["image"], places[:, :, None], axis=1)}
    return ForwardItem(item.key, item.mode, tokens, {"image": places})


@pytest.mark.parametrize("is_reduced", [False, True], ids=["all tokens", "fewer tokens"])
@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
def test_gradients_at_the_cut_are_those_of_the_whole_model(is_reduced: bool, in_pieces: bool) -> None:
    built = trained_model()
    engine = engine_of(built)
    items = [train_item(key) for key in ("a", "b", "c")]
    items = [reduced(item) for item in items] if is_reduced else items
    forwarded = engine.forward(items)
    assert forwarded.group_id is not None
    gradients = gradients_of(forwarded)
    if in_pieces:
        first = engine.backward(forwarded.group_id, {"b": gradients.pop("b")}, last=False)
        assert list(first.cut_gradients) == ["b"], "those of the others are not known yet"
        found = {**first.cut_gradients, **engine.backward(forwarded.group_id, gradients, last=True).cut_gradients}
    else:
        found = dict(engine.backward(forwarded.group_id, gradients, last=True).cut_gradients)
    assert found.keys() == {"a", "b", "c"}
    for item in items:
        for name, wanted_bKD in wanted_gradients(built, item).items():
            np.testing.assert_allclose(found[item.key][name], wanted_bKD, atol=1e-6)
            assert np.abs(wanted_bKD).max() > 1e-4


def test_a_modality_that_is_hidden_has_no_gradient() -> None:
    engine = engine_of(trained_model(), modality_dropout=0.9)
    forwarded = engine.forward([train_item("a")])
    assert forwarded.group_id is not None
    gradients = gradients_of(forwarded)
    found = engine.backward(forwarded.group_id, gradients, last=True).cut_gradients["a"]
    is_seen_bM = np.stack([np.abs(found[name]).max(axis=(1, 2)) > 0 for name in sorted(found)], axis=1)
    assert is_seen_bM.any(axis=1).all()
    assert not is_seen_bM.all()


def test_frozen_tokenizers_cost_nothing() -> None:
    engine = Engine(build(small_settings(), 0).encoder, OPTIMIZER, seed=0)
    forwarded = engine.forward([train_item("a")])
    assert forwarded.group_id is not None
    gradients = gradients_of(forwarded)
    assert not engine.backward(forwarded.group_id, gradients, last=True).cut_gradients
    assert not engine.tokenizer_weights()


def test_gradients_of_tokenizers_are_part_of_the_window_of_their_microbatch() -> None:
    built = trained_model()
    engine = engine_of(built)
    before = engine.tokenizer_weights()
    own = {name: np.full_like(value, 0.5) for name, value in before.items() if name.startswith("image")}
    others = {"image.bias": np.full_like(before["image.bias"], 0.25)}
    forwarded = engine.forward([train_item("a"), train_item("b")])
    assert forwarded.group_id is not None
    gradients = gradients_of(forwarded)
    engine.backward(forwarded.group_id, gradients, last=True, tokenizer_gradients={"a": own, "b": others})
    engine.commit(8, None)
    after = engine.tokenizer_weights()
    np.testing.assert_allclose(after["image.weight"], before["image.weight"] - 0.1 * 0.5 / 8, atol=1e-6)
    np.testing.assert_allclose(after["image.bias"], before["image.bias"] - 0.1 * 0.75 / 8, atol=1e-6)
    assert np.array_equal(after["audio.weight"], before["audio.weight"]), "no gradient is not one of zeros"


def test_a_microbatch_that_is_refused_takes_its_tokenizers_gradients_with_it() -> None:
    engine = engine_of(trained_model())
    before = engine.tokenizer_weights()
    forwarded = engine.forward([train_item("a"), train_item("b")])
    assert forwarded.group_id is not None
    gradients = gradients_of(forwarded)
    gradients["a"][0, 0] = np.nan
    own: TokenizerGradients = {"a": {"image.bias": np.ones_like(before["image.bias"])}}
    found = engine.backward(forwarded.group_id, gradients, last=True, tokenizer_gradients=own)
    assert found.refused == ("a",)
    assert list(found.cut_gradients) == ["b"]
    engine.commit(4, None)
    assert np.array_equal(engine.tokenizer_weights()["image.bias"], before["image.bias"])


def test_a_parameter_that_is_none_is_an_error() -> None:
    engine = engine_of(trained_model())
    forwarded = engine.forward([train_item("a")])
    assert forwarded.group_id is not None
    gradients = gradients_of(forwarded)
    wrong: TokenizerGradients = {"a": {"smell.bias": np.zeros(3, np.float32)}}
    with pytest.raises(ValueError, match="smell"):
        engine.backward(forwarded.group_id, gradients, last=True, tokenizer_gradients=wrong)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_tokenizers_continue_from_a_snapshot_with_their_optimizer(name: str) -> None:
    optimizer = OptimizerSettings.model_validate({"name": name, "lr": 0.1})
    built = trained_model()
    engine, twin = engine_of(built, optimizer), engine_of(built, optimizer)
    own = {parameter: np.ones_like(value) for parameter, value in engine.tokenizer_weights().items()}

    def run_window(of: Engine) -> None:
        forwarded = of.forward([ForwardItem("a", "train", random_tokens(4))])
        assert forwarded.group_id is not None
        gradients = gradients_of(forwarded)
        of.backward(forwarded.group_id, gradients, last=True, tokenizer_gradients={"a": own})
        of.commit(4, None)

    run_window(engine)
    twin.load_state_dict(engine.state_dict())
    assert held_name("image.weight") in twin.state_dict().weights
    run_window(engine)
    run_window(twin)
    assert twin.parameters_digest() == engine.parameters_digest()
