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

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import Mode
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.epochs import EpochPlan

__all__ = ["Alike", "Example", "Stage", "evaluation_batches", "schedule"]

MAX_EXAMPLES = 8
"""Microbatches of a kind that are made and measured; those of a kind differ by a few percent at most."""


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
        split: Split of their samples.
        given: Modalities given.
        num_samples: Samples of each: B.
        num_fresh: Of these, samples that go as tensors, the last ones: F.
        is_numbered: Whether its samples' numbers go with it.
        count: How many there are.
        examples: Some of them.
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


def schedule(manifest: Manifest, plan: EpochPlan, *, is_kept: bool, num_credits: int) -> list[Alike]:
    """Return all microbatches of one agent.

    Args:
        manifest: The run.
        plan: The agent's samples.
        is_kept: Whether workers keep its activations.
        num_credits: Microbatches that are out at once.
    """
    modalities = tuple(sorted(manifest.modalities))
    return [
        *_training(plan, modalities, is_kept=is_kept),
        *_evaluations(manifest, plan, modalities, is_kept=is_kept, num_credits=num_credits),
    ]


def _training(plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool) -> Iterator[Alike]:
    """Yield the training steps: in the first epoch, and in all others together.

    A sample of an epoch's last microbatch that comes again in the next one's first, before that is answered, goes twice
    as tensors. Of N samples in microbatches of B these are B * B / N at the most, once in a run, and left out here.
    """
    num_full, num_rest = divmod(plan.num_train, plan.microbatch_samples)
    kinds = [(range(num_full), plan.microbatch_samples)] if num_full else []
    kinds += [(range(num_full, num_full + 1), num_rest)] if num_rest else []
    for stage, epochs in ((Stage.FIRST_EPOCH, range(1)), (Stage.LATER_EPOCHS, range(1, plan.epochs))):
        for places, num_samples in kinds:
            count = len(epochs) * len(places)
            steps = [
                epochs[index // len(places)] * plan.steps_per_epoch + places[index % len(places)]
                for index in _spread(count, MAX_EXAMPLES)
            ]
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
                    tuple(Example(step, plan.train_indices(step)) for step in steps),
                )


def _evaluations(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool, num_credits: int
) -> Iterator[Alike]:
    found: dict[tuple[tuple[str, ...], int, int, bool], list[tuple[int, range]]] = {}
    counts: dict[tuple[tuple[str, ...], int, int, bool], int] = {}
    for step, (given, places, num_known) in enumerate(
        evaluation_batches(manifest, plan, modalities, is_kept=is_kept, num_credits=num_credits)
    ):
        # A store takes the modalities of a sample together: others bring samples without a number.
        is_numbered = is_kept and (num_known > 0 or given == modalities)
        kind = (given, len(places), len(places) - num_known, is_numbered)
        counts[kind] = counts.get(kind, 0) + 1
        examples = found.setdefault(kind, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append((step, places))
    order_B = np.concatenate([*plan.test_batches(plan.num_test), np.zeros(0, np.int64)])
    for kind, examples in found.items():
        given, num_samples, num_fresh, is_numbered = kind
        yield Alike(
            Stage.EVALUATION,
            Mode.EVAL,
            "test",
            given,
            num_samples,
            num_fresh,
            is_numbered,
            counts[kind],
            tuple(Example(step, order_B[places.start : places.stop]) for step, places in examples),
        )


def evaluation_batches(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool, num_credits: int
) -> Iterator[tuple[tuple[str, ...], range, int]]:
    """Yield each evaluation batch: modalities given, places of its samples, and how many of them the store has.

    Every evaluation takes the test samples in one order, so a batch is a range of places in it.
    """
    every, num_test = manifest.evaluation.every_epochs, plan.num_test
    choices = [(modalities, min(manifest.evaluation.samples, num_test))] * (
        len(range(every, plan.epochs, every)) if every else 0
    )
    choices.append((modalities, num_test))
    if len(modalities) > 1:
        choices += [((name,), num_test) for name in modalities]
    kept_N = np.zeros(num_test, bool)
    unanswered: list[range] = []
    for given, num_samples in choices:
        for start in range(0, num_samples, plan.microbatch_samples):
            places = range(start, min(start + plan.microbatch_samples, num_samples))
            while len(unanswered) >= num_credits:
                answered = unanswered.pop(0)
                kept_N[answered.start : answered.stop] = is_kept
            yield given, places, int(kept_N[places.start : places.stop].sum())
            unanswered.append(places if given == modalities else range(0))


def _spread(length: int, count: int) -> list[int]:
    """Return so many places spread evenly over a length, or all of them."""
    if length <= count:
        return list(range(length))
    return [int((index + 0.5) * length / count) for index in range(count)]
