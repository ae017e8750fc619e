"""Reordering the bytes of a tensor before they are compressed, so that what is alike stands together.

Sign and exponent of neighbouring numbers are alike, their last bits are noise. Interleaved as they are in
memory, a compressor that models single bytes sees a mixture of both. After HDF5's shuffle filter and Masui et
al., "A compression scheme for radio data in high performance computing" (arXiv 1503.00638, section 3.2).

A shuffle is a byte stage that changes no length. It stands between the tensor codec and the compressor.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.errors import OversizedError

_BITS = 8


@dataclass(frozen=True)
class ShuffleStage:
    """Writes the first byte of all elements, then the second of all, and so on.

    What is left after the last whole element stays where it is.

    Args:
        element_bytes: Bytes of an element, 2 or more.
    """

    element_bytes: int

    @property
    def name(self) -> str:
        """The name; the size of an element follows from the tensor codec."""
        return "shuffle"

    def encode(self, data: bytes) -> bytes:
        """Reorder; see `ByteStage.encode`."""
        source = np.frombuffer(data, np.uint8)
        target = np.empty_like(source)
        elements, rest = _split(source, self.element_bytes)
        planes, rest_out = _split(target, self.element_bytes)
        planes.reshape(self.element_bytes, -1)[:] = elements.reshape(-1, self.element_bytes).T
        rest_out[:] = rest
        return target.tobytes()

    def decode(self, view: memoryview, max_bytes: int) -> bytes:
        """Reorder back; see `ByteStage.decode`."""
        source = _bytes_within(view, max_bytes, self.name)
        target = np.empty_like(source)
        planes, rest = _split(source, self.element_bytes)
        elements, rest_out = _split(target, self.element_bytes)
        elements.reshape(-1, self.element_bytes)[:] = planes.reshape(self.element_bytes, -1).T
        rest_out[:] = rest
        return target.tobytes()

    def max_encoded_bytes(self, num_bytes: int) -> int:
        """Give the same length; see `ByteStage.max_encoded_bytes`."""
        return num_bytes


@dataclass(frozen=True)
class BitShuffleStage:
    """Writes the lowest bit of the first byte of all elements, then the next bit of all, and so on.

    What is left after the last whole group of eight elements stays where it is.

    Args:
        element_bytes: Bytes of an element, 1 or more.
    """

    element_bytes: int

    @property
    def name(self) -> str:
        """The name; the size of an element follows from the tensor codec."""
        return "bitshuffle"

    def encode(self, data: bytes) -> bytes:
        """Reorder; see `ByteStage.encode`."""
        source = np.frombuffer(data, np.uint8)
        target = np.empty_like(source)
        elements, rest = _split(source, _BITS * self.element_bytes)
        planes, rest_out = _split(target, _BITS * self.element_bytes)
        # Groups of eight elements: eight bytes of one position become eight bits of each bit position.
        groups = np.ascontiguousarray(elements.reshape(-1, _BITS, self.element_bytes).transpose(2, 0, 1))
        bits = _transpose_bits(groups).reshape(self.element_bytes, -1, _BITS)
        planes.reshape(self.element_bytes, _BITS, -1)[:] = bits.transpose(0, 2, 1)
        rest_out[:] = rest
        return target.tobytes()

    def decode(self, view: memoryview, max_bytes: int) -> bytes:
        """Reorder back; see `ByteStage.decode`."""
        source = _bytes_within(view, max_bytes, self.name)
        target = np.empty_like(source)
        planes, rest = _split(source, _BITS * self.element_bytes)
        elements, rest_out = _split(target, _BITS * self.element_bytes)
        bits = np.ascontiguousarray(planes.reshape(self.element_bytes, _BITS, -1).transpose(0, 2, 1))
        groups = _transpose_bits(bits).reshape(self.element_bytes, -1, _BITS)
        elements.reshape(-1, _BITS, self.element_bytes)[:] = groups.transpose(1, 2, 0)
        rest_out[:] = rest
        return target.tobytes()

    def max_encoded_bytes(self, num_bytes: int) -> int:
        """Give the same length; see `ByteStage.max_encoded_bytes`."""
        return num_bytes


def _split(array: NDArray[np.uint8], unit_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut an array after its last whole unit; both parts are views."""
    end = array.size - array.size % unit_bytes
    return array[:end], array[end:]


def _bytes_within(view: memoryview, max_bytes: int, stage: str) -> NDArray[np.uint8]:
    """View bytes from a peer as an array.

    Raises:
        OversizedError: There are more than allowed.
    """
    if view.nbytes > max_bytes:
        raise OversizedError(stage, view.nbytes, max_bytes)
    return np.frombuffer(view, np.uint8)


def _transpose_bits(groups: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Transpose every eight bytes as a matrix of 8 x 8 bits; its own inverse.

    Swaps blocks of 1, 2 and 4 bits across the diagonal, eight bytes at a time in one 64-bit integer (Warren,
    "Hacker's Delight", section 7-3).

    Args:
        groups: Contiguous, a multiple of eight bytes.

    Returns:
        As many bytes; bit j of byte i is bit i of byte j of the same group, bit 0 being the lowest.
    """
    words = groups.reshape(-1).view("<u8").astype(np.uint64)
    for distance, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        swapped = words >> np.uint64(distance)
        swapped ^= words
        swapped &= np.uint64(mask)
        words ^= swapped
        swapped <<= np.uint64(distance)
        words ^= swapped
    return words.astype("<u8", copy=False).view(np.uint8)
