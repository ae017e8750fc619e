"""Tensors to bytes and back: `codec_from_name("int8+zstd").encode(activations)`.

NumPy only. Knows no topic, no session and no message: broker/ carries the bytes, the codec's name and the
shape.
The byte layouts are specified in compression/README.md.
"""

from cutlayer.compression.checks import MAX_AXES, MAX_ELEMENTS
from cutlayer.compression.codec import Codec
from cutlayer.compression.codec_name import MAX_NAME_LENGTH
from cutlayer.compression.errors import (
    BadOptionError,
    CodecError,
    CorruptError,
    DecodeError,
    EncodeError,
    NonFiniteDataError,
    NonFiniteInputError,
    OversizedError,
    ShapeError,
    UnknownCodecError,
    WrongDtypeError,
    WrongLengthError,
)
from cutlayer.compression.registry import (
    available_byte_stages,
    available_codecs,
    available_shuffles,
    codec_from_name,
)

__all__ = [
    "MAX_AXES",
    "MAX_ELEMENTS",
    "MAX_NAME_LENGTH",
    "BadOptionError",
    "Codec",
    "CodecError",
    "CorruptError",
    "DecodeError",
    "EncodeError",
    "NonFiniteDataError",
    "NonFiniteInputError",
    "OversizedError",
    "ShapeError",
    "UnknownCodecError",
    "WrongDtypeError",
    "WrongLengthError",
    "available_byte_stages",
    "available_codecs",
    "available_shuffles",
    "codec_from_name",
]
