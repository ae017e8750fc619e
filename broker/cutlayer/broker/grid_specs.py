"""Modalities whose tokens are the patches of a grid: images, and the spectrograms of sounds."""

from __future__ import annotations

import abc
import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PlainSerializer, PlainValidator, PositiveFloat, model_validator

from cutlayer.broker.modality_spec import (
    FLOAT32_BYTES,
    Deviation,
    Mean,
    SpecOfModality,
    TokenOrder,
    as_it_is,
    check_count,
    nearest_multiples,
)
from cutlayer.broker.spec_base import Dimension

__all__ = ["AudioSpec", "ImageSpec"]

MAX_SIDE = 65_536


def _sides(value: object) -> int | tuple[int, int]:
    sides = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides) or len(sides) not in (1, 2):
        raise ValueError(f"{value!r} is no size of a patch: give a whole number from 1 on, or two: [rows, columns]")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


Patch = Annotated[int | tuple[int, int], PlainValidator(_sides), PlainSerializer(as_it_is)]
Channels = Annotated[int, Field(ge=1, le=16)]
AUDIO_SAMPLE_BYTES = 2


class _GridSpec(SpecOfModality):
    """A plane of rows and columns, cut into patches; `patch` is their side, or (rows, columns)."""

    order: ClassVar[TokenOrder] = "grid"
    is_ragged: ClassVar[bool] = False
    patch: Patch

    @property
    @abc.abstractmethod
    def plane(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def patch_sides(self) -> tuple[int, int]:
        """Rows and columns of a patch."""
        return self.patch if isinstance(self.patch, tuple) else (self.patch, self.patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        (rows, columns), (down, across) = self.plane, self.patch_sides
        return rows // down, columns // across

    @property
    def num_tokens(self) -> int:
        """Tokens a sample."""
        return self.grid[0] * self.grid[1]

    @property
    def num_planes(self) -> int:
        """Values at each place of the plane."""
        return 1

    @property
    def patch_values(self) -> int:
        """Numbers in a patch, P: the input dimension of the linear tokenizer."""
        return self.patch_sides[0] * self.patch_sides[1] * self.num_planes

    @property
    def feature_bytes(self) -> int:
        """N x P float32."""
        return self.num_tokens * self.patch_values * FLOAT32_BYTES

    def token_flops(self, width: int) -> int:
        """Return 2 x P x D."""
        return 2 * self.patch_values * width

    def parameter_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Return those of `weight`, (P, D), and `bias`, (D)."""
        return {"weight": (self.patch_values, width), "bias": (width,)}

    def _check_patch(self, unit: str) -> None:
        (rows, columns), (down, across) = self.plane, self.patch_sides
        if rows % down or columns % across:
            patch = str(self.patch) if isinstance(self.patch, int) else f"{down} x {across}"
            wide, high = nearest_multiples(columns, across), nearest_multiples(rows, down)
            raise ValueError(
                f"patch {patch} does not divide {rows} x {columns} {unit}: take another patch, or the nearest size "
                f"that it divides, {high[0]} x {wide[0]} or {high[1]} x {wide[1]}"
            )


class ImageSpec(_GridSpec):
    """An image, cut into patches.

    Attributes:
        height: Pixels.
        width: Pixels.
        channels: 1 for grey, 3 for colour.
        patch: Side of a patch in pixels, or (rows, columns); divides height and width.
        mean: Subtracted from pixel values (which are scaled to 0..1): one number, or one a channel.
        std: Divides them afterwards.
    """

    kind: Literal["image"] = "image"
    height: Dimension
    width: Dimension
    channels: Channels = 3
    mean: Mean = 0.5
    std: Deviation = 0.5

    @model_validator(mode="after")
    def _fits(self) -> ImageSpec:
        self._check_patch("pixels")
        check_count(self.mean, self.channels, "mean", "channels")
        check_count(self.std, self.channels, "std", "channels")
        return self

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def num_planes(self) -> int:
        """Channels."""
        return self.channels

    @property
    def raw_form(self) -> tuple[object, ...]:
        """Height, width and channels."""
        return self.kind, self.height, self.width, self.channels

    @property
    def raw_bytes(self) -> int:
        """A byte a pixel and channel."""
        return self.height * self.width * self.channels

    @property
    def feature_flops(self) -> int:
        """Three a value: scale, mean, deviation."""
        return 3 * self.height * self.width * self.channels


class AudioSpec(_GridSpec):
    """A mono waveform, turned into a log-mel spectrogram and cut into patches (as AST, arXiv 2104.01778).

    Attributes:
        sample_rate_hz: Samples a second that the waveform must have.
        num_frames: Spectrogram columns; the waveform is cut or zero-padded to fill them.
        hop_samples: Samples from one column to the next.
        fft_samples: Length of the Hann window and the FFT.
        num_mels: Mel bands between 0 and half the sample rate.
        patch: Side of a patch in bands and columns, or (bands, columns); divides both.
        mean: Subtracted from the natural logarithm of the mel energies.
        std: Divides it afterwards.
    """

    kind: Literal["audio"] = "audio"
    sample_rate_hz: Annotated[int, Field(ge=1_000, le=192_000)]
    num_frames: Dimension
    hop_samples: Dimension
    fft_samples: Annotated[int, Field(ge=16, le=16_384)]
    num_mels: Annotated[int, Field(ge=1, le=1_024)]
    mean: float = -4.0
    std: PositiveFloat = 4.0

    @model_validator(mode="after")
    def _fits(self) -> AudioSpec:
        self._check_patch("bands x frames")
        return self

    @property
    def plane(self) -> tuple[int, int]:
        """Bands and frames."""
        return self.num_mels, self.num_frames

    @property
    def num_samples(self) -> int:
        """Waveform samples that the spectrogram covers."""
        return (self.num_frames - 1) * self.hop_samples + self.fft_samples

    @property
    def raw_form(self) -> tuple[object, ...]:
        """The rate: a waveform of any length is cut or padded."""
        return self.kind, self.sample_rate_hz

    @property
    def raw_bytes(self) -> int:
        """Two bytes a sample of the waveform."""
        return self.num_samples * AUDIO_SAMPLE_BYTES

    @property
    def feature_flops(self) -> int:
        """Those of the spectrogram.

        For each frame of length n: n for the window, 2.5 n log2(n) for the real FFT (half of the 5 n log2(n) of a
        complex radix-2 FFT), 3 for the power of each of n/2 + 1 bins, 2 for each bin and mel band, and 3 a band
        (logarithm counted as one, mean, deviation).
        """
        length, bins = self.fft_samples, self.fft_samples // 2 + 1
        frame = length + 2.5 * length * math.log2(length) + 3 * bins + 2 * bins * self.num_mels + 3 * self.num_mels
        return round(self.num_frames * frame)
