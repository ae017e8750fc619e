"""Sounds to tokens.

Axes: B samples, T waveform samples, N tokens, P values of a patch, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.modalities import AudioSpec
from cutlayer.edge_agent.log_mel import LogMel
from cutlayer.edge_agent.patch_projection import PatchTokenizer, cut_patches
from cutlayer.edge_agent.tokenizer_checks import Parts, is_within, unfit

__all__ = ["MAX_AMPLITUDE", "LogMelPatchTokenizer"]

MAX_AMPLITUDE = 4.0
"""Resampling overshoots 1 a little; 16-bit samples that nobody scaled overshoot it by thousands."""


class LogMelPatchTokenizer(PatchTokenizer):
    """Patches of a log-mel spectrogram, from the lowest bands on and within them from the first frame.

    The values of a patch are ordered (band, frame), as an image's rows and columns (AST, arXiv 2104.01778, with
    patches that do not overlap).

    Args:
        spec: The audio modality's specification.
        parts: `weight` and `bias`.
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights do not fit `spec`.
    """

    def __init__(self, spec: AudioSpec, parts: Parts, *, modality: str = "audio") -> None:
        super().__init__(modality, spec, spec.num_tokens, parts)
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
            raise unfit(self.modality, raw, expected, "mix to one channel; divide 16-bit values by 32768")
        waveform_BT = raw[:, : spec.num_samples].astype(np.float32)
        if not is_within(waveform_BT, -MAX_AMPLITUDE, MAX_AMPLITUDE):
            raise unfit(self.modality, raw, expected, "divide 16-bit values by 32768 and remove NaN")
        if (missing := spec.num_samples - waveform_BT.shape[1]) > 0:
            waveform_BT = np.pad(waveform_BT, ((0, 0), (0, missing)))
        return cut_patches(self._log_mel(waveform_BT)[:, None], spec.patch_sides)
