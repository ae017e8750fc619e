"""The reference that needs all data in one place: the same model, epochs and batch, trained on the pooled samples.

Prints the task's metric on the pooled test samples, given all modalities (`joint`) and given each alone, as JSON.
"""

from __future__ import annotations

import argparse
import json

import torch
from benchmarks.site_training import train_alone
from benchmarks.task_sites import held, make_site
from benchmarks.tasks.catalogue import TASKS, Task

from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.run_parts import make_manifest, num_threads
from cutlayer.server_worker.settings import RunSettings, load_run_settings


def train(task: Task, settings: RunSettings, names: tuple[str, ...]) -> dict[str, float]:
    """Train on the pooled samples given some modalities; return the test metric given these, and given each alone.

    Args:
        task: Whose data and metric.
        settings: The run; a window is a batch.
        names: The modalities.
    """
    built = build(settings, settings.run.seed)
    manifest = make_manifest(settings, built)
    whole = held(task.open(Shard(), settings.run.seed, None))
    site = make_site(manifest, built.tokenizer_file, whole, "pooled", batch_samples=settings.window.samples)
    trainer = train_alone(settings, built, site, names)
    choices = {"joint": names}
    if len(names) > 1 and not isinstance(settings.task, RetrievalSpec):
        choices |= {name: (name,) for name in names}
    return {given: trainer.evaluate([site], chosen)[task.metric] for given, chosen in choices.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--modality", default=None, help="train on this modality only")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for one less than cores, as a worker")
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    settings = load_run_settings(task.run, {"run.seed": arguments.seed, "run.epochs": arguments.epochs})
    torch.set_num_threads(arguments.threads or num_threads(settings))
    names = (arguments.modality,) if arguments.modality else tuple(sorted(settings.modalities))
    print(json.dumps(train(task, settings, names)))


if __name__ == "__main__":
    main()
