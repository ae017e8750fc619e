"""Spoken digits, synthesized on the spot by eSpeak NG (PyPI `espeakng-loader`, GPL-3, loaded and not bundled).

A word sounds a little different after another one (see `cutlayer.edge_agent.espeak`). Clips are therefore
synthesized once a process, before anything else is said, all of them, in one fixed order: so every agent has the
same ones to the bit.

Axes: T waveform samples.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cutlayer.edge_agent.batches import SPLITS, Split
from cutlayer.edge_agent.espeak import Espeak

__all__ = ["SAMPLE_RATE_HZ", "VOICES", "WORDS", "Voices", "noisy_speech", "spoken_digits"]

SAMPLE_RATE_HZ = 11_025
"""Half of eSpeak NG's 22,050 Hz: digits keep their formants, and spectrograms cost half."""

_SILENCE = 0.02
"""Part of a clip's peak below which its ends are cut off."""

_LOCK = threading.Lock()

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True, slots=True)
class Voices:
    """Every combination of these is one voice.

    Attributes:
        accents: eSpeak NG's languages.
        speakers: Its voice variants: m1 to m8 are male, f1 to f5 female.
        rates: Words a minute.
    """

    accents: tuple[str, ...]
    speakers: tuple[str, ...]
    rates: tuple[int, ...]

    def clips(self) -> Iterator[tuple[str, int, str]]:
        """Yield (voice name, rate, word) of every clip, words innermost."""
        for accent, speaker, rate, word in product(self.accents, self.speakers, self.rates, WORDS):
            yield f"{accent}+{speaker}", rate, word


VOICES: Mapping[Split, Voices] = {
    "train": Voices(
        accents=("en-us", "en-gb-scotland", "en-029", "en-gb-x-gbclan"),
        speakers=("m1", "m3", "m5", "m7", "f1", "f3"),
        rates=(160, 190),
    ),
    "test": Voices(accents=("en", "en-gb-x-rp", "en-us-nyc"), speakers=("m2", "m4", "f2", "f4"), rates=(175,)),
}
"""Test voices share neither accent nor speaker nor rate with train voices."""


def spoken_digits() -> Mapping[Split, tuple[tuple[NDArray[np.int16], ...], ...]]:
    """Return every clip; the first call of a process synthesizes them, in about 0.4 s, and keeps them (5 MB).

    Returns:
        For each split and digit, the clips in the order of `Voices.clips`: mono int16 (T) at `SAMPLE_RATE_HZ`,
        without the silence around them.

    Raises:
        SettingsError: When the synthesizer is not installed or fails.
    """
    with _LOCK:  # a cache alone would let two threads synthesize in turns, and so in another order
        return _synthesize_all()


@functools.cache
def _synthesize_all() -> Mapping[Split, tuple[tuple[NDArray[np.int16], ...], ...]]:
    espeak = Espeak.shared()
    clips = {split: [_clip(espeak.say(*clip)) for clip in VOICES[split].clips()] for split in SPLITS}
    num_words = len(WORDS)
    return {split: tuple(tuple(clips[split][word::num_words]) for word in range(num_words)) for split in SPLITS}


def noisy_speech(
    clip_T: NDArray[np.int16], num_samples: int, snr_db: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Place a clip at a random time in white noise, at a random loudness.

    Args:
        clip_T: Clean speech, int16; cut if it is longer than `num_samples`.
        num_samples: Samples to fill.
        snr_db: Mean power of the clip over that of the noise, decibels.
        rng: Draws time, loudness (6 dB range) and noise.

    Returns:
        float32 (num_samples), root mean square 0.07 to 0.14, so that 1 is never reached.
    """
    speech_T = clip_T[:num_samples].astype(np.float32)
    speech_T /= np.sqrt(np.mean(np.square(speech_T)))
    noise_rms = 10.0 ** (-snr_db / 20.0)
    start = int(rng.integers(num_samples - speech_T.size + 1))
    waveform_T = rng.standard_normal(num_samples, dtype=np.float32)
    waveform_T *= np.float32(noise_rms)
    waveform_T[start : start + speech_T.size] += speech_T
    loudness = 0.1 * 10.0 ** (rng.uniform(-3.0, 3.0) / 20.0) / np.hypot(1.0, noise_rms)
    waveform_T *= np.float32(loudness)
    return waveform_T


def _clip(native_T: NDArray[np.int16]) -> NDArray[np.int16]:
    """Cut silence off, and halve the sample rate."""
    level_T = np.abs(native_T.astype(np.float32))
    loud = np.flatnonzero(level_T > _SILENCE * level_T.max())
    speech_T = native_T[loud[0] : loud[-1] + 1].astype(np.float32)
    # A power of two: FFTs of arbitrary lengths took longer than the synthesis.
    padded = 1 << int(speech_T.size - 1).bit_length()
    # Dropping the upper half of the spectrum is the ideal low-pass filter; trimmed edges are quiet and ring little.
    spectrum = np.fft.rfft(speech_T, n=padded)[: padded // 4 + 1]
    halved_T = np.fft.irfft(spectrum, n=padded // 2)[: speech_T.size // 2] / 2.0
    return np.clip(np.rint(halved_T), -32_768, 32_767).astype(np.int16)
