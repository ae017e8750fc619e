"""Seeded simulations of many agents under loss, duplication, reordering, delay and kills."""

from __future__ import annotations

import pytest

from cutlayer.simulation.many_agents import Scenario, simulate


@pytest.mark.parametrize("seed", range(10))
def test_every_step_is_committed_once_by_asynchronous_windows(seed: int) -> None:
    result = simulate(Scenario(seed=seed, num_agents=12, num_kills=4))
    assert result.num_kills > 0
    assert result.num_repeats > 0


@pytest.mark.parametrize("seed", range(5))
def test_every_step_is_committed_once_by_synchronous_windows(seed: int) -> None:
    result = simulate(Scenario(seed=seed, num_agents=8, num_kills=3, mode="synchronous"))
    assert result.num_kills > 0


def test_a_seed_repeats_a_run_exactly() -> None:
    scenario = Scenario(seed=3, num_agents=8)
    assert simulate(scenario) == simulate(scenario)


@pytest.mark.slow
def test_a_hundred_agents_finish() -> None:
    assert simulate(Scenario(seed=1, num_agents=100, num_kills=10, epochs=1)).num_kills == 10
