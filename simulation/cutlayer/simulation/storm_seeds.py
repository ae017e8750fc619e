"""Many storms over all cores, with progress, and any one of them again.

python -m cutlayer.simulation.storm_seeds 0-999        a thousand seeds
python -m cutlayer.simulation.storm_seeds 17           the one that has failed
"""

from __future__ import annotations

import functools
import gc
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Annotated

import typer

from cutlayer.simulation.storm import StormFailed, run_seed
from cutlayer.simulation.storm_settings import StormResult, StormSettings

__all__ = ["main", "run_seeds"]

SEEDS_AT_ONCE = 8
"""Seeds that a process takes at a time: few enough to spread evenly, and to show progress."""
_GC_THRESHOLD = 50_000
"""Objects between two collections: a storm makes many that live as long as it does, and collecting took a tenth."""


def run_seeds(
    seeds: Sequence[int],
    settings: StormSettings,
    *,
    num_processes: int | None = None,
    on_progress: Callable[[int, Sequence[str]], None] = lambda _, __: None,
) -> tuple[list[StormResult], list[str]]:
    """Run seeds, spread over processes.

    Args:
        seeds: The seeds.
        settings: What may happen in each.
        num_processes: Processes; one for each core when left out. With one, they run in this process.
        on_progress: Told how many seeds are done, and what is wrong with those that have failed.

    Returns:
        The results by seed, and for each seed that has failed what is wrong and how to run it again.
    """
    portions = [seeds[start : start + SEEDS_AT_ONCE] for start in range(0, len(seeds), SEEDS_AT_ONCE)]
    results: list[StormResult] = []
    failures: list[str] = []
    for done, failed in _run_portions(portions, settings, min(num_processes or os.cpu_count() or 1, len(portions))):
        results += done
        failures += failed
        on_progress(len(results) + len(failures), failures)
    return sorted(results, key=lambda result: result.seed), sorted(failures)


def _run_portions(
    portions: Sequence[Sequence[int]], settings: StormSettings, num_processes: int
) -> Iterator[tuple[list[StormResult], list[str]]]:
    run = functools.partial(_run_portion, settings=settings)
    if num_processes <= 1:
        yield from map(run, portions)
        return
    # Not fork: torch has threads by now, and a copy of a locked lock is locked for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=_collect_seldom) as pool:
        waiting = [pool.submit(run, portion) for portion in portions]
        for future in as_completed(waiting):
            yield future.result()


def _collect_seldom() -> None:
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


def _run_portion(seeds: Sequence[int], settings: StormSettings) -> tuple[list[StormResult], list[str]]:
    results: list[StormResult] = []
    failures: list[str] = []
    with _quiet():
        for seed in seeds:
            try:
                results.append(run_seed(seed, settings))
            except StormFailed as error:
                failures.append(str(error))
    return results, failures


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the members of a storm have to complain about: that is what a storm is for."""
    log = logging.getLogger("cutlayer")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def main(
    seeds: Annotated[str, typer.Argument(help="a seed, or a range such as 0-999")] = "0-999",
    agents: Annotated[int, typer.Option(help="virtual agents", min=1)] = StormSettings().num_agents,
    workers: Annotated[int, typer.Option(help="workers; more than one form a pool", min=1)] = 1,
    processes: Annotated[int | None, typer.Option(help="processes; one for each core when left out", min=1)] = None,
) -> None:
    """Run storms: virtual agents and workers under every fault at once, with the invariants checked at every event."""
    first, _, last = seeds.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise typer.BadParameter(f"{seeds!r} is neither a seed nor a range of seeds such as 0-999")
    wanted = range(int(first), int(last or first) + 1)
    started_at = time.monotonic()

    def show(num_done: int, failures: Sequence[str]) -> None:
        seconds = time.monotonic() - started_at
        print(
            f"{num_done} of {len(wanted)} seeds, {len(failures)} failed, {seconds:.0f} s", file=sys.stderr, flush=True
        )

    settings = StormSettings(num_agents=agents, num_workers=workers)
    results, failures = run_seeds(wanted, settings, num_processes=processes, on_progress=show)
    if len(wanted) == 1:
        print("\n".join(map(str, results)))
    print("\n".join(failures) or f"{len(results)} storms have blown over: every invariant has held")
    raise typer.Exit(bool(failures))


if __name__ == "__main__":
    typer.run(main)
