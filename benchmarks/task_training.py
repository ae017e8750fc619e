"""Cutlayer against centralized training, federated averaging and local training, on every task: `make bench-tasks`.

Each finished training is a line of JSON in the results. What is there already is not made again, so that a series may
be stopped at any time and taken up. Seeds come one after the other, and within a seed all schemes of one task, so that
whatever is there can be compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from benchmarks.federated import Choice, chosen
from benchmarks.task_disjoint import DISJOINT
from benchmarks.task_flops import VIT_B16
from benchmarks.task_schemes import (
    SCHEMES,
    VERSION,
    Job,
    Row,
    choices_of,
    digest_of,
    key_of,
    metric_of,
    run,
    schemes_of,
    settings_of,
    tuning_of,
)
from benchmarks.task_sites import PARTITIONS
from benchmarks.tasks.catalogue import TASKS

from benchmarks import task_disjoint

RESULTS = Path("benchmarks/results/tasks.jsonl")


def read_rows(path: Path) -> list[Row]:
    """Read results; a file that is not there has none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def digest(job: Job) -> str:
    """Return the digest that a job's row will have."""
    return str(VERSION) if job.task == VIT_B16 else digest_of(TASKS[job.task])


def job_key(job: Job) -> str:
    """Return the key of a job's row, as `key_of` gives it."""
    choice = None if job.choice is None else {"factor": job.choice.factor, "local_epochs": job.choice.local_epochs}
    row = {name: getattr(job, name) for name in ("task", "scheme", "partition", "seed")}
    return key_of({**row, "digest": digest(job), "choice": choice})


def planned(tasks: Sequence[str], schemes: Collection[str], seeds: int) -> list[Job]:
    """Return all trainings in order, without the choices that tuning gives; what tunes comes along."""
    wanted = {*schemes, *(source[0] for scheme in schemes if (source := tuning_of(Job("", scheme, "", 0))))}
    jobs = [Job(name, "flops", "-", 0) for name in (VIT_B16, *tasks)]
    for seed in range(seeds):
        for partition in PARTITIONS:
            for name in tasks:
                if partition == next(iter(PARTITIONS)):
                    if seed == 0:
                        jobs += _tries(name, "centralized-tuning", "pooled")
                    jobs.append(Job(name, "centralized", "pooled", seed))
                if seed == 0:
                    jobs += _tries(name, "fedavg-tuning", partition)
                jobs += [Job(name, scheme, partition, seed) for scheme in schemes_of(TASKS[name])]
        jobs += [job for name in tasks for job in _disjoint(name, seed)]
    # Tasks whose disjoint sites need more seeds than all else.
    most = max((DISJOINT[name].seeds for name in tasks if name in DISJOINT), default=0)
    jobs += [job for seed in range(seeds, most) for name in tasks for job in _disjoint(name, seed, min_seeds=seed + 1)]
    return [job for job in jobs if job.scheme in wanted]


def _disjoint(task: str, seed: int, min_seeds: int = 0) -> list[Job]:
    how = DISJOINT.get(task)
    if how is None or how.seeds < min_seeds:
        return []
    choices = how.choices
    schemes = task_disjoint.SCHEMES if len(choices) == 1 else (*task_disjoint.SCHEMES, *task_disjoint.TUNING)
    return [Job(task, scheme, task_disjoint.PARTITION, seed, choice) for choice in choices for scheme in schemes]


def _tries(task: str, scheme: str, partition: str) -> list[Job]:
    return [Job(task, scheme, partition, 0, choice) for choice in choices_of(TASKS[task], scheme)]


def tuned(job: Job, rows: Iterable[Row]) -> Job | None:
    """Return a job with what tuning has found, if any is for it; None while that is not complete."""
    source = tuning_of(job)
    if source is None:
        return job
    task = TASKS[job.task]
    settings = settings_of(task, 0)
    found: dict[Choice, float | None] = {}
    for row in rows:
        if (row["task"], row["scheme"], row["partition"], row["digest"]) == (job.task, *source, digest(job)):
            found[Choice(**row["choice"])] = row["value"]
    wanted = choices_of(task, source[0])
    if any(choice not in found for choice in wanted):
        return None
    is_more_better = metric_of(task, settings).better == "more"
    return replace(job, choice=chosen({choice: found[choice] for choice in wanted}, is_more_better=is_more_better))


def seconds_left(jobs: Sequence[Job], rows: Sequence[Row], processes: int) -> float | None:
    """Return about how long some jobs take, by what such jobs have taken; None without any result."""
    times = [row for row in rows if "seconds" in row and row["scheme"] != "flops"]
    if not times:
        return None
    overall = statistics.fmean(row["seconds"] for row in times)
    total = 0.0
    for job in jobs:
        same = [row["seconds"] for row in times if (row["task"], row["scheme"]) == (job.task, job.scheme)]
        near = same or [row["seconds"] for row in times if row["task"] == job.task]
        total += 0.0 if job.scheme == "flops" else statistics.fmean(near) if near else overall
    return total / processes


def train_all(jobs: list[Job], path: Path, processes: int) -> list[Job]:
    """Make the trainings that are missing, append each to the results, and return those that failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path)
    done = {key_of(row) for row in rows}
    waiting = [job for job in jobs if job_key(job) not in done]
    failed: list[Job] = []
    running: dict[Future[Row], Job] = {}
    print(f"{len(jobs) - len(waiting)} of {len(jobs)} trainings are there", flush=True)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        while waiting or running:
            while len(running) < processes and (job := _next(waiting, rows)) is not None:
                running[pool.submit(run, job)] = job
            if not running:
                print("left out, for what failed before them: " + "; ".join(job.title for job in waiting))
                failed += waiting
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    row = future.result()
                except Exception as error:  # noqa: BLE001 - one training that fails leaves the others alone
                    failed.append(job)
                    print(f"{job.title}: failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                rows.append(row)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                _tell(job, row, seconds_left([*waiting, *running.values()], rows, processes))
    return failed


def _next(waiting: list[Job], rows: Sequence[Row]) -> Job | None:
    """Take out the first job that can be made now."""
    for place, job in enumerate(waiting):
        ready = tuned(job, rows)
        if ready is not None:
            del waiting[place]
            return ready
    return None


def _tell(job: Job, row: Row, left_s: float | None) -> None:
    value = row.get("value")
    shown = "" if "value" not in row else f": {row['metric']['name']} {'-' if value is None else format(value, '.4f')}"
    moved = f", {(row['up_bytes'] + row['down_bytes']) / 1e6:,.1f} MB" if row.get("up_bytes") else ""
    took = f", {row['seconds']:.0f} s" if "seconds" in row else ""
    left = "" if left_s is None else f"; about {left_s / 60:.0f} min left"
    print(f"{time.strftime('%H:%M:%S')} {job.title}{shown}{moved}{took}{left}", flush=True)


def _names(text: str, known: Collection[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose of {', '.join(known)}")
    return names


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=lambda text: _names(text, TASKS), default=list(TASKS), metavar="A,B")
    parser.add_argument("--schemes", type=lambda text: _names(text, SCHEMES), default=list(SCHEMES), metavar="A,B")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    jobs = planned(arguments.tasks, arguments.schemes, arguments.seeds)
    if failed := train_all(jobs, arguments.output, arguments.jobs):
        sys.exit(f"{len(failed)} of {len(jobs)} trainings failed")


if __name__ == "__main__":
    main()
