"""What is compared on each task, and how one training of each kind is made: a row of results.

cutlayer                   worker and agents over a broker, the run's own codecs, asynchronous
cutlayer-agent-negatives   the same with the paper's negatives: those of a microbatch (retrieval)
centralized                all samples in one place
fedavg                     federated averaging
local                      a model a site
disjoint-together          two sites of one modality each, over the broker
disjoint-alone             each of the two by itself, the same way
disjoint-...-tuning        either, with validation samples for test samples

The learning rate is tuned on validation samples: federated averaging's by `fedavg-tuning`, together with its local
epochs and for each partition, that of all others by `centralized-tuning`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarks.federated import LEARNING_RATE_FACTORS, Choice, grid, num_bytes, train_federated, with_rate
from benchmarks.site_training import train_alone, train_each_alone
from benchmarks.task_disjoint import DISJOINT, disjoint_sites, given_both
from benchmarks.task_flops import VIT_B16, vit_b16, work_of
from benchmarks.task_sites import NUM_SITES, Site, held, make_site, sites_of, topic_of, with_validation
from benchmarks.tasks.catalogue import TASKS, Task

from benchmarks import task_disjoint, task_network
from cutlayer.broker.task_metrics import Metric, metric_values, metrics_of, pooled
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.model_builder import BuiltModel, build
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import RunSettings, load_run_settings

Row = dict[str, Any]
VERSION = 2
"""Of how trainings are made: results of another one do not count."""
RETRIEVAL_MICROBATCH = 4
"""Samples: what the paper's sites had at 100 of them."""
RATE_SCHEMES = ("centralized", "cutlayer", "cutlayer-agent-negatives", "local")
"""Schemes that take the learning rate with which training in one place does best on validation samples."""
_NETWORKED: Mapping[str, object] = {
    "run.absence_grace_s": 3_600.0,
    "worker.lease_s": 3_600.0,
    "window.mode": "asynchronous",
    "evaluation.every_epochs": 0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One training.

    Attributes:
        task: Its name.
        scheme: What is trained.
        partition: `iid`, `dirichlet-0.5`, `pooled`, `disjoint`; `-` where nothing is trained.
        seed: Of data, weights and order.
        choice: What it is tried with, or has been tuned to.
    """

    task: str
    scheme: str
    partition: str
    seed: int
    choice: Choice | None = None

    @property
    def title(self) -> str:
        """For progress."""
        choice, tried = self.choice, ""
        if choice is not None:
            epochs = f", {choice.local_epochs} epochs" if self.scheme.startswith("fedavg") else ""
            tried = f" lr x {choice.factor:g}{epochs}"
        return f"{self.task} {self.partition} seed {self.seed} {self.scheme}{tried}"


def settings_of(task: Task, seed: int, overrides: Mapping[str, object] | None = None) -> RunSettings:
    """Load a task's run settings."""
    return load_run_settings(task.run, {"run.seed": seed, **(overrides or {})})


@functools.cache
def digest_of(task: Task) -> str:
    """Return what names a task's settings: results of other settings do not count."""
    # Where files lie is no part of what is trained.
    settings = settings_of(task, 0).model_dump_json(exclude={"model": {"weights"}, "activations": {"store"}})
    text = f"{VERSION} {settings}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def metric_of(task: Task, settings: RunSettings) -> Metric:
    """Return a task's headline metric."""
    return next(metric for metric in metrics_of(settings.task) if metric.name == task.metric)


def schemes_of(task: Task) -> tuple[str, ...]:
    """Return what is compared on a task under each partition, but for what needs none."""
    is_retrieval = isinstance(settings_of(task, 0).task, RetrievalSpec)
    negatives = ("cutlayer-agent-negatives",) if is_retrieval else ()
    return ("cutlayer", *negatives, "fedavg", "local")


def tuning_of(job: Job) -> tuple[str, str] | None:
    """Return the scheme and the partition that a job's choice comes from; None where it has none."""
    if job.scheme == "fedavg":
        return "fedavg-tuning", job.partition
    return ("centralized-tuning", "pooled") if job.scheme in RATE_SCHEMES else None


def choices_of(task: Task, scheme: str) -> list[Choice]:
    """Return what is tried by a scheme that tunes."""
    if scheme == "fedavg-tuning":
        return grid(settings_of(task, 0).run.epochs)
    return [Choice(factor, 1) for factor in LEARNING_RATE_FACTORS]


def batch_samples(settings: RunSettings) -> int:
    """Return what a federated or lonely site trains with at once: a microbatch, and a window where it is negatives."""
    return settings.window.samples if isinstance(settings.task, RetrievalSpec) else settings.run.microbatch_samples


def run(job: Job) -> Row:
    """Make one training and return its row."""
    torch.set_num_threads(1)
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    identity: Row = {"task": job.task, "scheme": job.scheme, "partition": job.partition, "seed": job.seed}
    if job.choice is not None:
        identity["choice"] = dataclasses.asdict(job.choice)
    if job.task == VIT_B16:
        return {**identity, "digest": str(VERSION), "work": work_of(vit_b16()).as_row()}
    task = TASKS[job.task]
    found = _RUNS[job.scheme](task, job)
    settings = settings_of(task, job.seed)
    return {
        **identity,
        "digest": digest_of(task),
        "title": task.title,
        "metric": dataclasses.asdict(metric_of(task, settings)),
        "epochs": settings.run.epochs,
        **found,
        "seconds": round(time.perf_counter() - started_s, 1),
        "process_s": round(time.process_time() - cpu_started_s, 1),
    }


def _flops(task: Task, job: Job) -> Row:
    return {"work": work_of(settings_of(task, job.seed)).as_row()}


def _sites(settings: RunSettings, data: Sequence[ArrayDataset]) -> tuple[BuiltModel, list[Site]]:
    """Build a run's model, and sites that train by themselves."""
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built, run_id="tasks")
    size = batch_samples(settings)
    sites = [
        make_site(manifest, built.tokenizer_file, each, topic_of(index), batch_samples=size)
        for index, each in enumerate(data)
    ]
    return built, sites


def _with_choice(task: Task, job: Job) -> RunSettings:
    """Load a task's run settings with a job's learning rate."""
    assert job.choice is not None
    return with_rate(settings_of(task, job.seed), job.choice.factor)


def _centralized(task: Task, job: Job) -> Row:
    settings = _with_choice(task, job)
    built = build(settings, job.seed)
    manifest = make_manifest(settings, built, run_id="tasks")
    whole = held(task.open(Shard(), job.seed, None))
    site = make_site(manifest, built.tokenizer_file, whole, "pooled", batch_samples=settings.window.samples)
    trainer = train_alone(settings, built, site)
    # On the sites' test samples, as all others: in retrieval it matters among how many one is found.
    tests = [
        make_site(manifest, built.tokenizer_file, data, topic_of(index))
        for index, data in enumerate(sites_of(task, "iid", job.seed))
    ]
    return {"value": trainer.evaluate(tests)[task.metric], "num_train": site.plan.num_train}


def _federated(task: Task, job: Job) -> Row:
    assert job.choice is not None
    settings = settings_of(task, job.seed)
    built, sites = _sites(settings, sites_of(task, job.partition, job.seed))
    trainer = train_federated(settings, built, sites, job.choice)
    rounds = settings.run.epochs // job.choice.local_epochs
    moved = num_bytes(built.num_trained_parameters, len(sites), rounds)
    return {
        "value": trainer.evaluate(sites)[task.metric],
        "up_bytes": moved // 2,
        "down_bytes": moved // 2,
        "cpu_s": round(trainer.cpu_s, 2),
        "num_train": sum(site.plan.num_train for site in sites),
    }


def tuning_sites(task: Task, partition: str, seed: int) -> list[ArrayDataset]:
    """Return the sites' training samples, a tenth of each for validation; test samples are not among them."""
    return [with_validation(data) for data in sites_of(task, partition, seed)]


def _centralized_tuning(task: Task, job: Job) -> Row:
    settings = _with_choice(task, job)
    built = build(settings, job.seed)
    manifest = make_manifest(settings, built, run_id="tasks")
    whole = with_validation(held(task.open(Shard(), job.seed, None)))
    site = make_site(manifest, built.tokenizer_file, whole, "pooled", batch_samples=settings.window.samples)
    trainer = train_alone(settings, built, site)
    try:
        value = trainer.evaluate([site]).get(task.metric)
    except FloatingPointError:
        value = None
    return {"value": value, "num_train": site.plan.num_train}


def _tuning(task: Task, job: Job) -> Row:
    assert job.choice is not None
    settings = settings_of(task, job.seed)
    built, sites = _sites(settings, tuning_sites(task, job.partition, job.seed))
    trainer = train_federated(settings, built, sites, job.choice)
    try:
        value = trainer.evaluate(sites).get(task.metric)
    except FloatingPointError:
        value = None
    return {"value": value, "num_train": sum(site.plan.num_train for site in sites)}


def _local(task: Task, job: Job) -> Row:
    settings = _with_choice(task, job)
    built, sites = _sites(settings, sites_of(task, job.partition, job.seed))
    values, cpu_s = train_each_alone(settings, built, sites, task.metric)
    return {
        "value": sum(values) / len(values),
        "by_site": values,
        "up_bytes": 0,
        "down_bytes": 0,
        "cpu_s": round(cpu_s, 2),
        "num_train": sum(site.plan.num_train for site in sites),
    }


def _networked_settings(task: Task, seed: int, num_sites: int, more: Mapping[str, object]) -> RunSettings:
    settings = settings_of(task, seed)
    changes = {**_NETWORKED, "run.min_agents": num_sites, **more}
    if isinstance(settings.task, RetrievalSpec):
        changes["run.microbatch_samples"] = RETRIEVAL_MICROBATCH
        # As many under way as fill a window: with fewer windows would close for want of samples.
        changes["worker.credits"] = -(-settings.window.samples // (num_sites * RETRIEVAL_MICROBATCH))
    return settings_of(task, seed, changes)


def _cutlayer(task: Task, job: Job) -> Row:
    # One microbatch under way a site: with two, as by default, half of what a step is taken on is of older weights.
    more: dict[str, object] = {"worker.credits": 1}
    if job.scheme == "cutlayer-agent-negatives":
        more["task.negatives"] = "agent"
    assert job.choice is not None
    settings = with_rate(_networked_settings(task, job.seed, NUM_SITES, more), job.choice.factor)
    return _networked(task, settings, sites_of(task, job.partition, job.seed))


def _networked(task: Task, settings: RunSettings, sites: Sequence[ArrayDataset]) -> Row:
    return _networked_row(task, settings, task_network.train(settings, build(settings, settings.run.seed), sites))


def _networked_row(task: Task, settings: RunSettings, trained: task_network.Trained) -> Row:
    by_site = [metric_values(settings.task, sums).get(task.metric) for sums in trained.sums]
    return {
        "value": metric_values(settings.task, pooled(trained.sums))[task.metric],
        "by_site": by_site,
        "up_bytes": trained.up_bytes,
        "down_bytes": trained.down_bytes,
        "total_bytes": trained.total_bytes,
        "cpu_s": round(trained.cpu_s, 2),
        "num_train": trained.num_train,
    }


def _disjoint(task: Task, job: Job) -> Row:
    """Train sites of one modality each, all at once or one by one."""
    assert job.choice is not None
    how = DISJOINT[task.name]
    data = disjoint_sites(task, job.seed, how.shards)
    if job.scheme in task_disjoint.TUNING:
        share = task_disjoint.VALIDATION_SHARE
        data = {name: with_validation(each, job.seed, share) for name, each in data.items()}
    num_together = len(data) if job.scheme.startswith("disjoint-together") else 1
    # As many steps alone as together, with as many samples of one's own in each.
    window = settings_of(task, job.seed).window.samples * num_together // len(data)
    more = {"run.epochs": how.epochs, "window.samples": window, "model.fusion": "late"}
    settings = with_rate(_networked_settings(task, job.seed, num_together, more), job.choice.factor)
    sites = list(data.values())
    trained = [
        task_network.train(settings, build(settings, job.seed), sites[first : first + num_together])
        for first in range(0, len(sites), num_together)
    ]
    rows = [_networked_row(task, settings, each) for each in trained]
    both = (
        {}
        if job.scheme in task_disjoint.TUNING
        else {"given_both": given_both(settings, [each.state for each in trained], task, job.seed)}
    )
    values = [value for row in rows for value in row["by_site"]]
    costs = ("up_bytes", "down_bytes", "total_bytes", "cpu_s", "num_train")
    return {
        **{cost: sum(row[cost] for row in rows) for cost in costs},
        "value": sum(values) / len(values),
        "pooled": [row["value"] for row in rows],
        "by_site": values,
        "given": list(data),
        **both,
        "epochs": how.epochs,
    }


_RUNS: Mapping[str, Callable[[Task, Job], Row]] = {
    "flops": _flops,
    "centralized-tuning": _centralized_tuning,
    "fedavg-tuning": _tuning,
    "cutlayer": _cutlayer,
    "cutlayer-agent-negatives": _cutlayer,
    "centralized": _centralized,
    "fedavg": _federated,
    "local": _local,
    **dict.fromkeys((*task_disjoint.SCHEMES, *task_disjoint.TUNING), _disjoint),
}
SCHEMES = tuple(_RUNS)


def key_of(row: Row) -> str:
    """Return what a row is the result of."""
    parts = [row[name] for name in ("task", "scheme", "partition", "seed", "digest")]
    has_tries = row["scheme"].endswith("-tuning") or row["scheme"] in task_disjoint.SCHEMES
    return json.dumps([*parts, row.get("choice") if has_tries else None])
