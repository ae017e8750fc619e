"""The client side of the model: raw samples to tokens, in two steps.

`features` has no parameters, so its result can be kept; `project` is the linear map whose weights come with the
run. Together they equal a ViT's patch embedding, a convolution whose stride is its kernel (arXiv 2010.11929).

Axes: B samples, H rows, W columns, C channels, T waveform samples, M mel bands, F frames, N tokens, P values of
a patch, D token width.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.errors import ManifestUnsatisfiable, SettingsError
from cutlayer.broker.manifest import AudioSpec, ImageSpec, ModalitySpec
from cutlayer.edge_agent.log_mel import LogMel

__all__ = [
    "MAX_AMPLITUDE",
    "ImagePatchTokenizer",
    "LogMelPatchTokenizer",
    "Tokenizer",
    "load_tokenizers",
    "tokenizer_from_spec",
]

MAX_AMPLITUDE = 4.0
"""Resampling overshoots 1 a little; 16-bit samples that nobody scaled overshoot it by thousands."""


class Tokenizer(Protocol):
    """Turns raw samples of one modality into tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens N of a sample."""

    @property
    def width(self) -> int:
        """Width D of a token."""

    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return patches_BNP, float32 (B, N, P): all that needs no weights, so compute it once a sample.

        Raises:
            SettingsError: When `raw` has the wrong shape or dtype, or values out of range or not finite.
        """

    def project(self, patches_BNP: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return tokens_BND, float32 (B, N, D): the linear map."""

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`."""

    def take_weights(self, weight_PD: NDArray[np.float32], bias_D: NDArray[np.float32]) -> None:
        """Use other weights of the same shapes from now on."""


class _PatchTokenizer(abc.ABC):
    """The linear map that every patch tokenizer ends in."""

    def __init__(
        self, modality: str, spec: ModalitySpec, weight_PD: NDArray[np.float32], bias_D: NDArray[np.float32]
    ) -> None:
        _check_weights(modality, spec, weight_PD, bias_D)
        self.modality = modality
        self.take_weights(weight_PD, bias_D)
        self.num_tokens = spec.num_tokens
        self.width = int(bias_D.size)

    def take_weights(self, weight_PD: NDArray[np.float32], bias_D: NDArray[np.float32]) -> None:
        """Use these weights, which fit, from now on."""
        self._weight_PD = np.ascontiguousarray(weight_PD, dtype=np.float32)
        self._bias_D = np.ascontiguousarray(bias_D, dtype=np.float32)

    @abc.abstractmethod
    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return patches_BNP, float32 (B, N, P)."""

    def project(self, patches_BNP: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return `patches @ weight + bias`.

        Args:
            patches_BNP: float32 (B, N, P), from `features`.

        Returns:
            tokens_BND, float32 (B, N, D).
        """
        tokens_BND: NDArray[np.float32] = np.matmul(patches_BNP, self._weight_PD)
        tokens_BND += self._bias_D
        return tokens_BND

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`: tokens_BND, float32 (B, N, D).

        Raises:
            SettingsError: As `features`.
        """
        return self.project(self.features(raw))


class ImagePatchTokenizer(_PatchTokenizer):
    """Square patches of an image, from the top row on and within a row from the left.

    The values of a patch are ordered (channel, row, column), so that `weight_PD` is the transpose of
    `conv.weight.reshape(D, -1)` of a timm `PatchEmbed`.

    Args:
        spec: The image modality's specification.
        weight_PD: float32 (P, D).
        bias_D: float32 (D).
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights do not fit `spec`.
    """

    def __init__(
        self,
        spec: ImageSpec,
        weight_PD: NDArray[np.float32],
        bias_D: NDArray[np.float32],
        *,
        modality: str = "image",
    ) -> None:
        super().__init__(modality, spec, weight_PD, bias_D)
        self.spec = spec

    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Normalize images to `(pixel - mean) / std` and cut them into patches.

        Args:
            raw: images_BHWC, uint8 (0 to 255) or float (0 to 1).

        Returns:
            patches_BNP, float32 (B, N, P).

        Raises:
            SettingsError: When `raw` has the wrong shape or dtype, or values out of range or not finite.
        """
        spec = self.spec
        expected = f"(B, {spec.height}, {spec.width}, {spec.channels}) uint8, or float from 0 to 1"
        if raw.shape[1:] != (spec.height, spec.width, spec.channels) or not (
            raw.dtype == np.uint8 or raw.dtype.kind == "f"
        ):
            raise _unfit(self.modality, raw, expected, "resize the images and put the channels last")
        pixels_BHWC = raw.astype(np.float32)
        if raw.dtype == np.uint8:
            pixels_BHWC *= np.float32(1 / 255)
        elif not _within(pixels_BHWC, 0.0, 1.0):
            raise _unfit(self.modality, raw, expected, "divide 8-bit values by 255 and remove NaN")
        pixels_BHWC -= np.float32(spec.mean)
        pixels_BHWC /= np.float32(spec.std)
        return _patches(pixels_BHWC.transpose(0, 3, 1, 2), spec.patch)


class LogMelPatchTokenizer(_PatchTokenizer):
    """Square patches of a log-mel spectrogram, from the lowest bands on and within them from the first frame.

    The values of a patch are ordered (band, frame), as an image's rows and columns (AST, arXiv 2104.01778, with
    patches that do not overlap).

    Args:
        spec: The audio modality's specification.
        weight_PD: float32 (P, D).
        bias_D: float32 (D).
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights do not fit `spec`.
    """

    def __init__(
        self,
        spec: AudioSpec,
        weight_PD: NDArray[np.float32],
        bias_D: NDArray[np.float32],
        *,
        modality: str = "audio",
    ) -> None:
        super().__init__(modality, spec, weight_PD, bias_D)
        self.spec = spec
        self._log_mel = LogMel(spec)

    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Compute spectrograms and cut them into patches.

        Args:
            raw: waveform_BT, mono, float, -1 to 1 at `spec.sample_rate_hz`; cut or padded with zeros at its end
                to `spec.num_samples`.

        Returns:
            patches_BNP, float32 (B, N, P).

        Raises:
            SettingsError: When `raw` has the wrong shape or dtype, or values out of range or not finite.
        """
        spec = self.spec
        expected = f"(B, T) float from -1 to 1, mono at {spec.sample_rate_hz} Hz"
        if raw.ndim != 2 or raw.dtype.kind != "f":
            raise _unfit(self.modality, raw, expected, "mix to one channel; divide 16-bit values by 32768")
        waveform_BT = raw[:, : spec.num_samples].astype(np.float32)
        if not _within(waveform_BT, -MAX_AMPLITUDE, MAX_AMPLITUDE):
            raise _unfit(self.modality, raw, expected, "divide 16-bit values by 32768 and remove NaN")
        if (missing := spec.num_samples - waveform_BT.shape[1]) > 0:
            waveform_BT = np.pad(waveform_BT, ((0, 0), (0, missing)))
        return _patches(self._log_mel(waveform_BT)[:, None], spec.patch)


def tokenizer_from_spec(modality: str, spec: ModalitySpec, weights: Mapping[str, NDArray[Any]]) -> Tokenizer:
    """Build the tokenizer of one modality.

    Args:
        modality: Its name, the prefix of its weights' names.
        spec: Its specification.
        weights: Has `<modality>.weight`, float32 (P, D), and `<modality>.bias`, float32 (D).

    Raises:
        ManifestUnsatisfiable: When a weight is missing, or has the wrong shape or dtype.
    """
    weight_PD, bias_D = (_named(weights, f"{modality}.{part}") for part in ("weight", "bias"))
    if isinstance(spec, ImageSpec):
        return ImagePatchTokenizer(spec, weight_PD, bias_D, modality=modality)
    return LogMelPatchTokenizer(spec, weight_PD, bias_D, modality=modality)


def load_tokenizers(modalities: Mapping[str, ModalitySpec], safetensors_bytes: bytes) -> dict[str, Tokenizer]:
    """Build the tokenizers of a run from its client-side weights.

    Args:
        modalities: The run manifest's `modalities`.
        safetensors_bytes: A safetensors file with `<modality>.weight` (P, D) and `<modality>.bias` (D) for each.

    Returns:
        A tokenizer for each modality, by its name, in the order of `modalities`.

    Raises:
        ManifestUnsatisfiable: When the file cannot be read, lacks a weight or has one of the wrong shape, or the
            modalities' tokens differ in width.
    """
    try:
        weights = safetensors.numpy.load(safetensors_bytes)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy does not have
        raise _bad_weights(f"the client-side weights are no readable safetensors file ({error})") from error
    tokenizers = {name: tokenizer_from_spec(name, spec, weights) for name, spec in modalities.items()}
    if len({tokenizer.width for tokenizer in tokenizers.values()}) > 1:
        widths = ", ".join(f"{name} {tokenizer.width}" for name, tokenizer in tokenizers.items())
        raise _bad_weights(f"the tokens of its modalities differ in width ({widths})")
    return tokenizers


def _patches(values_BCHW: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Cut planes into square patches, row-major, each flattened in the order (channel, row, column)."""
    batch, channels, height, width = values_BCHW.shape
    rows, columns = height // side, width // side
    blocks = values_BCHW.reshape(batch, channels, rows, side, columns, side).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(blocks).reshape(batch, rows * columns, channels * side * side)


def _within(values: NDArray[np.float32], low: float, high: float) -> bool:
    # NaN fails every comparison, so these two also find what is not finite.
    return values.size == 0 or bool(values.min() >= low and values.max() <= high)


def _unfit(modality: str, raw: NDArray[Any], expected: str, fix: str) -> SettingsError:
    span = f", values {raw.min():g} to {raw.max():g}" if raw.size and raw.dtype.kind in "biuf" else ""
    return SettingsError(f"{modality}: got {raw.shape} {raw.dtype}{span}; expected {expected}", fix)


def _bad_weights(what: str) -> ManifestUnsatisfiable:
    return ManifestUnsatisfiable(what, "start the run again with the weights of its own model")


def _named(weights: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in weights:
        have = ", ".join(sorted(weights)) or "nothing"
        raise _bad_weights(f"the client-side weights lack {name!r} (they have {have})")
    return weights[name]


def _check_weights(
    modality: str, spec: ModalitySpec, weight_PD: NDArray[np.float32], bias_D: NDArray[np.float32]
) -> None:
    width = bias_D.size
    for name, tensor, shape in (("bias", bias_D, (width,)), ("weight", weight_PD, (spec.patch_values, width))):
        if tensor.shape != shape or tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
            raise _bad_weights(f"{modality}.{name} is {tensor.shape} {tensor.dtype}; expected {shape} of finite floats")
