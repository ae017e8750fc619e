"""The upper half of float32 ("brain floating point"): 8 bits of exponent, 8 of significand, 2 bytes an element.

Half the bytes of float32 at its whole range, where fp16 has a range to leave but eight times the precision. The
format is described in Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training" (arXiv 1905.12322,
section 3).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.checks import (
    byte_view,
    contiguous_float32,
    num_elements,
    require_finite_data,
    require_finite_input,
    require_length,
)

_ELEMENT_BYTES = 2
_RELATIVE_ERROR = 2.0**-8
"""Half a unit in the last place of the 8-bit significand, for normal numbers."""
_ABSOLUTE_ERROR = 2.0**-134
"""Half the spacing 2^-133 of bfloat16's subnormal numbers."""
_SIGN_BIT = 0x8000
_LARGEST_BITS = 0x7F7F
LARGEST_BF16 = float(np.array([_LARGEST_BITS << 16], np.uint32).view(np.float32)[0])
"""The largest finite bfloat16, 3.39e38: 0.4 % below the largest float32."""
_CHUNK_ELEMENTS = 65536
"""Elements worked on at once, so that temporaries stay in the second-level cache."""


@dataclass(frozen=True)
class Bf16Codec:
    """Rounds each element to the nearest bfloat16.

    Elements that would round to infinity, beyond 3.39e38, become the largest finite bfloat16 of their sign.
    """

    name: ClassVar[str] = "bf16"
    is_lossless: ClassVar[bool] = False

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Round to nearest (ties to even), clip and write in C order; see `Codec.encode`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        encoded = np.empty(array.size, "<u2")
        flat = array.reshape(-1)
        for start in range(0, array.size, _CHUNK_ELEMENTS):
            chunk = slice(start, start + _CHUNK_ELEMENTS)
            encoded[chunk] = bf16_bits(flat[chunk])
        return encoded.tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Widen the elements, which is exact; see `Codec.decode`."""
        view = byte_view(data)
        require_length(view, self.max_encoded_bytes(shape), self.name)
        array = bf16_values(np.frombuffer(view, "<u2"))
        require_finite_data(array, self.name, "elements")
        return array.reshape(shape)

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Give the exact length; see `Codec.max_encoded_bytes`."""
        return num_elements(shape) * _ELEMENT_BYTES

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Bound each element's rounding, and its clipping if it is out of range; see `Codec.error_bound`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        magnitude = np.abs(array.astype(np.float64))
        rounding = np.maximum(magnitude * _RELATIVE_ERROR, _ABSOLUTE_ERROR)
        # What rounds to zero is off by its own size at most; so zeros are exact.
        rounding = np.minimum(rounding, magnitude)
        return np.where(magnitude > LARGEST_BF16, magnitude - LARGEST_BF16, rounding)


def bf16_bits(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite numbers to the nearest bfloat16, ties to even, never to infinity.

    Args:
        array: Finite, one axis.

    Returns:
        The bfloat16 numbers' bits.
    """
    bits = array.view(np.uint32)
    # One less than half of what is dropped, and one more where the last bit kept is odd: ties go to even.
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    result = rounded.astype(np.uint16)
    is_infinite = (result & np.uint16(0x7FFF)) > _LARGEST_BITS
    if is_infinite.any():
        result[is_infinite] = (result[is_infinite] & np.uint16(_SIGN_BIT)) | np.uint16(_LARGEST_BITS)
    return result


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 numbers to a fresh array of float32, NaN and infinity among them.

    Args:
        bits: The bfloat16 numbers' bits, one axis.

    Returns:
        The same numbers.
    """
    widened = bits.astype(np.uint32)
    widened <<= np.uint32(16)
    return widened.view(np.float32)
