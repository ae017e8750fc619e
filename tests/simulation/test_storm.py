"""Storms: every fault at once, hundreds of agents, one number that decides it all."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest

from cutlayer.simulation.storm import Storm, StormFailed, run_seed
from cutlayer.simulation.storm_settings import StormResult, StormSettings

SMALL = StormSettings(num_agents=40)
SEEDS = range(8)


@functools.cache
def run_small(seed: int) -> StormResult:
    """Run a storm of forty agents, once for all tests that look at it."""
    return run_seed(seed, SMALL)


@pytest.mark.parametrize("seed", SEEDS)
def test_storm_blows_over_and_every_step_is_in_the_model_once(seed: int) -> None:
    result = run_small(seed)
    assert result.num_steps > 40
    assert result.num_too_late <= 2


def test_two_hundred_agents_weather_a_storm() -> None:
    result = run_seed(1_000)
    assert result.num_steps > 300
    assert result.num_packets > 3_000


def test_every_kind_of_trouble_is_met() -> None:
    for trouble in ("kills", "deaths", "worker_kills", "cuts", "broker_stops", "late"):
        assert sum(getattr(run_small(seed), f"num_{trouble}") for seed in SEEDS) > 0, trouble


def test_seed_repeats_its_history_to_the_last_packet() -> None:
    assert run_seed(5, SMALL) == run_small(5)
    assert run_small(5).digest != run_small(6).digest


def test_history_does_not_depend_on_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cutlayer.simulation.storm_seeds", "5", "--agents", "40"],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # which decides the order of Python's sets of texts
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert f"digest='{run_small(5).digest}'" in done.stdout


class Overdue(Storm):
    """A storm in which somebody trips."""

    def after_event(self) -> bool:
        """Trip at the hundredth event."""
        if self.num_events == 100:
            raise RuntimeError("tripped")
        return super().after_event()


def test_failure_says_when_it_happened_and_how_to_see_it_again() -> None:
    with pytest.raises(StormFailed) as failed:
        Overdue(17, StormSettings(num_agents=20)).run()
    assert "event 100: RuntimeError: tripped" in str(failed.value)
    assert "python -m cutlayer.simulation.storm_seeds 17 --agents 20" in str(failed.value)


def test_failure_under_settings_that_the_command_lacks_is_repeated_in_python() -> None:
    settings = StormSettings(num_agents=20, credits=1)
    with pytest.raises(StormFailed, match=r"run_seed\(17, StormSettings\(num_agents=20, credits=1\)\)"):
        Overdue(17, settings).run()
