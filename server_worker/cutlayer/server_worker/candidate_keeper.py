"""Holds the weights that are judged, and puts the chosen ones back: the worker's arithmetic of `selection.py`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cutlayer.broker.actions import WorkerAction
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.arithmetic import Arithmetic

__all__ = ["CandidateKeeper"]

log = logging.getLogger(__name__)


class CandidateKeeper:
    """The candidates of one worker.

    A candidate is a reference to a version of the parameters, which nothing ever writes to (decision 0005): it costs
    one copy of what is trained, and three are held at most.

    Args:
        session: The conversation: says what is due.
        arithmetic: Has the engine.
        do: Does the session's actions.
    """

    def __init__(
        self, session: WorkerSession, arithmetic: Arithmetic, do: Callable[[list[WorkerAction]], None]
    ) -> None:
        self._session = session
        self._arithmetic = arithmetic
        self._do = do

    def tend(self, now: float) -> None:
        """Do what is due, before anything else changes the weights."""
        selection = self._session.selection
        if selection is None:
            return
        engine, candidates = self._arithmetic.engine, self._session.candidates
        if selection.due is not None:
            name = engine.hold_candidate()
            self._do(candidates.taken(name, self._arithmetic.tokenizer_tensors(name), now))
            if candidates.has_no_judge():
                log.warning(
                    "no agent has validation samples: nothing can be chosen, and the last weights are kept\n"
                    "  fix: give rows with the split `val`, or set [evaluation] val_ratio so that sites set 32 aside"
                )
        for name in candidates.lacks():
            candidates.give(name, self._arithmetic.tokenizer_tensors(name))
        decision = selection.decision
        if decision is not None and not selection.is_restored:
            version = engine.keep_candidate(decision.name)
            self._arithmetic.forget_groups()
            self._arithmetic.hand_out_weights()
            kept = f"epoch {decision.epoch} is kept" if decision.name else "the last weights are kept"
            log.info("%s: %s", selection.reason(), kept)
            self._do(candidates.kept(version))
        engine.hold_only(selection.held)
