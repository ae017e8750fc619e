"""The engine's shipped twin: keeps the books of an engine and computes nothing.

It answers with zeros, and refuses what would be a fault of the session: a gradient for a graph that is gone or that
was given before, a commit of an empty window. Simulations of many agents check with it that each step is committed
once; benchmarks find with it what the transport alone can carry.

Its one weight is a sum over everything that has ever been committed: of a number for each microbatch, drawn from the
microbatch's name (`contribution_of`). Gradient sums, a pool's additions, checkpoints and replicas treat it as they
treat an encoder's weights, so that at any moment it tells whether what the ledger says is what the weights hold.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.server_worker.parameters import CommitResult, EngineState
from cutlayer.server_worker.passes import Backwarded, Forwarded, ForwardItem

__all__ = ["CountingEngine", "contribution_of"]

_WRAP = 1 << 62


def contribution_of(key: Hashable) -> int:
    """Return the number that a microbatch adds to the weight: the same in every process, and no other's."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _WRAP


class CountingEngine:
    """Counts microbatches.

    Args:
        num_classes: Width C of the outputs.

    Attributes:
        committed: How often each microbatch of this engine's own was committed.
        weight: Sum of the contributions of all microbatches ever committed, modulo 2^62.
        version: Commits so far.
        num_forwarded_samples: Samples that went forward, evaluations included.
        num_judged: Samples that went forward with each weight that was held as a candidate.
    """

    def __init__(self, num_classes: int) -> None:
        self.committed: Counter[Hashable] = Counter()
        self.weight = 0
        self.version = 0
        self.num_forwarded_samples = 0
        self.num_judged: Counter[int] = Counter()
        self._held: dict[str, int] = {}
        self._num_classes = num_classes
        self._groups: dict[int, dict[Hashable, int]] = {}
        self._window: list[Hashable] = []
        self._window_samples = 0
        self._window_sum = 0
        self._num_groups = 0

    @property
    def live_samples(self) -> int:
        """Samples whose gradients are awaited."""
        return sum(sum(group.values()) for group in self._groups.values())

    @property
    def num_live_graphs(self) -> int:
        """Groups whose gradients are awaited."""
        return len(self._groups)

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Answer with zeros (b, C).

        Raises:
            KeyError: When no such candidate is held.
        """
        if candidate:
            self.num_judged[self._held[candidate]] += sum(item.num_samples for item in items)
        outputs: dict[Hashable, NDArray[np.float32]] = {
            item.key: np.zeros((item.num_samples, self._num_classes), np.float32) for item in items
        }
        self.num_forwarded_samples += sum(item.num_samples for item in items)
        if items[0].mode == "eval":
            return Forwarded(None, self.version, outputs, ())
        group = self._num_groups
        self._num_groups += 1
        self._groups[group] = {item.key: item.num_samples for item in items}
        return Forwarded(group, self.version, outputs, ())

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Put microbatches into the open window. Gradients of tokenizers are passed over.

        Raises:
            KeyError: When the group is gone, or a gradient was given before.
        """
        del tokenizer_gradients
        group = self._groups[group_id]
        for key in gradients:
            self._window_samples += group.pop(key)
            self._window_sum = (self._window_sum + contribution_of(key)) % _WRAP
            self._window.append(key)
        if last:
            del self._groups[group_id]
        return Backwarded(tuple(gradients), ())

    def release(self, group_id: int) -> None:
        """Forget a group."""
        self._groups.pop(group_id, None)

    def commit(self, num_samples: int, progress: float | None) -> CommitResult:
        """Commit the open window.

        Raises:
            ValueError: When it holds another number of samples.
        """
        del progress
        if num_samples != self._window_samples or not num_samples:
            raise ValueError(f"a window of {self._window_samples} samples is committed as {num_samples}")
        self.committed.update(self._window)
        self.weight = (self.weight + self._window_sum) % _WRAP
        self.drop_gradients()
        self.version += 1
        return CommitResult(self.version, 0.0, 0.0, applied=True)

    def gradient_sums(self) -> list[Tensor]:
        """Return the open window's sum of contributions and its samples, int64 (2)."""
        return [torch.tensor([self._window_sum, self._window_samples], dtype=torch.int64)]

    def gradients_present(self) -> bytes:
        """Return 1 when the open window holds anything."""
        return bytes([bool(self._window)])

    def set_gradient_sums(self, sums: Sequence[Tensor], present: bytes | None = None) -> None:
        """Replace them, with those over all replicas."""
        del present
        window_sum, window_samples = sums[0].tolist()
        self._window_sum, self._window_samples = window_sum % _WRAP, window_samples

    def drop_gradients(self) -> None:
        """Empty the open window."""
        self._window, self._window_samples, self._window_sum = [], 0, 0

    def hold_candidate(self) -> str:
        """Hold the weight; return its name."""
        name = self.fingerprint()
        self._held[name] = self.weight
        return name

    def hold_only(self, names: Collection[str]) -> None:
        """Let go of all candidates but these."""
        self._held = {name: weight for name, weight in self._held.items() if name in names}

    def keep_candidate(self, name: str) -> int:
        """Go on from a candidate's weight; what waits for gradients and the open window are dropped."""
        self.weight = self._held[name] if name else self.weight
        self._groups.clear()
        self.drop_gradients()
        self.version += 1
        return self.version

    def candidates(self) -> dict[str, dict[str, Tensor]]:
        """Return the weight of each candidate that is held."""
        return {name: {"weight": torch.tensor([weight], dtype=torch.int64)} for name, weight in self._held.items()}

    def load_candidates(self, candidates: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Hold these candidates instead."""
        self._held = {name: int(values["weight"].item()) for name, values in candidates.items()}

    def tokenizer_weights(self, candidate: str = "") -> dict[str, NDArray[np.float32]]:
        """Return no weights: it trains none."""
        del candidate
        return {}

    def fingerprint(self) -> str:
        """Return the weight."""
        return f"{self.weight:x}"

    def state_dict(self) -> EngineState:
        """Return version and weight."""
        return EngineState(self.version, {"weight": torch.tensor([self.weight], dtype=torch.int64)}, {})

    def load_state_dict(self, state: EngineState) -> None:
        """Continue from a snapshot; what waits for gradients and the open window are dropped.

        Raises:
            ValueError: When the snapshot is of another kind of engine.
        """
        if set(state.weights) != {"weight"}:
            raise ValueError("weights are of another model: a counting engine has one, 'weight'")
        self.version = state.version
        self.weight = int(state.weights["weight"].item())
        self._groups.clear()
        self.drop_gradients()
