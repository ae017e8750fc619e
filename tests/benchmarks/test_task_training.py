"""Trainings of a small task, the order in which they come, and what is not made twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.federated import Choice, grid
from benchmarks.task_disjoint import DISJOINT, SCHEMES, TUNING, Disjoint, disjoint_sites
from benchmarks.task_schemes import Job, Row, key_of, run
from benchmarks.task_sites import held
from benchmarks.task_training import job_key, planned, read_rows, seconds_left, tuned
from benchmarks.tasks.catalogue import TASKS, Task

from benchmarks import task_disjoint, task_schemes, task_training
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.partition import Shard
from support.small_benchmark import small_task
from support.small_run import small_dataset

UNTUNED = Choice(1.0, 1)
RETRIEVAL = 'kind = "retrieval"\nbetween = ["audio", "image"]\ndimensions = 8'
LATE = 'fusion = "late"'


def use(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, task.name, task)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    task = small_task(tmp_path)
    use(task, monkeypatch)
    return task


@pytest.mark.parametrize(
    "scheme", ["cutlayer", "centralized", "centralized-tuning", "fedavg", "fedavg-tuning", "local"]
)
def test_each_scheme_trains_and_tells_its_metric_and_costs(small: Task, scheme: str) -> None:
    row = json.loads(json.dumps(run(Job(small.name, scheme, "iid", 0, UNTUNED))))
    assert 0.0 <= row["value"] <= 1.0
    assert row["metric"]["name"] == "accuracy"
    assert row["num_train"] == (144 if scheme.endswith("-tuning") else 160)
    if scheme == "cutlayer":
        assert 0 < row["up_bytes"] + row["down_bytes"] < row["total_bytes"]
        assert row["cpu_s"] > 0
        assert row["value"] == pytest.approx(sum(row["by_site"]) / 4)  # sites have as many test samples
    if scheme == "fedavg":
        work = run(Job(small.name, "flops", "-", 0))["work"]
        assert row["up_bytes"] + row["down_bytes"] == 2 * 4 * work["num_parameters"] * 4 * 2


def test_the_same_seed_gives_the_same_training(small: Task) -> None:
    rows = [run(Job(small.name, "cutlayer", "iid", 1, UNTUNED)) for _ in range(2)]
    for name in ("value", "by_site", "up_bytes", "down_bytes", "total_bytes"):
        assert rows[0][name] == rows[1][name]


def test_sites_with_a_modality_each_train_together_and_alone(small: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISJOINT, small.name, Disjoint(shards=2, epochs=3, rates=(0.3, 1.0)))
    monkeypatch.setattr(task_disjoint, "VALIDATION_SHARE", 0.8)  # of 40 samples fewer are too few to be told of
    jobs = planned([small.name], [*SCHEMES, *TUNING], 1)
    assert [(job.scheme, job.choice) for job in jobs] == [
        (scheme, Choice(rate, 1)) for rate in (0.3, 1.0) for scheme in (*SCHEMES, *TUNING)
    ]
    rows = [json.loads(json.dumps(run(job))) for job in jobs]
    for job, row in zip(jobs, rows, strict=True):
        assert row["given"] == ["audio", "image"]
        assert len(row["by_site"]) == 2
        assert len(row["pooled"]) == (1 if "together" in job.scheme else 2)
        assert row["num_train"] == (16 if job.scheme in TUNING else 80), "some are held back to choose a rate by"
        assert row["epochs"] == 3
        assert ("given_both" in row) == (job.scheme in SCHEMES), "what validates is not tested"
        assert 0.0 <= row.get("given_both", 0.0) <= 1.0
        assert key_of(row) == job_key(job)
    assert len({job_key(job) for job in jobs}) == 8, "each learning rate is a training of its own"
    assert len({tuple(row["by_site"]) for row in rows}) > 1


def test_sites_with_a_modality_each_have_training_samples_of_their_own_and_all_for_testing() -> None:
    sites = disjoint_sites(TASKS["vitals"], 0, 4)
    assert [list(site.modalities) for site in sites.values()] == [["blood"], ["examination"]]
    whole = held(TASKS["vitals"].open(Shard(), 0, None))
    for place, (name, site) in enumerate(sites.items()):
        assert site.num_samples("test") == whole.num_samples("test")
        np.testing.assert_array_equal(site.splits["test"].inputs[name], whole.splits["test"].inputs[name])
        own = held(TASKS["vitals"].open(Shard(place, 4), 0, None)).splits["train"]
        np.testing.assert_array_equal(site.splits["train"].inputs[name], own.inputs[name])


def test_where_the_metric_is_noisy_more_seeds_are_trained() -> None:
    jobs = planned(["motions", "vitals"], SCHEMES, 1)
    seeds = {task: {job.seed for job in jobs if job.task == task} for task in ("motions", "vitals")}
    assert seeds == {task: set(range(DISJOINT[task].seeds)) for task in seeds}
    assert len(jobs) == len(set(jobs))


def test_retrieval_is_trained_with_either_negatives_in_small_microbatches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_(shard: Shard, seed: int, alpha: float | None) -> ArrayDataset:
        del alpha
        return replace(small_dataset(10 * seed + shard.index, num_train=40), classes=())

    use(small_task(tmp_path, task=RETRIEVAL, model=LATE, metric="recall_1", opened=open_), monkeypatch)
    schemes = task_schemes.schemes_of(TASKS["small"])
    assert schemes == ("cutlayer", "cutlayer-agent-negatives", "fedavg", "local")
    rows = [run(Job("small", scheme, "iid", 0, UNTUNED)) for scheme in schemes[:2]]
    rows.append(run(Job("small", "fedavg", "iid", 0, Choice(1.0, 2))))
    rows.append(run(Job("small", "centralized", "pooled", 0, UNTUNED)))
    assert all(0.0 <= row["value"] <= 1.0 for row in rows)
    # Embeddings come down with the paper's negatives, and a loss a sample with the window's.
    assert rows[0]["down_bytes"] < rows[1]["down_bytes"]


def test_a_seed_is_finished_before_the_next_begins() -> None:
    jobs = planned(["digits"], task_schemes.SCHEMES, 2)
    first = [job for job in jobs if job.seed == 0]
    assert jobs[: len(first)] == first
    iid = [job.scheme for job in first if job.partition == "iid"]
    assert iid == ["fedavg-tuning"] * 6 + ["cutlayer", "fedavg", "local"]
    place = [job.partition for job in first].index("dirichlet-0.5")
    assert {"cutlayer", "centralized", "fedavg", "local"} <= {job.scheme for job in first[:place]}
    assert [job.scheme for job in planned(["digits"], ["local"], 1)] == ["centralized-tuning"] * 3 + ["local"] * 2


def test_tuning_has_one_seed_for_each_partition() -> None:
    jobs = planned(["digits"], ["fedavg-tuning"], 3)
    assert len(jobs) == 2 * len(grid(10))
    assert {job.seed for job in jobs} == {0}


def test_federated_averaging_waits_for_the_whole_grid_and_takes_its_best(small: Task) -> None:
    job = Job(small.name, "fedavg", "iid", 2)
    rows: list[Row] = []
    for place, choice in enumerate(grid(2)):
        assert tuned(job, rows) is None
        own = Job(small.name, "fedavg-tuning", "iid", 0, choice)
        rows.append({**_row(own), "value": 0.5 + (0.1 if place == 2 else 0.0)})
    found = tuned(job, rows)
    assert found is not None
    assert (found.choice, found.seed) == (grid(2)[2], 2)
    others = [{**row, "partition": "dirichlet-0.5", "value": 0.9} for row in rows[:1]]
    assert tuned(job, [*rows, *others]) == found


def test_all_others_wait_for_the_learning_rate_that_is_best_in_one_place(small: Task) -> None:
    job = Job(small.name, "cutlayer", "iid", 1)
    choices = task_schemes.choices_of(small, "centralized-tuning")
    tried = [Job(small.name, "centralized-tuning", "pooled", 0, choice) for choice in choices]
    rows = [{**_row(each), "value": each.choice.factor if each.choice else None} for each in tried]
    assert tuned(job, rows[:2]) is None
    assert tuned(job, rows) == replace(job, choice=Choice(3.0, 1))


def _row(job: Job) -> Row:
    choice = {} if job.choice is None else {"factor": job.choice.factor, "local_epochs": job.choice.local_epochs}
    base = {name: getattr(job, name) for name in ("task", "scheme", "partition", "seed")}
    return {**base, "digest": task_training.digest(job), "choice": choice}


def test_a_row_has_the_key_of_its_job(small: Task) -> None:
    jobs = [Job(small.name, "fedavg-tuning", "iid", 0, choice) for choice in grid(2)]
    jobs += [Job(small.name, "flops", "-", 0), Job(small.name, "cutlayer", "iid", 0, UNTUNED)]
    keys = [job_key(job) for job in jobs]
    assert len(set(keys)) == len(jobs)
    row = json.loads(json.dumps(run(jobs[-2])))
    assert key_of(row) == keys[-2]
    assert [key_of(_row(job)) for job in jobs] == keys


def test_other_settings_are_another_training(small: Task, tmp_path: Path) -> None:
    before = job_key(Job(small.name, "local", "iid", 0))
    task_schemes.digest_of.cache_clear()
    small.run.write_text(small.run.read_text().replace("lr = 3e-3", "lr = 1e-3"))
    assert job_key(Job(small.name, "local", "iid", 0)) != before
    assert read_rows(tmp_path / "none.jsonl") == []


@pytest.mark.slow
def test_what_is_there_is_not_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own, as the program does it."""
    path = tmp_path / "results" / "tasks.jsonl"
    jobs = [Job("digits", "flops", "-", 0)]
    assert task_training.train_all(jobs, path, 1) == []
    first = path.read_text()
    assert task_training.train_all(jobs, path, 1) == []
    assert path.read_text() == first
    assert "1 of 1 trainings are there" in capsys.readouterr().out
    lost = [Job("digits", "fedavg", "iid", 0)]
    assert task_training.train_all(lost, path, 1) == lost, "its tuning is not there and not asked for"


def test_time_left_goes_by_what_such_trainings_took() -> None:
    rows: list[Row] = [
        {"task": "digits", "scheme": "local", "seconds": 60.0},
        {"task": "digits", "scheme": "cutlayer", "seconds": 120.0},
    ]
    jobs = [Job("digits", "local", "iid", 1), Job("digits", "cutlayer", "iid", 1), Job("digits", "fedavg", "iid", 1)]
    assert seconds_left(jobs, rows, 2) == (60 + 120 + 90) / 2
    assert seconds_left(jobs, [], 2) is None
