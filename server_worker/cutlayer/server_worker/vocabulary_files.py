"""Vocabularies of texts as files: named in the run settings, sent to the agents, made of a user's own texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import ModalitySpec, TextSpec
from cutlayer.broker.text_spec import BYTES, MAX_VOCABULARY_SIZE, NUM_BYTES
from cutlayer.broker.vocabulary import (
    MAX_VOCABULARY_BYTES,
    BadVocabulary,
    MissingTokenizers,
    Vocabulary,
    tokenizers_package,
)

__all__ = ["make_vocabulary", "name_vocabularies", "vocabulary_contents"]

_INSTALL = 'pip install "cutlayer[text]"'


def name_vocabularies(document: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Put digest and size of each vocabulary's file in the place of its name.

    Args:
        document: Run settings as the TOML has them; changed in place.
        folder: Where files are found from.

    Returns:
        The files, by modality.

    Raises:
        SettingsError: When a file cannot be read, or is no vocabulary.
    """
    files: dict[str, Path] = {}
    modalities = document.get("modalities")
    for name, table in modalities.items() if isinstance(modalities, dict) else ():
        if not isinstance(table, dict) or table.get("kind") != "text":
            continue
        file = table.get("vocabulary", BYTES)
        if not isinstance(file, str) or file == BYTES:
            continue  # what is wrong with it, the specification says
        if "vocabulary_size" in table:
            raise SettingsError(f"[modalities.{name}] vocabulary_size beside a file", "leave it out: the file says it")
        content, vocabulary = _read(f"[modalities.{name}] vocabulary", folder / file)
        files[name] = folder / file
        table["vocabulary"], table["vocabulary_size"] = hashlib.sha256(content).hexdigest(), vocabulary.size
    return files


def vocabulary_contents(modalities: Mapping[str, ModalitySpec], files: Mapping[str, Path]) -> dict[str, bytes]:
    """Return the vocabularies that are files, by modality.

    Raises:
        SettingsError: When a file is not named, or is no longer what it was when the settings were read.
    """
    found = {}
    for name, spec in modalities.items():
        if not isinstance(spec, TextSpec) or spec.vocabulary == BYTES:
            continue
        key = f"[modalities.{name}] vocabulary"
        if name not in files:
            raise SettingsError(f"{key} is the digest of an unknown file", "name the file itself in the run settings")
        content, _ = _read(key, files[name])
        if hashlib.sha256(content).hexdigest() != spec.vocabulary:
            raise SettingsError(f"{key}: {files[name]} has changed since the settings were read", "start again")
        found[name] = content
    return found


def make_vocabulary(texts: Sequence[Path], size: int) -> bytes:
    """Make a vocabulary of texts: byte pair encoding over bytes, so that any text has tokens (arXiv 1508.07909).

    The same texts give the same vocabulary.

    Args:
        texts: Files of UTF-8, a text a line.
        size: Tokens at most, the 256 bytes among them; texts of few words give fewer.

    Returns:
        A `tokenizer.json`.

    Raises:
        SettingsError: When a file cannot be read or holds no text, or `size` is out of range.
    """
    if not NUM_BYTES < size <= MAX_VOCABULARY_SIZE:
        raise SettingsError(
            f"--size {size} is out of range", f"choose from {NUM_BYTES + 1:,} to {MAX_VOCABULARY_SIZE:,}"
        )
    try:
        package = tokenizers_package()
    except MissingTokenizers as error:
        raise SettingsError(str(error), _INSTALL) from error
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = package.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    lines = [line for path in texts for line in _lines(path)]
    if not lines:
        raise SettingsError(f"no text in {', '.join(map(str, texts))}", "name files of UTF-8 with a text a line")
    tokenizer.train_from_iterator(lines, trainer)
    document: str = tokenizer.to_str()
    # Spread over lines, so that a difference between two vocabularies can be read.
    return (json.dumps(json.loads(document), ensure_ascii=False, indent=1) + "\n").encode()


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line for line in (each.strip() for each in file) if line)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "name an existing file") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 at byte {error.start}", "save it as UTF-8") from error


def _read(key: str, path: Path) -> tuple[bytes, Vocabulary]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_VOCABULARY_BYTES + 1)
        return content, Vocabulary(content)
    except OSError as error:
        raise SettingsError(
            f"{key} = {str(path)!r} cannot be read: {error.strerror}",
            'name a tokenizer.json, make one (`server-worker vocabulary --help`), or write "bytes"',
        ) from error
    except MissingTokenizers as error:
        raise SettingsError(f"{key} = {str(path)!r}: {error}", _INSTALL) from error
    except BadVocabulary as error:
        raise SettingsError(
            f"{key} = {str(path)!r} cannot be used: {error}",
            "name a tokenizer.json without such parts, or make one (`server-worker vocabulary --help`)",
        ) from error
