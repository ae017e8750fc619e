"""What a run has committed, told by the ledgers and by the weights: two accounts that must agree at every window."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.counting_engine import CountingEngine, contribution_of
from cutlayer.server_worker.passes import Backwarded

__all__ = ["Books", "InvariantBroken", "Step", "WatchedEngine"]

Step = tuple[str, int]
"""An agent's topic and the number of one of its training steps."""

WEIGHT_RANGE = 1 << 62
TOLERANCE = 2e-3
"""How far a gradient below 1 may be from the right one: fp16 keeps eleven bits."""


class InvariantBroken(AssertionError):
    """Something that must hold at every moment does not."""


class Books:
    """Compares what each worker says with what its weights hold, with what it said before, and with the others.

    A counting engine's weight is the sum of what all microbatches ever committed have contributed, so it equals the sum
    over the ledger's steps just when no step is lost, and none is in it twice.

    Args:
        num_samples_of: Returns the samples of an agent's step.

    Attributes:
        ever: Every step that any ledger ever held, those included that were lost with a worker later.
    """

    def __init__(self, num_samples_of: Callable[[str, int], int]) -> None:
        self.ever: set[Step] = set()
        self._num_samples_of = num_samples_of
        self._weights = {0: 0}
        self._before: dict[int, set[Step]] = {}

    def compare(self, session: WorkerSession, engine: CountingEngine) -> set[Step]:
        """Check a worker's account of what is committed, and return the steps.

        Raises:
            InvariantBroken: When ledger, weights and counters disagree, or the worker has forgotten a step, or another
                worker has come to another result of the same window.
        """
        steps = {
            (agent, step)
            for agent in session.ledger.agents()
            for start, stop in session.ledger.of(agent)
            for step in range(start, stop)
        }
        weight = sum(_contribution_of(agent, step) for agent, step in steps) % WEIGHT_RANGE
        if weight != engine.weight:
            raise InvariantBroken(
                f"the weights of {session.name} are not the sum of the {len(steps)} steps of its ledger: one of them "
                f"is lost, or in the weights twice, after window {session.window}"
            )
        num_samples = sum(self._num_samples_of(agent, step) for agent, step in steps)
        if (session.version, session.committed_samples) != (engine.version, num_samples):
            raise InvariantBroken(
                f"{session.name} counts {session.committed_samples} samples at version {session.version}; there are "
                f"{num_samples} at version {engine.version}"
            )
        if forgotten := self._before.get(session.incarnation, set()) - steps:
            raise InvariantBroken(f"{session.name} has forgotten {sorted(forgotten)}")
        if self._weights.setdefault(session.window, weight) != weight:
            raise InvariantBroken(f"{session.name} has other weights after window {session.window} than another worker")
        self._before[session.incarnation] = steps
        self.ever |= steps
        return steps

    def roll_back(self, window: int) -> None:
        """Take notice that no worker is left that knows more than the first so many windows."""
        self._weights = {number: weight for number, weight in self._weights.items() if number <= window}


class WatchedEngine(CountingEngine):
    """A counting engine that looks at each gradient.

    It answers with zeros, so an agent's gradient is known beforehand: softmax of zeros less the one-hot labels.

    Args:
        num_classes: Width C of the outputs.
        labels_of: Returns the labels, int64 (B), of an agent's step.
    """

    def __init__(self, num_classes: int, labels_of: Callable[[str, int], NDArray[np.int64]]) -> None:
        super().__init__(num_classes)
        self._labels_of = labels_of

    def backward(
        self,
        group_id: int,
        gradients: Mapping[Hashable, NDArray[np.float32]],
        *,
        last: bool,
        tokenizer_gradients: Mapping[Hashable, Mapping[str, NDArray[np.float32]]] | None = None,
    ) -> Backwarded:
        """Put microbatches into the open window.

        Raises:
            InvariantBroken: When a gradient belongs to another step than its name says.
        """
        for key, gradient_BC in gradients.items():
            assert isinstance(key, tuple), "the runtime names a microbatch by agent, mode and step"
            agent, _, step = key
            labels_B = self._labels_of(agent, step)
            expected_BC = np.full((len(labels_B), gradient_BC.shape[1]), 1.0 / gradient_BC.shape[1], np.float32)
            expected_BC[np.arange(len(labels_B)), labels_B] -= 1.0
            if gradient_BC.shape != expected_BC.shape or np.abs(gradient_BC - expected_BC).max() > TOLERANCE:
                raise InvariantBroken(f"the gradient summed up as step {step} of {agent} is not that step's")
        return super().backward(group_id, gradients, last=last, tokenizer_gradients=tokenizer_gradients)


@functools.lru_cache(100_000)
def _contribution_of(agent: str, step: int) -> int:
    return contribution_of((agent, "train", step))
