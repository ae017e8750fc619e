"""Training in one process, with no broker and no codec: the same client side, engine, order of samples and schedule.

What trains centrally, alone at a site, or as a client of federated averaging, is this.

Axes: B samples, C outputs.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from benchmarks.task_sites import Site
from numpy.typing import NDArray

from cutlayer.broker.messages import MetricSums
from cutlayer.broker.task_metrics import metric_values, pooled
from cutlayer.edge_agent.client_side import Tokenized
from cutlayer.edge_agent.losses import task_from_spec
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.edge_agent.work_items import EvaluationRun
from cutlayer.server_worker.model_builder import BuiltModel
from cutlayer.server_worker.parameters import EngineState
from cutlayer.server_worker.passes import ForwardItem
from cutlayer.server_worker.run_parts import make_engine
from cutlayer.server_worker.settings import RunSettings


class Trainer:
    """One copy of a run's model, trained on batches of one site at a time.

    Args:
        settings: The run.
        built: Its model, taken over.

    Attributes:
        loss: Its task's.
        cpu_s: Processor seconds of training so far, all threads.
    """

    def __init__(self, settings: RunSettings, built: BuiltModel) -> None:
        self._task = settings.task
        self.loss = task_from_spec(settings.task)
        self._engine = make_engine(settings, built)
        self.cpu_s = 0.0

    @property
    def state(self) -> EngineState:
        """A snapshot of weights and optimizer."""
        return self._engine.state_dict()

    def load(self, state: EngineState) -> None:
        """Continue from a snapshot."""
        self._engine.load_state_dict(state)

    def digest(self) -> str:
        """Return the SHA-256 of the weights."""
        return self._engine.parameters_digest()

    def train(self, site: Site, epochs: range, given: tuple[str, ...] | None = None) -> None:
        """Train on a site's samples: an optimizer step a batch.

        Args:
            site: The site.
            epochs: Which of its epochs; the learning rate goes by its place among all of them.
            given: Modalities; all that the site has when left out.
        """
        started_s = time.process_time()
        plan = site.plan
        for step in range(epochs.start * plan.steps_per_epoch, epochs.stop * plan.steps_per_epoch):
            self._step(site, step, given or site.client.modalities)
        self.cpu_s += time.process_time() - started_s

    def _step(self, site: Site, step: int, given: tuple[str, ...]) -> None:
        plan = site.plan
        epoch, place = divmod(step, plan.steps_per_epoch)
        done = epoch * plan.num_train + min((place + 1) * plan.microbatch_samples, plan.num_train)
        batch = site.client.tokenize("train", plan.train_indices(step), given)
        key = (site.topic, "train", step)
        forwarded = self._engine.forward([ForwardItem(key, "train", dict(batch.tokens), dict(batch.positions))])
        if forwarded.group_id is None:
            return  # not finite: without effect, as at a worker
        gradient_BC = self.loss.loss_and_gradient(forwarded.outputs[key], batch.targets).gradient_BC
        self._engine.backward(forwarded.group_id, {key: gradient_BC}, last=True)
        self._engine.commit(len(batch.targets), done / (plan.epochs * plan.num_train))

    def evaluate(self, sites: Iterable[Site], given: Collection[str] | None = None) -> dict[str, float]:
        """Return the metrics over the test samples of some sites together.

        Where samples are judged against each other, as in retrieval, it is against those of their own site.

        Args:
            sites: The sites.
            given: Modalities; all that each site has when left out.
        """
        sums = [self._evaluated(site, tuple(sorted(given or site.client.modalities))) for site in sites]
        return metric_values(self._task, pooled(sums))

    def _evaluated(self, site: Site, given: tuple[str, ...]) -> MetricSums:
        return mean_sums([(self, given)], site)

    def outputs(self, batch: Tokenized) -> NDArray[np.float32]:
        """Return the outputs of samples that are not trained on, float32 (B, C).

        Raises:
            FloatingPointError: When they are not finite.
        """
        item = ForwardItem("test", "eval", dict(batch.tokens), dict(batch.positions))
        outputs_BC = self._engine.forward([item]).outputs.get("test")
        if outputs_BC is None:
            raise FloatingPointError("outputs are not finite")
        return outputs_BC


def mean_sums(models: Sequence[tuple[Trainer, tuple[str, ...]]], site: Site) -> MetricSums:
    """Return the sums over a site's test samples, of the mean of some models' outputs.

    Args:
        models: Models of one run, and the modalities that each is given.
        site: The site.
    """
    batches = site.plan.test_batches(site.plan.num_test)
    given = tuple(sorted({name for _, names in models for name in names}))
    run = EvaluationRun(site.plan.epochs, given, True, len(batches), Sums(), is_whole=True)
    for indices in batches:
        seen = [(model, site.client.tokenize("test", indices, names)) for model, names in models]
        outputs_BC = np.stack([model.outputs(batch) for model, batch in seen]).mean(axis=0, dtype=np.float32)
        run.add(models[0][0].loss.loss_and_gradient(outputs_BC, seen[0][1].targets))
    return run.sums.all()


def train_alone(settings: RunSettings, built: BuiltModel, site: Site, given: tuple[str, ...] | None = None) -> Trainer:
    """Train on one site's samples, all epochs."""
    trainer = Trainer(settings, built)
    trainer.train(site, range(site.plan.epochs), given)
    return trainer


def train_each_alone(
    settings: RunSettings, built: BuiltModel, sites: Sequence[Site], metric: str
) -> tuple[list[float], float]:
    """Train a model a site, all from the same weights, and test each on the samples of all sites.

    Returns:
        The metric of each site's model, and the processor seconds of all.
    """
    trainer = Trainer(settings, built)
    first = trainer.state
    values = []
    for site in sites:
        trainer.load(first)
        trainer.train(site, range(site.plan.epochs))
        values.append(trainer.evaluate(sites)[metric])
    return values, trainer.cpu_s
