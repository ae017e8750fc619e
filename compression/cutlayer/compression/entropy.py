"""One step for the whole tensor, to a stated root mean square error, entropy-coded.

At high rate, uniform quantization followed by an entropy coder is within a quarter of a bit an element of the best
that there is (Gish and Pierce, "Asymptotically efficient quantizing", 1968). For outputs and output gradients: of a
message of a few hundred numbers, only eight bytes are not theirs.
"""

import math
import struct
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
from cutlayer.compression.errors import NonFiniteDataError, WrongLengthError
from cutlayer.compression.integer_coder import MAX_MAGNITUDE, decode_groups, encode_groups
from cutlayer.compression.lowrank import error_option

DEFAULT_ERROR = 0.1
_STEP = struct.Struct("<H")
_SMALLEST_RMS = 2.0**-100
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class _Rounded(NamedTuple):
    """Multiples of a step; a step of zero says that elements follow as they are."""

    step: float
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class EntropyCodec:
    """Rounds to multiples of one step.

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
        return f"entropy:error={self.error:g}"

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Find the coarsest step that keeps the error; see `Codec.encode`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        if array.size == 0:
            return b""
        return self._encode(array, self._rounded(array))

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Multiply by the step; see `Codec.decode`."""
        view = byte_view(data)
        total = num_elements(shape)
        if total == 0:
            require_length(view, 0, self.name)
            return np.empty(shape, np.float32)
        if view.nbytes < _STEP.size:
            raise WrongLengthError(self.name, _STEP.size, view.nbytes)
        step = _step_of_code(*_STEP.unpack_from(view))
        if step == 0:
            require_length(view, _STEP.size + 4 * total, self.name)
            array = np.frombuffer(view, "<f4", offset=_STEP.size).astype(np.float32)
            require_finite_data(array, self.name, "elements")
            return array.reshape(shape)
        if not 0 < step < math.inf:
            raise NonFiniteDataError(self.name, f"the step {step}")
        (numbers,) = decode_groups(view[_STEP.size :], [total], self.name)
        return _elements(_Rounded(step, numbers)).reshape(shape)

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Give the length of a tensor that is stored as it is; see `Codec.max_encoded_bytes`."""
        total = num_elements(shape)
        return _STEP.size + 4 * total if total else 0

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Bound each element by half a step and its rounding to binary32; see `Codec.error_bound`."""
        array = contiguous_float32(array, self.name)
        require_finite_input(array, self.name)
        step = self._rounded(array).step if array.size else 0.0
        magnitude = np.abs(array.astype(np.float64))
        return np.minimum(0.5001 * step + 2.0**-23 * magnitude, magnitude) if step else np.zeros(array.shape)

    def _rounded(self, array: NDArray[np.float32]) -> _Rounded:
        """Choose the step by bisection over its code; errors rise with it, nearly."""
        exact = array.reshape(-1).astype(np.float64)
        rms = math.sqrt(float(np.square(exact).mean()))
        if rms == 0:
            return _Rounded(1.0, np.zeros(exact.size, np.int64))
        if rms < _SMALLEST_RMS:
            return _Rounded(0.0, np.empty(0, np.int64))
        # The error is at most half a step, and at least what is dropped of the largest element.
        low = _code_of_step(self.error * rms)
        high = _code_of_step(2 * float(np.abs(exact).max())) + 1
        while high - low > 1:
            middle = (low + high) // 2
            step = _step_of_code(middle)
            difference = np.rint(exact / step) * step - exact
            is_fine = math.sqrt(float(np.square(difference).mean())) <= self.error * rms
            low, high = (middle, high) if is_fine else (low, middle)
        step = _step_of_code(low)
        numbers = np.rint(exact / step)
        if np.abs(numbers).max() > MAX_MAGNITUDE:
            return _Rounded(0.0, np.empty(0, np.int64))
        return _Rounded(step, numbers.astype(np.int64))

    def _encode(self, array: NDArray[np.float32], rounded: _Rounded) -> bytes:
        if rounded.step:
            encoded = _STEP.pack(_code_of_step(rounded.step)) + encode_groups([rounded.numbers])
            if len(encoded) < self.max_encoded_bytes(array.shape):
                return encoded
        return _STEP.pack(0) + array.astype("<f4").tobytes()


def _code_of_step(step: float) -> int:
    """Give the upper half of a binary32, rounded down: eight significant bits."""
    return int(np.array(min(step, _LARGEST_FLOAT32), np.float32).view(np.uint32)) >> 16


def _step_of_code(code: int) -> float:
    return float(np.array(code << 16, np.uint32).view(np.float32))


def _elements(rounded: _Rounded) -> NDArray[np.float32]:
    """Multiply in binary64, clip, and round once."""
    elements = np.clip(rounded.numbers * rounded.step, -_LARGEST_FLOAT32, _LARGEST_FLOAT32)
    with np.errstate(under="ignore"):
        return np.asarray(elements, np.float32)
