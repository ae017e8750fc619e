"""Texts, series and rows of tables as tokens: which are there, what they are, what is refused."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable, RunError, SettingsError
from cutlayer.broker.modalities import SeriesSpec, TableSpec, TextSpec
from cutlayer.broker.vocabulary import Vocabulary
from cutlayer.edge_agent.series_tokenizer import SeriesPatchTokenizer
from cutlayer.edge_agent.table_tokenizer import TableTokenizer
from cutlayer.edge_agent.text_tokenizer import TextTokenizer
from cutlayer.edge_agent.tokenizers import Tokenizer, tokenizer_from_spec
from support.modalities import EVERY_KIND, RAGGED, SERIES, TABLE, TEXT, random_parts, raw_samples
from support.vocabularies import CORPUS, edited, vocabulary

WIDTH = 5


def tokenizer_of(name: str) -> Tokenizer:
    spec = EVERY_KIND[name]
    return tokenizer_from_spec(
        name, spec, {f"{name}.{part}": array for part, array in random_parts(spec, WIDTH).items()}
    )


def text_tokenizer(document: bytes, *, num_tokens: int = 8, size: int | None = None) -> TextTokenizer:
    spec = TextSpec(
        num_tokens=num_tokens,
        vocabulary=hashlib.sha256(document).hexdigest(),
        vocabulary_size=size or Vocabulary(document).size,
    )
    return TextTokenizer(spec, {**random_parts(spec, WIDTH), "vocabulary": np.frombuffer(document, np.uint8)})


# All ragged kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RAGGED)
def test_tokens_that_are_not_there_are_zeros(name: str) -> None:
    tokenizer = tokenizer_of(name)
    features = tokenizer.features(raw_samples(name, 20))
    present_BN = tokenizer.presence(features)
    assert present_BN is not None
    assert present_BN.shape == (20, tokenizer.num_tokens)
    assert 0 < present_BN.sum() < present_BN.size
    tokens_BND = tokenizer.project(features)
    assert np.isfinite(tokens_BND).all()
    assert (tokens_BND[~present_BN] == 0.0).all()
    assert tokens_BND[present_BN].any(axis=1).all()


@pytest.mark.parametrize("name", RAGGED)
def test_whole_samples_have_all_their_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name)
    present_BN = tokenizer.presence(tokenizer.features(raw_samples(name, 6, whole=True)))
    assert present_BN is not None
    assert present_BN.all()


@pytest.mark.parametrize("name", EVERY_KIND)
def test_features_of_a_sample_do_not_depend_on_its_company(name: str) -> None:
    tokenizer, raw = tokenizer_of(name), raw_samples(name, 9)
    together = tokenizer.features(raw)
    one_by_one = np.concatenate([tokenizer.features(raw[row : row + 1]) for row in range(9)])
    np.testing.assert_array_equal(together, one_by_one)
    assert tokenizer.features(raw[:0]).shape == (0, *together.shape[1:])
    assert tokenizer.project(together[:0]).shape == (0, tokenizer.num_tokens, WIDTH)


@pytest.mark.parametrize("name", RAGGED)
def test_features_leave_the_raw_samples_as_they_were(name: str) -> None:
    raw = raw_samples(name, 9)
    before = raw.copy()
    tokenizer_of(name).features(raw)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_features_take_the_bytes_that_the_specification_says(name: str) -> None:
    assert tokenizer_of(name).features(raw_samples(name, 3)).nbytes == 3 * EVERY_KIND[name].feature_bytes


@pytest.mark.parametrize("name", RAGGED)
def test_gradients_at_tokens_that_are_not_there_count_for_nothing(name: str) -> None:
    tokenizer = tokenizer_of(name)
    features = tokenizer.features(raw_samples(name, 20))
    present_BN = tokenizer.presence(features)
    assert present_BN is not None
    gradient_BND = np.random.default_rng(3).normal(size=(*present_BN.shape, WIDTH)).astype(np.float32)
    clean = tokenizer.gradients(features, np.where(present_BN[:, :, None], gradient_BND, np.float32(0.0)))
    for part, gradient in tokenizer.gradients(features, gradient_BND).items():
        np.testing.assert_allclose(gradient, clean[part], atol=1e-5)


@pytest.mark.parametrize("name", EVERY_KIND)
def test_other_weights_give_other_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name)
    raw = raw_samples(name, 4, whole=True)
    before = tokenizer.tokenize(raw)
    parts = random_parts(EVERY_KIND[name], WIDTH)
    tokenizer.take_weights({part: 2.0 * array for part, array in parts.items()})
    np.testing.assert_allclose(tokenizer.tokenize(raw), 2.0 * before, rtol=1e-4, atol=1e-4)


# Texts ------------------------------------------------------------------------------------------------------------


def test_bytes_of_a_text_are_its_tokens() -> None:
    tokenizer = TextTokenizer(TEXT, random_parts(TEXT, WIDTH))
    ids_BN = tokenizer.features(np.array(["", "Añ", "abcdefgh"]))
    assert ids_BN.tolist() == [[-1] * 6, [65, 0xC3, 0xB1, -1, -1, -1], [97, 98, 99, 100, 101, 102]]
    embedding_VD = random_parts(TEXT, WIDTH)["embedding"]
    np.testing.assert_array_equal(tokenizer.project(ids_BN)[1, :3], embedding_VD[[65, 0xC3, 0xB1]])


def test_words_that_are_frequent_are_one_token() -> None:
    tokenizer = text_tokenizer(vocabulary())
    [ids_N] = tokenizer.features(np.array(["the patient has a cough"], object))
    assert (ids_N >= 0).sum() == 5


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_any_text_has_tokens_within_the_vocabulary(text: str) -> None:
    tokenizer = text_tokenizer(vocabulary())
    [ids_N] = tokenizer.features(np.array([text], object))
    num_present = int((ids_N >= 0).sum())
    assert (ids_N[:num_present] >= 0).all(), "what is absent stands behind"
    assert ids_N.max(initial=-1) < tokenizer.spec.vocabulary_size
    assert (num_present > 0) == (text != "")


def test_half_a_surrogate_pair_is_no_reason_to_fail() -> None:
    raw = np.array(["a\ud83d"], object)
    assert text_tokenizer(vocabulary()).features(raw)[0, 0] >= 0
    assert TextTokenizer(TEXT, random_parts(TEXT, WIDTH)).features(raw)[0, :3].tolist() == [97, ord("?"), -1]


def test_a_book_costs_no_more_than_a_page() -> None:
    tokenizer = text_tokenizer(vocabulary())
    raw = np.array([CORPUS * 20_000], object)
    np.testing.assert_array_equal(tokenizer.features(raw), tokenizer.features(np.array([CORPUS * 20], object)))


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (np.zeros((2, 3)), r"got \(2, 3\) float64; expected \(B,\) strings"),
        (np.array([b"bytes"]), r"S5"),
        (np.array([["a", "b"]]), r"\(1, 2\)"),
        (np.array(["a", None], object), "got a NoneType"),
        (np.array(["a", b"b"], object), "got a bytes"),
    ],
)
def test_what_is_no_text_is_refused(raw: NDArray[Any], got: str) -> None:
    with pytest.raises(SettingsError, match=got) as caught:
        TextTokenizer(TEXT, random_parts(TEXT, WIDTH), modality="note").features(raw)
    assert "note" in str(caught.value)


def test_a_vocabulary_that_is_missing_damaged_or_another_is_refused() -> None:
    document = vocabulary()
    spec = TextSpec(num_tokens=4, vocabulary=hashlib.sha256(document).hexdigest(), vocabulary_size=1)
    embedding = random_parts(spec, WIDTH)
    with pytest.raises(ManifestUnsatisfiable, match="lack the vocabulary of 'text'"):
        TextTokenizer(spec, embedding)
    with pytest.raises(ManifestUnsatisfiable, match="not the one that the run names"):
        TextTokenizer(spec, {**embedding, "vocabulary": np.frombuffer(document[:-1], np.uint8)})
    with pytest.raises(ManifestUnsatisfiable, match=r"tokens, the run says 1"):
        TextTokenizer(spec, {**embedding, "vocabulary": np.frombuffer(document, np.uint8)})


def test_a_vocabulary_that_nobody_should_use_is_refused() -> None:
    with pytest.raises(ManifestUnsatisfiable, match="drops merges at random"):
        text_tokenizer(edited(lambda content: content["model"].update(dropout=0.5)), size=300)


def test_an_agent_without_the_package_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    size = Vocabulary(vocabulary()).size
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ManifestUnsatisfiable, match="tokenizers, which reads vocabularies, is not installed") as caught:
        text_tokenizer(vocabulary(), size=size)
    assert caught.value.fix == 'pip install "cutlayer[text]"'
    assert TextTokenizer(TEXT, random_parts(TEXT, WIDTH)).tokenize(np.array(["a"])).any(), "bytes need no package"


def test_a_vocabulary_that_fails_on_a_text_ends_the_agent_with_the_fix() -> None:
    def without_unknown(content: dict[str, Any]) -> None:
        content["model"] = {"type": "WordLevel", "vocab": {"cough": 0}, "unk_token": "?"}
        content["pre_tokenizer"] = {"type": "Whitespace"}

    tokenizer = text_tokenizer(edited(without_unknown))
    assert tokenizer.features(np.array(["cough"])).max() == 0
    with pytest.raises(RunError, match="fails on a text of 5 characters") as caught:
        tokenizer.features(np.array(["fever"]))
    assert "another vocabulary" in str(caught.value)
    assert "fever" not in str(caught.value), "a text stays where it is"


# Series -----------------------------------------------------------------------------------------------------------


def series_tokenizer(spec: SeriesSpec = SERIES) -> SeriesPatchTokenizer:
    return SeriesPatchTokenizer(spec, random_parts(spec, WIDTH), modality="ecg")


def test_a_patch_is_some_steps_of_all_channels_around_their_means() -> None:
    series_BTC = np.random.default_rng(0).normal(size=(2, 20, 2))
    patches_BNP = series_tokenizer().features(series_BTC)
    expected = ((series_BTC[1, 4:8] - np.array([1.0, -2.0])) / np.array([2.0, 0.5])).ravel()
    np.testing.assert_allclose(patches_BNP[1, 1], expected, rtol=1e-5)


def test_short_series_have_fewer_tokens_and_long_ones_are_cut() -> None:
    tokenizer = series_tokenizer()
    series_BTC = np.random.default_rng(0).normal(size=(1, 30, 2)).astype(np.float32)
    np.testing.assert_array_equal(tokenizer.features(series_BTC), tokenizer.features(series_BTC[:, :20]))
    short = tokenizer.features(series_BTC[:, :9])
    padded = np.pad(series_BTC[:, :9], ((0, 0), (0, 11), (0, 0)), constant_values=np.nan)
    np.testing.assert_array_equal(short, tokenizer.features(padded))
    present_BN = tokenizer.presence(short)
    assert present_BN is not None
    assert present_BN.tolist() == [[True, True, True, False, False]]


def test_a_missing_value_counts_as_its_channels_mean() -> None:
    tokenizer = series_tokenizer()
    series_BTC = np.random.default_rng(0).normal(size=(1, 20, 2)).astype(np.float32)
    filled_BTC = series_BTC.copy()
    series_BTC[0, 5, 1], filled_BTC[0, 5, 1] = np.nan, -2.0
    np.testing.assert_array_equal(tokenizer.features(series_BTC), tokenizer.features(filled_BTC))


def test_a_gap_of_a_whole_patch_has_no_token() -> None:
    tokenizer = series_tokenizer()
    series_BTC = np.random.default_rng(0).normal(size=(1, 20, 2))
    series_BTC[0, 4:8] = np.nan
    present_BN = tokenizer.presence(tokenizer.features(series_BTC))
    assert present_BN is not None
    assert present_BN.tolist() == [[True, False, True, True, True]]


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (np.zeros((2, 20)), r"got \(2, 20\)"),
        (np.zeros((2, 2, 20)), r"got \(2, 2, 20\)"),
        (np.zeros((2, 20, 2), np.complex64), "complex64"),
        (np.full((2, 20, 2), np.inf), "inf"),
        (np.full((2, 20, 2), 1e300), "1e\\+300"),
        (np.array([["a"]]), "<U1"),
    ],
)
def test_series_that_do_not_fit_are_refused_with_what_was_expected(raw: NDArray[Any], got: str) -> None:
    with pytest.raises(SettingsError, match=got) as caught:
        series_tokenizer().features(raw)
    assert "ecg: got" in str(caught.value)
    assert "expected (B, T, 2) numbers at 50 Hz" in str(caught.value)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(0, 3), st.integers(0, 25), st.just(2)),
        elements=st.floats(-1e6, 1e6, width=32) | st.just(float("nan")),
    )
)
def test_any_series_has_finite_tokens(series_BTC: NDArray[np.float32]) -> None:
    tokenizer = series_tokenizer()
    tokens_BND = tokenizer.tokenize(series_BTC)
    assert tokens_BND.shape == (len(series_BTC), 5, WIDTH)
    assert np.isfinite(tokens_BND).all()


# Tables -----------------------------------------------------------------------------------------------------------


def table_tokenizer(spec: TableSpec = TABLE) -> TableTokenizer:
    return TableTokenizer(spec, random_parts(spec, WIDTH), modality="vitals")


def test_a_column_is_a_token() -> None:
    parts = random_parts(TABLE, WIDTH)
    [token_ND] = table_tokenizer().tokenize(np.array([[70.0, np.nan, 1.0, 2.0]]))
    np.testing.assert_allclose(token_ND[0], 1.0 * parts["weight"][0] + parts["bias"][0], rtol=1e-5)
    assert (token_ND[1] == 0.0).all()
    np.testing.assert_allclose(token_ND[2], parts["embedding"][1] + parts["bias"][2], rtol=1e-5)
    np.testing.assert_allclose(token_ND[3], parts["embedding"][2 + 2] + parts["bias"][3], rtol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        TableSpec(columns=("a", "b", "c")),
        TableSpec.model_validate({"categories": [{"name": "a", "values": ["x", "y"]}, {"name": "b", "values": ["z"]}]}),
    ],
    ids=["numbers alone", "categories alone"],
)
def test_tables_of_one_sort_of_columns(spec: TableSpec) -> None:
    tokenizer = table_tokenizer(spec)
    cells_BF = np.zeros((2, spec.num_tokens))
    assert tokenizer.tokenize(cells_BF).shape == (2, spec.num_tokens, WIDTH)
    gradients = tokenizer.gradients(tokenizer.features(cells_BF), np.ones((2, spec.num_tokens, WIDTH), np.float32))
    assert {part: array.shape for part, array in gradients.items()} == spec.parameter_shapes(WIDTH)


def test_integers_are_numbers_too() -> None:
    whole = np.array([[70, 60, 1, 2]])
    np.testing.assert_array_equal(table_tokenizer().features(whole), table_tokenizer().features(whole.astype(float)))


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (np.zeros((2, 3)), r"got \(2, 3\) float64, values 0 to 0; expected \(B, 4\) numbers: age, pulse, sex, ward"),
        (np.zeros(4), r"got \(4,\)"),
        (np.array([["a"] * 4]), "<U1"),
        (np.array([[np.inf, 0, 0, 0]]), "no infinite values"),
        (np.array([[1e300, 0, 0, 0]]), "bring the numbers near 0"),
        (np.array([[0, 0, 2, 0]]), "column 'sex' has 2, and 2 values are known"),
        (np.array([[0, 0, 0, 0.5]]), "column 'ward' has 0.5, and 3 values are known"),
        (np.array([[0, 0, -1, 0]]), "column 'sex' has -1"),
    ],
)
def test_cells_that_do_not_fit_are_refused_with_what_was_expected(raw: NDArray[Any], got: str) -> None:
    with pytest.raises(SettingsError, match=got) as caught:
        table_tokenizer().features(raw)
    assert str(caught.value).startswith("vitals")
