"""What an agent does next: training steps in order, evaluations between epochs and at the end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import Evaluation, Mode
from cutlayer.edge_agent.batches import Split
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.loss_result import NO_RESULT, LossResult
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.edge_agent.retrieval import recall_sums

__all__ = ["EvaluationRun", "WorkItem", "WorkItems"]


@dataclass(slots=True)
class EvaluationRun:
    """One evaluation that is under way.

    Attributes:
        epoch: Epochs committed when it began.
        given: Modalities given; those of the whole run where it is all that the agent has.
        is_final: Whether the weights are the run's last.
        num_left: Batches without outputs yet.
        sums: Sums so far.
        is_whole: Whether it is of all test samples, or of all validation samples.
        embeddings: Outputs that are judged all together, at its end.
        candidate: The candidate that it judges; empty for the newest weights.
    """

    epoch: int
    given: tuple[str, ...]
    is_final: bool
    num_left: int
    sums: Sums
    is_whole: bool = False
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    candidate: str = ""

    def add(self, result: LossResult) -> None:
        """Take the outcome of one batch."""
        self.sums.add(result)
        self.num_left -= 1
        if result.embeddings_BC is not None:
            self.embeddings.append(result.embeddings_BC)
        if not self.num_left and self.embeddings:
            self.sums.add(replace(NO_RESULT, sums=recall_sums(self.embeddings)))
            self.embeddings.clear()

    def result(self, wire_bytes: int) -> Evaluation:
        """Return the finished evaluation as a message carries it."""
        sums = self.sums.take(with_targets=self.is_whole)
        return Evaluation(self.epoch, "+".join(self.given), self.is_final, sums, wire_bytes, self.candidate)


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One microbatch to send.

    Attributes:
        mode: What it is for.
        step: Its number in this mode.
        split: Split of its samples.
        indices: Its samples, int64 (B).
        given: Modalities to give.
        evaluation: The evaluation that it belongs to.
    """

    mode: Mode
    step: int
    split: Split
    indices: NDArray[np.int64]
    given: tuple[str, ...]
    evaluation: EvaluationRun | None = None


class WorkItems:
    """The agent's work in order, less what the run has already committed.

    Args:
        plan: Samples of each step.
        modalities: All modalities that the agent has, sorted.
        of_run: All modalities of the run, sorted.
        every_epochs: Evaluate after each so many epochs; 0 for never.
        evaluation_samples: Test samples of such an evaluation.
        evaluates_alone: Whether the finished model is evaluated given each modality alone, too.
    """

    def __init__(
        self,
        plan: EpochPlan,
        modalities: tuple[str, ...],
        *,
        every_epochs: int,
        evaluation_samples: int,
        of_run: tuple[str, ...] | None = None,
        evaluates_alone: bool = True,
    ) -> None:
        self.plan = plan
        self.committed = StepRanges()
        self._modalities = modalities
        self._of_run = of_run or modalities
        self._evaluates_alone = evaluates_alone
        self._every_epochs = every_epochs
        self._evaluation_samples = evaluation_samples
        self._outstanding: set[int] = set()
        self._next_step = 0
        self._taken_to = 0
        self._catch_up_to = 0
        self._next_eval_step = 0
        self._evaluations: deque[WorkItem] = deque()

    @property
    def is_training_done(self) -> bool:
        """Whether all training steps are committed."""
        return len(self.committed) >= self.plan.total_steps

    @property
    def has_evaluations(self) -> bool:
        """Whether evaluation batches wait to be sent."""
        return bool(self._evaluations)

    @property
    def epoch(self) -> int:
        """Epochs committed."""
        if not self.plan.total_steps:  # a visit
            return 0
        # The ledger may hold steps of an earlier process of this agent that had more samples.
        return min(len(self.committed) // self.plan.steps_per_epoch, self.plan.epochs)

    def next(self, *, may_train: bool = True) -> WorkItem | None:
        """Return what to send next, or None when nothing is left to send.

        Args:
            may_train: Whether training steps may be sent, too, or evaluations only.
        """
        self._skip_taken()
        # What a ledger lacked comes before evaluations: workers may still hold such steps, and refuse what comes
        # beyond their credits until they are taken up again.
        if self._evaluations and not (may_train and self._next_step < self._catch_up_to):
            return self._evaluations.popleft()
        if not may_train or self._next_step >= self.plan.total_steps:
            return None
        step = self._next_step
        self._outstanding.add(step)
        self._next_step += 1
        self._taken_to = max(self._taken_to, self._next_step)
        if self._next_step % self.plan.steps_per_epoch == 0:
            epoch = self._next_step // self.plan.steps_per_epoch
            # The final evaluation follows the last epoch anyway.
            if self._every_epochs and epoch % self._every_epochs == 0 and epoch < self.plan.epochs:
                self._evaluate(epoch, self._modalities, self._evaluation_samples, is_final=False)
        return WorkItem(Mode.TRAIN, step, "train", self.plan.train_indices(step), self._modalities)

    def has_next(self, *, may_train: bool = True) -> bool:
        """Return whether `next` has anything to send."""
        self._skip_taken()
        return bool(self._evaluations) or (may_train and self._next_step < self.plan.total_steps)

    def commit(self, step: int) -> bool:
        """Take notice of a committed step; return whether it is news."""
        self._outstanding.discard(step)
        return self.committed.add(step)

    def first_lacking(self, committed: tuple[tuple[int, int], ...]) -> int | None:
        """Return the first step that was taken for committed and that a ledger lacks; None for none."""
        return _first_lacking(StepRanges(committed), self.committed)

    def learn(self, committed: tuple[tuple[int, int], ...]) -> None:
        """Take over what a ledger has, and keep what it lacks."""
        ledger = StepRanges(committed)
        for step in [step for step in self._outstanding if step in ledger]:
            self.commit(step)

    def resume(self, committed: tuple[tuple[int, int], ...]) -> bool:
        """Go by a worker's ledger, which may have fewer steps than before: after a checkpoint, or a worker's end.

        Returns:
            Whether it lacks a step that was committed before. Then no step is outstanding any more, and the first
            that is missing comes next.
        """
        before, self.committed = self.committed, StepRanges(committed)
        lacks_steps = _first_lacking(self.committed, before) is not None
        if lacks_steps:
            self._outstanding.clear()
            self._catch_up_to = self._taken_to
        self._outstanding = {step for step in self._outstanding if step not in self.committed}
        self._next_step = 0
        return lacks_steps

    def take_back_training(self) -> None:
        """Count no training step as sent that is not committed: training has ended early, or may go on elsewhere."""
        self._outstanding.clear()
        self._next_step = 0

    def forget_evaluations(self) -> None:
        """Drop the evaluation batches that wait to be sent."""
        self._evaluations.clear()

    def evaluate_candidate(self, epoch: int, name: str) -> None:
        """Queue the evaluation of a candidate, on validation samples and given all modalities."""
        batches = self.plan.val_batches(self._evaluation_samples)
        is_whole = self._evaluation_samples >= self.plan.num_val
        evaluation = EvaluationRun(epoch, self._of_run, False, len(batches), Sums(), is_whole, candidate=name)
        self._queue("val", batches, self._modalities, evaluation)

    def start_final_evaluations(self) -> None:
        """Queue the evaluations of the finished model: with all modalities, and with each alone."""
        choices = [self._modalities]
        if len(self._modalities) > 1 and self._evaluates_alone:
            choices += [(name,) for name in self._modalities]
        for given in choices:
            self._evaluate(self.epoch, given, self.plan.num_test, is_final=True)

    def queue(self, mode: Mode, indices: NDArray[np.int64], given: tuple[str, ...]) -> None:
        """Queue a microbatch of a visit: some of the samples, given some modalities."""
        self._evaluations.append(WorkItem(mode, self._next_eval_step, "test", indices, given))
        self._next_eval_step += 1

    def _skip_taken(self) -> None:
        while self._next_step in self.committed or self._next_step in self._outstanding:
            self._next_step += 1

    def _evaluate(self, epoch: int, given: tuple[str, ...], num_samples: int, *, is_final: bool) -> None:
        batches = self.plan.test_batches(num_samples)
        is_whole = num_samples >= self.plan.num_test
        told = self._of_run if given == self._modalities else given
        self._queue("test", batches, given, EvaluationRun(epoch, told, is_final, len(batches), Sums(), is_whole))

    def _queue(
        self, split: Split, batches: list[NDArray[np.int64]], given: tuple[str, ...], evaluation: EvaluationRun
    ) -> None:
        for indices in batches:
            self._evaluations.append(WorkItem(Mode.EVAL, self._next_eval_step, split, indices, given, evaluation))
            self._next_eval_step += 1


def _first_lacking(ledger: StepRanges, steps: StepRanges) -> int | None:
    for start, stop in steps:
        missing = ledger.next_missing(start)
        if missing < stop:
            return missing
    return None
