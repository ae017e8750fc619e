"""The linear map of patches: what images, spectrograms and time series end in.

Together with cutting the patches it equals a ViT's patch embedding, a convolution whose stride is its kernel
(arXiv 2010.11929).

Axes: B samples, N tokens, P values of a patch, S patches of all samples, D width.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.modality_spec import SpecOfModality
from cutlayer.edge_agent.tokenizer_checks import Parts, checked_parts, width_of

__all__ = ["PatchTokenizer", "cut_patches"]


class PatchTokenizer(abc.ABC):
    """A tokenizer with the parts `weight`, (P, D), and `bias`, (D).

    Args:
        modality: Name used in errors.
        spec: Specification of the modality: says N and P.
        parts: The parts, of floats.

    Raises:
        ManifestUnsatisfiable: When a part is missing or does not fit `spec`.
    """

    def __init__(self, modality: str, spec: SpecOfModality, num_tokens: int, parts: Parts) -> None:
        self.modality = modality
        self.num_tokens = num_tokens
        self.width = int(parts["bias"].size) if "bias" in parts else width_of(spec, parts)
        self.take_weights(checked_parts(modality, spec, parts, self.width))

    @abc.abstractmethod
    def features(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return patches_BNP, float32 (B, N, P)."""

    def take_weights(self, parts: Parts) -> None:
        """Use these parts, which fit, from now on."""
        self._weight_PD, self._bias_D = parts["weight"], parts["bias"]

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return `patches @ weight + bias`: tokens_BND, float32 (B, N, D)."""
        tokens_BND: NDArray[np.float32] = np.matmul(features, self._weight_PD)
        tokens_BND += self._bias_D
        return tokens_BND

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return None: all tokens are there."""
        del features
        return None

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return patches^T G and the sum of G: of the tokens that have a gradient, since the others did not go up."""
        flat_SP = features.reshape(-1, features.shape[-1])
        flat_SD = gradient_BND.reshape(-1, gradient_BND.shape[-1])
        has_one_S = flat_SD.any(axis=1)
        if not has_one_S.all():
            flat_SP, flat_SD = flat_SP[has_one_S], flat_SD[has_one_S]
        return {"weight": flat_SP.T @ flat_SD, "bias": flat_SD.sum(axis=0)}

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`: tokens_BND, float32 (B, N, D).

        Raises:
            SettingsError: As `features`.
        """
        return self.project(self.features(raw))


def cut_patches(values_BCHW: NDArray[np.float32], sides: tuple[int, int]) -> NDArray[np.float32]:
    """Cut planes into patches, row by row, each flattened in the order (channel, row, column)."""
    batch, channels, height, width = values_BCHW.shape
    down, across = sides
    rows, columns = height // down, width // across
    blocks = values_BCHW.reshape(batch, channels, rows, down, columns, across).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(blocks).reshape(batch, rows * columns, channels * down * across)
