"""Storms: every fault at once, hundreds of agents, one number that decides it all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields

import pytest

from cutlayer.simulation.storm import Storm, StormFailed, run_seed
from cutlayer.simulation.storm_settings import StormSettings

SMALL = StormSettings(num_agents=40)


@pytest.mark.parametrize("seed", range(8))
def test_storm_blows_over_and_every_step_is_in_the_model_once(seed: int) -> None:
    result = run_seed(seed, SMALL)
    assert result.num_steps > 40
    assert result.num_too_late <= 2


def test_two_hundred_agents_weather_a_storm() -> None:
    result = run_seed(1_000)
    assert result.num_steps > 300
    assert result.num_packets > 3_000


def test_every_kind_of_trouble_is_met() -> None:
    totals: Counter[str] = Counter()
    for seed in range(100, 106):
        result = run_seed(seed, SMALL)
        totals.update({entry.name: getattr(result, entry.name) for entry in fields(result) if entry.name != "digest"})
    for trouble in ("kills", "deaths", "worker_kills", "cuts", "broker_stops", "late"):
        assert totals[f"num_{trouble}"] > 0, trouble


def test_seed_repeats_its_history_to_the_last_packet() -> None:
    first, again, other = run_seed(5, SMALL), run_seed(5, SMALL), run_seed(6, SMALL)
    assert first == again
    assert first.digest != other.digest


def test_history_does_not_depend_on_the_process() -> None:
    digests = set()
    for hash_seed in ("1", "2"):  # the order of Python's sets of texts
        done = subprocess.run(
            [sys.executable, "-m", "cutlayer.simulation.storm_seeds", "5", "--agents", "40"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        digests.add(done.stdout.partition("digest='")[2].partition("'")[0])
    assert digests == {run_seed(5, SMALL).digest}


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
