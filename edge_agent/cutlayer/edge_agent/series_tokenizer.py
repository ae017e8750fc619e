"""Time series to tokens.

Axes: B samples, T steps, C channels, N tokens, P values of a patch, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.modalities import SeriesSpec
from cutlayer.edge_agent.patch_projection import PatchTokenizer
from cutlayer.edge_agent.tokenizer_checks import Parts, unfit

__all__ = ["SeriesPatchTokenizer"]


class SeriesPatchTokenizer(PatchTokenizer):
    """Patches of a series, from its beginning on.

    The values of a patch are ordered (step, channel). A missing value (NaN) counts as its channel's mean; a patch that
    holds nothing else has no token: behind the end of a short series, and in a gap.

    Args:
        spec: The series modality's specification.
        parts: `weight` and `bias`.
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights do not fit `spec`.
    """

    def __init__(self, spec: SeriesSpec, parts: Parts, *, modality: str = "series") -> None:
        super().__init__(modality, spec, spec.num_tokens, parts)
        self.spec = spec

    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Normalize series to `(value - mean) / std` and cut them into patches.

        Args:
            raw: series_BTC, numbers, at `spec.rate_hz`; NaN where a value is missing. A shorter one ends in NaN, or all
                of the batch are shorter. What is behind `spec.num_steps` is left out.

        Returns:
            patches_BNP, float32 (B, N, P): zeros for missing values, NaN for patches without any value.

        Raises:
            SettingsError: When `raw` has the wrong shape or dtype, or infinite values.
        """
        spec = self.spec
        expected = f"(B, T, {spec.channels}) numbers at {spec.rate_hz:g} Hz"
        if raw.ndim != 3 or raw.shape[2] != spec.channels or raw.dtype.kind not in "iuf":
            raise unfit(self.modality, raw, expected, "put the channels last, also if there is one")
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite
            values_BTC = raw[:, : spec.num_steps].astype(np.float32)
        if np.isinf(values_BTC).any():
            raise unfit(self.modality, raw, expected, "give NaN for missing values, and no infinite ones")
        if (missing := spec.num_steps - values_BTC.shape[1]) > 0:
            values_BTC = np.pad(values_BTC, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)
        values_BTC -= np.asarray(spec.mean, np.float32)
        values_BTC /= np.asarray(spec.std, np.float32)
        patches_BNP = values_BTC.reshape(len(raw), spec.num_tokens, spec.patch_values)
        is_missing_BNP = np.isnan(patches_BNP)
        patches_BNP[is_missing_BNP & ~is_missing_BNP.all(axis=2, keepdims=True)] = 0.0
        return patches_BNP

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return which patches have a value, bool (B, N)."""
        present_BN: NDArray[np.bool_] = ~np.isnan(features[:, :, 0])
        return present_BN

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return `patches @ weight + bias`: tokens_BND, float32 (B, N, D); zeros where there is none."""
        is_absent_BN = np.isnan(features[:, :, 0])
        tokens_BND = super().project(np.where(is_absent_BN[:, :, None], np.float32(0.0), features))
        tokens_BND[is_absent_BN] = 0.0
        return tokens_BND

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return patches^T G and the sum of G, over the patches that have a value."""
        is_there_BN = ~np.isnan(features[:, :, 0])
        return super().gradients(features[is_there_BN][None], gradient_BND[is_there_BN][None])
