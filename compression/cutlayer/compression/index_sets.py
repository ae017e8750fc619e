"""Where the kept elements of a sparse tensor are: a bitmap, or Rice-coded gaps, whichever is smaller.

Gaps between kept elements that are spread at random have a geometric distribution, for which Rice's code is within
a few per cent of the entropy (Golomb, "Run-length encodings", 1966; Rice, JPL 79-22). Its unary part is a bitmap as
well, so that NumPy reads it at once.

Layout:

    1                  255 for a bitmap, else the number of remainder bits R, 0 to 26
    bitmap:  T / 8     one bit an element, the first is the least significant; unused bits are 0
    gaps:    K R / 8   remainders of the gaps, R bits each, least significant first; unused bits are 0
             rest      quotients of the gaps: that many zeros, then a one; unused bits are 0

Suffix: K kept elements.
"""

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.errors import CorruptError, WrongLengthError

_BITMAP = 255
_MAX_REMAINDER_BITS = 26


def max_index_bytes(total: int) -> int:
    """Bound the bytes that say which of `total` elements are kept."""
    return 1 + -(-total // 8)


def encode_indices(indices_K: NDArray[np.int64], total: int) -> bytes:
    """Encode a set of indices.

    Args:
        indices_K: Rising, at least one.
        total: How many elements there are.

    Returns:
        At most `max_index_bytes(total)` bytes.
    """
    gaps_K = np.diff(indices_K, prepend=-1) - 1
    # The best number of bits is about log2(mean * ln 2).
    num_bits = min(max(int(gaps_K.mean() * 0.69).bit_length() - 1, 0), _MAX_REMAINDER_BITS)
    ends_K = np.cumsum((gaps_K >> num_bits) + 1)
    gap_bytes = -(-gaps_K.size * num_bits // 8) + -(-int(ends_K[-1]) // 8)
    if gap_bytes >= -(-total // 8):
        bitmap = np.zeros(total, np.bool_)
        bitmap[indices_K] = True
        return bytes([_BITMAP]) + np.packbits(bitmap, bitorder="little").tobytes()
    remainders = np.empty((gaps_K.size, num_bits), np.bool_)
    for bit in range(num_bits):
        remainders[:, bit] = gaps_K >> bit & 1
    quotients = np.zeros(ends_K[-1], np.bool_)
    quotients[ends_K - 1] = True
    parts = (np.packbits(bits, bitorder="little").tobytes() for bits in (remainders, quotients))
    return bytes([num_bits]) + b"".join(parts)


def decode_indices(view: memoryview, num_kept: int, total: int, codec: str) -> NDArray[np.int64]:
    """Decode what `encode_indices` wrote.

    Args:
        view: The bytes, from anyone; at least one, at most `max_index_bytes(total)`.
        num_kept: How many indices there are.
        total: How many elements there are.
        codec: The name that errors carry.

    Returns:
        Rising indices below `total`.

    Raises:
        DecodeError: The bytes are something else.
    """
    num_bits, body = view[0], np.frombuffer(view[1:], np.uint8)
    if num_bits == _BITMAP:
        if body.size != -(-total // 8):
            raise WrongLengthError(codec, max_index_bytes(total), view.nbytes)
        indices_K = np.flatnonzero(np.unpackbits(body, bitorder="little"))
        _require_count(indices_K, num_kept, codec)
    else:
        quotients_at = -(-num_kept * num_bits // 8)
        if num_bits > _MAX_REMAINDER_BITS or quotients_at > body.size:
            raise CorruptError(codec, f"{num_bits} remainder bits for {num_kept} gaps")
        ends_K = np.flatnonzero(np.unpackbits(body[quotients_at:], bitorder="little"))
        _require_count(ends_K, num_kept, codec)
        if ends_K[-1] // 8 != body.size - quotients_at - 1:
            raise CorruptError(codec, "bytes after the last gap")
        gaps_K = np.diff(ends_K, prepend=-1) - 1 << num_bits
        bits = np.unpackbits(body[:quotients_at], count=num_kept * num_bits, bitorder="little")
        for bit in range(num_bits):
            gaps_K |= bits[bit::num_bits].astype(np.int64) << bit
        indices_K = np.cumsum(gaps_K + 1) - 1
    if indices_K[-1] >= total:
        raise CorruptError(codec, f"element {indices_K[-1]} of {total}")
    return indices_K


def _require_count(indices_K: NDArray[np.int64], num_kept: int, codec: str) -> None:
    if indices_K.size != num_kept:
        raise CorruptError(codec, f"{indices_K.size} elements where {num_kept} belong")
