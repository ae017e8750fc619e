"""Images to tokens.

Axes: B samples, H rows, W columns, C channels, N tokens, P values of a patch, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.modalities import ImageSpec
from cutlayer.edge_agent.patch_projection import PatchTokenizer, cut_patches
from cutlayer.edge_agent.tokenizer_checks import Parts, is_within, unfit

__all__ = ["ImagePatchTokenizer"]


class ImagePatchTokenizer(PatchTokenizer):
    """Patches of an image, from the top row on and within a row from the left.

    The values of a patch are ordered (channel, row, column), so that `weight`, (P, D), is the transpose of
    `conv.weight.reshape(D, -1)` of a timm `PatchEmbed`.

    Args:
        spec: The image modality's specification.
        parts: `weight` and `bias`.
        modality: Name used in errors.

    Raises:
        ManifestUnsatisfiable: When the weights do not fit `spec`.
    """

    def __init__(self, spec: ImageSpec, parts: Parts, *, modality: str = "image") -> None:
        super().__init__(modality, spec, spec.num_tokens, parts)
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
            raise unfit(self.modality, raw, expected, "resize the images and put the channels last")
        pixels_BHWC = raw.astype(np.float32)
        if raw.dtype == np.uint8:
            pixels_BHWC *= np.float32(1 / 255)
        elif not is_within(pixels_BHWC, 0.0, 1.0):
            raise unfit(self.modality, raw, expected, "divide 8-bit values by 255 and remove NaN")
        pixels_BHWC -= np.asarray(spec.mean, np.float32)
        pixels_BHWC /= np.asarray(spec.std, np.float32)
        return cut_patches(pixels_BHWC.transpose(0, 3, 1, 2), spec.patch_sides)
