"""Log-mel spectrograms in NumPy, as the Audio Spectrogram Transformer takes them (arXiv 2104.01778).

Axes: B samples, T waveform samples, F frames, K FFT bins, M mel bands.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import AudioSpec

__all__ = ["LOG_FLOOR", "LogMel", "mel_filter_bank"]

LOG_FLOOR = float(np.finfo(np.float32).eps)
"""Least mel energy before the logarithm, as in Kaldi: digital silence becomes -15.9 and not minus infinity."""

_WAVEFORMS_AT_ONCE = 4
"""Windows and spectra of 32 waveforms at once raise an agent's peak memory by 11 MB, and are no faster."""


def mel_filter_bank(num_mels: int, fft_samples: int, sample_rate_hz: int) -> NDArray[np.float32]:
    """Build triangular filters, evenly spaced on the HTK mel scale from 0 Hz to half the sample rate.

    The scale is `2595 * log10(1 + f / 700)` (HTK book, section 5.4). Each triangle peaks at 1 (no area
    normalization). A band narrower than the bins' spacing may cover none of them; it is then constant.

    Args:
        num_mels: Bands M.
        fft_samples: Length of the FFT; K = fft_samples // 2 + 1.
        sample_rate_hz: Hertz.

    Returns:
        float32 (K, M), each value 0 to 1.
    """
    bins_K = np.arange(fft_samples // 2 + 1) * (sample_rate_hz / fft_samples)
    edges = _hz_from_mel(np.linspace(0.0, _mel_from_hz(sample_rate_hz / 2), num_mels + 2))
    low_M, peak_M, high_M = edges[:-2], edges[1:-1], edges[2:]
    rising_KM = (bins_K[:, None] - low_M) / (peak_M - low_M)
    falling_KM = (high_M - bins_K[:, None]) / (high_M - peak_M)
    return np.maximum(0.0, np.minimum(rising_KM, falling_KM)).astype(np.float32)


class LogMel:
    """Turns waveforms into normalized log-mel spectrograms; holds the window and the filters.

    Args:
        spec: The audio modality's specification.
    """

    def __init__(self, spec: AudioSpec) -> None:
        self._spec = spec
        self._filters_KM = mel_filter_bank(spec.num_mels, spec.fft_samples, spec.sample_rate_hz)
        # Periodic, as spectral analysis wants it (torch.hann_window's default), not symmetric as np.hanning.
        phase = 2 * np.pi * np.arange(spec.fft_samples) / spec.fft_samples
        self._window = (0.5 - 0.5 * np.cos(phase)).astype(np.float32)

    def __call__(self, waveform_BT: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute `(log(max(power @ filters, LOG_FLOOR)) - mean) / std`.

        Args:
            waveform_BT: float32 (B, spec.num_samples), -1 to 1. Frame f covers the samples from f * hop on.

        Returns:
            float32 (B, M, F).
        """
        spec = self._spec
        spectrogram_BMF = np.empty((waveform_BT.shape[0], spec.num_mels, spec.num_frames), dtype=np.float32)
        for start in range(0, waveform_BT.shape[0], _WAVEFORMS_AT_ONCE):
            some = slice(start, start + _WAVEFORMS_AT_ONCE)
            windows = np.lib.stride_tricks.sliding_window_view(waveform_BT[some], spec.fft_samples, axis=1)
            spectrum_BFK = np.fft.rfft(windows[:, :: spec.hop_samples] * self._window)
            power_BFK = (spectrum_BFK.real**2 + spectrum_BFK.imag**2).astype(np.float32)
            energy_BFM = np.maximum(power_BFK @ self._filters_KM, np.float32(LOG_FLOOR))
            spectrogram_BMF[some] = np.log(energy_BFM).transpose(0, 2, 1)
        spectrogram_BMF -= np.float32(spec.mean)
        spectrogram_BMF /= np.float32(spec.std)
        return spectrogram_BMF


def _mel_from_hz(frequency_hz: float) -> float:
    return float(2595.0 * np.log10(1.0 + frequency_hz / 700.0))


def _hz_from_mel(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0), dtype=np.float64)
