"""What may stand behind `int8`, `int4` and `int2` in a codec's name."""

from dataclasses import dataclass
from typing import Literal, Self

from cutlayer.compression.codec_name import CodecPart
from cutlayer.compression.errors import BadOptionError

MIN_BLOCK_ELEMENTS = 4
MAX_BLOCK_ELEMENTS = 65536
_ACCEPTED = (
    f"block=K (K elements, {MIN_BLOCK_ELEMENTS} to {MAX_BLOCK_ELEMENTS}), block=token, block=all, symmetric and "
    "round=stochastic, each once"
)
_KNOWN = ("block=64", "block=token", "block=all", "symmetric", "round=stochastic")


@dataclass(frozen=True)
class UniformOptions:
    """Options of the uniform quantizers.

    Args:
        block: What shares a header: a token, so many consecutive elements, or the whole tensor.
        is_symmetric: Whether there is no center, so that zero has a code.
        is_stochastic: Whether elements are rounded up or down at random, without bias, rather than to nearest.
    """

    block: Literal["token", "all"] | int = "token"
    is_symmetric: bool = False
    is_stochastic: bool = False

    @classmethod
    def from_part(cls, part: CodecPart) -> Self:
        """Read the options of a part, in any order.

        Raises:
            BadOptionError: An option is unknown, or stands twice.
        """
        block: Literal["token", "all"] | int = "token"
        is_symmetric = is_stochastic = False
        seen: set[str] = set()
        for option in part.options:
            key, _, value = option.partition("=")
            if key in seen:
                raise BadOptionError(part.family, ",".join(part.options), _ACCEPTED, _KNOWN)
            seen.add(key)
            if option == "symmetric":
                is_symmetric = True
            elif option == "round=stochastic":
                is_stochastic = True
            elif key == "block" and value in ("token", "all"):
                block = "all" if value == "all" else "token"
            elif key == "block" and _is_block_size(value):
                block = int(value)
            else:
                raise BadOptionError(part.family, option, _ACCEPTED, _KNOWN)
        return cls(block, is_symmetric, is_stochastic)

    @property
    def names(self) -> tuple[str, ...]:
        """The options that differ from the default, in a fixed order, as they are written."""
        options = {
            f"block={self.block}": self.block != "token",
            "symmetric": self.is_symmetric,
            "round=stochastic": self.is_stochastic,
        }
        return tuple(option for option, is_set in options.items() if is_set)


def _is_block_size(value: str) -> bool:
    """Tell whether a text is a number of elements within the limits."""
    # str.isdecimal alone also accepts the digits of other scripts.
    is_number = value.isascii() and value.isdecimal()
    return is_number and MIN_BLOCK_ELEMENTS <= int(value) <= MAX_BLOCK_ELEMENTS
