"""Sites that share no modality: whether each learns more together with the other than by itself.

Two sites have a modality each, of samples that they do not share. Together they train over the broker; alone each does
the same, with as many steps and as many samples of its own in each. All that a site can gain comes through what both
train: the encoder's blocks, its norm, and the head.

It depends on the learning rate, since a small site overfits, and the other one's samples act against that. So each is
trained with several, and all are told: the best of a site alone is what together has to beat. Nobody knows the best
beforehand; so it is also told what each reaches with the rate that validation samples of its own choose: a third of a
site's training samples, and together those of both sites.

A model that both trained can be given both modalities, too, of people of whom both are known: each goes through the
encoder by itself, and what comes out is combined (late fusion). It has never seen two of one sample. Beside it stands
what the two models alone say on the mean, which takes that the sites give each other their models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.federated import Choice
from benchmarks.site_training import Trainer, mean_sums
from benchmarks.task_sites import held, make_site, only
from benchmarks.tasks.catalogue import Task

from cutlayer.broker.task_metrics import metric_values
from cutlayer.edge_agent.array_dataset import ArrayDataset
from cutlayer.edge_agent.partition import Shard
from cutlayer.server_worker.model_builder import build
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.run_parts import make_manifest
from cutlayer.server_worker.settings import RunSettings

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
    "motions": Disjoint(shards=4, epochs=12),
    "vitals": Disjoint(shards=3, epochs=20, rates=(0.1, 0.3, 1.0), seeds=20),
}
"""By task: those whose modalities, each by itself, say something of the same labels."""


def given_both(settings: RunSettings, states: Sequence[EngineState], task: Task, seed: int) -> float:
    """Return the metric over all test samples, given both modalities.

    Args:
        settings: Those that the sites trained with.
        states: The weights of the model of both, or those of each site's own, in the order of `disjoint_sites`.
        task: The task.
        seed: The run's.
    """
    whole = held(task.open(Shard(), seed, None))
    names = sorted(whole.modalities)[:NUM_SITES]
    models = []
    for place, state in enumerate(states):
        built = build(settings, seed)
        manifest, tokenizer_file = make_manifest(settings, built, run_id="tasks"), built.tokenizer_file
        trainer = Trainer(settings, built)
        trainer.load(state)
        models.append((trainer, tuple(names) if len(states) == 1 else (names[place],)))
    site = make_site(manifest, tokenizer_file, only(whole, names), "both")
    return metric_values(settings.task, mean_sums(models, site))[task.metric]


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
