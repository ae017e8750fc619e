"""Eight, four or two bits an element, evenly spaced, with a 16-bit center and scale for each block.

Affine quantization as in `int8`, with headers of half the size: at four bits and width 128, float32 headers
would be a ninth of the encoding. A block is a token, K consecutive elements (as in 8-bit optimizers, arXiv
2110.02861, section 2.1), or the whole tensor: rows of ten outputs would otherwise cost more in headers than in
codes. Symmetric blocks have no center and bring zeros back as zeros, which gradients have many of; with two
bits and stochastic rounding they are TernGrad's three levels (arXiv 1705.07878, section 3).

Half precision, the usual choice for headers, has no place for the scales of small gradients (below 6e-8), nor
for values beyond 65504; the numbers in `block_headers` have float32's range.

Suffixes: N blocks, K elements of a block.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from cutlayer.compression.bit_packing import pack_codes, packed_bytes, unpack_codes
from cutlayer.compression.block_headers import HEADER_NUMBER_BYTES, Grid, fit_grid, read_headers, write_headers
from cutlayer.compression.checks import (
    byte_view,
    contiguous_float32,
    non_finite_input,
    num_elements,
    require_finite_data,
    require_length,
)
from cutlayer.compression.codec_name import CodecPart
from cutlayer.compression.content_noise import ContentNoise
from cutlayer.compression.rounding import dequantize, quantize
from cutlayer.compression.uniform_options import UniformOptions

_CHUNK_ELEMENTS = 65536
"""Elements worked on at once, 256 KiB: temporaries stay in the second-level cache."""


@dataclass(frozen=True)
class UniformCodec:
    """Rounds each element to one of 2^bits evenly spaced values around its block's range.

    Args:
        bits: Bits of a code: 2, 4 or 8.
        options: What shares a header, and how codes are rounded.
    """

    bits: int
    options: UniformOptions = field(default_factory=UniformOptions)

    is_lossless: ClassVar[bool] = False

    @classmethod
    def from_part(cls, part: CodecPart) -> Self:
        """Build the codec from its part of a name, such as `int4:block=64`; the family ends in the bits.

        Raises:
            BadOptionError: An option is unknown, or stands twice.
        """
        return cls(int(part.family.removeprefix("int")), UniformOptions.from_part(part))

    @property
    def name(self) -> str:
        """The name with the options in a fixed order."""
        # `int8` alone has a layout of its own, with 32-bit headers.
        default = ("block=token",) if self.bits == 8 else ()
        options = ",".join(self.options.names or default)
        return f"int{self.bits}:{options}" if options else f"int{self.bits}"

    def encode(self, array: NDArray[np.float32]) -> bytes:
        """Write the headers of all blocks, then all codes; see `Codec.encode`."""
        array = contiguous_float32(array, self.name)
        if array.size == 0:
            return b""
        flat, block = array.reshape(-1), self._block_elements(array.shape)
        lowest_N, highest_N = self._ranges(flat, block)
        grid = fit_grid(lowest_N, highest_N, self.bits, is_symmetric=self.options.is_symmetric)
        noise = ContentNoise(flat) if self.options.is_stochastic else None
        codes = np.empty(array.size, np.uint8)
        for blocks, elements, width in _chunks(flat.size, block):
            part = Grid(grid.center_N[blocks], grid.scale_N[blocks])
            quantize(flat[elements].reshape(-1, width), part, self.bits, noise, codes[elements].reshape(-1, width))
        headers = write_headers(grid, is_symmetric=self.options.is_symmetric)
        return headers + pack_codes(codes, self.bits).tobytes()

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Compute center + scale * level, never beyond float32's largest number; see `Codec.decode`."""
        view = byte_view(data)
        require_length(view, self.max_encoded_bytes(shape), self.name)
        array = np.empty(shape, np.float32)
        if array.size == 0:
            return array
        flat, block = array.reshape(-1), self._block_elements(shape)
        num_blocks = -(-flat.size // block)
        grid = read_headers(view, num_blocks, is_symmetric=self.options.is_symmetric)
        for numbers, what in ((grid.center_N, "centers"), (grid.scale_N, "scales")):
            require_finite_data(numbers, self.name, what)
        packed = np.frombuffer(view, np.uint8, offset=num_blocks * self._header_bytes)
        codes = unpack_codes(packed, flat.size, self.bits)
        for blocks, elements, width in _chunks(flat.size, block):
            part = Grid(grid.center_N[blocks], grid.scale_N[blocks])
            dequantize(codes[elements].reshape(-1, width), part, self.bits, flat[elements].reshape(-1, width))
        return array

    def max_encoded_bytes(self, shape: tuple[int, ...]) -> int:
        """Give the exact length; see `Codec.max_encoded_bytes`."""
        total = num_elements(shape)
        if total == 0:
            return 0
        num_blocks = -(-total // self._block_elements(shape))
        return num_blocks * self._header_bytes + packed_bytes(total, self.bits)

    def error_bound(self, array: NDArray[np.float32]) -> NDArray[np.float64]:
        """Bound each block by half its scale, or one if rounding is stochastic; see `Codec.error_bound`.

        What float32 arithmetic adds, with u = 2^-24: subtracting the center, inverting the scale, multiplying by it
        and adding what rounds each err by at most about 256 u of a scale, together less than 0.0001. Decoding
        rounds once, by u times the result; 2 u times the largest magnitude leaves room.
        """
        array = contiguous_float32(array, self.name)
        block = self._block_elements(array.shape)
        if array.size == 0:
            return np.zeros((1,) * array.ndim)
        lowest_N, highest_N = self._ranges(array.reshape(-1), block)
        scale_N = fit_grid(lowest_N, highest_N, self.bits, is_symmetric=self.options.is_symmetric).scale_N
        largest_N = np.maximum(np.abs(lowest_N), np.abs(highest_N)).astype(np.float64)
        num_scales = 1.0001 if self.options.is_stochastic else 0.5001
        bound_N = np.where(scale_N > 0, num_scales * scale_N.astype(np.float64) + 2.0**-23 * largest_N, 0.0)
        return np.repeat(bound_N, block)[: array.size].reshape(array.shape)

    @property
    def _header_bytes(self) -> int:
        """Bytes of a block's header."""
        return HEADER_NUMBER_BYTES * (1 if self.options.is_symmetric else 2)

    def _block_elements(self, shape: tuple[int, ...]) -> int:
        """Give the elements of a block, but the last one; at least 1."""
        if self.options.block == "token":
            return max(1, shape[-1]) if shape else 1
        return max(1, num_elements(shape)) if self.options.block == "all" else self.options.block

    def _ranges(self, flat: NDArray[np.float32], block: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give the least and the greatest element of each block.

        Raises:
            NonFiniteInputError: An element is NaN or Inf; minimum and maximum show it, without a pass of its own.
        """
        num_blocks = -(-flat.size // block)
        lowest_N, highest_N = np.empty(num_blocks, np.float32), np.empty(num_blocks, np.float32)
        with np.errstate(invalid="ignore"):
            for blocks, elements, width in _chunks(flat.size, block):
                flat[elements].reshape(-1, width).min(axis=1, out=lowest_N[blocks])
                flat[elements].reshape(-1, width).max(axis=1, out=highest_N[blocks])
        if not (np.isfinite(lowest_N).all() and np.isfinite(highest_N).all()):
            raise non_finite_input(flat, self.name)
        return lowest_N, highest_N


def _chunks(num_elements: int, block: int) -> Iterator[tuple[slice, slice, int]]:
    """Cut a tensor into runs of whole blocks of about `_CHUNK_ELEMENTS` elements; a shorter last block is alone.

    Yields:
        Which blocks, which elements, and how many elements a block has there.
    """
    num_whole = num_elements // block
    step = max(1, _CHUNK_ELEMENTS // block)
    for start in range(0, num_whole, step):
        stop = min(start + step, num_whole)
        yield slice(start, stop), slice(start * block, stop * block), block
    if rest := num_elements - num_whole * block:
        yield slice(num_whole, num_whole + 1), slice(num_whole * block, num_elements), rest
