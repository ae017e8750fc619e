from __future__ import annotations

import numpy as np
import pytest

from cutlayer.broker.errors import WireError
from cutlayer.broker.messages import EncodedTensor
from cutlayer.edge_agent import sample_features
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.client_side import ClientSide, Tokenized
from cutlayer.edge_agent.tokenizers import load_tokenizers
from support.small_run import small_dataset
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
    monkeypatch.setattr(sample_features, "CACHE_BYTES", 500)
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
