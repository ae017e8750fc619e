from __future__ import annotations

import numpy as np
import pytest
import torch

from cutlayer.server_worker.engine import Engine
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.settings import OptimizerSettings
from server_worker.small_model import (
    CLASSES,
    gradients_of,
    group_of,
    random_tokens,
    run_window,
    small_engine,
    small_model,
    train_item,
)


def test_replicas_that_add_their_sums_equal_one_engine() -> None:
    items = [train_item(1), train_item(2)]
    one, left, right = small_engine(), small_engine(), small_engine()
    for engine, share in ((one, items), (left, items[:1]), (right, items[1:])):
        forwarded = engine.forward(share)
        engine.backward(group_of(forwarded), gradients_of(forwarded), last=True)
    totals = [a + b for a, b in zip(left.gradient_sums(), right.gradient_sums(), strict=True)]
    for engine in (left, right):
        engine.set_gradient_sums(totals)
    for engine in (one, left, right):
        engine.commit(8, None)
    assert left.parameters_digest() == right.parameters_digest()
    alone = one.state_dict().weights
    for name, value in left.state_dict().weights.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=2e-3)


def test_the_digest_tells_weights_apart() -> None:
    assert small_engine(0).parameters_digest() == small_engine(0).parameters_digest()
    assert small_engine(0).parameters_digest() != small_engine(1).parameters_digest()


def test_a_snapshot_does_not_follow_later_commits() -> None:
    engine = small_engine()
    snapshot = engine.state_dict()
    wanted = {name: value.clone() for name, value in snapshot.weights.items()}
    run_window(engine, [train_item(1)])
    assert all(torch.equal(snapshot.weights[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("is_candidate", [False, True])
def test_a_snapshot_that_another_thread_takes_while_the_encoder_runs_is_the_same(*, is_candidate: bool) -> None:
    encoder = small_model().encoder
    engine = Engine(encoder, OptimizerSettings(), seed=0)
    name = engine.hold_candidate()
    run_window(engine, [train_item(1)])
    wanted = engine.state_dict()
    assert wanted.optimizer
    taken: list[EngineState] = []
    encoder.register_forward_hook(lambda *_: taken.append(engine.state_dict()))
    engine.forward([train_item(2, mode="eval")], name if is_candidate else "")
    torch.testing.assert_close(taken[0].weights, wanted.weights, rtol=0, atol=0)
    torch.testing.assert_close(taken[0].optimizer, wanted.optimizer, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["missing", "shape", "optimizer"])
def test_a_snapshot_of_another_model_is_refused_and_changes_nothing(change: str) -> None:
    engine, other = small_engine(0), small_engine(1)
    run_window(other, [train_item(1)])
    state = other.state_dict()
    if change == "missing":
        del state.weights["head.bias"]
    elif change == "shape":
        state.weights["head.bias"] = torch.zeros(CLASSES + 1)
    else:
        state.optimizer["tail.weight/exp_avg"] = torch.zeros(1)
    before = engine.parameters_digest()
    with pytest.raises(ValueError, match=r"another model|no parameter"):
        engine.load_state_dict(state)
    assert engine.parameters_digest() == before


def test_frozen_parameters_stay() -> None:
    encoder = small_model().encoder
    encoder.vit.requires_grad_(False)
    engine = Engine(encoder, OptimizerSettings(), seed=0)
    before = engine.state_dict().weights
    run_window(engine, [train_item(1)])
    after = engine.state_dict().weights
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"embeddings", "head"}


# Replicas ----------------------------------------------------------------------------------------------------


def flip_bit(state: EngineState, name: str, element: int, bit: int) -> EngineState:
    """Return a snapshot with one bit of one weight turned."""
    changed = state.weights[name].clone()
    integers = changed.flatten().view({4: torch.int32, 8: torch.int64}[changed.element_size()])
    integers[element] ^= torch.tensor(1).bitwise_left_shift(bit).to(integers.dtype)
    return EngineState(state.version, {**state.weights, name: integers.view(changed.dtype).view(changed.shape)}, {})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_weights_have_one_fingerprint_and_a_single_bit_changes_it(dtype: str) -> None:
    engine, again = small_engine(dtype=dtype, name="sgd", momentum=0.0), small_engine(dtype=dtype, name="sgd")
    assert engine.fingerprint() == again.fingerprint()
    assert small_engine(1, dtype=dtype).fingerprint() != engine.fingerprint()
    state = engine.state_dict()
    before = engine.fingerprint()
    generator = np.random.default_rng(0)
    seen = {before}
    for name, value in state.weights.items():
        for bit in (0, 8 * value.element_size() - 2, 8 * value.element_size() - 1):
            engine.load_state_dict(flip_bit(state, name, int(generator.integers(value.numel())), bit))
            seen.add(engine.fingerprint())
    assert len(seen) == 3 * len(state.weights) + 1
    engine.load_state_dict(EngineState(state.version, state.weights, {}))
    assert engine.fingerprint() == before


def test_values_in_each_others_place_have_another_fingerprint() -> None:
    engine = small_engine(name="sgd", momentum=0.0)
    state, before = engine.state_dict(), engine.fingerprint()
    bias = next(name for name, value in state.weights.items() if value.ndim > 1)
    engine.load_state_dict(EngineState(0, {**state.weights, bias: state.weights[bias].flip(-1)}, {}))
    assert engine.fingerprint() != before


def image_item(key: str) -> ForwardItem:
    return ForwardItem(key, "train", random_tokens(4, 1, ("image",)))


def into_window(engine: Engine, item: ForwardItem) -> None:
    forwarded = engine.forward([item])
    engine.backward(group_of(forwarded), gradients_of(forwarded), last=True)


def test_which_parameters_a_window_has_reached_is_one_byte_each() -> None:
    engine = small_engine()
    sums = engine.gradient_sums()
    assert engine.gradients_present() == bytes(len(sums))
    into_window(engine, image_item("a"))
    present = engine.gradients_present()
    assert 0 < sum(present) < len(sums), "the other modality's embeddings are not reached"
    assert all(not total.any() for total, there in zip(engine.gradient_sums(), present, strict=True) if not there)
    engine.drop_gradients()
    assert engine.gradients_present() == bytes(len(sums))


def test_a_parameter_that_no_replicas_samples_have_reached_gets_no_weight_decay() -> None:
    engine = small_engine(name="adamw", weight_decay=0.5, lr=0.1, warmup_ratio=0.0)
    sums = [torch.zeros_like(total) for total in engine.gradient_sums()]
    first = next(index for index, total in enumerate(sums) if total.ndim == 1)
    sums[first] += 1.0
    before = engine.state_dict()
    engine.set_gradient_sums(sums, bytes(index == first for index in range(len(sums))))
    engine.commit(4, None)
    after = engine.state_dict().weights
    assert sum(not torch.equal(value, after[name]) for name, value in before.weights.items()) == 1
    engine.load_state_dict(before)
    engine.set_gradient_sums(sums)
    engine.commit(4, None)
    decayed = engine.state_dict().weights
    assert sum(not torch.equal(value, decayed[name]) for name, value in before.weights.items()) > 1


def test_replicas_that_add_up_their_sums_step_as_one_that_did_all() -> None:
    """Momentum from a window before must not move what the samples of the next do not reach."""

    def engine() -> Engine:
        new = small_engine(name="adamw", weight_decay=0.5, lr=0.1, warmup_ratio=0.0)
        run_window(new, [train_item("both")])
        return new

    alone, first, second = engine(), engine(), engine()
    for one in (alone, first):
        into_window(one, image_item("a"))
    total = [a + b for a, b in zip(first.gradient_sums(), second.gradient_sums(), strict=True)]
    for replica in (first, second):
        replica.set_gradient_sums(total, first.gradients_present())
    for one in (alone, first, second):
        one.commit(4, None)
    assert first.fingerprint() == second.fingerprint() == alone.fingerprint()
    zeros = engine()
    zeros.set_gradient_sums(total)
    zeros.commit(4, None)
    assert zeros.fingerprint() != alone.fingerprint()


def test_sums_of_another_model_are_a_fault() -> None:
    engine = small_engine()
    with pytest.raises(ValueError, match="zip"):
        engine.set_gradient_sums(engine.gradient_sums()[:-1])
