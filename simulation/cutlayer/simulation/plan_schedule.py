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

from cutlayer.broker.manifest import ActivationMode, Manifest
from cutlayer.broker.messages import Mode
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.epochs import EpochPlan

__all__ = ["Alike", "Example", "Stage", "Visit", "change_batches", "evaluation_batches", "evaluations", "schedule"]

MAX_EXAMPLES = 8
"""Microbatches of a kind that are made and measured; those of a kind differ by a few percent at most."""

MAX_EPOCHS_APART = 32
"""Epochs whose changes of activations are reckoned apart; of more, several together."""
EXAMPLES_OF_CHANGES = 2
"""Their tensors are taken from elsewhere: what differs in the rest of a message is a byte or two."""


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
class Visit:
    """Which time it is that samples go up as changes.

    Attributes:
        number: Epochs, or evaluations, before this one.
        num_known: Samples that went up before, the first ones.
    """

    number: int
    num_known: int


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
    order_B = _test_order(plan)
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
            (plan.epochs, plan.epochs),
        )


def _evaluation_changes(manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...]) -> Iterator[Alike]:
    """Yield the batches of evaluations where changes go up: of all modalities together, and of single ones whole."""
    order_B = _test_order(plan)
    found: dict[tuple[int, tuple[str, ...], int, Visit | None], list[Example]] = {}
    for step, (moment, given, places, visit) in enumerate(change_batches(manifest, plan, modalities)):
        example = Example(step, order_B[places.start : places.stop])
        found.setdefault((moment, given, len(places), visit), []).append(example)
    for (moment, given, num_samples, visit), batches in found.items():
        yield Alike(
            Stage.EVALUATION,
            Mode.EVAL,
            "test",
            given,
            num_samples,
            num_samples,
            is_numbered=visit is not None,
            count=len(batches),
            examples=tuple(batches[: MAX_EXAMPLES if visit is None else EXAMPLES_OF_CHANGES]),
            epochs=(moment, moment),
            visit=visit,
        )


def _test_order(plan: EpochPlan) -> NDArray[np.int64]:
    return np.concatenate([*plan.test_batches(plan.num_test), np.zeros(0, np.int64)])


def evaluations(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...]
) -> list[tuple[int, tuple[str, ...], int]]:
    """Return all evaluations: epochs before each, modalities given, test samples."""
    every, num_test = manifest.evaluation.every_epochs, plan.num_test
    num_between = min(manifest.evaluation.samples, num_test)
    found = [(epoch, modalities, num_between) for epoch in (range(every, plan.epochs, every) if every else ())]
    found.append((plan.epochs, modalities, num_test))
    if len(modalities) > 1:
        found += [(plan.epochs, (name,), num_test) for name in modalities]
    return found


def change_batches(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...]
) -> Iterator[tuple[int, tuple[str, ...], range, Visit | None]]:
    """Yield each evaluation batch where changes go up: epochs before it, modalities, places, which visit it is."""
    num_known = 0
    for number, (moment, given, num_samples) in enumerate(evaluations(manifest, plan, modalities)):
        for start in range(0, num_samples, plan.microbatch_samples):
            places = range(start, min(start + plan.microbatch_samples, num_samples))
            known = min(max(num_known - start, 0), len(places))
            yield moment, given, places, Visit(number, known) if given == modalities else None
        num_known = max(num_known, num_samples)


def evaluation_batches(
    manifest: Manifest, plan: EpochPlan, modalities: tuple[str, ...], *, is_kept: bool, num_credits: int
) -> Iterator[tuple[tuple[str, ...], range, int]]:
    """Yield each evaluation batch: modalities given, places of its samples, and how many of them the store has.

    Every evaluation takes the test samples in one order, so a batch is a range of places in it.
    """
    kept_N = np.zeros(plan.num_test, bool)
    unanswered: list[range] = []
    for _, given, num_samples in evaluations(manifest, plan, modalities):
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
