"""The client side of the model: raw samples to tokens, in two steps.

`features` has no parameters, so its result can be kept; `project` is the map whose weights come with the run. Each kind
of modality has a file of its own (`image_tokenizer.py` and so on); all else knows this seam alone.

Axes: B samples, N tokens, D token width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from cutlayer.broker.modalities import AudioSpec, ImageSpec, ModalitySpec, SeriesSpec, TableSpec, TextSpec, TokensSpec
from cutlayer.edge_agent.audio_tokenizer import LogMelPatchTokenizer
from cutlayer.edge_agent.image_tokenizer import ImagePatchTokenizer
from cutlayer.edge_agent.series_tokenizer import SeriesPatchTokenizer
from cutlayer.edge_agent.table_tokenizer import TableTokenizer
from cutlayer.edge_agent.text_tokenizer import TextTokenizer
from cutlayer.edge_agent.tokenizer_checks import Parts, bad_weights

__all__ = ["Tokenizer", "load_tokenizers", "parts_of", "tokenizer_from_spec"]


class Tokenizer(Protocol):
    """Turns raw samples of one modality into tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens N of a sample, if it has them all."""

    @property
    def width(self) -> int:
        """Width D of a token."""

    def features(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Return (B, ...): all that needs no weights, so compute it once a sample. A row depends on its sample alone.

        Raises:
            SettingsError: When `raw` has the wrong shape or dtype, or values out of range or not finite.
        """

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return tokens_BND, float32 (B, N, D); zeros where there is no token."""

    def presence(self, features: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Return which tokens are there, bool (B, N); None where all always are."""

    def gradients(self, features: NDArray[Any], gradient_BND: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the gradients of the parameters, by part.

        Args:
            features: What was projected.
            gradient_BND: The gradient at the tokens, float32 (B, N, D), of a loss that is summed over samples; what it
                says of tokens that are not there counts for nothing.
        """

    def tokenize(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Return `project(features(raw))`."""

    def take_weights(self, parts: Parts) -> None:
        """Use other parameters of the same shapes from now on, all of them."""


def tokenizer_from_spec(modality: str, spec: ModalitySpec, weights: Mapping[str, NDArray[Any]]) -> Tokenizer:
    """Build the tokenizer of one modality.

    Args:
        modality: Its name, the prefix of its weights' names.
        spec: Its specification.
        weights: Has `<modality>.<part>` for each part that `spec` names.

    Raises:
        ManifestUnsatisfiable: When a weight is missing, or has the wrong shape or dtype.
    """
    parts = parts_of(modality, weights)
    if isinstance(spec, ImageSpec):
        return ImagePatchTokenizer(spec, parts, modality=modality)
    if isinstance(spec, AudioSpec):
        return LogMelPatchTokenizer(spec, parts, modality=modality)
    if isinstance(spec, TextSpec):
        return TextTokenizer(spec, parts, modality=modality)
    if isinstance(spec, SeriesSpec):
        return SeriesPatchTokenizer(spec, parts, modality=modality)
    assert isinstance(spec, TableSpec), "other tokenizers are the sites' own"
    return TableTokenizer(spec, parts, modality=modality)


def parts_of(modality: str, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the weights of one modality, by part."""
    prefix = f"{modality}."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def load_tokenizers(modalities: Mapping[str, ModalitySpec], safetensors_bytes: bytes) -> dict[str, Tokenizer]:
    """Build the tokenizers of a run from its client-side weights.

    Args:
        modalities: The run manifest's `modalities`.
        safetensors_bytes: A safetensors file with `<modality>.<part>` for each modality and part.

    Returns:
        A tokenizer for each modality, by its name, in the order of `modalities`; none for those of kind `tokens`.

    Raises:
        ManifestUnsatisfiable: When the file cannot be read, lacks a weight or has one of the wrong shape, or the
            modalities' tokens differ in width.
    """
    try:
        weights = safetensors.numpy.load(safetensors_bytes)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype that NumPy does not have
        raise bad_weights(f"the client-side weights are no readable safetensors file ({error})") from error
    tokenizers = {
        name: tokenizer_from_spec(name, spec, weights)
        for name, spec in modalities.items()
        if not isinstance(spec, TokensSpec)
    }
    if len({tokenizer.width for tokenizer in tokenizers.values()}) > 1:
        widths = ", ".join(f"{name} {tokenizer.width}" for name, tokenizer in tokenizers.items())
        raise bad_weights(f"the tokens of its modalities differ in width ({widths})")
    return tokenizers
