"""Sounds in files (WAV, FLAC, OGG, MP3), decoded by libsndfile and resampled by soxr when they are asked for.

Axes: T samples, C channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import AudioSpec
from cutlayer.edge_agent.data_npy import map_array
from cutlayer.edge_agent.data_table import needs_package
from cutlayer.edge_agent.data_unreadable import Unreadable

__all__ = ["SOUND_SUFFIXES", "SoundReader"]

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".npy")
"""Files that count as sounds in a folder of classes."""

_MARGIN_S = 0.1
"""Read beyond what is needed: the resampling filter looks ahead."""


class SoundReader:
    """Reads the sounds of one modality: the mean of all channels, at the run's sample rate, from the file's beginning.

    No more of a file is decoded than the run looks at. What is missing at the end is filled with silence. An array
    (`.npy`) holds a waveform at the run's rate, float from -1 to 1, or 16-bit integers.

    Args:
        spec: The modality.

    Raises:
        SettingsError: When a package is not installed.
    """

    def __init__(self, spec: AudioSpec) -> None:
        for package in ("soundfile", "soxr"):
            needs_package(package, "reading sounds")
        self.spec = spec
        self.shape = (spec.num_samples,)

    def check(self, path: Path) -> None:
        """Read a file's header.

        Raises:
            Unreadable: When that fails, or the file has no sample.
        """
        import soundfile

        if path.suffix.lower() == ".npy":
            map_array(path, (None,))
            return
        try:
            info = soundfile.info(str(path))
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise _of(path, error) from error
        if info.frames < 1:
            raise Unreadable("no samples")

    def read(self, path: Path) -> NDArray[Any]:
        """Decode a file.

        Returns:
            waveform_T, float32, `spec.num_samples` long.

        Raises:
            Unreadable: When it cannot be decoded, or has values that are not finite.
        """
        waveform_T = self._from_array(path) if path.suffix.lower() == ".npy" else self._from_sound(path)
        if waveform_T.size == 0:
            raise Unreadable("no samples")
        if not np.isfinite(waveform_T).all():
            raise Unreadable("values that are not finite")
        found_T = np.zeros(self.shape, np.float32)
        found_T[: waveform_T.size] = waveform_T[: self.spec.num_samples]
        return found_T

    def _from_array(self, path: Path) -> NDArray[np.float32]:
        values_T = map_array(path, (None,))[: self.spec.num_samples]
        if values_T.dtype == np.int16:
            return np.asarray(values_T, dtype=np.float32) / np.float32(32_768)
        if values_T.dtype.kind != "f":
            raise Unreadable(f"an array of {values_T.dtype}; expected float from -1 to 1, or int16")
        return np.asarray(values_T, dtype=np.float32)

    def _from_sound(self, path: Path) -> NDArray[np.float32]:
        import soundfile
        import soxr

        rate_hz = self.spec.sample_rate_hz
        try:
            with soundfile.SoundFile(str(path)) as file:
                seconds = self.spec.num_samples / rate_hz + _MARGIN_S
                values_TC = file.read(math.ceil(seconds * file.samplerate), dtype="float32", always_2d=True)
                if file.samplerate == rate_hz:
                    return np.asarray(values_TC.mean(axis=1), dtype=np.float32)
                resampled_T = soxr.resample(values_TC.mean(axis=1), file.samplerate, rate_hz)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise _of(path, error) from error
        return np.asarray(resampled_T, dtype=np.float32)


def _of(path: Path, error: Exception) -> Unreadable:
    if not path.exists():  # libsndfile says "System error."
        return Unreadable("No such file or directory")
    # Its own text after the file's name, which the caller gives.
    return Unreadable(str(error).rpartition("': ")[2] or type(error).__name__)
