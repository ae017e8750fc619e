"""The change of each sample's activation since its last visit, instead of the activation.

AQ-SGD (Wang et al., arXiv 2206.01299, section 3): as a model converges, activations of a sample change less and less
from epoch to epoch. Both ends keep the same reconstruction and add the decoded change to it. Errors do not add up, as
each change is taken from the reconstruction, not from the last exact activation.

AQ-SGD sends a change with a fixed number of bits, so that errors shrink with the change. With `lowrank`, whose error
is relative to what it encodes, it is the bytes that shrink: the codec's error is meant relative to the activations.
Bytes of a sample of the digits task at a relative error of 0.03 (microbatches of 32, `benchmarks/low_rank.py`):

    random change of the tokenizer's weights     none sent before     by 10 %     by 3 %
    image                                        57                   37          19
    audio                                        737                  274         80

`encode_change` at one end and `decode_change` at the other give the same bits, if the codec's decoder does: additions
in binary32 of the same numbers in the same order, then one rounding to the type of the base.

Axes: B samples, N tokens, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.codec import Codec
from cutlayer.compression.lowrank import LARGEST_ERROR, LARGEST_OVER_RMS_ERROR, SMALLEST_ERROR, LowRankCodec

Base: TypeAlias = NDArray[np.float32 | np.float16]
"""A reconstruction as it is kept. In binary16 it takes half the memory, and errs by 2^-11 of an element."""

DEFAULT_MAX_BYTES = 256 << 20
_ENTRY_BYTES = 300
"""What Python takes for an entry beside its numbers."""


def encode_change(codec: Codec, array_BND: NDArray[np.float32], base_BND: Base) -> tuple[bytes, Base]:
    """Encode activations as their change from a base.

    Args:
        codec: Encodes the change. The error of `lowrank` is meant relative to the activations: where the change is
            no larger, none is sent.
        array_BND: float32, finite, any shape.
        base_BND: float32 or float16 of that shape, finite; zeros for samples that the receiver does not have.

    Returns:
        The bytes, and the reconstruction, in the base's type: what the receiver will have, and the next base.

    Raises:
        EncodeError: As the codec; also where a change is beyond float32.
        ShapeError: As the codec.
    """
    assert array_BND.shape == base_BND.shape
    with np.errstate(over="ignore", under="ignore"):
        change_BND = array_BND - base_BND.astype(np.float32, copy=False)
    if isinstance(codec, LowRankCodec):
        codec, change_BND = _with_error_of_activations(codec, change_BND, array_BND)
    encoded = codec.encode(change_BND)
    return encoded, decode_change(codec, encoded, base_BND)


def decode_change(codec: Codec, data: bytes | memoryview, base_BND: Base) -> Base:
    """Decode what `encode_change` wrote.

    Args:
        codec: The encoder's.
        data: The bytes, from anyone.
        base_BND: The base that the encoder had, bit for bit.

    Returns:
        The reconstruction, a new array in the base's shape and type, finite if the base is.

    Raises:
        DecodeError: As the codec.
        ShapeError: As the codec.
    """
    change_BND = codec.decode(data, base_BND.shape)
    largest = np.finfo(base_BND.dtype).max
    with np.errstate(over="ignore", under="ignore"):
        change_BND += base_BND
        np.clip(change_BND, -np.float32(largest), np.float32(largest), out=change_BND)
        return change_BND.astype(base_BND.dtype, copy=False)


def _with_error_of_activations(
    codec: LowRankCodec, change_BND: NDArray[np.float32], array_BND: NDArray[np.float32]
) -> tuple[LowRankCodec, NDArray[np.float32]]:
    """Choose the error on the change that is the codec's on the activations; zeros if no change does as well."""
    size, allowed = _rms(change_BND), codec.error * _rms(array_BND)
    if not 0 < size < math.inf:
        return codec, change_BND
    if size <= allowed and float(np.abs(change_BND).max()) <= LARGEST_OVER_RMS_ERROR * allowed:
        return codec, np.zeros_like(change_BND)
    return replace(codec, error=min(max(allowed / size, SMALLEST_ERROR), LARGEST_ERROR)), change_BND


def _rms(array: NDArray[np.float32]) -> float:
    """Give the root mean square; that of NaN and infinity is neither, and the codec's to refuse."""
    return math.sqrt(float(np.square(array, dtype=np.float64).mean())) if array.size else 0.0


@dataclass(frozen=True)
class Recollection:
    """What is kept of some samples.

    Args:
        base_BND: Their last reconstructions, zeros where there is none.
        visits_B: How often each has been kept, modulo 256; 0 where there is nothing.
        is_known_B: Whether there is something.
    """

    base_BND: Base
    visits_B: NDArray[np.uint8]
    is_known_B: NDArray[np.bool_]


class SampleMemory:
    """The last reconstruction of each sample, within a budget of bytes.

    When it is full, it keeps what it has, and other samples stay unknown: epochs visit every sample once, so whatever
    made room for a new one would be missed just as soon. Not for several threads at once.

    Args:
        max_bytes: The budget.
        dtype: float16 or float32, of what is kept.

    Raises:
        ValueError: The budget is negative, or the type another.
    """

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES, dtype: type[np.float16 | np.float32] = np.float16) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}, must not be negative")
        if dtype not in (np.float16, np.float32):
            raise ValueError(f"dtype is {dtype}, must be float16 or float32")
        self._max_bytes = max_bytes
        self._dtype = dtype
        self._num_bytes = 0
        self._kept: dict[int, tuple[int, Base]] = {}

    @property
    def num_samples(self) -> int:
        """How many samples are known."""
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """What they take."""
        return self._num_bytes

    def recall(self, samples_B: NDArray[np.int64], token_shape: tuple[int, ...]) -> Recollection:
        """Look samples up.

        Args:
            samples_B: Their numbers.
            token_shape: Shape (N, D) of a sample's activations; a sample that was kept with another one is unknown.
        """
        base_BND = np.zeros((len(samples_B), *token_shape), self._dtype)
        visits_B = np.zeros(len(samples_B), np.uint8)
        is_known_B = np.zeros(len(samples_B), np.bool_)
        for row, sample in enumerate(samples_B.tolist()):
            visits, kept_ND = self._kept.get(sample, (0, None))
            if kept_ND is not None and kept_ND.shape == token_shape:
                base_BND[row], visits_B[row], is_known_B[row] = kept_ND, visits, True
        return Recollection(base_BND, visits_B, is_known_B)

    def keep(self, samples_B: NDArray[np.int64], reconstruction_BND: Base) -> NDArray[np.uint8]:
        """Keep new reconstructions, of known samples in place of the old ones.

        Args:
            samples_B: Their numbers.
            reconstruction_BND: From `encode_change`; in this memory's type.

        Returns:
            How often each has been kept by now, modulo 256. One that does not fit stays unknown; its count is 0.
        """
        assert reconstruction_BND.dtype == self._dtype
        visits_B = np.zeros(len(samples_B), np.uint8)
        for row, sample in enumerate(samples_B.tolist()):
            visits, old_ND = self._kept.pop(sample, (0, None))
            if old_ND is not None:
                self._num_bytes -= old_ND.nbytes + _ENTRY_BYTES
            kept_ND = reconstruction_BND[row].copy()
            if self._num_bytes + kept_ND.nbytes + _ENTRY_BYTES > self._max_bytes:
                continue
            self._num_bytes += kept_ND.nbytes + _ENTRY_BYTES
            visits_B[row] = (visits + 1) % 256
            self._kept[sample] = int(visits_B[row]), kept_ND
        return visits_B

    def forget(self, samples_B: NDArray[np.int64] | None = None) -> None:
        """Forget samples that the other end does not have any more, or all.

        Args:
            samples_B: Their numbers, known or not; None for all.
        """
        for sample in list(self._kept) if samples_B is None else samples_B.tolist():
            if sample in self._kept:
                self._num_bytes -= self._kept.pop(sample)[1].nbytes + _ENTRY_BYTES
