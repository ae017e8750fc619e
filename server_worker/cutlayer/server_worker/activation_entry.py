"""A stored sample as bytes, and the checksum that tells whether they are the ones that were written.

The bytes are a msgpack array with, for each modality, its name, K, D, the codec's name, the encoded tokens, and the
positions (K little-endian uint32) or nil.

Axes: K tokens, D width.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Sequence

import msgpack
import numpy as np
from numpy.typing import NDArray

from cutlayer.compression import Codec, CodecError, codec_from_name
from cutlayer.server_worker.stored_sample import StoredSample

__all__ = ["DIGEST_BYTES", "ENTRY_FORMAT", "SampleEncoder", "decode_sample", "seal"]

ENTRY_FORMAT = 1
"""Counts changes of the bytes described above."""

DIGEST_BYTES = 8

_TRIALS = 64


class SampleEncoder:
    """Encodes samples so that they come back bit for bit.

    Args:
        codecs: Names, tried in this order: a lossless one always serves, another one where it happens to give back
            what was put: fp16 for what came as fp16. One that never has in its first trials is not tried again. At
            least one is lossless.
    """

    def __init__(self, codecs: Sequence[str]) -> None:
        self._codecs = [codec_from_name(name) for name in codecs]
        if not any(codec.is_lossless for codec in self._codecs):
            raise ValueError(f"codecs = {tuple(codecs)}: name a lossless one last, such as identity")
        self._num_failed = dict.fromkeys(self._codecs, 0.0)

    def encode(self, sample: StoredSample) -> bytes:
        """Encode a sample, whose tokens are finite."""
        fields = []
        for name, tokens_KD in sample.tokens.items():
            codec, encoded = self._exact(tokens_KD)
            positions_K = sample.positions.get(name)
            positions = None if positions_K is None else positions_K.astype("<u4").tobytes()
            fields.append((name, *tokens_KD.shape, codec.name, encoded, positions))
        packed: bytes = msgpack.packb(fields)
        return packed

    def _exact(self, tokens_KD: NDArray[np.float32]) -> tuple[Codec, bytes]:
        for codec in tuple(self._codecs):
            encoded = codec.encode(tokens_KD)
            if codec.is_lossless or _same_bits(codec.decode(encoded, tokens_KD.shape), tokens_KD):
                self._num_failed[codec] = -np.inf
                return codec, encoded
            self._num_failed[codec] += 1
            if self._num_failed[codec] > _TRIALS:
                self._codecs.remove(codec)
        raise AssertionError("a lossless codec is among them")


def decode_sample(body: bytes, visits: int, names: Collection[str]) -> StoredSample | None:
    """Decode the wanted modalities of a sample; None where the bytes are of another format."""
    tokens: dict[str, NDArray[np.float32]] = {}
    positions: dict[str, NDArray[np.intp]] = {}
    try:
        for name, num_tokens, width, codec, encoded, positions_K in msgpack.unpackb(body):
            if name not in names:
                continue
            tokens[name] = codec_from_name(codec).decode(encoded, (num_tokens, width))
            if positions_K is not None:
                positions[name] = np.frombuffer(positions_K, "<u4").astype(np.intp)
    except (CodecError, ValueError, TypeError):
        return None
    return StoredSample(tokens, positions, visits)


def seal(store_id: str, agent: str, number: int, visits: int, body: bytes) -> bytes:
    """Return the checksum of an entry, which covers whose it is as well: a row that a damaged index leads to is not it.

    Eight bytes of BLAKE2b: one damaged entry in 2**64 would pass.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(struct.pack("<qB", number, visits) + f"{store_id}/{agent}/".encode())
    digest.update(body)
    return digest.digest()


def _same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return np.array_equal(one.view(np.uint32), np.ascontiguousarray(other).view(np.uint32))
