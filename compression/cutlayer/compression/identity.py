"""The codec that changes nothing: little-endian float32, 4 bytes an element."""

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

_ELEMENT_BYTES = 4


@dataclass(frozen=True)
class IdentityCodec:
    """Carries float32 as it is; the reference that the other codecs are measured against."""

    name: ClassVar[str] = "identity"
    is_lossless: ClassVar[bool] = True

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Write the elements in C order; see `Codec.encode`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        return array.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Read the elements in C order; see `Codec.decode`."""
        view = byte_view(data)
        require_length(view, self.max_encoded_bytes(shape), self.name)
        array = np.frombuffer(view, "<f4").astype(np.float32)
        require_finite_data(array, self.name, "elements")
        return array.reshape(shape)

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Give the exact length; see `Codec.max_encoded_bytes`."""
        return num_elements(shape) * _ELEMENT_BYTES

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give zero; see `Codec.error_bound`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        return np.zeros((1,) * array.ndim)
