"""Which microbatches an agent sends in a whole run, and which of their samples a worker's store has by then.

An agent's order of work is known beforehand: training steps of each epoch, evaluations between epochs and at the end
(`cutlayer.edge_agent.work_items`). So is what goes as tensors and what as references, but for what is lost on the way:
a sample is in the store once the microbatch that brought it is answered, and as many are out at once as the worker
gives credits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import ActivationMode, Manifest
from cutlayer.broker.messages import Mode
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.simulation.plan_evaluations import (
    EvaluationBatch,
    PlannedEvaluation,
    Visit,
    change_batches,
    evaluation_batches,
    order_of,
)

__all__ = ["Alike", "Example", "Stage", "schedule"]

MAX_EXAMPLES = 8
"""Microbatches of a kind that are made and measured; those of a kind differ by a few percent at most."""

MAX_EPOCHS_APART = 32
"""Epochs whose changes of activations are reckoned apart; of more, several together."""
EXAMPLES_OF_CHANGES = 2
"""Their tensors are taken from elsewhere: what differs in the rest of a message is a byte or two."""


_EVALUATED: Final[tuple[Split, ...]] = ("test", "val")


class Stage(StrEnum):
    """Parts of a run that differ in what an agent sends."""

    FIRST_EPOCH = "first epoch"
    LATER_EPOCHS = "later epochs"
    EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class Example:
    """One microbatch.

    Attributes:
        step: Its number in its mode.
        indices_B: Its samples.
    """

    step: int
    indices_B: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Alike:
    """Microbatches of one agent that differ by nothing that decides their size but their samples' content.

    Attributes:
        stage: When they are sent.
        mode: Train or eval.
        split: Split of their samples; `val` where they judge a candidate.
        given: Modalities given.
        num_samples: Samples of each: B.
        num_fresh: Of these, samples that go as tensors, the last ones: F.
        is_numbered: Whether its samples' numbers go with it.
        count: How many there are.
        examples: Some of them.
        epochs: From when to when they are sent, in epochs.
        visit: Which time it is, where changes go up; else None.
    """

    stage: Stage
    mode: Mode
    split: Split
    given: tuple[str, ...]
    num_samples: int
    num_fresh: int
    is_numbered: bool
    count: int
    examples: tuple[Example, ...]
    epochs: tuple[float, float]
    visit: Visit | None = None


def schedule(manifest: Manifest, plan: EpochPlan, *, mode: ActivationMode, num_credits: int) -> list[Alike]:
    """Return all microbatches of one agent.

    Args:
        manifest: The run.
        plan: The agent's samples.
        mode: How its activations go up.
        num_credits: Microbatches that are out at once.
    """
    modalities = tuple(sorted(manifest.modalities))
    if mode == "delta":
        return [*_training_changes(plan, modalities), *_evaluation_changes(manifest, plan, modalities)]
    is_kept = mode == "once"
    return [
        *_training(plan, modalities, is_kept=is_kept),
        *_evaluations(manifest, plan, modalities, is_kept=is_kept, num_credits=num_credits),
    ]


def _training(plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool) -> Iterator[Alike]:
    """Yield the training steps: in the first epoch, and in all others together.

    A sample of an epoch's last microbatch that comes again in the next one's first, before that is answered, goes twice
    as tensors. Of N samples in microbatches of B these are B * B / N at the most, once in a run, and left out here.
    """
    for stage, epochs in ((Stage.FIRST_EPOCH, range(1)), (Stage.LATER_EPOCHS, range(1, plan.epochs))):
        for places, num_samples in _kinds_of_steps(plan):
            count = len(epochs) * len(places)
            if count:
                yield Alike(
                    stage,
                    Mode.TRAIN,
                    "train",
                    modalities,
                    num_samples,
                    0 if is_kept and stage is Stage.LATER_EPOCHS else num_samples,
                    is_kept,
                    count,
                    _examples(plan, epochs, places, MAX_EXAMPLES),
                    (epochs.start, epochs.stop),
                )


def _training_changes(plan: EpochPlan, modalities: tuple[str, ...]) -> Iterator[Alike]:
    """Yield the training steps whose activations go up as changes: of each epoch, or of some together."""
    stride = -(-plan.epochs // MAX_EPOCHS_APART)
    groups = [range(1), *(range(start, min(start + stride, plan.epochs)) for start in range(1, plan.epochs, stride))]
    for epochs in groups:
        middle = epochs[len(epochs) // 2]
        for places, num_samples in _kinds_of_steps(plan):
            yield Alike(
                Stage.LATER_EPOCHS if middle else Stage.FIRST_EPOCH,
                Mode.TRAIN,
                "train",
                modalities,
                num_samples,
                num_samples,
                is_numbered=True,
                count=len(epochs) * len(places),
                examples=_examples(plan, epochs, places, EXAMPLES_OF_CHANGES),
                epochs=(epochs.start, epochs.stop),
                visit=Visit(middle, num_samples if middle else 0),
            )


def _kinds_of_steps(plan: EpochPlan) -> list[tuple[range, int]]:
    """Return the places of an epoch's steps and how many samples these have: whole microbatches, and a rest."""
    num_full, num_rest = divmod(plan.num_train, plan.microbatch_samples)
    kinds = [(range(num_full), plan.microbatch_samples)] if num_full else []
    return kinds + ([(range(num_full, num_full + 1), num_rest)] if num_rest else [])


def _examples(plan: EpochPlan, epochs: range, places: range, count: int) -> tuple[Example, ...]:
    steps = [
        epochs[index // len(places)] * plan.steps_per_epoch + places[index % len(places)]
        for index in _spread(len(epochs) * len(places), count)
    ]
    return tuple(Example(step, plan.train_indices(step)) for step in steps)


def _evaluations(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool, num_credits: int
) -> Iterator[Alike]:
    found: dict[tuple[Split, tuple[str, ...], int, int, bool], list[tuple[int, EvaluationBatch]]] = {}
    for step, batch in enumerate(
        evaluation_batches(manifest, plan, modalities, is_kept=is_kept, num_credits=num_credits)
    ):
        split, given, num_samples = batch.evaluation.split, batch.evaluation.given, len(batch.places)
        # A store takes the modalities of a sample together: others bring samples without a number.
        is_numbered = is_kept and (batch.num_known > 0 or given == modalities)
        kind = (split, given, num_samples, num_samples - batch.num_known, is_numbered)
        found.setdefault(kind, []).append((step, batch))
    for (split, given, num_samples, num_fresh, is_numbered), batches in found.items():
        order_B = order_of(plan, split)
        moments = [batch.evaluation.moment for _, batch in batches]
        yield Alike(
            Stage.EVALUATION,
            Mode.EVAL,
            split,
            given,
            num_samples,
            num_fresh,
            is_numbered,
            len(batches),
            tuple(
                Example(step, order_B[batch.places.start : batch.places.stop]) for step, batch in batches[:MAX_EXAMPLES]
            ),
            (min(moments), max(moments)) if split == "val" else (plan.epochs, plan.epochs),
        )


def _evaluation_changes(manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...]) -> Iterator[Alike]:
    """Yield the batches of evaluations where changes go up: of all modalities together, and of single ones whole."""
    found: dict[tuple[PlannedEvaluation, int, Visit | None], list[Example]] = {}
    orders = {split: order_of(plan, split) for split in _EVALUATED}
    for step, (evaluation, places, visit) in enumerate(change_batches(manifest, plan, modalities)):
        example = Example(step, orders[evaluation.split][places.start : places.stop])
        found.setdefault((evaluation, len(places), visit), []).append(example)
    for (evaluation, num_samples, visit), batches in found.items():
        yield Alike(
            Stage.EVALUATION,
            Mode.EVAL,
            evaluation.split,
            evaluation.given,
            num_samples,
            num_samples,
            is_numbered=visit is not None,
            count=len(batches),
            examples=tuple(batches[: MAX_EXAMPLES if visit is None else EXAMPLES_OF_CHANGES]),
            epochs=(evaluation.moment, evaluation.moment),
            visit=visit,
        )


def _spread(length: int, count: int) -> list[int]:
    """Return so many places spread evenly over a length, or all of them."""
    if length <= count:
        return list(range(length))
    return [int((index + 0.5) * length / count) for index in range(count)]
