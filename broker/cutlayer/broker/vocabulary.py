"""Vocabularies of texts: the bytes of UTF-8, or a `tokenizer.json` of PyPI `tokenizers`, read with distrust.

A vocabulary comes to an agent from whoever starts the run. So its size is limited before it is parsed, and it may only
be made of parts that cut texts in bounded time: no pattern (regular expression) that is not known here, no replacement
that lengthens a text, nothing random. What does not concern cutting (padding, truncation, added special tokens,
decoding) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from cutlayer.broker.text_spec import MAX_VOCABULARY_SIZE

__all__ = ["MAX_VOCABULARY_BYTES", "BadVocabulary", "MissingTokenizers", "Vocabulary", "byte_ids", "tokenizers_package"]

MAX_VOCABULARY_BYTES = 16 << 20
"""Of a file. XLM-R's, one of the largest, has 9 MB."""
MAX_CHARACTERS = 4 << 20
"""Of all its tokens together. XLM-R's have 1.8 million; what is built of them takes up to 200 bytes a character."""
MAX_AFFIX_CHARACTERS = 16
"""Of what it adds to each piece of a word."""
MAX_WORD_CHARACTERS = 1_000
"""Of a word that WordPiece cuts, in time that grows with the square."""
MAX_ADDED_TOKENS = 4_096
MAX_STEPS = 16
"""Parts that a text goes through one after the other."""
CHARACTERS_PER_TOKEN = 64
"""A text is cut to so many characters a token before it is looked at, so that a book costs no more than a page."""

_MODELS: Final = {"BPE", "WordPiece", "WordLevel", "Unigram"}
_NORMALIZERS: Final = {
    *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
    *("Replace", "Sequence", "Strip", "StripAccents"),
}
_PRE_TOKENIZERS: Final = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence", "Split"),
    *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}
_LLAMA_END: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_PATTERNS: Final = {
    " {2,}",  # T5, XLM-R
    r"\s+",  # CLIP
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",  # CLIP
    _LLAMA_WORDS + r"\p{N}{1,3}" + _LLAMA_END,  # Llama 3
    _LLAMA_WORDS + r"\p{N}" + _LLAMA_END,  # Qwen 2
}
"""Patterns of vocabularies in wide use."""

Result = TypeVar("Result")


class BadVocabulary(ValueError):
    """A vocabulary that cannot be used, or that nobody should use."""


class MissingTokenizers(ImportError):
    """PyPI `tokenizers` is not installed."""


class Vocabulary:
    """A `tokenizer.json`, checked.

    Args:
        document: The file.

    Attributes:
        size: V: all numbers of tokens are below it.

    Raises:
        BadVocabulary: When it is too large, cannot be read, or holds a part that is not allowed.
        MissingTokenizers: When the package that reads it is not installed.
    """

    def __init__(self, document: bytes) -> None:
        cleaned = _checked(document)
        package = tokenizers_package()
        self._tokenizer = _without_panic(lambda: package.Tokenizer.from_str(json.dumps(cleaned)))
        numbers = _without_panic(lambda: self._tokenizer.get_vocab(with_added_tokens=True)).values()
        self.size = max(numbers, default=-1) + 1
        if not 1 <= self.size <= MAX_VOCABULARY_SIZE:
            raise BadVocabulary(f"its tokens are numbered up to {self.size - 1:,}, allowed are {MAX_VOCABULARY_SIZE:,}")

    def ids(self, text: str, num_tokens: int) -> list[int]:
        """Return the numbers of a text's tokens, the first `num_tokens` at most.

        Raises:
            BadVocabulary: When the text cannot be cut with it.
        """
        # What is no Unicode text (half a surrogate pair, of a file read wrongly) becomes question marks.
        clean = text[: CHARACTERS_PER_TOKEN * num_tokens].encode("utf-8", "replace").decode()
        encoded = _without_panic(lambda: self._tokenizer.encode(clean, add_special_tokens=False))
        ids: list[int] = encoded.ids[:num_tokens]
        return ids


def byte_ids(text: str, num_tokens: int) -> list[int]:
    """Return the numbers of a text's tokens where the vocabulary is `bytes`."""
    return list(text[:num_tokens].encode("utf-8", "replace")[:num_tokens])


def tokenizers_package() -> Any:
    """Import PyPI `tokenizers`, which only those need that have texts.

    Raises:
        MissingTokenizers: When it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MissingTokenizers("the package tokenizers, which reads vocabularies, is not installed") from error
    return tokenizers


def _without_panic(call: Callable[[], Result]) -> Result:
    try:
        return call()
    except Exception as error:  # the package raises Exception itself
        raise BadVocabulary(_first_line(error)) from error
    except BaseException as error:
        # A panic of the Rust code is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise BadVocabulary(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _checked(document: bytes) -> dict[str, Any]:
    """Return what is needed of a `tokenizer.json`."""
    if len(document) > MAX_VOCABULARY_BYTES:
        raise BadVocabulary(f"it has {len(document):,} B, allowed are {MAX_VOCABULARY_BYTES:,}")
    try:
        content = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise BadVocabulary(f"it is no JSON ({_first_line(error)})") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or str(model.get("type")) not in _MODELS:
        raise BadVocabulary(f"its model is none of {', '.join(sorted(_MODELS))}")
    _check_model(model)
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MAX_ADDED_TOKENS:
        raise BadVocabulary(f"its added tokens are no list of at most {MAX_ADDED_TOKENS:,}")
    _check_characters([token.get("content") if isinstance(token, dict) else None for token in added])
    for key, allowed in (("normalizer", _NORMALIZERS), ("pre_tokenizer", _PRE_TOKENIZERS)):
        for num_steps, step in enumerate(_steps(content.get(key), depth=0)):
            if num_steps >= MAX_STEPS:
                raise BadVocabulary(f"its {key} has more than {MAX_STEPS} steps")
            _check_step(step, key, allowed)
    kept = {key: content.get(key) for key in ("version", "normalizer", "pre_tokenizer", "model")}
    return {**kept, "added_tokens": added, "truncation": None, "padding": None, "post_processor": None, "decoder": None}


def _check_model(model: dict[str, Any]) -> None:
    if model.get("dropout"):
        raise BadVocabulary("its model drops merges at random, and the same text has to give the same tokens")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if len(str(model.get(key) or "")) > MAX_AFFIX_CHARACTERS:
            raise BadVocabulary(f"its {key} has more than {MAX_AFFIX_CHARACTERS} characters")
    longest = model.get("max_input_chars_per_word", 0)
    if not isinstance(longest, int) or longest > MAX_WORD_CHARACTERS:
        raise BadVocabulary(f"its max_input_chars_per_word is over {MAX_WORD_CHARACTERS:,}")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        tokens: list[object] = list(vocabulary)
    elif isinstance(vocabulary, list):  # of pairs with a score each
        tokens = [pair[0] if isinstance(pair, list) and pair else None for pair in vocabulary]
    else:
        raise BadVocabulary("it has no tokens")
    if len(tokens) > MAX_VOCABULARY_SIZE:
        raise BadVocabulary(f"it has {len(tokens):,} tokens, allowed are {MAX_VOCABULARY_SIZE:,}")
    _check_characters(tokens)


def _check_characters(tokens: Sequence[object]) -> None:
    total = 0
    for token in tokens:
        if not isinstance(token, str):
            raise BadVocabulary("one of its tokens is no text")
        total += len(token)
    if total > MAX_CHARACTERS:
        raise BadVocabulary(f"its tokens have {total:,} characters together, allowed are {MAX_CHARACTERS:,}")


def _steps(part: object, depth: int) -> Iterator[dict[str, Any]]:
    """All parts of a normalizer or pre-tokenizer, sequences resolved."""
    if part is None:
        return
    if not isinstance(part, dict) or depth > MAX_STEPS:
        raise BadVocabulary("a part of it is no table, or lies too deep")
    yield part
    inside = part.get("normalizers", part.get("pretokenizers"))
    for inner in inside if isinstance(inside, list) else ():
        yield from _steps(inner, depth + 1)


def _check_step(step: dict[str, Any], key: str, allowed: set[str]) -> None:
    kind = step.get("type")
    if not isinstance(kind, str) or kind not in allowed:
        raise BadVocabulary(f"its {key} has a part {str(kind)[:64]!r}, allowed are {', '.join(sorted(allowed))}")
    if kind == "Prepend" and len(str(step.get("prepend", ""))) > 1:
        raise BadVocabulary(f"its {key} puts more than one character before a text")
    if kind in ("Replace", "Split"):
        pattern = step.get("pattern")
        [(form, value)] = pattern.items() if isinstance(pattern, dict) and len(pattern) == 1 else [("", "")]
        if not isinstance(value, str) or not value or (form != "String" and value not in _PATTERNS):
            raise BadVocabulary(f"its {key} has a pattern of its own, {str(value)[:64]!r}, which may take for ever")
        shortest = len(value) if form == "String" else 1
        if kind == "Replace" and len(str(step.get("content", ""))) > shortest:
            raise BadVocabulary(f"its {key} replaces {value[:64]!r} by something longer")
