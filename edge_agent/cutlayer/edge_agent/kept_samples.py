"""Which of this agent's samples each store of activations has, as far as the agent knows.

The agent believes what this process has seen: a sample is in a store once a worker of that store has answered the
microbatch that brought it. So a new process sends each sample again, and what its data were before does not matter.
A store may lose any of them at any time; the worker then asks for it (`messages.ResendReason.MISSING`).

Axes: B samples of a microbatch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_STORES", "KeptSamples"]

MAX_STORES = 16
"""Stores remembered at once; their names come from workers."""


class KeptSamples:
    """The books of one agent.

    Args:
        num_samples: How many numbers there are, from 0.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._stores: dict[str, NDArray[np.bool_]] = {}

    def known(self, store: str, numbers_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which samples a store has, bool (B)."""
        kept = self._stores.get(store)
        return np.zeros(len(numbers_B), bool) if kept is None else kept[numbers_B]

    def add(self, store: str, numbers_B: NDArray[np.int64]) -> None:
        """Take notice that a store has samples."""
        if store not in self._stores and len(self._stores) >= MAX_STORES:
            del self._stores[next(iter(self._stores))]
        self._stores.setdefault(store, np.zeros(self._num_samples, bool))[numbers_B] = True

    def remove_everywhere(self, numbers_B: NDArray[np.int64]) -> None:
        """Take notice that no store has samples."""
        for kept in self._stores.values():
            kept[numbers_B] = False

    def remove(self, store: str, numbers_B: NDArray[np.int64]) -> None:
        """Take notice that a store lacks samples."""
        if store in self._stores:
            self._stores[store][numbers_B] = False
