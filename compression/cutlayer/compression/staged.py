"""A tensor codec followed by a byte stage."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.byte_stage import ByteStage
from cutlayer.compression.checks import byte_view
from cutlayer.compression.codec import Codec
from cutlayer.compression.errors import OversizedError


@dataclass(frozen=True)
class StagedCodec:
    """Compresses what a tensor codec writes; what is lost, and how much, is the tensor codec's alone.

    Args:
        tensor_codec: Turns the tensor into bytes.
        stage: Compresses them.
    """

    tensor_codec: Codec
    stage: ByteStage

    @property
    def name(self) -> str:
        """Both names, joined."""
        return f"{self.tensor_codec.name}+{self.stage.name}"

    @property
    def is_lossless(self) -> bool:
        """Whether the tensor codec is."""
        return self.tensor_codec.is_lossless

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Encode, then compress; see `Codec.encode`."""
        return self.stage.encode(self.tensor_codec.encode(array))

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Decompress up to what the tensor codec needs for `shape`, then decode; see `Codec.decode`."""
        view = byte_view(data)
        limit_bytes = self.max_encoded_bytes(shape)
        if view.nbytes > limit_bytes:
            raise OversizedError(self.name, view.nbytes, limit_bytes)
        decompressed = self.stage.decode(view, max_bytes=self.tensor_codec.max_encoded_bytes(shape))
        return self.tensor_codec.decode(decompressed, shape)

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Bound the stage's output; see `Codec.max_encoded_bytes`."""
        return self.stage.max_encoded_bytes(self.tensor_codec.max_encoded_bytes(shape))

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the tensor codec's bound; see `Codec.error_bound`."""
        return self.tensor_codec.error_bound(array)
