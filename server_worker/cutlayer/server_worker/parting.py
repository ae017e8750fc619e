"""One more round of a pool after the run's end: whoever has missed the last window still gets its weights."""

from __future__ import annotations

from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.rounds import Rounds

__all__ = ["Parting"]


class Parting:
    """One worker's parting from its pool.

    Args:
        rounds: The worker's rounds.
        session: Knows who else is there.
        part_s: How long the last round is waited for.

    Attributes:
        is_done: Whether nobody of the pool has to wait for this worker's weights.
    """

    def __init__(self, rounds: Rounds, session: WorkerSession, part_s: float) -> None:
        self.is_done = False
        self._rounds = rounds
        self._session = session
        self._part_s = part_s
        self._part_by: float | None = None
        self._rounds_before = 0

    def go_on(self, now: float) -> None:
        """Have the round, unless there is nobody else, it is over, or it takes too long."""
        if self._part_by is None:
            self._part_by, self._rounds_before = now + self._part_s, self._rounds.num_rounds
        is_last = not self._session.num_other_workers
        if is_last or self._rounds.num_rounds > self._rounds_before or now >= self._part_by:
            self.is_done = True
        else:
            self._rounds.join(now)
