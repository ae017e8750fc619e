"""The client side with every kind of modality, where samples lack tokens and whole modalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest, TokenReduction
from cutlayer.broker.model_chunks import describe_model
from cutlayer.broker.ragged_tokens import is_ragged
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import Batch
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.tokenizers import load_tokenizers
from support.modalities import EVERY_KIND, RAGGED, random_parts, raw_samples
from support.small_run import CLASSES
from support.small_side import WIDTH, small_manifest

NUM_SAMPLES = 12
INDICES = np.array([3, 0, 3, 5, 11])
NAMES = tuple(sorted(EVERY_KIND))


def weights_file() -> bytes:
    weights = {
        f"{name}.{part}": array
        for name, spec in EVERY_KIND.items()
        for part, array in random_parts(spec, WIDTH).items()
    }
    file: bytes = safetensors.numpy.save(weights)
    return file


def manifest(**reduction: TokenReduction) -> Manifest:
    changes = {"modalities": EVERY_KIND, "tokenizers": describe_model(weights_file()), "reduction": reduction}
    return Manifest.model_validate(small_manifest().model_copy(update=changes).model_dump())


def dataset(present: dict[str, NDArray[np.bool_]] | None = None, *, whole: bool = False) -> ArrayDataset:
    batch = Batch(
        {name: raw_samples(name, NUM_SAMPLES, whole=whole) for name in NAMES},
        np.arange(NUM_SAMPLES) % len(CLASSES),
        present or {},
    )
    return ArrayDataset("every kind", CLASSES, EVERY_KIND, {"train": batch, "test": batch})


def half() -> NDArray[np.bool_]:
    is_odd_B: NDArray[np.bool_] = np.arange(NUM_SAMPLES) % 2 == 1
    return is_odd_B


def test_samples_with_all_their_tokens_need_no_positions() -> None:
    side = ClientSide(manifest(), weights_file(), dataset(whole=True))
    tokenized = side.tokenize("train", INDICES, NAMES)
    assert tokenized.positions == ()
    assert {name: array.shape for name, array in tokenized.tokens} == {
        name: (len(INDICES), spec.num_tokens, WIDTH) for name, spec in EVERY_KIND.items()
    }


@pytest.mark.parametrize("name", RAGGED)
def test_positions_say_which_tokens_are_there(name: str) -> None:
    side, data = ClientSide(manifest(), weights_file(), dataset()), dataset()
    tokenized = side.tokenize("train", INDICES, NAMES)
    tokenizer = load_tokenizers(EVERY_KIND, weights_file())[name]
    features = tokenizer.features(data.batch("train", INDICES).inputs[name])
    present_BN, all_BND = tokenizer.presence(features), tokenizer.project(features)
    assert present_BN is not None
    tokens_BKD, positions_BK = dict(tokenized.tokens)[name], dict(tokenized.positions)[name]
    assert is_ragged(positions_BK, tokenizer.num_tokens)
    for row in range(len(INDICES)):
        places = np.flatnonzero(present_BN[row])
        assert positions_BK[row, : len(places)].tolist() == places.tolist()
        assert (positions_BK[row, len(places) :] == tokenizer.num_tokens).all()
        np.testing.assert_allclose(tokens_BKD[row, : len(places)], all_BND[row, places], rtol=1e-5, atol=1e-6)
        assert (tokens_BKD[row, len(places) :] == 0.0).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_that_lack_a_modality_have_none_of_its_tokens(name: str) -> None:
    side = ClientSide(manifest(), weights_file(), dataset({name: half()}, whole=True))
    tokenized = side.tokenize("train", INDICES, NAMES)
    assert [other for other, _ in tokenized.positions] == [name]
    tokens_BKD, positions_BK = dict(tokenized.tokens)[name], dict(tokenized.positions)[name]
    num_tokens = EVERY_KIND[name].num_tokens
    has_B = half()[INDICES]
    assert ((positions_BK < num_tokens).sum(axis=1) == np.where(has_B, num_tokens, 0)).all()
    assert (tokens_BKD[~has_B] == 0.0).all()
    whole = dict(ClientSide(manifest(), weights_file(), dataset(whole=True)).tokenize("train", INDICES, NAMES).tokens)
    np.testing.assert_allclose(tokens_BKD[has_B], whole[name][has_B], rtol=1e-5, atol=1e-6)


def test_rows_of_what_is_lacking_may_hold_anything() -> None:
    data = dataset({"image": half(), "series": half()}, whole=True)
    batch = data.splits["train"]
    series_BTC = np.where(half()[:, None, None], batch.inputs["series"], np.inf)
    odd = replace(batch, inputs={**batch.inputs, "series": series_BTC})
    damaged = replace(data, splits={"train": odd, "test": odd})
    clean = ClientSide(manifest(), weights_file(), data).tokenize("train", INDICES, NAMES)
    other = ClientSide(manifest(), weights_file(), damaged).tokenize("train", INDICES, NAMES)
    for (_, one), (_, two) in zip(clean.tokens, other.tokens, strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_empty_text_is_as_good_as_none() -> None:
    data = dataset(whole=True)
    batch = data.splits["train"]
    texts = np.where(half(), batch.inputs["text"], "")
    emptied = replace(batch, inputs={**batch.inputs, "text": texts})
    side = ClientSide(manifest(), weights_file(), replace(data, splits={"train": emptied, "test": emptied}))
    assert side.has_some("train", INDICES, ("text",)).tolist() == half()[INDICES].tolist()


def test_a_reduction_takes_of_the_tokens_that_are_there() -> None:
    spec = TokenReduction(kind="random", keep=0.5)
    side = ClientSide(manifest(text=spec, image=spec), weights_file(), dataset({"image": half()}))
    tokenized = side.tokenize("train", INDICES, NAMES)
    whole = dict(
        ClientSide(manifest(), weights_file(), dataset({"image": half()})).tokenize("train", INDICES, NAMES).positions
    )
    for name, num_kept in (("text", 3), ("image", 2)):
        positions_BK, num_tokens = dict(tokenized.positions)[name], EVERY_KIND[name].num_tokens
        assert positions_BK.shape[1] == num_kept
        for row, places in enumerate(positions_BK):
            there = set(whole[name][row]) - {num_tokens}
            assert set(places) - {num_tokens} <= there
            assert (places < num_tokens).sum() == min(len(there), num_kept)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [None, 0.5])
def test_gradients_are_those_of_the_tokens_that_went_up(name: str, keep: float | None) -> None:
    """The loss sum(G * tokens) is linear in the parameters: its change is the gradient times theirs."""
    reduction = {} if keep is None else {name: TokenReduction(kind="random", keep=keep)}
    side = ClientSide(manifest(**reduction), weights_file(), dataset({name: half()}))
    tokenized = side.tokenize("train", INDICES, (name,))
    before_BKD = dict(tokenized.tokens)[name].copy()
    gradient_BKD = np.random.default_rng(2).normal(size=before_BKD.shape).astype(np.float32)
    found = side.tokenizer_gradients("train", INDICES, dict(tokenized.positions), {name: gradient_BKD})
    weights = safetensors.numpy.load(weights_file())
    assert {key: array.shape for key, array in found.items()} == {
        key: array.shape for key, array in weights.items() if key.startswith(f"{name}.")
    }
    step = {key: np.random.default_rng(9).normal(size=array.shape).astype(np.float32) for key, array in weights.items()}
    side.take_weights({key: array + step[key] for key, array in weights.items()})
    after_BKD = dict(side.tokenize("train", INDICES, (name,)).tokens)[name]
    change = float((gradient_BKD * (after_BKD - before_BKD)).sum())
    assert change == pytest.approx(sum(float((found[key] * step[key]).sum()) for key in found), rel=1e-3, abs=1e-2)


def test_a_modality_that_no_sample_has_gives_no_gradient() -> None:
    side = ClientSide(manifest(), weights_file(), dataset({"image": np.zeros(NUM_SAMPLES, np.bool_)}))
    tokenized = side.tokenize("train", INDICES, ("image",))
    gradient_BKD = np.ones_like(dict(tokenized.tokens)["image"])
    assert side.tokenizer_gradients("train", INDICES, dict(tokenized.positions), {"image": gradient_BKD}) == {}
