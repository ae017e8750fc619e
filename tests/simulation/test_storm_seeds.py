"""Many seeds, spread over processes; a thousand of them in CI. `make storms` gives each of them two hundred agents."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import typer
from typer.testing import CliRunner

from cutlayer.simulation.storm_seeds import main, run_seeds
from cutlayer.simulation.storm_settings import StormResult, StormSettings

TINY = StormSettings(num_agents=6)
BOUND_TO_FAIL = StormSettings(num_agents=6, max_virtual_s=1.0)
NUM_SEEDS = 1_000
LARGE_SEEDS = range(0, NUM_SEEDS, 10)
SMALL_SEEDS = [seed for seed in range(NUM_SEEDS) if seed not in LARGE_SEEDS]
SMALL = StormSettings(num_agents=40)
POOL = StormSettings(num_agents=30, num_workers=3)
NUM_POOL_SEEDS = 150


def cutlayer_storm() -> typer.Typer:
    """Return the command line as `python -m` runs it."""
    app = typer.Typer()
    app.command()(main)
    return app


def test_every_seed_is_run_once_and_told_in_order() -> None:
    results, failures = run_seeds(range(20), TINY, num_processes=1)
    assert [result.seed for result in results] == list(range(20))
    assert failures == []


def test_processes_come_to_the_same_results() -> None:
    seeds = range(16)
    assert run_seeds(seeds, TINY, num_processes=2) == run_seeds(seeds, TINY, num_processes=1)


def test_progress_is_told() -> None:
    told: list[int] = []
    run_seeds(range(20), TINY, num_processes=1, on_progress=lambda num_done, _: told.append(num_done))
    assert told == [8, 16, 20]


def test_failures_are_collected_with_what_repeats_them() -> None:
    results, failures = run_seeds([3, 4], BOUND_TO_FAIL, num_processes=1)
    assert results == []
    assert ["run_seed(3, " in failures[0], "run_seed(4, " in failures[1]] == [True, True]


def test_command_runs_one_seed_and_says_what_came_of_it() -> None:
    done = CliRunner().invoke(cutlayer_storm(), ["3", "--agents", "6"])
    assert done.exit_code == 0
    assert "StormResult(seed=3" in done.output
    assert "1 storms have blown over" in done.output


@pytest.mark.parametrize("seeds", ["x", "5-3", "-", "1-x", "3--4"])
def test_what_is_no_seed_is_refused(seeds: str) -> None:
    done = CliRunner().invoke(cutlayer_storm(), ["--", seeds])
    assert done.exit_code == 2
    assert "neither a seed nor a range" in done.output


def weather(seeds: Sequence[int], settings: StormSettings, capsys: pytest.CaptureFixture[str]) -> list[StormResult]:
    """Run seeds with progress; all of them blow over."""

    def show(num_done: int, failures: Sequence[str]) -> None:
        with capsys.disabled():
            print(f"\r{num_done} of {len(seeds)} storms, {len(failures)} failed ", end="", flush=True)

    results, failures = run_seeds(seeds, settings, on_progress=show)
    assert not failures, "\n".join(failures)
    assert len(results) == len(seeds)
    assert sum(result.num_too_late for result in results) < len(seeds)
    assert sum(result.num_lacking for result in results) > 0
    return results


@pytest.mark.slow
def test_a_hundred_storms_of_two_hundred_agents_blow_over(capsys: pytest.CaptureFixture[str]) -> None:
    results = weather(LARGE_SEEDS, StormSettings(), capsys)
    assert sum(result.num_stored for result in results) > 5 * len(results)


@pytest.mark.slow
def test_nine_hundred_storms_of_forty_agents_blow_over(capsys: pytest.CaptureFixture[str]) -> None:
    results = weather(SMALL_SEEDS, SMALL, capsys)
    assert sum(result.num_stored for result in results) > len(results)
    assert sum(result.num_lacking for result in results) > len(results) // 50


@pytest.mark.slow
def test_storms_over_a_pool_of_three_workers_blow_over() -> None:
    results, failures = run_seeds(range(NUM_POOL_SEEDS), POOL)
    assert not failures, "\n".join(failures)
    assert sum(result.num_worker_kills for result in results) > NUM_POOL_SEEDS // 2
