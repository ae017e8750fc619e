"""Gradients of an agent's tokenizers: summed over its steps, and sent with the output gradients of a later one.

A tokenizer is linear in its parameters, so the gradient at the cut, which comes with a step's commit, gives its own
without any automatic differentiation (`Tokenizer.gradients`). Once `every_steps` steps are summed up, the sum goes with
the next step's output gradients, and is committed with that step: once, whatever is sent again on the way.

What is lost with this process, or when a worker goes back to a checkpoint, are the steps summed up and those that went
with steps not yet committed. They are forgotten then rather than sent twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import RunError
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.tensors import encode_tensor
from cutlayer.compression import CodecError

__all__ = ["TokenizerGradients"]

NamedTensors = tuple[tuple[str, EncodedTensor], ...]


class TokenizerGradients:
    """The sums of one agent.

    Args:
        every_steps: How many steps are summed up before they are sent.
    """

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._num_steps = 0
        self._attached: dict[int, NamedTensors] = {}

    def add(self, gradients: Mapping[str, NDArray[np.float32]]) -> None:
        """Add a step's gradients, by parameter."""
        self._num_steps += 1
        for name, gradient in gradients.items():
            if name in self._sums:
                self._sums[name] += gradient
            else:
                self._sums[name] = gradient.astype(np.float64)

    def attach(self, step: int, codec: str) -> NamedTensors:
        """Return what goes with a step's output gradients: the same each time they are sent.

        Args:
            step: The step.
            codec: The codec.

        Raises:
            RunError: When the sums are not finite.
        """
        if step not in self._attached and self._num_steps >= self._every_steps:
            try:
                self._attached[step] = tuple(
                    (name, encode_tensor(codec, total.astype(np.float32))) for name, total in sorted(self._sums.items())
                )
            except CodecError as error:
                raise RunError(
                    f"the gradients of the tokenizers cannot be encoded as {codec!r}: {error}\n"
                    "  fix: lower [optimizer] lr in the run settings, or set clip_norm"
                ) from error
            self._sums, self._num_steps = {}, 0
        return self._attached.get(step, ())

    def committed(self, step: int) -> None:
        """Take notice that a step is committed, and what went with it."""
        self._attached.pop(step, None)

    def forget(self) -> None:
        """Forget everything: steps that it is of are no part of the model any more, and will be done again."""
        self._sums, self._num_steps = {}, 0
        self._attached.clear()
