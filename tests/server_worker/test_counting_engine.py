from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest
import torch

from cutlayer.server_worker.counting_engine import CountingEngine, contribution_of
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.passes import ForwardItem


def item(key: Hashable, num_samples: int = 2, mode: str = "train") -> ForwardItem:
    return ForwardItem(key, mode, {"image": np.zeros((num_samples, 4, 8), np.float32)})  # type: ignore[arg-type]


def gradient(num_samples: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.zeros((num_samples, 3), np.float32)


def test_answers_have_the_shape_of_outputs() -> None:
    forwarded = CountingEngine(3).forward([item("a"), item("b", 5)])
    assert {key: output.shape for key, output in forwarded.outputs.items()} == {"a": (2, 3), "b": (5, 3)}
    assert forwarded.refused == ()


def test_evaluation_leaves_nothing_behind() -> None:
    engine = CountingEngine(3)
    assert engine.forward([item("a", mode="eval")]).group_id is None
    assert engine.num_live_graphs == engine.live_samples == 0
    assert engine.num_forwarded_samples == 2


def test_step_is_counted_when_its_window_is_committed() -> None:
    engine = CountingEngine(3)
    group = engine.forward([item("a"), item("b")]).group_id
    assert group is not None
    engine.backward(group, {"a": gradient()}, last=False)
    assert engine.live_samples == 2
    engine.backward(group, {"b": gradient()}, last=True)
    assert not engine.committed
    assert engine.commit(4, 0.5).version == 1
    assert engine.committed == {"a": 1, "b": 1}
    assert engine.num_live_graphs == 0


def test_gradient_that_was_given_before_is_a_fault() -> None:
    engine = CountingEngine(3)
    group = engine.forward([item("a"), item("b")]).group_id
    assert group is not None
    engine.backward(group, {"a": gradient()}, last=False)
    with pytest.raises(KeyError):
        engine.backward(group, {"a": gradient()}, last=False)


def test_gradient_for_a_graph_that_is_gone_is_a_fault() -> None:
    engine = CountingEngine(3)
    group = engine.forward([item("a")]).group_id
    assert group is not None
    engine.release(group)
    engine.release(group)
    with pytest.raises(KeyError):
        engine.backward(group, {"a": gradient()}, last=True)


@pytest.mark.parametrize("num_samples", [0, 1, 3])
def test_window_with_other_samples_than_it_holds_is_a_fault(num_samples: int) -> None:
    engine = CountingEngine(3)
    group = engine.forward([item("a")]).group_id
    assert group is not None
    engine.backward(group, {"a": gradient()}, last=True)
    with pytest.raises(ValueError, match="window of 2 samples"):
        engine.commit(num_samples, None)


def test_empty_window_is_a_fault() -> None:
    with pytest.raises(ValueError, match="window of 0 samples"):
        CountingEngine(3).commit(0, None)


def test_engine_goes_on_from_its_state() -> None:
    engine = CountingEngine(3)
    group = engine.forward([item("a")]).group_id
    assert group is not None
    engine.backward(group, {"a": gradient()}, last=True)
    engine.commit(2, None)
    again = CountingEngine(3)
    again.forward([item("b")])
    again.load_state_dict(engine.state_dict())
    assert (again.version, again.num_live_graphs) == (1, 0)


# Weight and replicas -----------------------------------------------------------------------------------------


def into_window(engine: CountingEngine, *keys: Hashable) -> None:
    """Bring microbatches of two samples into the open window."""
    group = engine.forward([item(key) for key in keys]).group_id
    assert group is not None
    engine.backward(group, {key: gradient() for key in keys}, last=True)


def test_the_weight_is_the_sum_of_what_was_committed_and_of_nothing_else() -> None:
    engine = CountingEngine(3)
    into_window(engine, "a", "b")
    engine.commit(4, None)
    into_window(engine, "c")
    engine.drop_gradients()
    into_window(engine, "d")
    assert engine.weight == (contribution_of("a") + contribution_of("b")) % (1 << 62)


def test_microbatches_contribute_numbers_of_their_own_that_are_the_same_everywhere() -> None:
    assert contribution_of(("a", "train", 0)) == 2_411_558_146_094_590_399
    keys = [(agent, "train", step) for agent in ("a", "b") for step in range(500)]
    assert len({contribution_of(key) for key in keys}) == len(keys)


def test_replicas_that_add_up_their_sums_have_the_weight_of_one_that_did_all() -> None:
    alone, replicas = CountingEngine(3), [CountingEngine(3), CountingEngine(3)]
    into_window(alone, "a", "b", "c")
    alone.commit(6, None)
    into_window(replicas[0], "a")
    into_window(replicas[1], "b", "c")
    total = sum(replica.gradient_sums()[0] for replica in replicas)
    assert isinstance(total, torch.Tensor)
    for replica in replicas:
        replica.set_gradient_sums([total])
        replica.commit(6, None)
    assert {replica.fingerprint() for replica in replicas} == {alone.fingerprint()}
    assert replicas[0].committed == {"a": 1}, "each counts its own"


def test_gradients_are_present_while_the_window_holds_something() -> None:
    engine = CountingEngine(3)
    assert engine.gradients_present() == bytes([0])
    into_window(engine, "a")
    assert engine.gradients_present() == bytes([1])
    engine.drop_gradients()
    assert engine.gradients_present() == bytes([0])
    assert engine.gradient_sums()[0].tolist() == [0, 0]


def test_a_snapshot_holds_the_weight_and_later_commits_do_not_change_it() -> None:
    engine = CountingEngine(3)
    into_window(engine, "a")
    engine.commit(2, None)
    state = engine.state_dict()
    into_window(engine, "b")
    engine.commit(2, None)
    again = CountingEngine(3)
    into_window(again, "z")
    again.load_state_dict(state)
    assert (again.version, again.weight) == (1, contribution_of("a"))
    assert again.gradients_present() == bytes([0]), "the open window was of other weights"
    assert again.fingerprint() != engine.fingerprint()


def test_a_snapshot_of_another_kind_of_engine_is_refused() -> None:
    engine = CountingEngine(3)
    with pytest.raises(ValueError, match="another model"):
        engine.load_state_dict(EngineState(3, {"head": torch.zeros(1)}, {}))
    assert engine.version == 0
