"""Tells a worker that has not heard of a commit yet from a run that has lost it."""

from __future__ import annotations

__all__ = ["LedgerCheck"]


class LedgerCheck:
    """Believes a worker's ledger that lacks a commit only when it still does a while later.

    The workers of a pool commit together, and one may tell its ledger from before a commit that another has told
    already. What is lost, since a pool was resumed from a checkpoint or the only worker that had committed it is dead,
    stays lost.

    Args:
        confirm_s: Seconds from the first word of a lost commit to the one that is believed.
    """

    def __init__(self, confirm_s: float) -> None:
        self.confirm_s = confirm_s
        self._suspected: dict[str, tuple[int, float]] = {}

    def is_lost(self, worker: str, first_lacking: int | None, now: float, *, still_lacks: bool) -> bool:
        """Return whether to believe a ledger.

        Args:
            worker: Whose it is.
            first_lacking: The first step that was taken for committed and that it lacks; None for none.
            now: Seconds.
            still_lacks: Whether it lacks the step that `suspected` names.
        """
        suspected = self._suspected.get(worker)
        if first_lacking is None:
            self._suspected.pop(worker, None)
            return False
        if suspected is None or not still_lacks:
            self._suspected[worker] = first_lacking, now
            return False
        if now < suspected[1] + self.confirm_s:
            return False
        self._suspected.clear()
        return True

    def suspected(self, worker: str) -> int | None:
        """Return the step that a worker's ledger lacked when it told it before; None for none."""
        step = self._suspected.get(worker)
        return None if step is None else step[0]
