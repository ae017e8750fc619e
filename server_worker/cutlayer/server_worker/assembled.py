"""A microbatch made whole, or what it lacks.

Axes: B samples of a microbatch, F fresh ones (which came as tensors), K tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Activations
from cutlayer.broker.sample_refs import unpack_positions

__all__ = ["Assembled", "Lacking", "all_places", "positions_of"]


@dataclass(frozen=True, slots=True)
class Assembled:
    """A microbatch as the encoder takes it.

    Attributes:
        tokens: float32 (B, K, D), by modality.
        positions: (B, K) of the modalities whose tokens are reduced or ragged; N for none.
        num_stored: Samples that the store had.
        unkept: Mask of the samples with a number that the store has no room for.
    """

    tokens: Mapping[str, NDArray[np.float32]]
    positions: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)
    num_stored: int = 0
    unkept: bytes = b""


@dataclass(frozen=True, slots=True)
class Lacking:
    """A microbatch of which the store lacks samples: `missing` is their mask."""

    missing: bytes


def positions_of(manifest: Manifest, message: Activations, num_fresh: int) -> dict[str, NDArray[np.intp]]:
    """Return which tokens came, (F, K), N for none, of the modalities that are reduced or ragged."""
    return {
        name: unpack_positions(masks, num_fresh, manifest.modalities[name].num_tokens, manifest.num_tokens(name))
        for name, masks in message.positions
    }


def all_places(num_samples: int, num_tokens: int) -> NDArray[np.intp]:
    """Return the positions of samples that have all tokens: (num_samples, N)."""
    return np.broadcast_to(np.arange(num_tokens, dtype=np.intp), (num_samples, num_tokens))
