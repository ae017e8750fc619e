"""A worker's rounds with the other replicas of its pool: joins, begins, and does what a round has decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

from cutlayer.broker.actions import WorkerAction
from cutlayer.broker.errors import RunError
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.pool_round import Verdict
from cutlayer.broker.work import Commit
from cutlayer.broker.worker_rounds import ROUND_PAUSE_S
from cutlayer.broker.worker_session import WorkerSession
from cutlayer.server_worker.arithmetic import Arithmetic
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.events import EventHandler, RoundEnded, StateTakenOver
from cutlayer.server_worker.pool import Pool, RoundResult, RoundTask

__all__ = ["Rounds", "compare_manifests"]

log = logging.getLogger(__name__)

ANNOUNCE_S = 1.0
"""A worker that joins says so often that it does."""


class Rounds:
    """The rounds of one worker.

    Args:
        pool: Where the replicas meet.
        session: The conversation.
        arithmetic: The engine and its graphs.
        snapshot: Makes a checkpoint of the worker.
        do: Does the session's actions.
        emit: Takes events.
        clock: Seconds, monotonic.
        tend: Holds, lets go of and puts back weights that are judged, as a round has concluded.

    Attributes:
        is_member: Whether the first round is over: the worker has the pool's weights, and may serve.
        num_rounds: Rounds that have not failed.
    """

    def __init__(
        self,
        pool: Pool,
        session: WorkerSession,
        arithmetic: Arithmetic,
        snapshot: Callable[[], Checkpoint],
        do: Callable[[list[WorkerAction]], None],
        emit: EventHandler,
        clock: Callable[[], float],
        tend: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._session = session
        self._arithmetic = arithmetic
        self._snapshot = snapshot
        self._do = do
        self._emit = emit
        self._clock = clock
        self._tend = tend
        self._begun_at: float | None = None
        self._announced_at = 0.0
        self._ended_at = 0.0
        self._generation = 0
        self._was_failing = False
        self._is_mending = False
        self._mended_at: int | None = None
        self.is_member = False
        self.num_rounds = 0

    def next_poll(self, now: float) -> float | None:
        """Return when to ask for the round's result, or None without one."""
        return None if self._begun_at is None else now + self._pool.poll_s

    def keep_up(self, now: float) -> float:
        """Take part in each round of the others, without a say.

        For a worker without its broker: it does not hear their calls, and the lighthouse, which still hears it, would
        let them wait for it in every round.

        Returns:
            When to call this again.
        """
        begin_at = self._ended_at + ROUND_PAUSE_S
        if self._begun_at is None and now >= begin_at:
            self._begin(None, now)
        return max(now + self._pool.poll_s, begin_at)

    def join(self, now: float) -> None:
        """Ask the others for a round that commits nothing, again and again until it is over.

        In the first of them a worker takes over the pool's weights, in the last one whatever it may have missed.
        """
        if self._begun_at is None:
            if not self.is_member:
                # A checkpoint counts only where nobody serves: an old one could take the place of what is trained now.
                self._pool.start_from(0 if self._session.num_online_workers else self._session.window)
            self._begin(None, now)
        elif now >= self._announced_at + ANNOUNCE_S:
            self._announced_at = now
            self._do(self._session.rounds.begun(now))

    def begin(self, work: Commit, now: float) -> None:
        """Start a round for a window."""
        self._begin(work.is_due, now)

    def _begin(self, is_due: bool | None, now: float) -> None:
        engine = self._arithmetic.engine
        digest = "" if is_due is None else engine.fingerprint()
        part = self._session.rounds.part(digest, engine.gradients_present(), is_due=is_due)
        self._begun_at = self._announced_at = now
        self._pool.begin(
            RoundTask(
                part,
                engine.gradient_sums(),
                self._session.ledger,
                self._session.manifest.window.mode == "synchronous",
                self._snapshot,
            )
        )
        self._do(self._session.rounds.begun(now))

    def poll(self, now: float) -> bool:
        """Do what the round has decided, once it is over.

        Returns:
            Whether it is over now and has committed a window.

        Raises:
            RunError: When this replica's weights differ from the pool's right after it has taken these over, or its
            settings do, or training has diverged.
        """
        if self._begun_at is None:
            return False
        result = self._pool.poll()
        if result is None:
            return False
        seconds, self._begun_at, self._ended_at = now - self._begun_at, None, now
        self._emit(RoundEnded(seconds, len(result.workers), bool(result.failure)))
        if result.failure:
            self._failed(result, now)
            return False
        if self._was_failing or result.generation != self._generation:
            log.info("the pool is %s now", ", ".join(sorted(result.workers)))
        self._was_failing, self._generation = False, result.generation
        verdict = result.verdict
        assert verdict is not None, "a round that has not failed has a verdict"
        if self._session.name in verdict.differing:
            self._differs(result, now)
            return False
        if result.taken_over is not None:
            self._take_over(result.taken_over, result.generation, now)
        self.is_member = True
        self.num_rounds += 1
        if self._session.name in verdict.rejected:
            self._arithmetic.engine.drop_gradients()
        if not verdict.commits:
            self._do(self._session.rounds.failed(verdict, result.generation, now))
            self._tend(now)
            return False
        self._commit(result, verdict, now)
        return True

    def _failed(self, result: RoundResult, now: float) -> None:
        if not self._was_failing:
            log.warning("the pool's round has failed (%s); trying again", result.failure)
        self._was_failing = True
        self._do(self._session.rounds.failed(None, result.generation or self._generation, now))

    def _differs(self, result: RoundResult, now: float) -> None:
        """Have the pool's weights taken over in the next round, and what is committed here alone done again.

        Raises:
            RunError: When they were, and one window has made them differ again.
        """
        window = self._session.window
        if self._mended_at is not None and window <= self._mended_at + 1:
            raise RunError(
                f"this worker's weights differ from its pool's at window {window}, again\n"
                "  fix: give all workers of a pool the same hardware and releases; if they have, tell the developers, "
                "with all workers' logs"
            )
        log.warning("this worker's weights differ from its pool's at window %d; taking over the pool's", window)
        self._is_mending = True
        self._pool.fall_behind()
        self._do(self._session.rounds.failed(None, result.generation, now))

    def _commit(self, result: RoundResult, verdict: Verdict, now: float) -> None:
        assert result.sums is not None, "a window that closes has sums"
        self._arithmetic.engine.set_gradient_sums(result.sums, verdict.present)
        is_in_it = self._session.name not in verdict.rejected
        members = self._session.view.window_members() if is_in_it else ()
        wanted_samples = self._session.view.wanted_samples
        step = self._arithmetic.step(verdict.num_samples, self._session.rounds.progress(verdict))
        self._do(self._session.rounds.committed(verdict, step.version, result.generation, now))
        self._arithmetic.emit_committed(
            step, verdict.num_samples, len(verdict.steps), wanted_samples=wanted_samples, members=members
        )
        self._tend(now)

    def _take_over(self, checkpoint: Checkpoint, generation: int, now: float) -> None:
        """Continue from another replica's state.

        Raises:
            RunError: When it is of a run with other settings.
        """
        manifest = Manifest.from_bytes(str(checkpoint.meta["manifest"]).encode())
        if difference := compare_manifests(self._session.manifest, manifest):
            raise RunError(
                f"the pool trains a run with other settings ({difference})\n  fix: give the same --run and flags to all"
            )
        engine = self._arithmetic.engine
        try:
            engine.load_state_dict(checkpoint.state)
            engine.load_candidates(checkpoint.candidates)
        except ValueError as error:
            raise RunError(f"the pool trains another model: {error}\n  fix: give the same --run to all") from error
        self._arithmetic.forget_groups()
        self._arithmetic.hand_out_weights()
        self._do(
            self._session.rounds.take_over(
                manifest,
                Ledger.from_bytes(checkpoint.ledger),
                cast("dict[str, int]", checkpoint.meta["known_samples"]),
                window=cast("int", checkpoint.meta["window"]),
                version=engine.version,
                committed_samples=cast("int", checkpoint.meta["committed_samples"]),
                generation=generation,
                now=now,
                selection=cast("dict[str, Any] | None", checkpoint.meta.get("selection")),
            )
        )
        if self._is_mending:
            self._is_mending, self._mended_at = False, self._session.window
        log.info("took over the pool's weights at window %d", self._session.window)
        self._emit(StateTakenOver(self._session.window))

    def close(self) -> None:
        """Leave the pool."""
        self._pool.close()


def compare_manifests(ours: Manifest, theirs: Manifest) -> str:
    """Return the names of the settings in which two runs differ, their ids apart; empty for none."""
    new, saved = ours.model_dump(exclude={"run_id"}), theirs.model_dump(exclude={"run_id"})
    return ", ".join(key for key in new if new[key] != saved[key])
