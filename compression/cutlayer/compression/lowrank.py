"""Tokens that span few dimensions: their principal components, and how much of each is in a token.

A linear tokenizer turns P values of a patch into D numbers, so tokens span P dimensions at most. The transform
is that of Karhunen and Loeve: orthogonal directions in which the tokens' coordinates are uncorrelated. Every
coordinate is quantized with one and the same step, and directions of less energy than a step are left out: at a
given mean square error this needs the fewest bits ("reverse water-filling", Cover and Thomas, "Elements of
Information Theory", section 10.3.3). The same holds for the directions themselves: errors of a direction count
once a token, weighted by its energy, so it is stored times the root of that energy, with the same step again.
All numbers then go through the entropy coder in `integer_coder`.

The receiver's arithmetic is exact: integers of at most 53 bits in binary64, one multiplication, one rounding to
binary32. So all machines decode the same tensor, whatever their matrix product's order of summation.

Suffixes: N tokens, D width, R rank (components).
"""

import math
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

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
from cutlayer.compression.codec_name import CodecPart
from cutlayer.compression.errors import BadOptionError, WrongLengthError
from cutlayer.compression.factors import (
    MAX_RANK,
    Factors,
    decode_factors,
    encode_factors,
    mean_step_ratio,
    tensor_of_factors,
    unit_directions,
)

DEFAULT_ERROR = 0.03
SMALLEST_ERROR = 0.001
LARGEST_ERROR = 0.95
LARGEST_OVER_RMS_ERROR = 8.0
"""No element errs by more than this many times the root mean square error that is allowed."""
_EXACT = 1
_DROPPED_BELOW = 0.6
"""A component whose standard deviation is less than this share of the step is left out; see `_first_step`."""
_NEGLIGIBLE_MEAN = 0.01
"""A mean outside of the kept directions is left out if it makes less than this share of the allowed energy."""
_MAX_ATTEMPTS = 16
_MAX_REFINEMENTS = 3
_AIM = 0.99
_CLOSE_ENOUGH = 0.975
_LARGEST_NUMBER = 2.0**25
"""Sums of up to `MAX_RANK` products with directions, and squared lengths, then have 53 bits."""
_SMALLEST_STEP = 2.0**-120
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class _Components(NamedTuple):
    """Principal components by falling energy, of tokens scaled to a root mean square of one."""

    tokens_ND: NDArray[np.float64]
    mean_D: NDArray[np.float64]
    directions_RD: NDArray[np.float64]
    deviation_R: NDArray[np.float64]


@dataclass(frozen=True)
class LowRankCodec:
    """Keeps the principal components of a tensor's tokens to a stated root mean square error.

    Args:
        error: Largest root mean square error, as a share of the root mean square of the tensor.
    """

    error: float = DEFAULT_ERROR
    is_lossless: ClassVar[bool] = False

    @classmethod
    def from_part(cls, part: CodecPart) -> Self:
        """Build the codec from its part of a codec name: at most one option, `error=`.

        Raises:
            BadOptionError: It is another, or out of range.
        """
        return cls(error_option(part)) if part.options else cls()

    @property
    def name(self) -> str:
        """The name with the error, also where it is the default."""
        return f"lowrank:error={self.error:g}"

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Find the coarsest step that keeps the error, checked by decoding; see `Codec.encode`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        num_tokens, width = _token_grid(array.shape)
        if num_tokens == 0:
            return b""
        array_ND = array.reshape(num_tokens, width)
        factors = self._factors(array_ND)
        if factors is not None:
            encoded = encode_factors(factors, num_tokens, width)
            if len(encoded) < self.max_encoded_bytes(array.shape):
                return encoded
        return bytes([_EXACT]) + array.astype("<f4").tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Multiply coordinates and directions; see `Codec.decode`."""
        view = byte_view(data)
        num_tokens, width = _token_grid(shape)
        if num_tokens == 0:
            require_length(view, 0, self.name)
            return np.empty(shape, np.float32)
        if view.nbytes == 0:
            raise WrongLengthError(self.name, 1, 0)
        if view[0] == _EXACT:
            require_length(view, 1 + 4 * num_tokens * width, self.name)
            array = np.frombuffer(view, "<f4", offset=1).astype(np.float32)
            require_finite_data(array, self.name, "elements")
            return array.reshape(shape)
        factors = decode_factors(view, num_tokens, width, self.name)
        return tensor_of_factors(factors, num_tokens).reshape(shape)

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Give the length of a tensor that is stored as it is; see `Codec.max_encoded_bytes`."""
        total = num_elements(shape)
        return 1 + 4 * total if total else 0

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give one bound for all elements, which the encoder has checked; see `Codec.error_bound`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        bound = LARGEST_OVER_RMS_ERROR * self.error * _rms(array.astype(np.float64)) if array.size else 0.0
        return np.full((1,) * array.ndim, bound)

    def _factors(self, array_ND: NDArray[np.float32]) -> Factors | None:
        """Give whole numbers from which the tensor comes back well enough; None if there are no such."""
        num_tokens, width = array_ND.shape
        if not array_ND.any():
            return Factors(np.float32(1), None, np.empty((0, width), np.int64), np.empty((0, num_tokens), np.int64))
        exact_ND = array_ND.astype(np.float64)
        scale = _rms(exact_ND)
        # Outside, a step or what it is multiplied by is no normal float32.
        if min(num_tokens, width) > MAX_RANK or self.error * scale < _SMALLEST_STEP:
            return None
        components = _principal_components(exact_ND / scale)
        step, too_large, num_failures, best = _first_step(components, self.error), math.inf, 0, None
        for attempt in range(_MAX_ATTEMPTS):
            factors = _quantize(components, np.float32(min(step * scale, _LARGEST_FLOAT32)), scale, self.error)
            if factors is None:
                break
            excess = _excess(exact_ND - tensor_of_factors(factors, num_tokens), self.error * scale)
            if excess <= 1 and (best is None or factors.step > best.step):
                best = factors
            if _CLOSE_ENOUGH <= excess <= 1 or (best is not None and attempt >= _MAX_REFINEMENTS):
                break
            # The error is about proportional to the step, until it is so large that little more can be lost.
            if excess > 1:
                too_large, num_failures = step, num_failures + 1
                step *= max(min(_AIM / excess, 0.97 ** (num_failures**2)), 0.25)
            else:
                step = min(step * min(_AIM / max(excess, 1e-6), 2.0), math.sqrt(step * too_large))
        return best


def error_option(part: CodecPart) -> float:
    """Read the one option `error=`, a decimal number that is written plainly.

    Raises:
        BadOptionError: It is another, more than one, or out of range.
    """
    option = ",".join(part.options)
    is_error = re.fullmatch(r"error=0\.\d{1,6}", option, re.ASCII)
    if not is_error or not SMALLEST_ERROR <= (error := float(option.partition("=")[2])) <= LARGEST_ERROR:
        raise BadOptionError(part.family, option, f"error={SMALLEST_ERROR} to error={LARGEST_ERROR}")
    return error


def _token_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Give the number of tokens and their width; no tokens where there are no elements."""
    width = shape[-1] if shape else 1
    total = num_elements(shape)
    return (total // width if total else 0), width


def _rms(array: NDArray[np.float64]) -> float:
    """Give the root mean square of a float64 array that came from float32: no square overflows."""
    flat = array.reshape(-1)
    return math.sqrt(float(flat @ flat) / flat.size)


def _excess(difference_ND: NDArray[np.float64], allowed_rms: float) -> float:
    """Give the error as a share of what is allowed, of all elements or of the worst, whichever is larger."""
    largest = max(float(difference_ND.max()), -float(difference_ND.min()))
    return max(_rms(difference_ND), largest / LARGEST_OVER_RMS_ERROR) / allowed_rms


def _principal_components(tokens_ND: NDArray[np.float64]) -> _Components:
    """Decompose tokens by way of the smaller of their two Gram matrices."""
    num_tokens, width = tokens_ND.shape
    mean_D = tokens_ND.mean(axis=0)
    centred_ND = tokens_ND - mean_D
    if width <= num_tokens:
        energy_R, columns = np.linalg.eigh(centred_ND.T @ centred_ND)
        directions_RD = columns.T[::-1]
    else:
        energy_R, columns = np.linalg.eigh(centred_ND @ centred_ND.T)
        directions_RD = columns.T[::-1] @ centred_ND
        directions_RD /= np.maximum(np.sqrt(np.maximum(energy_R[::-1], 0)), 1e-12)[:, None]
    deviation_R = np.sqrt(np.maximum(energy_R[::-1], 0) / num_tokens)
    # What is left of rounding errors is no component, and its direction no unit vector.
    num_real = int(np.count_nonzero(deviation_R > 1e-7 * math.sqrt(width)))
    directions_RD, deviation_R = directions_RD[:num_real], deviation_R[:num_real]
    # Libraries differ in the signs that they choose.
    pivot_R = directions_RD[np.arange(num_real), np.abs(directions_RD).argmax(axis=1)]
    return _Components(tokens_ND, mean_D, directions_RD * np.sign(pivot_R)[:, None], deviation_R)


def _first_step(components: _Components, error: float) -> float:
    """Predict the step, by bisection: steps up to twice the right one are found in a few attempts."""
    num_tokens, width = components.tokens_ND.shape
    variance_R = components.deviation_R**2
    allowed = error**2 * width
    low, high = 0.0, math.sqrt(12 * allowed) + 4 * math.sqrt(float(variance_R.sum()) + allowed)
    for _ in range(24):
        step = (low + high) / 2
        is_kept_R = components.deviation_R > _DROPPED_BELOW * step
        rank = int(np.count_nonzero(is_kept_R))
        # Uniform noise in each coordinate, and that of the directions outside of their span.
        noise = rank * (1 + max(width - rank, 0) / num_tokens) * step**2 / 12
        if noise + float(variance_R[~is_kept_R].sum()) > allowed:
            high = step
        else:
            low = step
    return max(low, 1e-6 * error)


def _quantize(components: _Components, step: np.float32, scale: float, error: float) -> Factors | None:
    """Round to whole numbers with a given step; None if they become too large.

    Coordinates are those of the nearest point in the span of the directions as a decoder has them.
    """
    tokens_ND, mean_D, directions_RD, deviation_R = components
    num_tokens, width = tokens_ND.shape
    scaled_step = float(step) / scale
    is_kept_R = deviation_R > _DROPPED_BELOW * scaled_step
    directions_RD, deviation_R = directions_RD[is_kept_R], deviation_R[is_kept_R]
    amplitude_R = deviation_R * (math.sqrt(num_tokens) / scaled_step)
    rounded_RD = np.rint(directions_RD * amplitude_R[:, None])
    rounded_RD = rounded_RD[rounded_RD.any(axis=1)]
    units_RD = unit_directions(rounded_RD)
    gram_RR = units_RD @ units_RD.T
    # Coarse directions may coincide; so little on the diagonal changes nothing else.
    gram_RR.flat[:: len(gram_RR) + 1] += 1e-9
    outside_D = mean_D - np.linalg.solve(gram_RR, units_RD @ mean_D) @ units_RD
    mean_step = scaled_step * mean_step_ratio(num_tokens)
    rounded_D = None
    if float(outside_D @ outside_D) > _NEGLIGIBLE_MEAN * error**2 * width:
        rounded_D = np.rint(outside_D / mean_step)
        tokens_ND = tokens_ND - rounded_D * mean_step
    coordinates_RN = np.linalg.solve(gram_RR, units_RD @ tokens_ND.T)
    coordinates_RN /= scaled_step
    np.rint(coordinates_RN, out=coordinates_RN)
    all_numbers = (rounded_RD, coordinates_RN, np.zeros(0) if rounded_D is None else rounded_D)
    if any(np.abs(numbers).max(initial=0) > _LARGEST_NUMBER for numbers in all_numbers):
        return None
    return Factors(
        step,
        None if rounded_D is None else rounded_D.astype(np.int64),
        rounded_RD.astype(np.int64),
        coordinates_RN.astype(np.int64),
    )
