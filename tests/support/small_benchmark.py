"""A task of the benchmark that takes a moment: the small run of the tests, its settings in a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tasks.catalogue import Task

from cutlayer.edge_agent.batches import Batch, Dataset
from cutlayer.edge_agent.partition import Shard
from support.small_run import AUDIO, IMAGE, small_dataset

__all__ = ["Watched", "small_task"]

_RUN = """
[run]
epochs = 2
microbatch_samples = 8

[model]
name = "vit_tiny_patch16_224"
options = {{ img_size = 4, patch_size = 2, in_chans = 1, embed_dim = 16, depth = 2, num_heads = 2 }}
{model}

[modalities.audio]
kind = "audio"
sample_rate_hz = {audio.sample_rate_hz}
num_frames = {audio.num_frames}
hop_samples = {audio.hop_samples}
fft_samples = {audio.fft_samples}
num_mels = {audio.num_mels}
patch = {audio.patch}

[modalities.image]
kind = "image"
height = {image.height}
width = {image.width}
channels = 1
patch = {image.patch}

[task]
{task}

[window]
samples = 16

[optimizer]
lr = 3e-3
"""


@dataclass
class Watched:
    """A data set that tells which splits were read."""

    inner: Dataset
    read: set[str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batch(self, split: Any, indices: Any) -> Batch:
        self.read.add(split)
        return self.inner.batch(split, indices)


def small_task(
    folder: Path,
    *,
    task: str = 'classes = ["no", "perhaps", "yes"]',
    model: str = "",
    metric: str = "accuracy",
    opened: Callable[[Shard, int, float | None], Dataset] | None = None,
) -> Task:
    """Return a task, and write its run settings into a folder."""
    path = folder / "small.toml"
    path.write_text(_RUN.format(audio=AUDIO, image=IMAGE, task=task, model=model))

    def open_(shard: Shard, seed: int, alpha: float | None) -> Dataset:
        del alpha
        return small_dataset(10 * seed + shard.index, num_train=40 if shard.count > 1 else 160, num_test=40)

    return Task(
        name="small",
        title="Small",
        family="made up",
        source="a random number generator",
        licence="none",
        run=path,
        open=opened or open_,
        skew="class",
        metric=metric,
    )
