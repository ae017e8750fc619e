"""Time series of several channels: ECG, accelerometers, vital signs at a steady rate."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from cutlayer.broker.modality_spec import (
    FLOAT32_BYTES,
    Deviation,
    Mean,
    SpecOfModality,
    TokenOrder,
    check_count,
    nearest_multiples,
)

__all__ = ["SeriesSpec"]


class SeriesSpec(SpecOfModality):
    """A series, cut in time: a patch is `patch` steps of all channels.

    Attributes:
        rate_hz: Steps a second; below 1 for what is measured every few minutes.
        num_steps: Steps T of the longest series: longer ones are cut, shorter ones have fewer tokens.
        channels: Values of a step, C.
        patch: Steps of a patch; divides `num_steps`.
        mean: Subtracted from values: one number, or one a channel.
        std: Divides them afterwards.
    """

    order: ClassVar[TokenOrder] = "line"
    is_ragged: ClassVar[bool] = True
    kind: Literal["series"] = "series"
    rate_hz: PositiveFloat
    num_steps: Annotated[int, Field(ge=1, le=1 << 22)]
    channels: Annotated[int, Field(ge=1, le=1_024)] = 1
    patch: Annotated[int, Field(ge=1, le=65_536)]
    mean: Mean = 0.0
    std: Deviation = 1.0

    @model_validator(mode="after")
    def _fits(self) -> SeriesSpec:
        if self.num_steps % self.patch:
            below, above = nearest_multiples(self.num_steps, self.patch)
            raise ValueError(
                f"patch {self.patch} does not divide num_steps {self.num_steps}: take another patch, or {below} or "
                f"{above} steps"
            )
        check_count(self.mean, self.channels, "mean", "channels")
        check_count(self.std, self.channels, "std", "channels")
        return self

    @property
    def num_tokens(self) -> int:
        """Patches of the longest series."""
        return self.num_steps // self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """(1, N)."""
        return 1, self.num_tokens

    @property
    def patch_values(self) -> int:
        """Numbers in a patch, P: the input dimension of the linear tokenizer."""
        return self.patch * self.channels

    @property
    def raw_form(self) -> tuple[object, ...]:
        """Rate and channels: a series of any length is cut, or has fewer tokens."""
        return self.kind, self.rate_hz, self.channels

    @property
    def raw_bytes(self) -> int:
        """Four bytes a value."""
        return self.num_steps * self.channels * FLOAT32_BYTES

    @property
    def feature_bytes(self) -> int:
        """N x P float32."""
        return self.num_tokens * self.patch_values * FLOAT32_BYTES

    @property
    def feature_flops(self) -> int:
        """Two a value: mean, deviation."""
        return 2 * self.num_steps * self.channels

    def token_flops(self, width: int) -> int:
        """Return 2 x P x D."""
        return 2 * self.patch_values * width

    def parameter_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return those of `weight`, (P, D), and `bias`, (D)."""
        return {"weight": (self.patch_values, width), "bias": (width,)}
