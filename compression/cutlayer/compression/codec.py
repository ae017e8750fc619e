"""The seam of this package: what every codec offers, whatever its family."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Codec(Protocol):
    """Turns float32 tensors into bytes and back.

    A codec is an immutable value without state between calls: it may be shared by threads, compared and
    pickled. The last axis of a tensor is one token; the axes before it count tokens. A tensor without axes is
    one token of width 1.
    """

    @property
    def name(self) -> str:
        """The canonical name, such as `int8+zstd:3`; `codec_from_name` turns it into an equal codec."""

    @property
    def is_lossless(self) -> bool:
        """Whether every finite float32 comes back bit for bit."""

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Encode a tensor.

        Args:
            array: Native float32, any shape including empty, any memory layout; all elements finite.

        Returns:
            At most `max_encoded_bytes(array.shape)` bytes. They do not hold the shape: the message does.

        Raises:
            EncodeError: The dtype is not float32, or an element is NaN or Inf.
            ShapeError: The tensor is beyond the limits in `checks`.
        """

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Decode what `encode` wrote.

        The bytes may come from anyone: whatever they are, the result is either finite or an error, and the
        memory taken is bounded by `shape`, which the caller has checked against its own limit.

        Args:
            data: The encoded bytes, exactly.
            shape: The shape of the tensor that was encoded.

        Returns:
            A fresh, writable, C-contiguous float32 array of `shape`, all elements finite.

        Raises:
            DecodeError: The bytes are not an encoding of a tensor of `shape`.
            ShapeError: The shape is beyond the limits in `checks`.
        """

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Bound the length of an encoding, so that a receiver can refuse a longer one before it takes memory.

        Args:
            shape: The shape of the tensor.

        Returns:
            The most bytes that `encode` writes for a tensor of `shape`.

        Raises:
            ShapeError: The shape is beyond the limits in `checks`.
        """

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Bound the error that a round trip makes on this tensor.

        Args:
            array: What would be encoded; same conditions as in `encode`.

        Returns:
            The largest `|decoded - original|` of each element, in an array that broadcasts to its shape.

        Raises:
            EncodeError: The dtype is not float32, or an element is NaN or Inf.
            ShapeError: The tensor is beyond the limits in `checks`.
        """
