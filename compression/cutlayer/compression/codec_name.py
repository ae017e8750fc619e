"""The grammar of codec names; what the words mean is in `registry`.

name   = part [ "+" part [ "+" part ] ]     a tensor codec, then a shuffle, then a compressor
part   = family [ ":" option { "," option } ]
family = a lower-case letter, then lower-case letters, digits and "-"
option = lower-case letters, digits and "=", ".", "_", "-"
"""

import re
from dataclasses import dataclass

from cutlayer.compression.errors import BadOptionError

MAX_NAME_LENGTH = 64
"""Names come from peers too; the search for a similar name takes time quadratic in the length."""

_PART = r"[a-z][a-z0-9-]*(?::[a-z0-9=._-]+(?:,[a-z0-9=._-]+)*)?"
_NAME = re.compile(rf"{_PART}(?:\+{_PART}){{0,2}}", re.ASCII)


@dataclass(frozen=True)
class CodecPart:
    """A family and its options, such as `zstd:3`.

    Args:
        family: The family's name.
        options: The options in the order in which they were written.
    """

    family: str
    options: tuple[str, ...] = ()

    def require_no_options(self) -> None:
        """Refuse options, for a family that has none.

        Raises:
            BadOptionError: There is an option.
        """
        if self.options:
            raise BadOptionError(self.family, ",".join(self.options), "no options")


def split_codec_name(name: str) -> tuple[CodecPart, tuple[CodecPart, ...]] | None:
    """Split a codec name into its parts.

    Args:
        name: Any string.

    Returns:
        The tensor codec's part and those of at most two byte stages; None if the name breaks the grammar.
    """
    if len(name) > MAX_NAME_LENGTH or not _NAME.fullmatch(name):
        return None
    tensor, *stages = (_part(text) for text in name.split("+"))
    return tensor, tuple(stages)


def _part(text: str) -> CodecPart:
    """Split one part, which is known to follow the grammar."""
    family, _, options = text.partition(":")
    return CodecPart(family, tuple(options.split(",")) if options else ())
