"""What every modality's specification says, whatever its kind.

A kind of modality is three things: a specification here, a tokenizer at the agent (`cutlayer.edge_agent.tokenizers`)
and initial weights at the worker (`cutlayer.server_worker.tokenizer_weights`). All else asks the specification.

Letters: N tokens of a sample, D width of a token.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

from cutlayer.broker.spec_base import Spec

__all__ = ["Spacing", "SpecOfModality", "TokenOrder", "per_channel"]

TokenOrder = Literal["grid", "line", "set"]
Spacing = float | tuple[float, ...]
"""One number for all channels, or one for each."""

FLOAT32_BYTES = 4


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


def per_channel(values: Spacing, channels: int, key: str) -> tuple[float, ...]:
    """Return one value a channel.

    Raises:
        ValueError: When there is another number of them; the text is "problem: fix".
    """
    if not isinstance(values, tuple):
        return (values,) * channels
    if len(values) != channels:
        raise ValueError(f"{key} has {len(values)} values for {channels} channels: give one number, or one a channel")
    return values
