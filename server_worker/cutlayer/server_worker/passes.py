"""What goes into a forward and a backward pass of an engine, and what comes out of it.

Axes: b samples of a microbatch, N tokens, K of them that came, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backwarded", "ForwardItem", "Forwarded"]


@dataclass(frozen=True, slots=True)
class ForwardItem:
    """A microbatch on its way through the encoder.

    Attributes:
        key: Names the microbatch in outputs and gradients, and seeds its modality dropout: a value whose `repr`
            is the same in every process, such as a tuple of strings and numbers.
        mode: `train` keeps the graph and drops modalities; `eval` does neither.
        tokens: Activations, float32 (b, K, D), by modality. A modality that the microbatch lacks is left out.
        positions: Which of the N tokens these K are, (b, K), of the modalities that are reduced or ragged; N for none.
    """

    key: Hashable
    mode: Literal["train", "eval"]
    tokens: Mapping[str, NDArray[np.float32]]
    positions: Mapping[str, NDArray[np.intp]] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Samples b."""
        return len(next(iter(self.tokens.values())))

    @property
    def batch_key(self) -> Hashable:
        """Items with equal batch keys can go forward together."""
        return self.mode, tuple((name, tokens.shape[1]) for name, tokens in sorted(self.tokens.items()))


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a forward pass gave.

    Attributes:
        group_id: Names the graph, for `Engine.backward`; None when there is none (`eval`, or nothing finite).
        version: Parameter version that it was computed with.
        outputs: Logits, float32 (b, C), by key; each array its own copy.
        refused: Keys whose outputs are not finite, because their activations are not. They are in no graph.
    """

    group_id: int | None
    version: int
    outputs: dict[Hashable, NDArray[np.float32]]
    refused: tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Backwarded:
    """What a backward pass gave.

    Attributes:
        accepted: Keys whose gradient is in the window's sums now.
        refused: Keys whose gradient is not finite, and is not in the sums. All keys, when each is finite and the
            gradient of the group is not: send them again, one by one, to find the culprit.
        cut_gradients: Of the accepted keys, the gradients at the cut, float32 (b, K, D) by modality; where tokenizers
            are trained.
        positions: Of their microbatches that are reduced or ragged, which tokens these are of, (b, K) by modality.
    """

    accepted: tuple[Hashable, ...]
    refused: tuple[Hashable, ...]
    cut_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] = field(default_factory=dict)
    positions: Mapping[Hashable, Mapping[str, NDArray[np.intp]]] = field(default_factory=dict)
