"""What every codec checks before it works, and the limits that it checks against."""

import math

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.errors import (
    NonFiniteDataError,
    NonFiniteInputError,
    ShapeError,
    WrongDtypeError,
    WrongLengthError,
)

MAX_AXES = 32
"""Most axes of a tensor; what NumPy 1 allows (NumPy 2: 64), so that both sides agree."""

MAX_ELEMENTS = 2**27
"""Most elements of a tensor: 512 MiB of float32, 28 microbatches of 32 images of ViT-B tokens (197 x 768).

Axes of length zero count as one here. The worst encoding (int8 of width 1, 9 bytes an element) then stays
below LZ4's limit of 2,113,929,216 bytes, so no stage needs a limit of its own.
"""


def num_elements(shape: tuple[int, ...]) -> int:
    """Count the elements of a shape that a peer may have chosen.

    Args:
        shape: Any integers.

    Returns:
        The product of the axes, at most `MAX_ELEMENTS`.

    Raises:
        ShapeError: An axis is negative, or there are too many axes or elements.
    """
    if len(shape) > MAX_AXES:
        raise ShapeError(shape, f"{len(shape)} axes, at most {MAX_AXES}")
    if any(axis < 0 for axis in shape):
        raise ShapeError(shape, "a negative axis")
    # NumPy refuses huge axes even where another one is zero: judge them all, as if nothing were empty.
    if math.prod(max(axis, 1) for axis in shape) > MAX_ELEMENTS:
        raise ShapeError(shape, f"more than {MAX_ELEMENTS} elements")
    return math.prod(shape)


def contiguous_float32(array: NDArray[np.float32], codec: str) -> NDArray[np.float32]:
    """Check an encoder's input and bring it into C order.

    Args:
        array: Any shape and memory layout; the elements themselves are not looked at.
        codec: The name that errors carry.

    Returns:
        The array itself where it is C-contiguous already, else a copy, of the same shape.

    Raises:
        WrongDtypeError: The array is not native float32 (foreign byte order is another dtype).
        ShapeError: The tensor is too large.
    """
    if array.dtype != np.float32:
        raise WrongDtypeError(codec, str(array.dtype))
    num_elements(array.shape)
    # Not np.ascontiguousarray: that gives a tensor of no axes one.
    return np.asarray(array, order="C")


def non_finite_input(array: NDArray[np.float32], codec: str) -> NonFiniteInputError:
    """Make the error for an array that is known to hold NaN or Inf, by counting them."""
    return NonFiniteInputError(codec, int(np.isnan(array).sum()), int(np.isinf(array).sum()))


def require_finite_input(array: NDArray[np.float32], codec: str) -> None:
    """Refuse to encode NaN and Inf.

    Args:
        array: Any shape.
        codec: The name that errors carry.

    Raises:
        NonFiniteInputError: An element is NaN or Inf.
    """
    if not np.isfinite(array).all():
        raise non_finite_input(array, codec)


def require_finite_data(array: NDArray[np.float32], codec: str, what: str) -> None:
    """Refuse decoded NaN and Inf.

    Args:
        array: Any shape.
        codec: The name that errors carry.
        what: What the array is, for the error's text.

    Raises:
        NonFiniteDataError: An element is NaN or Inf.
    """
    if not np.isfinite(array).all():
        raise NonFiniteDataError(codec, f"NaN or Inf among the {what}")


def require_length(view: memoryview, expected_bytes: int, codec: str) -> None:
    """Refuse bytes of the wrong length, which bounds every allocation that follows by what has arrived.

    Args:
        view: The bytes, one item each.
        expected_bytes: The only length that is right.
        codec: The name that errors carry.

    Raises:
        WrongLengthError: The length is another.
    """
    if view.nbytes != expected_bytes:
        raise WrongLengthError(codec, expected_bytes, view.nbytes)


def byte_view(data: bytes | memoryview) -> memoryview:
    """View a buffer as plain contiguous bytes, whatever item format or stride the caller's view has.

    Args:
        data: Any buffer; copied only if it is not contiguous.

    Returns:
        A flat view of unsigned bytes.
    """
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")  # cast refuses views with a zero in their shape
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    return view.cast("B")
