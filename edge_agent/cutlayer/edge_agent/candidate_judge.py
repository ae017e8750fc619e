"""The agent's part in choosing weights: evaluates one candidate at a time, with the candidate's own tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cutlayer.broker.actions import CandidateOffered
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.tokenizer_trainer import TokenizerTrainer
from cutlayer.edge_agent.work_items import EvaluationRun, WorkItems

__all__ = ["CandidateJudge"]

MAX_DONE = 64
"""Candidates that an agent remembers to have evaluated: a worker offers three at most."""


class CandidateJudge:
    """Which candidate is being evaluated, and which ones were.

    Args:
        items: Queues the evaluations.
        reporter: Reports them.
        trainer: Has the tokenizers where they are trained, else None.
    """

    def __init__(self, items: WorkItems, reporter: Reporter, trainer: TokenizerTrainer | None) -> None:
        self._items = items
        self._reporter = reporter
        self._trainer = trainer
        self._offered: CandidateOffered | None = None
        self._done: dict[str, None] = {}

    def wants(self, name: str) -> bool:
        """Return whether a candidate that is offered is new; of one that was evaluated a report goes once more."""
        if name in self._done:
            self._reporter.report_soon()
            return False
        return self._offered is None or self._offered.name != name

    def begin(self, candidate: CandidateOffered) -> None:
        """Queue the evaluation of a candidate.

        Raises:
            WireError: When its tokenizers are not what the manifest says.
        """
        if self._trainer is not None:
            self._trainer.check_weights(candidate.tensors)
        self._offered = candidate
        self._items.evaluate_candidate(candidate.epoch, candidate.name)

    def stop(self) -> bool:
        """Give up what is under way; return whether anything is."""
        was_offered, self._offered = self._offered is not None, None
        return was_offered

    def evaluated(self, evaluation: EvaluationRun) -> None:
        """Take notice of a batch's result; with the last one of a candidate it has been evaluated."""
        if evaluation.candidate and not evaluation.num_left:
            self._done[evaluation.candidate] = None
            if len(self._done) > MAX_DONE:
                del self._done[next(iter(self._done))]
            self._offered = None

    @contextmanager
    def tokenizers(self, *, is_wanted: bool) -> Iterator[None]:
        """Have the candidate's tokenizers in place of the newest ones for a moment, where they are trained."""
        if not is_wanted or self._trainer is None or self._offered is None:
            yield
            return
        with self._trainer.using(self._offered.tensors):
            yield
