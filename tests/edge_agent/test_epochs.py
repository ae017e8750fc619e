from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.edge_agent.epochs import EpochPlan


def plan(
    num_train: int = 10, num_test: int = 7, microbatch: int = 4, *, seed: int = 3, agent: str = "clinic/07"
) -> EpochPlan:
    return EpochPlan(seed, agent, 3, num_train, num_test, microbatch)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 4))
def test_each_epoch_holds_each_sample_once(num_train: int, microbatch: int, epochs: int) -> None:
    whole = EpochPlan(3, "clinic/07", epochs, num_train, 0, microbatch)
    for epoch in range(epochs):
        steps = range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch)
        indices = np.concatenate([whole.train_indices(step) for step in steps])
        assert sorted(indices) == list(range(num_train))
        assert all(len(whole.train_indices(step)) == microbatch for step in steps[:-1])
    assert whole.total_steps == epochs * whole.steps_per_epoch


def test_step_means_the_same_samples_in_every_process() -> None:
    # Golden values: an agent of another release must agree with this one, or a resumed run trains on samples twice.
    assert plan().train_indices(0).tolist() == [9, 0, 1, 6]
    assert plan().train_indices(5).tolist() == [2, 1]
    assert [batch.tolist() for batch in plan().test_batches(256)] == [[6, 5, 0, 2], [1, 4, 3]]


@pytest.mark.parametrize("other", [plan(seed=4), plan(agent="clinic/08")], ids=["seed", "agent"])
def test_order_depends_on_seed_and_agent(other: EpochPlan) -> None:
    assert any(plan().train_indices(step).tolist() != other.train_indices(step).tolist() for step in range(9))


def test_epochs_have_orders_of_their_own() -> None:
    assert plan().train_indices(0).tolist() != plan().train_indices(3).tolist()


def test_evaluation_uses_the_same_samples_each_time_and_no_more_than_asked_for() -> None:
    assert [batch.tolist() for batch in plan().test_batches(5)] == [[6, 5, 0, 2], [1]]
    assert sum(len(batch) for batch in plan().test_batches(100)) == 7
    assert plan(num_test=0).test_batches(100) == []


def test_last_step_of_an_epoch_may_be_smaller() -> None:
    assert [len(plan().train_indices(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
