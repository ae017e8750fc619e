"""Texts to tokens: numbers of a vocabulary, and an embedding of each.

Axes: B samples, N tokens, V tokens of the vocabulary, S tokens of all samples, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable, RunError, SettingsError
from cutlayer.broker.modalities import TextSpec
from cutlayer.broker.text_spec import BYTES
from cutlayer.broker.vocabulary import BadVocabulary, MissingTokenizers, Vocabulary, byte_ids
from cutlayer.edge_agent.tokenizer_checks import Parts, bad_weights, checked_parts, width_of

__all__ = ["TextTokenizer"]

ABSENT = -1


class TextTokenizer:
    """Tokens of a vocabulary, each looked up in `embedding`, (V, D).

    Args:
        spec: The text modality's specification.
        parts: `embedding`, and `vocabulary`, uint8, unless the vocabulary is `bytes`.
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights or the vocabulary do not fit `spec`, or the package that reads
            vocabularies is not installed.
    """

    def __init__(self, spec: TextSpec, parts: Mapping[str, NDArray[Any]], *, modality: str = "text") -> None:
        self.spec = spec
        self.modality = modality
        self.num_tokens = spec.num_tokens
        self.width = width_of(spec, parts)
        self._cut = _cutter(modality, spec, parts.get("vocabulary"))
        self.take_weights(checked_parts(modality, spec, parts, self.width))

    def features(self, raw: NDArray[Any]) -> NDArray[np.int32]:
        """Cut texts into tokens.

        Args:
            raw: (B) strings, as an array of str or of objects. What is behind the first N tokens is left out.

        Returns:
            ids_BN, int32 (B, N): numbers of tokens, -1 behind a text's last one. An empty text has none.

        Raises:
            SettingsError: When `raw` is something else.
            RunError: When the vocabulary fails on a text.
        """
        if raw.ndim != 1 or raw.dtype.kind not in "OU":
            raise SettingsError(
                f"{self.modality}: got {raw.shape} {raw.dtype}; expected (B,) strings",
                "give one text a sample, as str",
            )
        ids_BN = np.full((len(raw), self.num_tokens), ABSENT, np.int32)
        for row, text in enumerate(raw):
            if not isinstance(text, str):
                raise SettingsError(
                    f"{self.modality}: got a {type(text).__name__}; expected a text",
                    'decode bytes, and give "" where a text is missing',
                )
            ids_BN[row] = self._padded(text)
        return ids_BN

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return the tokens' embeddings, float32 (B, N, D); zeros where there is none."""
        tokens_BND: NDArray[np.float32] = self._embedding_VD[features]
        tokens_BND[features < 0] = 0.0
        return tokens_BND

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return which tokens are there, bool (B, N)."""
        return features >= 0

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the gradient of `embedding`: each row's is the sum over the places that it stood at."""
        found_VD = np.zeros_like(self._embedding_VD)
        is_there = features >= 0
        np.add.at(found_VD, features[is_there], gradient_BND[is_there])
        return {"embedding": found_VD}

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`: tokens_BND, float32 (B, N, D)."""
        return self.project(self.features(raw))

    def take_weights(self, parts: Parts) -> None:
        """Use these parts, which fit, from now on."""
        self._embedding_VD = parts["embedding"]

    def _padded(self, text: str) -> NDArray[np.int32]:
        ids_N = np.full(self.num_tokens, ABSENT, np.int32)
        try:
            ids = self._cut(text, self.num_tokens)
        except BadVocabulary as error:
            raise RunError(
                f"{self.modality}: the run's vocabulary fails on a text of {len(text)} characters: {error}\n"
                "  fix: start the run again with another vocabulary"
            ) from error
        ids_N[: len(ids)] = ids
        return ids_N


def _cutter(modality: str, spec: TextSpec, document: NDArray[Any] | None) -> Callable[[str, int], list[int]]:
    if spec.vocabulary == BYTES:
        return byte_ids
    if document is None or document.dtype != np.uint8 or document.ndim != 1:
        raise bad_weights(f"the client-side weights lack the vocabulary of {modality!r}")
    content = document.tobytes()
    if hashlib.sha256(content).hexdigest() != spec.vocabulary:
        raise bad_weights(f"the vocabulary of {modality!r} is not the one that the run names")
    try:
        vocabulary = Vocabulary(content)
    except MissingTokenizers as error:
        raise ManifestUnsatisfiable(f"it needs {modality!r}, and {error}", 'pip install "cutlayer[text]"') from error
    except BadVocabulary as error:
        raise bad_weights(f"the vocabulary of {modality!r} cannot be used: {error}") from error
    if vocabulary.size != spec.vocabulary_size:
        raise bad_weights(
            f"the vocabulary of {modality!r} has {vocabulary.size} tokens, the run says {spec.vocabulary_size}"
        )
    return vocabulary.ids
