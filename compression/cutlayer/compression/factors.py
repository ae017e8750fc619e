"""A tensor as whole numbers: directions, coordinates in them, and a mean; their bytes, and the tensor that they mean.

All arithmetic is exact up to one multiplication and one rounding, so every machine gets the same tensor. The layout is
in compression/README.md, under `lowrank`.

Suffixes: N tokens, D width, R rank (components).
"""

import math
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.errors import CorruptError, NonFiniteDataError, OversizedError, WrongLengthError
from cutlayer.compression.integer_coder import decode_groups, encode_groups

MAX_RANK = 2048
"""The decomposition takes time cubic in min(N, D): larger tensors are stored as they are."""

_PLAIN, _WITH_MEAN = 2, 3
_HEADER = struct.Struct("<BHfH")
_DIRECTION_BITS = 14
"""Directions are rounded to multiples of 2^-14 before anything is projected on them, so this loses nothing."""
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Factors(NamedTuple):
    """A tensor in whole numbers; `tensor_of_factors` says what they mean."""

    step: np.float32
    mean_D: NDArray[np.int64] | None
    directions_RD: NDArray[np.int64]
    coordinates_RN: NDArray[np.int64]


def mean_step_ratio(num_tokens: int) -> float:
    """Give the mean's step in steps: an error of it counts in every token. About 1 / sqrt(N), a power of two."""
    return 2.0 ** -(num_tokens.bit_length() // 2)


def unit_directions(rounded_RD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring directions to length one, rounded to multiples of 2^-14: elementwise operations, the same everywhere."""
    length_R = np.sqrt(np.square(rounded_RD).sum(axis=1))
    fixed_RD: NDArray[np.float64] = np.rint(rounded_RD * (2.0**_DIRECTION_BITS / length_R)[:, None])
    fixed_RD *= 2.0**-_DIRECTION_BITS
    return fixed_RD


def tensor_of_factors(factors: Factors, num_tokens: int) -> NDArray[np.float32]:
    """Compute step * (coordinates @ directions + mean): exact up to the multiplication by the step."""
    units_RD = unit_directions(factors.directions_RD.astype(np.float64))
    tensor_ND = factors.coordinates_RN.astype(np.float64).T @ units_RD
    if factors.mean_D is not None:
        tensor_ND += factors.mean_D * mean_step_ratio(num_tokens)
    tensor_ND *= float(factors.step)
    np.clip(tensor_ND, -_LARGEST_FLOAT32, _LARGEST_FLOAT32, out=tensor_ND)
    with np.errstate(under="ignore"):
        return tensor_ND.astype(np.float32)


def _shape_check(num_tokens: int, width: int) -> int:
    return (num_tokens + 31 * width) & 0xFFFF


def encode_factors(factors: Factors, num_tokens: int, width: int) -> bytes:
    """Write the header, then all numbers in groups of like magnitude; coordinates less their component's mean."""
    rank = len(factors.directions_RD)
    offset_R = np.rint(factors.coordinates_RN.mean(axis=1)).astype(np.int64) if rank else np.empty(0, np.int64)
    groups = [offset_R] if factors.mean_D is None else [offset_R, factors.mean_D]
    groups += [*factors.directions_RD, *(factors.coordinates_RN - offset_R[:, None])]
    mode = _PLAIN if factors.mean_D is None else _WITH_MEAN
    return _HEADER.pack(mode, _shape_check(num_tokens, width), factors.step, rank) + encode_groups(groups)


def decode_factors(view: memoryview, num_tokens: int, width: int, codec: str) -> Factors:
    """Read what `encode_factors` wrote.

    Raises:
        DecodeError: The bytes are something else.
    """
    if view.nbytes < _HEADER.size:
        raise WrongLengthError(codec, _HEADER.size, view.nbytes)
    mode, check, step, rank = _HEADER.unpack_from(view)
    if mode not in (_PLAIN, _WITH_MEAN):
        raise CorruptError(codec, f"unknown mode {mode}")
    if check != _shape_check(num_tokens, width):
        raise CorruptError(codec, "written for another shape")
    if not (math.isfinite(step) and step > 0):
        raise NonFiniteDataError(codec, f"the step {step}")
    if rank > min(num_tokens, width, MAX_RANK):
        raise OversizedError(codec, rank, min(num_tokens, width, MAX_RANK))
    has_mean = mode == _WITH_MEAN
    lengths = [rank, *[width] * (has_mean + rank), *[num_tokens] * rank]
    offset_R, *others = decode_groups(view[_HEADER.size :], lengths, codec)
    mean_D = others.pop(0) if has_mean else None
    directions_RD = np.array(others[:rank], np.int64).reshape(rank, width)
    coordinates_RN = np.array(others[rank:], np.int64).reshape(rank, num_tokens)
    if not directions_RD.any(axis=1).all():
        raise CorruptError(codec, "a direction without length")
    return Factors(np.float32(step), mean_D, directions_RD, coordinates_RN + offset_R[:, None])
