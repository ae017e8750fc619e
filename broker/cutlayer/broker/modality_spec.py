"""What every modality's specification says, whatever its kind.

A kind of modality is three things: a specification here, a tokenizer at the agent (`cutlayer.edge_agent.tokenizers`)
and initial weights at the worker (`cutlayer.server_worker.tokenizer_weights`). All else asks the specification.

Letters: N tokens of a sample, D width of a token.
"""

from __future__ import annotations

import abc
import math
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import PlainSerializer, PlainValidator

from cutlayer.broker.spec_base import Spec

__all__ = [
    "FLOAT32_BYTES",
    "Deviation",
    "Mean",
    "Numbers",
    "SpecOfModality",
    "TokenOrder",
    "as_it_is",
    "check_count",
    "nearest_multiples",
]

TokenOrder = Literal["grid", "line", "set"]
Numbers: TypeAlias = float | tuple[float, ...]
"""One number for all channels, or one for each."""

FLOAT32_BYTES = 4


def _numbers(value: object) -> Numbers:
    if isinstance(value, list | tuple):
        return tuple(_number(item) for item in value)
    return _number(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number: give one, or a list of them")
    return float(value)


def _positive(value: object) -> Numbers:
    numbers = _numbers(value)
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
        if number <= 0:
            raise ValueError(f"{number:g} is not above 0: give a positive number, or a list of them")
    return numbers


def as_it_is(value: object) -> object:
    """Serialize a field that is validated by hand: as JSON has numbers and lists."""
    return value


# Validated by hand, since pydantic reports each branch of a union as an error of its own.
Mean = Annotated[Numbers, PlainValidator(_numbers), PlainSerializer(as_it_is)]
Deviation = Annotated[Numbers, PlainValidator(_positive), PlainSerializer(as_it_is)]


class SpecOfModality(Spec, abc.ABC):
    """The seam: what a run asks of a modality without knowing its kind.

    Every kind also has `kind` and `num_tokens`, N.

    Attributes:
        order: How tokens lie: in a `grid` of rows and columns, on a `line`, or as a `set`, where a place says only
            which one it is. Positions of a pretrained ViT's grid mean something for a grid only.
        is_ragged: Whether a sample may have fewer than N tokens.
    """

    order: ClassVar[TokenOrder]
    is_ragged: ClassVar[bool]

    @property
    @abc.abstractmethod
    def grid(self) -> tuple[int, int]:
        """Tokens down and across; (1, N) where they do not lie in a grid."""

    @property
    @abc.abstractmethod
    def raw_form(self) -> tuple[object, ...]:
        """What raw data have to be: equal for two specifications that take the same data."""

    @property
    @abc.abstractmethod
    def raw_bytes(self) -> int:
        """Bytes of one raw sample, as it is usually stored without compression."""

    @property
    @abc.abstractmethod
    def feature_bytes(self) -> int:
        """Bytes of one sample's features in an agent's cache."""

    @property
    @abc.abstractmethod
    def feature_flops(self) -> int:
        """Operations that turn one raw sample into features; a multiplication or an addition counts 1."""

    @abc.abstractmethod
    def token_flops(self, width: int) -> int:
        """Return the operations that make one token of `width` of its features; its gradients take as many."""

    @abc.abstractmethod
    def parameter_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each parameter of the tokenizer, by part: `<modality>.<part>` is its name."""


def check_count(values: Numbers, count: int, key: str, what: str) -> None:
    """Check that there is one value, or `count` of them.

    Raises:
        ValueError: When there is another number of them; the text is "problem: fix".
    """
    if isinstance(values, tuple) and len(values) != count:
        raise ValueError(f"{key} has {len(values)} values for {count} {what}: give one number, or one for each")


def nearest_multiples(size: int, side: int) -> tuple[int, int]:
    """Return the multiples of `side` at and below `size` (one side at least), and at and above it."""
    return max(size // side, 1) * side, math.ceil(size / side) * side
