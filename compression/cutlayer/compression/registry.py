"""Every codec family and byte stage that exists, and the way from a name to a codec.

A new family is one file and one line in a table here.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from cutlayer.compression.byte_stage import ByteStage, Lz4Stage, ZstdStage
from cutlayer.compression.codec import Codec
from cutlayer.compression.codec_name import MAX_NAME_LENGTH, CodecPart, split_codec_name
from cutlayer.compression.errors import BadOptionError, UnknownCodecError
from cutlayer.compression.fp16 import Fp16Codec
from cutlayer.compression.identity import IdentityCodec
from cutlayer.compression.int8 import Int8Codec
from cutlayer.compression.staged import StagedCodec

_Built = TypeVar("_Built")


def _without_options(codec: Codec) -> Callable[[CodecPart], Codec]:
    """Make the builder of a family that takes no options."""

    def build(part: CodecPart) -> Codec:
        part.require_no_options()
        return codec

    return build


def _no_stage(part: CodecPart) -> None:
    """Build the stage `none`, which is no stage."""
    part.require_no_options()


_TENSOR_CODECS: Mapping[str, Callable[[CodecPart], Codec]] = MappingProxyType(
    {
        "identity": _without_options(IdentityCodec()),
        "fp16": _without_options(Fp16Codec()),
        "int8": _without_options(Int8Codec()),
    }
)

_BYTE_STAGES: Mapping[str, Callable[[CodecPart], ByteStage | None]] = MappingProxyType(
    {
        "none": _no_stage,
        "lz4": Lz4Stage.from_part,
        "zstd": ZstdStage.from_part,
    }
)


def available_codecs() -> tuple[str, ...]:
    """Give the names of the tensor codec families, without options, from exact to coarse."""
    return tuple(_TENSOR_CODECS)


def available_byte_stages() -> tuple[str, ...]:
    """Give the names of the byte stages, without options, from fast to small."""
    return tuple(_BYTE_STAGES)


def codec_from_name(name: str) -> Codec:
    """Give the codec of a name; the same name gives the same object.

    Args:
        name: Such as `int8`, `fp16+lz4` or `identity+zstd:9`; from a configuration file or a peer.

    Returns:
        The codec, whose own `name` is canonical: the stage `none` is dropped, a level is always written.

    Raises:
        UnknownCodecError: The name breaks the grammar in `codec_name`, or a word or option in it is unknown.
    """
    return _codec_from_name(name)


# Bounded, as names also come from peers. Failures are not kept.
@lru_cache(maxsize=128)
def _codec_from_name(name: str) -> Codec:
    parts = split_codec_name(name)
    if parts is None:
        form = "name[:option[,option]][+stage[:option]]"
        problem = f"not of the form {form} in lower case with at most {MAX_NAME_LENGTH} characters"
        raise UnknownCodecError(name, available_codecs(), problem, _nearest(name, available_codecs()))
    tensor_part, stage_part = parts
    tensor_codec = _build(_TENSOR_CODECS, tensor_part, name, kind="tensor codec")
    if stage_part is None:
        return tensor_codec
    stage = _build(_BYTE_STAGES, stage_part, name, kind="byte stage")
    return tensor_codec if stage is None else StagedCodec(tensor_codec, stage)


def _build(table: Mapping[str, Callable[[CodecPart], _Built]], part: CodecPart, name: str, kind: str) -> _Built:
    """Look a part up and build it.

    Raises:
        UnknownCodecError: The table has no such family, or the family refuses an option.
    """
    available = tuple(table)
    build = table.get(part.family)
    if build is None:
        raise UnknownCodecError(name, available, f"no {kind} {part.family!r}", _nearest(part.family, available))
    try:
        return build(part)
    except BadOptionError as error:
        raise UnknownCodecError(name, available, str(error)) from error


def _nearest(word: str, available: tuple[str, ...]) -> str | None:
    """Give the entry that is most like a word, if one is."""
    matches = difflib.get_close_matches(word[:MAX_NAME_LENGTH].lower(), available, n=1, cutoff=0.5)
    return matches[0] if matches else None
