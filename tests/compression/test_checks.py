"""The limits on shapes, and views of callers' buffers."""

import numpy as np
import pytest

from cutlayer.compression import MAX_AXES, MAX_ELEMENTS, ShapeError, WrongDtypeError
from cutlayer.compression.checks import byte_view, contiguous_float32, num_elements


@pytest.mark.parametrize(
    ("shape", "expected"), [((), 1), ((0,), 0), ((2, 3, 4), 24), ((5, 0), 0), ((MAX_ELEMENTS,), MAX_ELEMENTS)]
)
def test_elements_are_counted(shape: tuple[int, ...], expected: int) -> None:
    assert num_elements(shape) == expected


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((-1,), "a negative axis"),
        ((-2, -3), "a negative axis"),
        ((1,) * (MAX_AXES + 1), f"at most {MAX_AXES}"),
        ((MAX_ELEMENTS + 1,), f"more than {MAX_ELEMENTS} elements"),
        ((2**62, 2**62), f"more than {MAX_ELEMENTS} elements"),
        ((2**62, 4, 0), f"more than {MAX_ELEMENTS} elements"),
    ],
)
def test_shapes_beyond_the_limits_are_refused(shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(ShapeError, match=problem) as caught:
        num_elements(shape)
    assert caught.value.shape == shape


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4", "bool"])
def test_other_dtypes_are_refused_by_name(dtype: str) -> None:
    array = np.zeros(3, dtype)
    with pytest.raises(WrongDtypeError, match="not native float32") as caught:
        contiguous_float32(array, "int8")
    assert caught.value.dtype == str(array.dtype)
    assert caught.value.codec == "int8"


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros((2, 3), np.float32)
    assert contiguous_float32(array, "int8") is array


def test_a_tensor_without_axes_keeps_having_none() -> None:
    assert contiguous_float32(np.array(1.0, np.float32), "int8").shape == ()


def test_views_of_any_item_format_become_bytes() -> None:
    floats = np.array([[1.0, 2.0]], np.float32)
    assert bytes(byte_view(floats.data)) == floats.tobytes()
    assert bytes(byte_view(memoryview(b"abcdef")[::2])) == b"ace"
    assert byte_view(np.zeros((0, 3)).data).nbytes == 0
