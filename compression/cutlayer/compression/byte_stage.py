"""The second half of a codec: lossless compression of the bytes that a tensor codec wrote.

Bytes may come from anyone. A stage reads the size that they claim to have had before compression, refuses it
if it is more than the tensor codec can need, and only then takes memory.
"""

import struct
import threading
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import lz4.block
import zstandard

from cutlayer.compression.codec_name import CodecPart
from cutlayer.compression.errors import BadOptionError, CorruptError, OversizedError

DEFAULT_ZSTD_LEVEL = 3
MAX_ZSTD_LEVEL = 19
"""zstd's manual warns of the memory that the levels above need; an edge agent may not have it."""


class ByteStage(Protocol):
    """Compresses bytes without loss."""

    @property
    def name(self) -> str:
        """The canonical name, such as `zstd:3`."""

    def encode(self, data: bytes) -> bytes:
        """Compress.

        Args:
            data: Anything; what a tensor codec wrote.

        Returns:
            At most `max_encoded_bytes(len(data))` bytes.
        """

    def decode(self, view: memoryview, max_bytes: int) -> bytes:
        """Decompress, taking no more memory than allowed.

        Args:
            view: Contiguous bytes from anyone.
            max_bytes: The most that they may become.

        Returns:
            What was given to `encode`.

        Raises:
            OversizedError: They would become more than `max_bytes`.
            CorruptError: They are not what this stage writes.
        """

    def max_encoded_bytes(self, num_bytes: int) -> int:
        """Bound the length of what `encode` writes for `num_bytes` bytes."""


@dataclass(frozen=True)
class Lz4Stage:
    """LZ4 block format after the size of what it holds, as unsigned 32-bit little-endian integer.

    The block rather than the frame format: 4 bytes of framing instead of 15 and more.
    """

    name: ClassVar[str] = "lz4"

    _SIZE: ClassVar[struct.Struct] = struct.Struct("<I")

    @classmethod
    def from_part(cls, part: CodecPart) -> Self:
        """Build the stage from its part of a codec name: no options."""
        part.require_no_options()
        return cls()

    def encode(self, data: bytes) -> bytes:
        """Compress; see `ByteStage.encode`."""
        encoded: bytes = lz4.block.compress(data, store_size=True)
        return encoded

    def decode(self, view: memoryview, max_bytes: int) -> bytes:
        """Decompress; see `ByteStage.decode`."""
        if view.nbytes <= self._SIZE.size:
            raise CorruptError(self.name, f"{view.nbytes} bytes hold no block")
        (declared_bytes,) = self._SIZE.unpack_from(view)
        if declared_bytes > max_bytes:
            raise OversizedError(self.name, declared_bytes, max_bytes)
        try:
            decoded: bytes = lz4.block.decompress(view[self._SIZE.size :], uncompressed_size=declared_bytes)
        except lz4.block.LZ4BlockError as error:
            raise CorruptError(self.name, str(error)) from error
        if len(decoded) != declared_bytes:
            raise CorruptError(self.name, f"{len(decoded)} bytes came out where {declared_bytes} were declared")
        return decoded

    def max_encoded_bytes(self, num_bytes: int) -> int:
        """Bound the length by LZ4_COMPRESSBOUND and the size field; see `ByteStage.max_encoded_bytes`."""
        return self._SIZE.size + num_bytes + num_bytes // 255 + 16


@dataclass(frozen=True)
class ZstdStage:
    """One Zstandard frame (RFC 8878) that names its content size.

    Args:
        level: 1 (fast) to 19 (small).
    """

    level: int = DEFAULT_ZSTD_LEVEL

    @classmethod
    def from_part(cls, part: CodecPart) -> Self:
        """Build the stage from its part of a codec name: at most one option, the level.

        Raises:
            BadOptionError: It is no level.
        """
        if not part.options:
            return cls()
        option = ",".join(part.options)
        # str.isdecimal alone also accepts the digits of other scripts.
        is_level = option.isascii() and option.isdecimal() and 1 <= int(option) <= MAX_ZSTD_LEVEL
        if not is_level:
            raise BadOptionError("zstd", option, f"one level from 1 to {MAX_ZSTD_LEVEL}")
        return cls(int(option))

    @property
    def name(self) -> str:
        """The name with the level, also where it is the default."""
        return f"zstd:{self.level}"

    def encode(self, data: bytes) -> bytes:
        """Compress; see `ByteStage.encode`."""
        return _objects.compressor(self.level).compress(data)

    def decode(self, view: memoryview, max_bytes: int) -> bytes:
        """Decompress; see `ByteStage.decode`."""
        # Skippable frames start otherwise; libzstd has taken them for empty ones or not, depending on its version.
        if view[:4] != zstandard.FRAME_HEADER:
            raise CorruptError(self.name, "no Zstandard frame")
        try:
            declared_bytes = zstandard.frame_content_size(view)
            if declared_bytes < 0:
                raise CorruptError(self.name, "the frame does not name its content size")
            if declared_bytes > max_bytes:
                raise OversizedError(self.name, declared_bytes, max_bytes)
            # Takes the declared size, and a window that is never larger than it.
            return _objects.decompressor.decompress(view, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptError(self.name, str(error)) from error

    def max_encoded_bytes(self, num_bytes: int) -> int:
        """Bound the length by ZSTD_COMPRESSBOUND of zstd.h; see `ByteStage.max_encoded_bytes`."""
        small_input = max(0, (128 << 10) - num_bytes) >> 11
        return num_bytes + (num_bytes >> 8) + small_input


class _ThreadObjects(threading.local):
    """Each thread's own Zstandard objects, as they must not be shared.

    Kept, as making a compressor costs 27 microseconds and using it on 68 KiB of int8 codes 80. Outside the
    stage, so that stages stay plain values.
    """

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        """Give this thread's compressor for a level."""
        if level not in self._compressors:
            self._compressors[level] = zstandard.ZstdCompressor(level=level)
        return self._compressors[level]


_objects = _ThreadObjects()
