"""Gradients of tokenizers: those of a linear map, summed over steps, and sent once."""

from __future__ import annotations

import numpy as np
import pytest

from cutlayer.broker.errors import RunError
from cutlayer.broker.tensors import decode_tensor
from cutlayer.edge_agent.tokenizer_gradients import NamedTensors, TokenizerGradients


def one(value: float) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    return {"image.bias": np.full(3, value, np.float32)}


def values(tensors: NamedTensors) -> dict[str, float]:
    return {name: float(decode_tensor(tensor, what=name)[0]) for name, tensor in tensors}


def test_nothing_goes_before_enough_steps_are_summed_up() -> None:
    sums = TokenizerGradients(every_steps=2)
    sums.add(one(1.0))
    assert sums.attach(1, "identity") == ()
    sums.add(one(2.0))
    assert values(sums.attach(2, "identity")) == {"image.bias": 3.0}
    assert sums.attach(3, "identity") == (), "what has gone does not go with another step"


def test_a_step_that_is_sent_again_carries_the_same() -> None:
    sums = TokenizerGradients(every_steps=1)
    sums.add(one(1.0))
    first = sums.attach(1, "identity")
    sums.add(one(5.0))
    assert sums.attach(1, "identity") == first
    sums.committed(1)
    assert values(sums.attach(2, "identity")) == {"image.bias": 5.0}


def test_what_is_forgotten_goes_nowhere() -> None:
    sums = TokenizerGradients(every_steps=1)
    sums.add(one(1.0))
    sums.attach(1, "identity")
    sums.add(one(2.0))
    sums.forget()
    assert sums.attach(1, "identity") == ()
    assert sums.attach(2, "identity") == ()


def test_gradients_that_are_not_finite_end_the_agent_with_the_fix() -> None:
    sums = TokenizerGradients(every_steps=1)
    sums.add(one(float("inf")))
    with pytest.raises(RunError, match="gradients of the tokenizers cannot be encoded") as refused:
        sums.attach(1, "int8")
    assert "clip_norm" in str(refused.value)
