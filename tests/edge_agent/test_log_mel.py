"""Log-mel spectrograms: equal to PyTorch's STFT, and to the formula of the mel scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutlayer.broker.manifest import AudioSpec
from cutlayer.edge_agent.log_mel import LOG_FLOOR, LogMel, mel_filter_bank

SPEC = AudioSpec(
    sample_rate_hz=8_000, num_frames=12, hop_samples=100, fft_samples=256, num_mels=20, patch=4, mean=-3.0, std=2.0
)


def tone(frequency_hz: float, spec: AudioSpec = SPEC) -> NDArray[np.float32]:
    time_s = np.arange(spec.num_samples) / spec.sample_rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32)[None]


def test_spectrogram_equals_torch_stft() -> None:
    # More waveforms than are transformed at once, so that the seam between two turns is in it.
    waveform_BT = np.random.default_rng(0).normal(scale=0.1, size=(70, SPEC.num_samples)).astype(np.float32)
    stft = torch.stft(
        torch.from_numpy(waveform_BT),
        n_fft=SPEC.fft_samples,
        hop_length=SPEC.hop_samples,
        window=torch.hann_window(SPEC.fft_samples),
        center=False,
        return_complex=True,
    )
    power_BKF = stft.abs().square()
    filters_KM = torch.from_numpy(mel_filter_bank(SPEC.num_mels, SPEC.fft_samples, SPEC.sample_rate_hz))
    energy_BMF = torch.einsum("bkf,km->bmf", power_BKF, filters_KM)
    expected_BMF = (energy_BMF.clamp(min=LOG_FLOOR).log() - SPEC.mean) / SPEC.std
    spectrogram_BMF = LogMel(SPEC)(waveform_BT)
    assert spectrogram_BMF.dtype == np.float32
    np.testing.assert_allclose(spectrogram_BMF, expected_BMF.numpy(), atol=2e-4)


def test_digital_silence_is_the_floor_and_not_minus_infinity() -> None:
    spectrogram_BMF = LogMel(SPEC)(np.zeros((1, SPEC.num_samples), dtype=np.float32))
    np.testing.assert_allclose(spectrogram_BMF, (np.log(LOG_FLOOR) - SPEC.mean) / SPEC.std, rtol=1e-6)


def test_filters_peak_at_the_htk_mel_frequencies() -> None:
    # Fine bins, so that a bin lies near each peak: 2595 * log10(1 + f / 700) is the HTK book's scale.
    filters_KM = mel_filter_bank(20, 16_384, 8_000)
    peaks_hz = filters_KM.argmax(axis=0) * 8_000 / 16_384
    mels = 2595 * np.log10(1 + peaks_hz / 700)
    np.testing.assert_allclose(np.diff(mels), np.diff(mels).mean(), rtol=0.02)
    assert filters_KM.min() >= 0.0
    assert filters_KM.max() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("frequency_hz", [300.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_its_own_band(frequency_hz: float) -> None:
    edges_mel = np.linspace(0, 2595 * np.log10(1 + 4000 / 700), SPEC.num_mels + 2)
    nearest = int(np.abs(edges_mel[1:-1] - 2595 * np.log10(1 + frequency_hz / 700)).argmin())
    loudest_F = LogMel(SPEC)(tone(frequency_hz))[0].argmax(axis=0)
    assert set(loudest_F.tolist()) == {nearest}


def test_frames_begin_one_hop_apart() -> None:
    waveform_BT = np.zeros((1, SPEC.num_samples), dtype=np.float32)
    waveform_BT[0, 5 * SPEC.hop_samples + SPEC.fft_samples // 2] = 1.0  # a click in the middle of frame 5
    assert LogMel(SPEC)(waveform_BT)[0].mean(axis=0).argmax() == 5
