"""What comes down to an agent that trains its tokenizers: taken as the manifest says, and refused otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.actions import WeightsReceived
from cutlayer.broker.errors import WireError
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import EncodedTensor, Mode
from cutlayer.broker.tensors import WEIGHTS_CODEC, decode_tensor, encode_tensor
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.tokenizer_trainer import TokenizerTrainer
from cutlayer.edge_agent.work_items import WorkItem
from support.small_run import small_dataset
from support.small_side import WIDTH, small_manifest, tokenizer_file

INDICES = np.array([3, 0])
BOTH = ("audio", "image")
ITEM = WorkItem(Mode.TRAIN, 0, "train", INDICES, BOTH, None)
SHAPE = (2, 4, WIDTH)


def side() -> tuple[ClientSide, TokenizerTrainer, Manifest]:
    document: dict[str, Any] = small_manifest().model_dump()
    document["tokenizers"] |= {"mode": "trainable", "every_steps": 1}
    manifest = Manifest.model_validate(document)
    client = ClientSide(manifest, tokenizer_file(), small_dataset(0, 12))
    return client, TokenizerTrainer(client, manifest), manifest


def named(arrays: dict[str, NDArray[np.float32]], codec: str) -> tuple[tuple[str, EncodedTensor], ...]:
    return tuple((name, encode_tensor(codec, array)) for name, array in arrays.items())


def test_gradients_at_the_cut_become_those_of_the_tokenizers() -> None:
    client, trainer, manifest = side()
    cut = {name: np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) for name in BOTH}
    trainer.learn(ITEM, {}, named(cut, "identity"), "identity")
    sent = {name: decode_tensor(tensor, what=name) for name, tensor in trainer.gradients.attach(1, "identity")}
    assert {name: array.shape for name, array in sent.items()} == manifest.parameter_shapes()
    # To first order, the loss sum(G * tokens) changes by the gradient times the step of the weights.
    before = dict(client.tokenize("train", INDICES, BOTH).tokens)
    weights = safetensors.numpy.load(tokenizer_file())
    client.take_weights({name: value + sent[name] * 1e-3 for name, value in weights.items()})
    after = dict(client.tokenize("train", INDICES, BOTH).tokens)
    change = sum(float((cut[name] * (after[name] - before[name])).sum()) for name in BOTH)
    assert change == pytest.approx(sum(float(np.square(array).sum()) for array in sent.values()) * 1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("names", "shape", "codec"),
    [
        (("audio", "audio"), SHAPE, "identity"),
        (("audio", "smell"), SHAPE, "identity"),
        (BOTH, (2, 3, WIDTH), "identity"),
        (BOTH, SHAPE, "fp16"),
    ],
    ids=["twice", "no modality", "another shape", "another codec"],
)
def test_gradients_that_do_not_fit_are_refused_whole(
    names: tuple[str, ...], shape: tuple[int, ...], codec: str
) -> None:
    _, trainer, _ = side()
    tensors = tuple((name, encode_tensor(codec, np.ones(shape, np.float32))) for name in names)
    with pytest.raises(WireError):
        trainer.learn(ITEM, {}, tensors, "identity")
    assert trainer.gradients.attach(1, "identity") == ()


def test_weights_are_taken_if_they_are_all_there_and_newer() -> None:
    client, trainer, manifest = side()
    ones = {name: np.ones(shape, np.float32) for name, shape in manifest.parameter_shapes().items()}
    trainer.take_weights(WeightsReceived(1, 3, named(ones, WEIGHTS_CODEC)))
    taken = dict(client.tokenize("train", INDICES, BOTH).tokens)
    assert all((tokens == tokens[..., :1]).all() for tokens in taken.values())
    zeros = {name: np.zeros_like(value) for name, value in ones.items()}
    trainer.take_weights(WeightsReceived(1, 2, named(zeros, WEIGHTS_CODEC)))
    assert all(np.array_equal(taken[name], tokens) for name, tokens in client.tokenize("train", INDICES, BOTH).tokens)
    del ones["audio.bias"]
    with pytest.raises(WireError, match="needed are"):
        trainer.take_weights(WeightsReceived(1, 4, named(ones, WEIGHTS_CODEC)))
    assert trainer.weights.version == 3
