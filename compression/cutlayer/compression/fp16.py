"""Half precision: IEEE 754 binary16, little-endian, 2 bytes an element."""

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
_LARGEST = 65504.0
"""The largest finite binary16."""
_RELATIVE_ERROR = 2.0**-11
"""Half a unit in the last place of the 11-bit significand, for normal numbers."""
_ABSOLUTE_ERROR = 2.0**-25
"""Half the spacing 2^-24 of binary16's subnormal numbers."""


@dataclass(frozen=True)
class Fp16Codec:
    """Rounds each element to the nearest half-precision number.

    Elements beyond +-65504 are clipped to it. For one outlying gradient, an error would stop a training and
    infinity would spoil it; clipped, it keeps its sign, and `error_bound` tells what it loses.
    """

    name: ClassVar[str] = "fp16"
    is_lossless: ClassVar[bool] = False

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Clip, round to nearest (ties to even) and write in C order; see `Codec.encode`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        # Underflow is stated in the bound; no caller's floating-point settings shall turn it into an error.
        with np.errstate(under="ignore"):
            return np.clip(array, -_LARGEST, _LARGEST).astype("<f2").tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Widen the elements, which is exact; see `Codec.decode`."""
        view = byte_view(data)
        require_length(view, self.max_encoded_bytes(shape), self.name)
        array = np.frombuffer(view, "<f2").astype(np.float32)
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
        return np.where(magnitude > _LARGEST, magnitude - _LARGEST, rounding)
