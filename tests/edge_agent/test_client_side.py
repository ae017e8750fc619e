from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cutlayer.broker.errors import ManifestUnsatisfiable, WireError
from cutlayer.broker.manifest import CodecNames, Manifest
from cutlayer.broker.messages import EncodedTensor
from cutlayer.edge_agent import client_side
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.client_side import ClientSide, Tokenized, check_satisfiable
from cutlayer.edge_agent.tokenizers import load_tokenizers
from support.small_run import AUDIO, IMAGE, small_dataset
from support.small_side import small_manifest, tokenizer_file

INDICES = np.array([3, 0, 3, 5])
BOTH = ("audio", "image")


def client(data: ArrayDataset | None = None) -> ClientSide:
    return ClientSide(small_manifest(), tokenizer_file(), data or small_dataset(0, 12))


def assert_same(first: Tokenized, second: Tokenized) -> None:
    assert [name for name, _ in first.tokens] == [name for name, _ in second.tokens] == list(BOTH)
    for (_, one_BND), (_, other_BND) in zip(first.tokens, second.tokens, strict=True):
        assert np.array_equal(one_BND, other_BND)


def test_activations_are_the_tokens_of_the_samples() -> None:
    data = small_dataset(0, 12)
    tokenized = client(data).tokenize("train", INDICES, BOTH)
    raw = data.batch("train", INDICES)
    tokenizers = load_tokenizers(small_manifest().modalities, tokenizer_file())
    for name, tokens_BND in tokenized.tokens:
        assert np.array_equal(tokens_BND, tokenizers[name].tokenize(raw.inputs[name]))
    assert tokenized.targets.tolist() == raw.targets.tolist()


def test_only_the_modalities_given_go_up() -> None:
    assert [name for name, _ in client().tokenize("test", INDICES, ("image",)).tokens] == ["image"]


def test_sample_is_read_once_and_gives_the_same_tokens_again() -> None:
    asked: list[int] = []

    class Counting(ArrayDataset):
        def batch(self, split: object, indices: object) -> object:  # type: ignore[override]
            asked.extend(indices)  # type: ignore[arg-type]
            return super().batch(split, indices)  # type: ignore[arg-type]

    data = small_dataset(0, 12)
    side = client(Counting(data.name, data.classes, data.modalities, data.splits))
    first = side.tokenize("train", INDICES, BOTH)
    second = side.tokenize("train", INDICES, BOTH)
    assert_same(first, second)
    assert sorted(set(asked)) == [0, 3, 5]
    assert len(asked) <= len(INDICES)


def test_small_cache_changes_nothing_but_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client().tokenize("train", INDICES, BOTH)
    monkeypatch.setattr(client_side, "CACHE_BYTES", 500)
    side = client()
    for _ in range(2):
        assert_same(side.tokenize("train", INDICES, BOTH), whole)


def test_loss_is_computed_from_the_outputs_as_the_lease_encodes_them() -> None:
    outputs = EncodedTensor("identity", (2, 3), np.zeros((2, 3), "<f4").tobytes())
    result = client().loss(outputs, np.array([0, 2]), "identity")
    assert result.loss_sum == pytest.approx(2 * np.log(3))


@pytest.mark.parametrize(
    "outputs",
    [
        EncodedTensor("identity", (3, 3), bytes(36)),
        EncodedTensor("identity", (2, 4), bytes(32)),
        EncodedTensor("identity", (2, 3), bytes(20)),
        EncodedTensor("identity", (2, 3), bytes(200)),
        EncodedTensor("fp16", (2, 3), bytes(12)),
        EncodedTensor("identity", (2, 3), np.full((2, 3), np.nan, "<f4").tobytes()),
    ],
    ids=["more samples", "more classes", "too short", "too long", "another codec", "NaN"],
)
def test_outputs_that_do_not_fit_are_refused(outputs: EncodedTensor) -> None:
    with pytest.raises(WireError):
        client().loss(outputs, np.array([0, 2]), "identity")


def test_data_that_fit_are_taken() -> None:
    check_satisfiable(small_manifest(), small_dataset(0))


def with_manifest(**changes: object) -> tuple[Manifest, ArrayDataset]:
    return small_manifest().model_copy(update=changes), small_dataset(0)


def with_data(**changes: object) -> tuple[Manifest, ArrayDataset]:
    return small_manifest(), replace(small_dataset(0), **changes)  # type: ignore[arg-type]


MISFITS: dict[str, tuple[Callable[[], tuple[Manifest, ArrayDataset]], str]] = {
    "no modality of the run": (lambda: with_data(modalities={"scan": IMAGE}), "has none of them but scan"),
    "another shape": (
        lambda: with_data(modalities={"audio": AUDIO, "image": IMAGE.model_copy(update={"height": 8})}),
        "needs image as",
    ),
    "other classes": (lambda: with_data(classes=("ja", "nein", "vielleicht")), "its classes are no, perhaps, yes"),
    "classes in another order": (lambda: with_data(classes=("yes", "perhaps", "no")), "its classes are"),
    "an unknown codec": (
        lambda: with_manifest(codecs=CodecNames(activations="int3")),
        "encodes activations as 'int3'",
    ),
    "no sample to train on": (
        lambda: with_data(
            splits={"train": small_dataset(0).batch("train", np.arange(0)), "test": small_dataset(0).splits["test"]}
        ),
        "has no training sample",
    ),
}


@pytest.mark.parametrize(("make", "text"), MISFITS.values(), ids=MISFITS)
def test_data_that_do_not_fit_are_named_with_a_fix(
    make: Callable[[], tuple[Manifest, ArrayDataset]], text: str
) -> None:
    with pytest.raises(ManifestUnsatisfiable) as caught:
        check_satisfiable(*make())
    assert text in caught.value.what
    assert caught.value.fix
    assert caught.value.exit_code == 4


def test_more_modalities_than_the_run_needs_are_no_harm() -> None:
    check_satisfiable(small_manifest().model_copy(update={"modalities": {"image": IMAGE}}), small_dataset(0))
