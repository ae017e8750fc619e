"""Samples with different numbers of tokens: one lacks a modality, a text ends early, a cell is empty.

Both ends hold them padded: `positions_FK` says which of a modality's N tokens each of the K places is, in ascending
order, and N itself, "none", behind a sample's last token; tokens there are zeros. On the wire only what is there
travels: the tokens of all samples in a row, unless these are more than an axis of a tensor may have.

Axes: F samples, N tokens of a modality, K places of a sample, R tokens of all samples that are there, D width.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.messages import MAX_DIMENSION

__all__ = ["is_ragged", "num_present", "pack_rows", "present", "tensor_shape", "unpack_rows"]

Value = TypeVar("Value", np.float32, np.float16)


def present(positions_FK: NDArray[np.intp], num_tokens: int) -> NDArray[np.bool_]:
    """Return which places hold a token: bool (F, K)."""
    return positions_FK < num_tokens


def num_present(positions_FK: NDArray[np.intp], num_tokens: int) -> int:
    """Return R."""
    return int(present(positions_FK, num_tokens).sum())


def is_ragged(positions_FK: NDArray[np.intp], num_tokens: int) -> bool:
    """Return whether any sample has fewer than K tokens."""
    return bool(positions_FK.size) and bool(positions_FK[:, -1].max() >= num_tokens)


def _goes_in_a_row(positions_FK: NDArray[np.intp], num_tokens: int) -> bool:
    return is_ragged(positions_FK, num_tokens) and num_present(positions_FK, num_tokens) <= MAX_DIMENSION


def tensor_shape(positions_FK: NDArray[np.intp], num_tokens: int, width: int) -> tuple[int, int, int]:
    """Return the shape that these tokens travel in: (F, K, D), or (1, R, D) where they are ragged."""
    if _goes_in_a_row(positions_FK, num_tokens):
        return 1, num_present(positions_FK, num_tokens), width
    return positions_FK.shape[0], positions_FK.shape[1], width


def pack_rows(tokens_FKD: NDArray[Value], positions_FK: NDArray[np.intp], num_tokens: int) -> NDArray[Value]:
    """Return the tokens in the shape that they travel in.

    Args:
        tokens_FKD: All places, (F, K, D).
        positions_FK: Which tokens they hold, (F, K).
        num_tokens: N.
    """
    if not _goes_in_a_row(positions_FK, num_tokens):
        return tokens_FKD
    return np.ascontiguousarray(tokens_FKD[present(positions_FK, num_tokens)])[None]


def unpack_rows(tokens: NDArray[Value], positions_FK: NDArray[np.intp], num_tokens: int) -> NDArray[Value]:
    """Return all places, (F, K, D), of what `pack_rows` gave, whose shape has been checked."""
    if not _goes_in_a_row(positions_FK, num_tokens):
        return tokens
    tokens_FKD: NDArray[Value] = np.zeros((*positions_FK.shape, tokens.shape[2]), tokens.dtype)
    tokens_FKD[present(positions_FK, num_tokens)] = tokens[0]
    return tokens_FKD
