"""Which evaluations an agent makes in a whole run: between epochs, of candidates, and of the finished model.

Where a run judges candidates, those of validation samples take the place of those between epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.tasks import RetrievalSpec
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.epochs import EpochPlan

__all__ = [
    "EvaluationBatch",
    "PlannedEvaluation",
    "Visit",
    "change_batches",
    "evaluation_batches",
    "evaluations",
    "order_of",
]


@dataclass(frozen=True, slots=True)
class Visit:
    """Which time it is that samples go up as changes.

    Attributes:
        number: Epochs, or evaluations of the same split, before this one.
        num_known: Samples that went up before, the first ones.
    """

    number: int
    num_known: int


@dataclass(frozen=True, slots=True)
class PlannedEvaluation:
    """One evaluation.

    Attributes:
        moment: Epochs before it.
        split: `test`, or `val` where it judges a candidate.
        given: Modalities given.
        num_samples: Its samples: the first ones in the order of `order_of`.
    """

    moment: int
    split: Split
    given: tuple[str, ...]
    num_samples: int


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """One microbatch of an evaluation.

    Attributes:
        evaluation: The evaluation.
        places: Places of its samples in the order of `order_of`.
        num_known: Samples that the worker's store has by then.
    """

    evaluation: PlannedEvaluation
    places: range
    num_known: int


def evaluations(manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...]) -> list[PlannedEvaluation]:
    """Return all evaluations of an agent, in their order.

    Args:
        manifest: The run.
        plan: The agent's samples.
        modalities: All that it has, sorted.
    """
    spec, found = manifest.evaluation, []
    if spec.selects:
        every = max(spec.every_epochs, 1)
        moments = [*range(every, plan.epochs, every), plan.epochs] if plan.num_val else []
        num_samples = min(spec.samples, plan.num_val)
        found += [PlannedEvaluation(moment, "val", modalities, num_samples) for moment in moments]
    elif spec.every_epochs:
        num_samples = min(spec.samples, plan.num_test)
        moments = list(range(spec.every_epochs, plan.epochs, spec.every_epochs))
        found += [PlannedEvaluation(moment, "test", modalities, num_samples) for moment in moments]
    # One modality alone has nothing that it could be found by.
    is_alone_too = len(modalities) > 1 and not isinstance(manifest.task, RetrievalSpec)
    choices = [modalities, *((name,) for name in modalities if is_alone_too)]
    return found + [PlannedEvaluation(plan.epochs, "test", given, plan.num_test) for given in choices]


def order_of(plan: EpochPlan, split: Split) -> NDArray[np.int64]:
    """Return the order that every evaluation takes a split's samples in, so that a batch is a range of places in it."""
    batches = plan.val_batches(plan.num_val) if split == "val" else plan.test_batches(plan.num_test)
    return np.concatenate([*batches, np.zeros(0, np.int64)])


def change_batches(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...]
) -> Iterator[tuple[PlannedEvaluation, range, Visit | None]]:
    """Yield each evaluation batch where changes go up: its evaluation, places, which visit it is."""
    num_known = {"test": 0, "val": 0}
    numbers = dict(num_known)
    for evaluation in evaluations(manifest, plan, modalities):
        split = evaluation.split
        for places in _batches(plan, evaluation.num_samples):
            known = min(max(num_known[split] - places.start, 0), len(places))
            is_whole = evaluation.given == modalities
            yield evaluation, places, Visit(numbers[split], known) if is_whole else None
        numbers[split] += 1
        num_known[split] = max(num_known[split], evaluation.num_samples)


def evaluation_batches(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool, num_credits: int
) -> Iterator[EvaluationBatch]:
    """Yield each evaluation batch.

    Args:
        manifest: The run.
        plan: The agent's samples.
        modalities: All that it has, sorted.
        is_kept: Whether the worker keeps samples that it has been sent.
        num_credits: Microbatches that are out at once.
    """
    kept = {"test": np.zeros(plan.num_test, bool), "val": np.zeros(plan.num_val, bool)}
    unanswered: list[tuple[Split, range]] = []
    for evaluation in evaluations(manifest, plan, modalities):
        split = evaluation.split
        for places in _batches(plan, evaluation.num_samples):
            while len(unanswered) >= num_credits:
                answered, taken = unanswered.pop(0)
                kept[answered][taken.start : taken.stop] = is_kept
            yield EvaluationBatch(evaluation, places, int(kept[split][places.start : places.stop].sum()))
            unanswered.append((split, places if evaluation.given == modalities else range(0)))


def _batches(plan: EpochPlan, num_samples: int) -> list[range]:
    size = plan.microbatch_samples
    return [range(start, min(start + size, num_samples)) for start in range(0, num_samples, size)]
