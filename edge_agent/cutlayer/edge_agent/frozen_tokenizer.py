"""A site's own tokenizer without torch: any callable of NumPy arrays, which nobody trains.

Axes: B samples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.modalities import TokensSpec
from cutlayer.edge_agent.tokenizer_checks import Parts

__all__ = ["FrozenTokenizer"]


class FrozenTokenizer:
    """A tokenizer of one modality.

    Args:
        modality: Its name.
        spec: Its specification.
        make: Raw samples (B, ...), as the data set gives them, to tokens (B, N, D).
        width: D.
    """

    def __init__(
        self, modality: str, spec: TokensSpec, make: Callable[[NDArray[Any]], NDArray[Any]], width: int
    ) -> None:
        self._modality, self._spec, self._make, self._width = modality, spec, make, width

    @property
    def num_tokens(self) -> int:
        """Tokens N of a sample."""
        return self._spec.num_tokens

    @property
    def width(self) -> int:
        """Width D of a token."""
        return self._width

    def features(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Return raw samples as they are: tokens are larger, as a rule, and go up once."""
        return raw

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return tokens_BND, float32 (B, N, D).

        Raises:
            SettingsError: When the callable fails, or gives something else.
        """
        wanted = (len(features), self._spec.num_tokens, self._width)
        try:
            tokens_BND = np.asarray(self._make(features), np.float32)
        except Exception as error:  # a user's code raises whatever it raises
            raise SettingsError(
                f"--tokenizer {self._modality} fails on raw samples {features.dtype} {features.shape}: "
                f"{type(error).__name__}: {error}",
                "mend it",
            ) from error
        if tokens_BND.shape != wanted or not np.isfinite(tokens_BND).all():
            raise SettingsError(
                f"--tokenizer {self._modality} gives {tokens_BND.shape} for raw samples {features.shape}, and the run "
                f"wants {wanted}, all finite",
                f"give (B, {wanted[1]}, {wanted[2]}), or change num_tokens in the run settings",
            )
        return tokens_BND

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return None: all tokens are always there."""
        del features
        return None

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return none: it has no parameters that anybody knows of."""
        del features, gradient_BND
        return {}

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`."""
        return self.project(self.features(raw))

    def take_weights(self, parts: Parts) -> None:
        """Leave it as it is: no weights ever come."""
        del parts

    def learn(self, gradients: Mapping[str, NDArray[np.float32]], num_samples: int) -> None:
        """Learn nothing."""
        del gradients, num_samples

    def save(self) -> None:
        """Save nothing."""
