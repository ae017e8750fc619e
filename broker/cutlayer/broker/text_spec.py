"""Texts: tokens of a vocabulary, each looked up in an embedding."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from cutlayer.broker.modality_spec import FLOAT32_BYTES, SpecOfModality, TokenOrder
from cutlayer.broker.spec_base import Dimension

__all__ = ["BYTES", "MAX_VOCABULARY_SIZE", "NUM_BYTES", "TextSpec"]

BYTES: Final = "bytes"
"""The vocabulary that needs no file: the bytes of UTF-8."""
NUM_BYTES = 256
MAX_VOCABULARY_SIZE = 1 << 18
"""Tokens of a vocabulary: more than XLM-R (250,002) has."""

SUBWORD_BYTES = 4
"""Of English text a token: SentencePiece and BPE vocabularies of 30,000 and more."""


class TextSpec(SpecOfModality):
    """A text, cut into the tokens of a vocabulary.

    Attributes:
        num_tokens: N: longer texts are cut, shorter ones have fewer.
        vocabulary: `bytes`, or the SHA-256 of a `tokenizer.json` (PyPI `tokenizers`), in hexadecimal. It travels in the
            file of the client-side weights. Run settings name the file instead.
        vocabulary_size: V: tokens that the vocabulary knows.
    """

    order: ClassVar[TokenOrder] = "line"
    is_ragged: ClassVar[bool] = True
    kind: Literal["text"] = "text"
    num_tokens: Dimension
    vocabulary: Annotated[str, Field(pattern=r"^(bytes|[0-9a-f]{64})$")] = BYTES
    vocabulary_size: Annotated[int, Field(ge=1, le=MAX_VOCABULARY_SIZE)] = NUM_BYTES

    @model_validator(mode="after")
    def _bytes_are_256(self) -> TextSpec:
        if self.vocabulary == BYTES and self.vocabulary_size != NUM_BYTES:
            raise ValueError(f"vocabulary_size {self.vocabulary_size} of bytes: leave it out, there are {NUM_BYTES}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """(1, N)."""
        return 1, self.num_tokens

    @property
    def raw_form(self) -> tuple[object, ...]:
        """Any text."""
        return (self.kind,)

    @property
    def raw_bytes(self) -> int:
        """UTF-8 of a text of N tokens: four bytes a token of English, one where tokens are bytes."""
        return self.num_tokens * (1 if self.vocabulary == BYTES else SUBWORD_BYTES)

    @property
    def feature_bytes(self) -> int:
        """N int32."""
        return self.num_tokens * FLOAT32_BYTES

    @property
    def feature_flops(self) -> int:
        """None: cutting a text into tokens is no arithmetic."""
        return 0

    def token_flops(self, width: int) -> int:
        """Return D: a look-up, counted as one operation a value."""
        return width

    def parameter_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return that of `embedding`, (V, D)."""
        return {"embedding": (self.vocabulary_size, width)}
