"""The sites of a comparison: their data, read once, and what of them is for training, validation and testing.

Data are held in memory, so that reading or making them is nobody's cost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from benchmarks.tasks.catalogue import Task

from cutlayer.broker.manifest import Manifest
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.batches import SPLITS, Batch, Dataset
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.partition import Shard

NUM_SITES = 4
PARTITIONS: Mapping[str, float | None] = {"iid": None, "dirichlet-0.5": 0.5}
"""Concentration of the Dirichlet partition, by name; None for IID."""
VALIDATION_SHARE = 0.1
_NEIGHBOURS = 8
"""Samples that stand together go to one side of a validation split: they may be views of one thing."""


@dataclass(frozen=True, slots=True)
class Site:
    """One site.

    Attributes:
        topic: Its agent's topic.
        client: Its data, tokenizers and loss.
        plan: Which samples a step has.
    """

    topic: str
    client: ClientSide
    plan: EpochPlan


def held(data: Dataset) -> ArrayDataset:
    """Read a whole data set into memory."""
    splits = {split: data.batch(split, np.arange(data.num_samples(split))) for split in SPLITS}
    return ArrayDataset(data.name, data.classes, data.modalities, splits)


def sites_of(task: Task, partition: str, seed: int) -> list[ArrayDataset]:
    """Return the data of each site under a partition of `PARTITIONS`."""
    alpha = PARTITIONS[partition]
    return [held(task.open(Shard(index, NUM_SITES), seed, alpha)) for index in range(NUM_SITES)]


def with_validation(data: ArrayDataset, seed: int = 0, share: float = VALIDATION_SHARE) -> ArrayDataset:
    """Return a site's training samples alone: a share of them, for validation, stands where the test samples were."""
    num_samples = data.num_samples("train")
    size = max(1, min(_NEIGHBOURS, num_samples // 20))
    blocks_B = np.arange(num_samples) // size
    num_blocks = int(blocks_B[-1]) + 1
    chosen = np.random.default_rng(seed).permutation(num_blocks)[: max(1, round(share * num_blocks))]
    is_chosen_B = np.isin(blocks_B, chosen)
    splits = {
        "train": data.batch("train", np.flatnonzero(~is_chosen_B)),
        "test": data.batch("train", np.flatnonzero(is_chosen_B)),
    }
    return ArrayDataset(f"{data.name}, training samples", data.classes, data.modalities, splits)  # type: ignore[arg-type]


def only(data: ArrayDataset, names: Collection[str]) -> ArrayDataset:
    """Return the data with some of their modalities."""
    splits = {
        split: Batch(
            {name: values for name, values in batch.inputs.items() if name in names},
            batch.targets,
            {name: present_B for name, present_B in batch.present.items() if name in names},
        )
        for split, batch in data.splits.items()
    }
    modalities = {name: spec for name, spec in data.modalities.items() if name in names}
    return ArrayDataset(data.name, data.classes, modalities, splits)


def make_site(
    manifest: Manifest, tokenizer_file: bytes, data: ArrayDataset, topic: str, *, batch_samples: int | None = None
) -> Site:
    """Make a site of a run.

    Args:
        manifest: The run.
        tokenizer_file: Its client-side weights.
        data: The site's samples.
        topic: Its agent's topic.
        batch_samples: Samples of a step; the run's microbatch when left out.
    """
    plan = EpochPlan(
        manifest.seed,
        topic,
        manifest.epochs,
        data.num_samples("train"),
        data.num_samples("test"),
        batch_samples or manifest.microbatch_samples,
    )
    return Site(topic, ClientSide(manifest, tokenizer_file, data), plan)


def topic_of(index: int) -> str:
    """Return the topic of a site's agent."""
    return f"site/{index}"
