from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest

from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.engine import ForwardItem


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
