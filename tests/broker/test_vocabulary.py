"""Vocabularies: what is taken, what is refused before it is read, and that no file can bring an agent down."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.broker import vocabulary as module
from cutlayer.broker.vocabulary import BadVocabulary, Vocabulary, byte_ids
from support.message_values import mutated
from support.vocabularies import CORPUS, edited, vocabulary

Edit = Callable[[dict[str, Any]], object]


def model_of(content: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = content["model"]
    return model


def replacing(pattern: dict[str, str], content: str) -> Edit:
    step = {"type": "Replace", "pattern": pattern, "content": content}
    return lambda document: document.update(normalizer=step)


def test_a_vocabulary_of_a_users_texts_cuts_them_into_whole_words() -> None:
    found = Vocabulary(vocabulary())
    assert 256 < found.size <= 300
    assert len(found.ids("the patient has a cough", 99)) == 5
    assert found.ids("", 99) == []
    assert len(found.ids(CORPUS, 4)) == 4


def test_other_kinds_of_models_are_read_too() -> None:
    words = {"[UNK]": 0, "cough": 1, "##s": 2, "fever": 3}

    def as_word_piece(content: dict[str, Any]) -> None:
        content["model"] = {
            "type": "WordPiece",
            "vocab": words,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }
        content["normalizer"] = {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        }
        content["pre_tokenizer"] = {"type": "BertPreTokenizer"}

    def as_unigram(content: dict[str, Any]) -> None:
        content["model"] = {"type": "Unigram", "vocab": [["?", 0.0], ["cough", -1.0], ["\u2581", -2.0]], "unk_id": 0}
        content["normalizer"] = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}

    assert Vocabulary(edited(as_word_piece)).ids("Coughs  FEVER", 9) == [1, 2, 3]
    assert Vocabulary(edited(as_unigram)).ids("cough", 9) == [2, 1]


def test_padding_truncation_and_special_tokens_of_a_file_change_nothing() -> None:
    def with_extras(content: dict[str, Any]) -> None:
        content["padding"] = {
            "strategy": {"Fixed": 1 << 30},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
        content["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 5, "direction": "Right"}
        content["post_processor"] = {"type": "BertProcessing", "sep": ["a", 1], "cls": ["b", 2]}

    assert Vocabulary(edited(with_extras)).ids(CORPUS, 99) == Vocabulary(vocabulary()).ids(CORPUS, 99)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda content: content.pop("model"), "its model is none of"),
        (lambda content: model_of(content).update(type="Neural"), "its model is none of"),
        (lambda content: model_of(content).update(dropout=0.1), "drops merges at random"),
        (lambda content: model_of(content).update(vocab={"a": 1 << 20}, merges=[]), "numbered up to 1,048,576"),
        (lambda content: model_of(content).update(vocab={}, merges=[]), "numbered up to -1"),
        (lambda content: model_of(content).update(vocab="abc"), "it has no tokens"),
        (lambda content: model_of(content).update(vocab=[[1, 2]]), "no text"),
        (lambda content: model_of(content).update(vocab={str(n): n for n in range((1 << 18) + 1)}), "it has 262,145"),
        (lambda content: model_of(content).update(vocab={"x" * (5 << 20): 0}), "have 5,242,880 characters together"),
        (lambda content: model_of(content).update(end_of_word_suffix="x" * 17), "end_of_word_suffix has more than 16"),
        (lambda content: model_of(content).update(max_input_chars_per_word=1 << 30), "max_input_chars_per_word"),
        (lambda content: model_of(content).update(merges=[["a", "nothing"]]), "out of vocabulary"),
        (lambda content: content.update(added_tokens=[{}] * 5_000), "no list of at most 4,096"),
        (lambda content: content.update(added_tokens=[{"id": 3}]), "no text"),
        (lambda content: content.update(normalizer={"type": "Neural"}), "has a part 'Neural'"),
        (lambda content: content.update(normalizer=["Lowercase"]), "no table"),
        (lambda content: content.update(pre_tokenizer={"type": "Delegate"}), "has a part 'Delegate'"),
        (lambda content: content.update(normalizer={"type": "Prepend", "prepend": "ab"}), "more than one character"),
        (replacing({"Regex": "(a+)+$"}, ""), "a pattern of its own"),
        (replacing({"String": ""}, "a"), "a pattern of its own"),
        (replacing({"String": "a"}, "aa"), "by something longer"),
        (replacing({"Regex": r"\s+"}, "  "), "by something longer"),
        (
            lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            "Precompi",
        ),
    ],
)
def test_what_could_hang_or_crash_an_agent_is_refused(edit: Edit, problem: str) -> None:
    with pytest.raises(BadVocabulary, match=problem):
        Vocabulary(edited(edit))


def test_steps_are_counted_however_they_are_packed() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"type": "Sequence", "normalizers": [nested(depth - 1)]} if depth else {"type": "Lowercase"}

    with pytest.raises(BadVocabulary, match=r"too deep|more than 16 steps"):
        Vocabulary(edited(lambda content: content.update(normalizer=nested(40))))
    many = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 20}
    with pytest.raises(BadVocabulary, match="more than 16 steps"):
        Vocabulary(edited(lambda content: content.update(normalizer=many)))


@pytest.mark.parametrize("document", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_vocabulary_is_refused(document: bytes) -> None:
    with pytest.raises(BadVocabulary):
        Vocabulary(document)


def test_a_file_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VOCABULARY_BYTES", 1_000)
    with pytest.raises(BadVocabulary, match=r"allowed are 1,000"):
        Vocabulary(b" " * 1_001)


def places(content: object) -> list[tuple[Any, Any]]:
    """Every container and key within a document."""
    found: list[tuple[Any, Any]] = []
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys)[:40]:
        found.append((content, key))
        found += places(content[key])  # type: ignore[index]
    return found


SCRAPS: st.SearchStrategy[object] = st.sampled_from(
    [None, -1, 0, 1 << 40, 0.5, 1e308, "", "a", "\u0000", "\u2581", [], {}, [[]], True, "Sequence", "Precompiled"]
)


@given(seed=st.integers(0, 1 << 32), scraps=st.lists(SCRAPS, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_no_damaged_vocabulary_raises_anything_else(seed: int, scraps: list[object]) -> None:
    rng = random.Random(seed)

    def damage(content: dict[str, Any]) -> None:
        for scrap in scraps:
            container, key = rng.choice(places(content))
            container[key] = copy.deepcopy(scrap)

    with contextlib.suppress(BadVocabulary):
        ids = Vocabulary(edited(damage)).ids("the patient has a cough\u2581", 99)
        assert all(0 <= number < 1 << 18 for number in ids)


@given(mutated(edited(lambda content: content)))
@settings(max_examples=50, deadline=None)
def test_no_damaged_bytes_raise_anything_else(document: bytes) -> None:
    with contextlib.suppress(BadVocabulary):
        Vocabulary(document).ids(CORPUS, 99)


@given(text=st.text(max_size=30), num_tokens=st.integers(1, 20))
def test_bytes_are_those_of_utf_8(text: str, num_tokens: int) -> None:
    assert bytes(byte_ids(text, num_tokens)) == text.encode()[:num_tokens]
