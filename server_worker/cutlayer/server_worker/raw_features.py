"""Raw samples to what tokenizers take, in PyTorch: the twins of the agents' `features`, for a model taken home.

Nothing here has parameters that train. Specifications are those of the run manifest, or anything with the same
attributes, so that this file goes with an exported model as it is.

Axes: B batch, H rows, W columns, C channels, T samples of a waveform or steps of a series, F frames, K FFT bins, M mel
bands, N tokens, P values of a patch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["raw_features"]

_LOG_FLOOR = torch.finfo(torch.float32).eps


class ImagePatches(nn.Module):
    """Images (B, H, W, C), uint8 or float from 0 to 1, to patches (B, N, P)."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self._sides = tuple(spec.patch_sides)
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return patches (B, N, P)."""
        pixels = images if images.is_floating_point() else images.float() / 255
        return _patches(((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2), self._sides)


class LogMelPatches(nn.Module):
    """Waveforms (B, T), float from -1 to 1, cut or padded with zeros, to patches of their log-mel spectrogram."""

    frames: Tensor
    dft: Tensor
    filters: Tensor

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self._spec = spec
        size = spec.fft_samples
        start_F1 = torch.arange(spec.num_frames)[:, None] * spec.hop_samples
        phase = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
        window = 0.5 - 0.5 * torch.cos(phase)
        angle_TK = phase[:, None] * torch.arange(size // 2 + 1, dtype=torch.float64)
        # A matrix in double precision, as NumPy's FFT is: quiet bands would drown in the rounding of loud ones.
        dft_T2K = torch.cat([torch.cos(angle_TK), torch.sin(angle_TK)], dim=1) * window.float().double()[:, None]
        self.register_buffer("frames", start_F1 + torch.arange(size), persistent=False)
        self.register_buffer("dft", dft_T2K, persistent=False)
        self.register_buffer("filters", _mel_filters(spec), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return patches (B, N, P)."""
        spec = self._spec
        cut_BT = waveforms[:, : spec.num_samples].float()
        padded_BT = nn.functional.pad(cut_BT, (0, spec.num_samples - cut_BT.shape[1]))
        real_BFK, imaginary_BFK = (padded_BT[:, self.frames].double() @ self.dft).chunk(2, dim=2)
        power_BFK = (real_BFK.square() + imaginary_BFK.square()).float()
        log_BFM = (power_BFK @ self.filters).clamp(min=_LOG_FLOOR).log()
        normal_BMF = ((log_BFM - spec.mean) / spec.std).transpose(1, 2)
        return _patches(normal_BMF[:, None], tuple(spec.patch_sides))


class WordNumbers(nn.Module):
    """Numbers of a vocabulary's tokens (B, N), any whole-number type, -1 behind a text's end: as they are."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return ids (B, N)."""
        return ids.long()


class SeriesPatches(nn.Module):
    """Series (B, T, C), float, NaN for what is missing, cut or padded with NaN, to patches (B, N, P)."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self._spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std, dtype=torch.float32), persistent=False)

    def forward(self, series: Tensor) -> Tensor:
        """Return patches (B, N, P): zeros for missing values, NaN for patches without any value."""
        spec = self._spec
        cut_BTC = series[:, : spec.num_steps].float()
        padded_BTC = nn.functional.pad(cut_BTC, (0, 0, 0, spec.num_steps - cut_BTC.shape[1]), value=float("nan"))
        normal_BTC = (padded_BTC - self.mean) / self.std
        patches_BNP = normal_BTC.reshape(-1, spec.num_tokens, spec.patch_values)
        missing_BNP = patches_BNP.isnan()
        return torch.where(missing_BNP & ~missing_BNP.all(dim=2, keepdim=True), 0.0, patches_BNP)


class Cells(nn.Module):
    """Rows of a table (B, F), the numbers first, then the places of the categories; NaN for empty cells."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Any) -> None:
        super().__init__()
        numbers, categories = len(spec.columns), len(spec.categories)
        for name, value, rest in (("mean", spec.mean, 0.0), ("std", spec.std, 1.0)):
            of_numbers = torch.tensor(value, dtype=torch.float64).expand(numbers)
            of_categories = torch.full((categories,), rest, dtype=torch.float64)
            self.register_buffer(name, torch.cat([of_numbers, of_categories]), persistent=False)

    def forward(self, cells: Tensor) -> Tensor:
        """Return standardized cells (B, F)."""
        return ((cells.double() - self.mean) / self.std).float()


def raw_features(spec: Any) -> nn.Module:
    """Return what turns a modality's raw samples into features."""
    if spec.kind == "image":
        return ImagePatches(spec)
    if spec.kind == "audio":
        return LogMelPatches(spec)
    if spec.kind == "text":
        return WordNumbers()
    if spec.kind == "tokens":
        return nn.Identity()
    return SeriesPatches(spec) if spec.kind == "series" else Cells(spec)


def _patches(planes_BCHW: Tensor, sides: tuple[int, int]) -> Tensor:
    """Cut planes into patches, row by row, each flattened in the order (channel, row, column)."""
    down, across = sides
    _, channels, height, width = planes_BCHW.shape
    rows, columns = height // down, width // across
    blocks = planes_BCHW.reshape(-1, channels, rows, down, columns, across).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(-1, rows * columns, channels * down * across)


def _mel_filters(spec: Any) -> Tensor:
    """Return triangular filters, float32 (K, M), evenly spaced on the HTK mel scale (HTK book, section 5.4)."""
    bins_K = torch.arange(spec.fft_samples // 2 + 1, dtype=torch.float64) * (spec.sample_rate_hz / spec.fft_samples)
    top = 2595.0 * math.log10(1.0 + spec.sample_rate_hz / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, spec.num_mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    low_M, peak_M, high_M = edges[:-2], edges[1:-1], edges[2:]
    rising_KM = (bins_K[:, None] - low_M) / (peak_M - low_M)
    falling_KM = (high_M - bins_K[:, None]) / (high_M - peak_M)
    return torch.minimum(rising_KM, falling_KM).clamp(min=0.0).float()
