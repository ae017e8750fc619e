"""Every codec family and byte stage that exists, and the way from a name to a codec.

A new family is one file and one line in a table here; one more line if its elements are wider than a byte.
"""

import difflib
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TypeVar

from cutlayer.compression.bf16 import Bf16Codec
from cutlayer.compression.byte_stage import ByteStage, Lz4Stage, ZstdStage
from cutlayer.compression.codec import Codec
from cutlayer.compression.codec_name import MAX_NAME_LENGTH, CodecPart, split_codec_name
from cutlayer.compression.entropy import EntropyCodec
from cutlayer.compression.errors import BadOptionError, UnknownCodecError
from cutlayer.compression.fp16 import Fp16Codec
from cutlayer.compression.identity import IdentityCodec
from cutlayer.compression.int8 import Int8Codec
from cutlayer.compression.lowrank import LowRankCodec
from cutlayer.compression.shuffle import BitShuffleStage, ShuffleStage
from cutlayer.compression.staged import StagedCodec
from cutlayer.compression.topk import TopKCodec
from cutlayer.compression.uniform import UniformCodec

_Built = TypeVar("_Built")


def _without_options(codec: Codec) -> Callable[[CodecPart], Codec]:
    """Make the builder of a family that takes no options."""

    def build(part: CodecPart) -> Codec:
        part.require_no_options()
        return codec

    return build


def _int8(part: CodecPart) -> Codec:
    """Build `int8`, which without options has a layout of its own."""
    return UniformCodec.from_part(part) if part.options else Int8Codec()


def _no_stage(part: CodecPart) -> None:
    """Build the stage `none`, which is no stage."""
    part.require_no_options()


_TENSOR_CODECS: Mapping[str, Callable[[CodecPart], Codec]] = MappingProxyType(
    {
        "identity": _without_options(IdentityCodec()),
        "fp16": _without_options(Fp16Codec()),
        "bf16": _without_options(Bf16Codec()),
        "int8": _int8,
        "int4": UniformCodec.from_part,
        "int2": UniformCodec.from_part,
        "entropy": EntropyCodec.from_part,
        "lowrank": LowRankCodec.from_part,
        "topk": TopKCodec.from_part,
        "randtopk": TopKCodec.from_part,
    }
)

_ELEMENT_BYTES: Mapping[str, int] = MappingProxyType({"identity": 4, "fp16": 2, "bf16": 2})
"""What a shuffle takes for one element, where it is not a byte."""

_SHUFFLES: Mapping[str, Callable[[int], ByteStage]] = MappingProxyType(
    {
        "shuffle": ShuffleStage,
        "bitshuffle": BitShuffleStage,
    }
)

_COMPRESSORS: Mapping[str, Callable[[CodecPart], ByteStage | None]] = MappingProxyType(
    {
        "none": _no_stage,
        "lz4": Lz4Stage.from_part,
        "zstd": ZstdStage.from_part,
    }
)


def available_codecs() -> tuple[str, ...]:
    """Give the names of the tensor codec families, without options, from exact to coarse."""
    return tuple(_TENSOR_CODECS)


def available_shuffles() -> tuple[str, ...]:
    """Give the names of the byte stages that reorder; they stand before those that compress."""
    return tuple(_SHUFFLES)


def available_byte_stages() -> tuple[str, ...]:
    """Give the names of all byte stages, without options: those that reorder, then `none`, then those that compress."""
    return (*_SHUFFLES, *_COMPRESSORS)


def codec_from_name(name: str) -> Codec:
    """Give the codec of a name; the same name gives the same object.

    Args:
        name: Such as `int8`, `fp16+lz4`, `int4:block=64` or `identity+shuffle+zstd:9`; from a configuration file or a
            peer.

    Returns:
        The codec, whose own `name` is canonical: what changes nothing is dropped (the stage `none`, a `shuffle` of
        elements of one byte), options stand in a fixed order, a level is always written.

    Raises:
        UnknownCodecError: The name breaks the grammar in `codec_name`, or a word or option in it is unknown.
    """
    return _codec_from_name(name)


# Bounded, as names also come from peers. Failures are not kept.
@lru_cache(maxsize=128)
def _codec_from_name(name: str) -> Codec:
    parts = split_codec_name(name)
    if parts is None:
        form = "name[:option[,option]][+shuffle][+stage[:option]]"
        problem = f"not of the form {form} in lower case with at most {MAX_NAME_LENGTH} characters"
        raise UnknownCodecError(name, available_codecs(), problem, _nearest(name, available_codecs()))
    tensor_part, stage_parts = parts
    codec = _tensor_codec(tensor_part, name)
    for stage in _stages(stage_parts, _ELEMENT_BYTES.get(tensor_part.family, 1), name):
        codec = StagedCodec(codec, stage)
    return codec


def _stages(parts: tuple[CodecPart, ...], element_bytes: int, name: str) -> list[ByteStage]:
    """Build the byte stages of a name, without those that change nothing.

    Raises:
        UnknownCodecError: A stage or option is unknown, or two stages are not a shuffle and a compressor.
    """
    stages: list[ByteStage] = []
    for index, part in enumerate(parts):
        build = _stage_builder(part.family, element_bytes)
        if build is None:
            problem = f"no byte stage {part.family!r}"
            raise UnknownCodecError(
                name, available_byte_stages(), problem, _nearest(part.family, available_byte_stages())
            )
        is_shuffle = part.family in _SHUFFLES
        if len(parts) == 2 and is_shuffle != (index == 0):
            expected = available_shuffles() if index == 0 else tuple(_COMPRESSORS)
            problem = f"{part.family!r} cannot be the {('first', 'second')[index]} of two byte stages"
            raise UnknownCodecError(name, expected, problem)
        stage = _with_options_checked(build, part, name, available_byte_stages())
        if stage is not None:
            stages.append(stage)
    return stages


def _stage_builder(family: str, element_bytes: int) -> Callable[[CodecPart], ByteStage | None] | None:
    """Give what builds a byte stage, if there is one of that name."""
    make_shuffle = _SHUFFLES.get(family)
    if make_shuffle is None:
        return _COMPRESSORS.get(family)

    def build(part: CodecPart) -> ByteStage | None:
        part.require_no_options()
        return None if family == "shuffle" and element_bytes == 1 else make_shuffle(element_bytes)

    return build


def _tensor_codec(part: CodecPart, name: str) -> Codec:
    """Look a tensor codec up and build it.

    Raises:
        UnknownCodecError: There is no such family, or it refuses an option.
    """
    available = available_codecs()
    build = _TENSOR_CODECS.get(part.family)
    if build is None:
        problem = f"no tensor codec {part.family!r}"
        raise UnknownCodecError(name, available, problem, _nearest(part.family, available))
    return _with_options_checked(build, part, name, available)


def _with_options_checked(
    build: Callable[[CodecPart], _Built], part: CodecPart, name: str, available: tuple[str, ...]
) -> _Built:
    """Build a part; an error says which options there are, or where there are none, which families.

    Raises:
        UnknownCodecError: The family refuses an option.
    """
    try:
        return build(part)
    except BadOptionError as error:
        suggestion = _nearest(error.option, error.known)
        raise UnknownCodecError(name, error.known or available, str(error), suggestion) from error


def _nearest(word: str, available: tuple[str, ...]) -> str | None:
    """Give the entry that is most like a word, if one is."""
    matches = difflib.get_close_matches(word[:MAX_NAME_LENGTH].lower(), available, n=1, cutoff=0.5)
    return matches[0] if matches else None
