"""Single arrays in `.npy` files."""

from __future__ import annotations

import struct
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.data_unreadable import Unreadable

__all__ = ["BROKEN_ARRAY", "map_array", "shape_text"]

BROKEN_ARRAY = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
)
"""What NumPy raises on damaged files: it reads the header as a Python literal."""


def map_array(path: Path, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Map an array of numbers into memory: header and size of the file are checked, values are read when used.

    Args:
        path: The file.
        shape: What it has to be; None for any length.

    Raises:
        Unreadable: When the file cannot be read, or holds something else.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN_ARRAY as error:
        raise Unreadable.of(error) from error
    if array.dtype.kind not in "biuf":
        raise Unreadable(f"an array of {array.dtype}; expected numbers")
    fits = array.ndim == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise Unreadable(f"an array {array.shape}; expected {shape_text(shape)}")
    return array


def shape_text(shape: tuple[int | None, ...]) -> str:
    """Return a shape as text, `(any, 12)`."""
    lengths = ["any" if length is None else str(length) for length in shape]
    return f"({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"
