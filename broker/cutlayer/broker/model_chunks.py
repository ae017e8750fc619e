"""The client-side weights as retained chunks: named by their digest, so that what arrives is what was meant."""

from __future__ import annotations

import hashlib

from cutlayer.broker.chunking import CHUNK_OVERHEAD_BYTES
from cutlayer.broker.errors import MalformedMessage
from cutlayer.broker.manifest import TokenizerWeights
from cutlayer.broker.messages import ModelChunk

__all__ = ["MODEL_CHUNK_BYTES", "ModelAssembler", "cut_model", "describe_model"]

MODEL_CHUNK_BYTES = 96 * 1024
"""Fits the smallest packet limit of a common broker (AWS IoT, 128 KB). One for all: the manifest counts the chunks."""


def describe_model(data: bytes) -> TokenizerWeights:
    """Return what the manifest says of a weights file."""
    return TokenizerWeights(
        digest=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        num_chunks=-(-len(data) // _piece_bytes()),
    )


def cut_model(data: bytes) -> list[ModelChunk]:
    """Cut a weights file into its chunks."""
    size = _piece_bytes()
    count = -(-len(data) // size)
    return [ModelChunk(index, count, data[index * size : (index + 1) * size]) for index in range(count)]


class ModelAssembler:
    """Puts a weights file together from its chunks, in any order, copies allowed.

    Args:
        weights: What the manifest says of it.
    """

    def __init__(self, weights: TokenizerWeights) -> None:
        self._weights = weights
        self._pieces: dict[int, bytes] = {}

    def feed(self, chunk: ModelChunk) -> bytes | None:
        """Take one chunk.

        Returns:
            The whole file once it is complete, else None.

        Raises:
            MalformedMessage: When the chunk is none of this file's, or the file does not match its digest; all is
                then forgotten, so that the chunks can be read again.
        """
        expected = min(_piece_bytes(), self._weights.num_bytes - chunk.index * _piece_bytes())
        if chunk.count != self._weights.num_chunks or chunk.index >= chunk.count or len(chunk.data) != expected:
            raise MalformedMessage(
                f"model chunk {chunk.index} of {chunk.count} with {len(chunk.data)} B is none of "
                f"{self._weights.num_chunks} chunks of {self._weights.num_bytes} B"
            )
        self._pieces[chunk.index] = chunk.data
        if len(self._pieces) < self._weights.num_chunks:
            return None
        data = b"".join(self._pieces[index] for index in range(self._weights.num_chunks))
        self._pieces.clear()
        if hashlib.sha256(data).hexdigest() != self._weights.digest:
            raise MalformedMessage("the client-side weights do not match the digest in the manifest")
        return data


def _piece_bytes() -> int:
    return MODEL_CHUNK_BYTES - CHUNK_OVERHEAD_BYTES
