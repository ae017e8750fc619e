"""References to samples in messages: numbers, and masks of one bit a sample.

Numbers are unsigned, little-endian, of one, two or four bytes, all of a message alike: as many as its largest needs.
The bases of changes are a CRC-32 of what the receiver is to have afterwards, little-endian, and a byte a sample.
A mask has bit `i % 8` of byte `i // 8` for item `i`, the lowest bit first, and zeros behind the last item.

Axes: B samples, F fresh samples of them, N tokens, K tokens kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import MalformedMessage

__all__ = [
    "MAX_SAMPLE_NUMBER",
    "SampleRefs",
    "bases_bytes",
    "checksum_of",
    "mask_bytes",
    "pack_bases",
    "pack_mask",
    "pack_numbers",
    "pack_positions",
    "unpack_bases",
    "unpack_mask",
    "unpack_numbers",
    "unpack_positions",
]

MAX_SAMPLE_NUMBER = (1 << 32) - 1

_CHECKSUM_BYTES = 4
_WIDTHS = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"))


@dataclass(frozen=True, slots=True)
class SampleRefs:
    """What a microbatch says of its samples besides their tensors; see `messages.Activations`.

    Attributes:
        samples: Their numbers.
        stored: Mask of those that the store has.
        from_store: Modalities, where it has all.
        bases: Visits that changes are against, and a checksum.
        positions: Masks of the tokens kept, by modality.
    """

    samples: bytes = b""
    stored: bytes = b""
    from_store: tuple[str, ...] = ()
    bases: bytes = b""
    positions: tuple[tuple[str, bytes], ...] = ()


def pack_numbers(numbers_B: NDArray[np.int64]) -> bytes:
    """Pack sample numbers.

    Args:
        numbers_B: Numbers from 0 to `MAX_SAMPLE_NUMBER`, int64 (B).

    Raises:
        ValueError: When one is outside.
    """
    if not numbers_B.size:
        return b""
    largest = int(numbers_B.max())
    if int(numbers_B.min()) < 0 or largest > MAX_SAMPLE_NUMBER:
        raise ValueError(
            f"sample numbers from {numbers_B.min()} to {largest} are not all from 0 to {MAX_SAMPLE_NUMBER}"
        )
    width = next(width for width in _WIDTHS if largest < 1 << (8 * width.itemsize))
    return numbers_B.astype(width).tobytes()


def unpack_numbers(data: bytes, num_samples: int) -> NDArray[np.int64]:
    """Read what `pack_numbers` wrote: int64 (B).

    Raises:
        MalformedMessage: When it is not one, two or four bytes a sample.
    """
    for width in _WIDTHS:
        if num_samples and len(data) == num_samples * width.itemsize:
            return np.frombuffer(data, width).astype(np.int64)
    raise MalformedMessage(f"{len(data)} bytes are no numbers of {num_samples} samples")


def mask_bytes(num_items: int) -> int:
    """Return the size of a mask."""
    return -(-num_items // 8)


def pack_mask(mask: NDArray[np.bool_]) -> bytes:
    """Pack a mask, bool (B); one without any set bit is empty."""
    return np.packbits(mask, bitorder="little").tobytes() if mask.any() else b""


def unpack_mask(data: bytes, num_items: int) -> NDArray[np.bool_]:
    """Read what `pack_mask` wrote: bool (B).

    Raises:
        MalformedMessage: When it has another size, or bits behind the last item.
    """
    if not data:
        return np.zeros(num_items, bool)
    if len(data) != mask_bytes(num_items):
        raise MalformedMessage(f"{len(data)} bytes are no mask of {num_items} items")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[num_items:].any():
        raise MalformedMessage(f"a mask of {num_items} items has bits behind the last")
    return bits[:num_items].astype(bool)


def pack_positions(positions_FK: NDArray[np.intp], num_tokens: int) -> bytes:
    """Pack which tokens there are.

    Args:
        positions_FK: Which tokens there are, ascending, (F, K); N for none.
        num_tokens: N.

    Returns:
        A mask of N items for each sample, one after the other.
    """
    mask_FN = np.zeros((len(positions_FK), num_tokens + 1), bool)
    np.put_along_axis(mask_FN, positions_FK, values=True, axis=1)
    return np.packbits(mask_FN[:, :num_tokens], axis=1, bitorder="little").tobytes()


def unpack_positions(data: bytes, num_samples: int, num_tokens: int, num_kept: int) -> NDArray[np.intp]:
    """Read what `pack_positions` wrote: (F, K), ascending; N for none.

    Raises:
        MalformedMessage: When it has another size, or a sample has more than K tokens.
    """
    if len(data) != num_samples * mask_bytes(num_tokens):
        raise MalformedMessage(f"{len(data)} bytes are no masks of {num_samples} samples of {num_tokens} tokens")
    rows = np.frombuffer(data, np.uint8).reshape(num_samples, mask_bytes(num_tokens))
    bits = np.unpackbits(rows, axis=1, bitorder="little")
    if bits[:, num_tokens:].any() or (bits.sum(axis=1) > num_kept).any():
        raise MalformedMessage(f"a sample has more than {num_kept} of {num_tokens} tokens")
    places_FN = np.where(bits[:, :num_tokens], np.arange(num_tokens, dtype=np.intp), num_tokens)
    return np.sort(places_FN, axis=1)[:, :num_kept]


def bases_bytes(num_samples: int) -> int:
    """Return the size of what `pack_bases` writes."""
    return _CHECKSUM_BYTES + num_samples


def checksum_of(reconstructions: Sequence[NDArray[np.floating[Any]]]) -> int:
    """Return the CRC-32 of reconstructions, (F, K, D) each: as float16, little-endian, in C order, one by one."""
    checksum = 0
    for part_FKD in reconstructions:
        checksum = zlib.crc32(np.ascontiguousarray(part_FKD, dtype="<f2").tobytes(), checksum)
    return checksum


def pack_bases(visits_F: NDArray[np.uint8], reconstructions: Sequence[NDArray[np.floating[Any]]]) -> bytes:
    """Pack what changes are against.

    Args:
        visits_F: The count of visits of each sample's base, uint8 (F); 0 for a sample that goes whole.
        reconstructions: What the receiver is to have afterwards, float16 (F, K, D) by modality, in the message's order.
    """
    return checksum_of(reconstructions).to_bytes(_CHECKSUM_BYTES, "little") + visits_F.tobytes()


def unpack_bases(data: bytes, num_samples: int) -> tuple[NDArray[np.uint8], int]:
    """Read what `pack_bases` wrote: the counts of visits, uint8 (F), and the checksum.

    Raises:
        MalformedMessage: When it has another size.
    """
    if len(data) != bases_bytes(num_samples):
        raise MalformedMessage(f"{len(data)} bytes are no bases of {num_samples} samples")
    checksum = int.from_bytes(data[:_CHECKSUM_BYTES], "little")
    return np.frombuffer(data, np.uint8, offset=_CHECKSUM_BYTES), checksum
