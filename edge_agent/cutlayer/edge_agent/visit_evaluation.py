"""The evaluation of a trained model on a site's own samples: all that comes of it stays at the site."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.actions import OutputsReceived
from cutlayer.broker.messages import MetricSums, Mode
from cutlayer.broker.task_metrics import mean_loss, metric_values
from cutlayer.broker.tasks import RetrievalSpec, TaskSpec
from cutlayer.edge_agent.batches import Targets
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.edge_agent.retrieval import recall_sums
from cutlayer.edge_agent.visit import PATIENCE_S, Visit
from cutlayer.edge_agent.work_items import WorkItem

__all__ = ["Evaluated", "EvaluationVisit"]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation has found, given some modalities.

    Attributes:
        given: The modalities; all that the site has, or one.
        sums: Over the samples that have any of them.
        num_lacking: Samples that have none, or cannot be read.
        task: What is learned.
    """

    given: tuple[str, ...]
    sums: MetricSums
    num_lacking: int
    task: TaskSpec

    @property
    def metrics(self) -> dict[str, float]:
        """The task's metrics by name; none without samples."""
        return metric_values(self.task, self.sums)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "given": list(self.given),
            "samples": self.sums.num_samples,
            "left_out": self.num_lacking,
            "loss": mean_loss(self.sums),
            "metrics": self.metrics,
        }


@dataclass(slots=True)
class _Pass:
    sums: Sums = field(default_factory=Sums)
    num_lacking: int = 0
    embeddings: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # by the first sample, since order decides


class EvaluationVisit(Visit):
    """An evaluation given all modalities of the site, and given each alone.

    Args:
        patience_s: How long a worker is waited for.
        clock: Seconds, monotonic.
    """

    def __init__(self, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Mode.EVAL, patience_s=patience_s, clock=clock)
        self._passes: dict[tuple[str, ...], _Pass] = {}
        self._client: ClientSide | None = None
        self._task: TaskSpec | None = None

    @property
    def task(self) -> TaskSpec:
        """What is learned."""
        assert self._task is not None, "it has begun"
        return self._task

    def results(self) -> list[Evaluated]:
        """Return what was found, given all modalities first."""
        found = []
        for given, one in self._passes.items():
            sums = one.sums
            if one.embeddings:
                in_order = [one.embeddings[first] for first in sorted(one.embeddings)]
                named = dict(sums.all().sums) | recall_sums(in_order)
                counts = sums.all()
                entry = MetricSums(
                    counts.loss_sum, counts.num_correct, counts.num_samples, tuple(sorted(named.items()))
                )
            else:
                entry = sums.all()
            found.append(Evaluated(given, entry, one.num_lacking, self.task))
        return found

    def _start(self, enrolled: Enrolled) -> list[tuple[str, ...]]:
        self._client, self._task = enrolled.client, enrolled.manifest.task
        modalities = enrolled.client.modalities
        choices = [modalities]
        if len(modalities) > 1 and not isinstance(self._task, RetrievalSpec):  # one alone has nothing to be found by
            choices += [(name,) for name in modalities]
        self._passes = {given: _Pass() for given in choices}
        return choices

    def _take(self, item: WorkItem, received: OutputsReceived, targets: Targets) -> None:
        assert self._client is not None, "it has begun"
        result = self._client.loss(received.outputs, targets, received.codecs.outputs, is_training=False)
        one = self._passes[item.given]
        one.sums.add(result)
        if result.embeddings_BC is not None:
            one.embeddings[int(item.indices[0])] = result.embeddings_BC

    def _leave_out(self, given: tuple[str, ...], indices_b: NDArray[np.int64]) -> None:
        self._passes[given].num_lacking += indices_b.size
