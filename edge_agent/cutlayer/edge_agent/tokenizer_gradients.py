"""Gradients of an agent's tokenizers: summed over its steps, and sent with the output gradients of a later one.

A tokenizer is a linear map, so the gradient at the cut, which comes with a step's commit, gives its own without any
automatic differentiation: dW = patches^T G, db = sum G. Once `every_steps` steps are summed up, the sum goes with the
next step's output gradients, and is committed with that step: once, whatever is sent again on the way.

What is lost with this process, or when a worker goes back to a checkpoint, are the steps summed up and those that went
with steps not yet committed. They are forgotten then rather than sent twice.

Axes: B samples, N tokens, S tokens of all samples, P values of a patch, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.errors import RunError
from cutlayer.broker.messages import EncodedTensor
from cutlayer.broker.tensors import encode_tensor
from cutlayer.compression import CodecError

__all__ = ["TokenizerGradients", "projection_gradients"]

NamedTensors = tuple[tuple[str, EncodedTensor], ...]


def projection_gradients(
    patches_BNP: NDArray[np.float32], gradient_BND: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the gradients of `project`'s weight, (P, D), and bias, (D), for those of its tokens.

    Args:
        patches_BNP: What was projected, float32 (B, N, P).
        gradient_BND: The gradient at the tokens, float32 (B, N, D), of a loss that is summed over samples.
    """
    flat_SP = patches_BNP.reshape(-1, patches_BNP.shape[2])
    flat_SD = gradient_BND.reshape(-1, gradient_BND.shape[2])
    return flat_SP.T @ flat_SD, flat_SD.sum(axis=0)


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
