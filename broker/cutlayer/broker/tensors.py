"""Tensors in messages: NumPy arrays under a codec, checked before they are decoded."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import MalformedMessage, OversizedMessage
from cutlayer.broker.messages import MAX_TENSOR_ELEMENTS, EncodedTensor
from cutlayer.compression import CodecError, codec_from_name

__all__ = ["WEIGHTS_CODEC", "check_tensor", "decode_tensor", "encode_tensor", "raw_bytes"]

FLOAT32_BYTES = 4
WEIGHTS_CODEC = "identity"
"""Of tokenizers' weights on their way down: what an agent tokenizes with is what the worker has."""


def encode_tensor(codec: str, array: NDArray[np.float32]) -> EncodedTensor:
    """Encode an array of any shape.

    Raises:
        CodecError: When the codec is unknown or the array holds NaN or Inf.
    """
    return EncodedTensor(codec, array.shape, codec_from_name(codec).encode(array))


def check_tensor(tensor: EncodedTensor, *, shape: tuple[int, ...], codec: str | Collection[str], what: str) -> None:
    """Check what can be checked of a peer's tensor without taking memory for it.

    Args:
        tensor: The tensor.
        shape: The shape that it must have.
        codec: The codec agreed on, or those.
        what: Its name, for the error.

    Raises:
        MalformedMessage: When the shape, the codec or the size is another.
    """
    if tensor.shape != shape:
        raise MalformedMessage(f"{what} has shape {tensor.shape}, {shape} is needed")
    if tensor.codec != codec if isinstance(codec, str) else tensor.codec not in codec:
        wanted = codec if isinstance(codec, str) else ", ".join(sorted(codec))
        raise MalformedMessage(f"{what} is encoded as {tensor.codec!r}, the lease says {wanted!r}")
    num_elements = math.prod(shape)
    if num_elements > MAX_TENSOR_ELEMENTS:
        raise OversizedMessage(what, num_elements * FLOAT32_BYTES, MAX_TENSOR_ELEMENTS * FLOAT32_BYTES)
    limit = codec_from_name(tensor.codec).max_encoded_bytes(shape)
    if len(tensor.data) > limit:
        raise OversizedMessage(what, len(tensor.data), limit)


def decode_tensor(tensor: EncodedTensor, *, what: str) -> NDArray[np.float32]:
    """Decode a tensor that has passed `check_tensor`.

    Returns:
        A new float32 array of the tensor's shape; every value is finite.

    Raises:
        MalformedMessage: When the bytes are no such tensor.
    """
    try:
        return codec_from_name(tensor.codec).decode(tensor.data, tensor.shape)
    except CodecError as error:
        raise MalformedMessage(f"{what}: {error}") from None


def raw_bytes(tensor: EncodedTensor) -> int:
    """Return the tensor's size as float32 in bytes."""
    return math.prod(tensor.shape) * FLOAT32_BYTES
