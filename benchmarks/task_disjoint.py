"""Sites that share no modality: whether each learns more together with the other than by itself.

Two sites have a modality each, of samples that they do not share. Together they train over the broker; alone each does
the same, with as many steps and as many samples of its own in each. All that a site can gain comes through what both
train: the encoder's blocks, its norm, and the head.

It depends on the learning rate, since a small site overfits, and the other one's samples act against that. So each is
trained with several, and all are told: the best of a site alone is what together has to beat. Nobody knows the best
beforehand; so it is also told what each reaches with the rate that validation samples of its own choose: a third of a
site's training samples, and together those of both sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.federated import Choice
from benchmarks.task_sites import held, only
from benchmarks.tasks.catalogue import Task

from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.partition import Shard

PARTITION = "disjoint"
SCHEMES = ("disjoint-together", "disjoint-alone")
TUNING = tuple(f"{scheme}-tuning" for scheme in SCHEMES)
"""The same trainings with some of the training samples to be tested on, not trained on: by seed and learning rate."""
VALIDATION_SHARE = 0.35
"""More than other sites hold back, which have more samples: an agent tells no sums over fewer than 32."""
NUM_SITES = 2


@dataclass(frozen=True, slots=True)
class Disjoint:
    """How a task is divided over two sites, and trained on.

    Attributes:
        shards: Each site has the training samples of one of so many parts: where a site has enough, nobody has to help.
        epochs: Of each training: few samples take many.
        rates: Learning rates, as factors on the run's.
        seeds: Least number of seeds, whatever is asked for: where the metric is noisy, three say nothing.
    """

    shards: int
    epochs: int
    rates: tuple[float, ...] = (1.0,)
    seeds: int = 1

    @property
    def choices(self) -> list[Choice]:
        """The learning rates, as a job has them."""
        return [Choice(rate, 1) for rate in self.rates]


DISJOINT: Mapping[str, Disjoint] = {
    "digits": Disjoint(shards=16, epochs=40),
    "vitals": Disjoint(shards=3, epochs=20, rates=(0.1, 0.3, 1.0), seeds=20),
}
"""By task: those whose modalities, each by itself, say something of the same labels."""


def disjoint_sites(task: Task, seed: int, shards: int) -> dict[str, ArrayDataset]:
    """Return a site a modality: with training samples of its own, tested on all test samples, given that modality.

    Args:
        task: Its first two modalities by name are taken.
        seed: The run's.
        shards: Parts that the training samples are divided into; a site has one.
    """
    whole = held(task.open(Shard(), seed, None))
    sites = {}
    for index, name in enumerate(sorted(whole.modalities)[:NUM_SITES]):
        own = only(held(task.open(Shard(index, shards), seed, None)), [name])
        tested = only(whole, [name]).splits["test"]
        sites[name] = ArrayDataset(own.name, own.classes, own.modalities, {**own.splits, "test": tested})
    return sites
