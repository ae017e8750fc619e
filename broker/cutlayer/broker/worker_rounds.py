"""The worker's side of a pool's rounds: what it says of its window, what it brings to a round, and what comes of one.

Each worker of a pool holds a part of the window, and tells the others how much (`WindowState`). When the parts make
up a window, all of them start a *round*, which commits it everywhere or nowhere (`pool_round.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cutlayer.broker.actions import Publish, WorkerAction
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import MAX_LIST, WindowState
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.pool_round import Verdict, WindowPart
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.work import Commit, Key
from cutlayer.broker.worker_candidates import WorkerCandidates
from cutlayer.broker.worker_phases import WorkerPhases
from cutlayer.broker.worker_run import WorkerRun
from cutlayer.broker.worker_steps import WorkerSteps

__all__ = ["ROUND_PAUSE_S", "WINDOW_REPEAT_S", "WorkerRounds"]

WINDOW_REPEAT_S = 1.0
"""A worker of a pool says so often what it holds of the window: the message before may have been lost."""
ROUND_PAUSE_S = 0.1
"""From a round that committed nothing to the next that this worker asks for."""


class WorkerRounds:
    """The rounds of one worker; without a pool there are none.

    Args:
        run: What the session's parts share.
        phases: Where the run stands.
        steps: The exchanges.
        candidates: The weights that are judged, where any are.
    """

    def __init__(self, run: WorkerRun, phases: WorkerPhases, steps: WorkerSteps, candidates: WorkerCandidates) -> None:
        self._run = run
        self._phases = phases
        self._steps = steps
        self._candidates = candidates
        self._is_synchronous = run.manifest.window.mode == "synchronous"
        self._window_said_at: float | None = None
        self._no_round_before = 0.0

    # Before a round -------------------------------------------------------------------------------------------

    def others_in_window(self, now: float) -> OthersInWindow | None:
        """Return what the other workers hold of the open window; None without a pool."""
        run = self._run
        others = None if run.members is None else run.members.in_window(run.in_hand.window)
        if others is not None and not self.may_begin(now):
            others = replace(others, ask_to_close=False)
        return others

    def may_begin(self, now: float) -> bool:
        """Return whether this worker may ask for a round by now."""
        return now >= self._no_round_before

    def due_for_candidates(self, now: float) -> Commit | None:
        """Return the round that only candidates are to be concluded in, if it is time for one."""
        run = self._run
        if run.members is None or not self.may_begin(now) or run.scheduler.is_in_round:
            return None
        if not self._candidates.wants_round():
            return None
        in_hand = run.in_hand
        return Commit(in_hand.window, in_hand.window_samples, len(in_hand.in_window), None, is_due=False)

    def tell_part(self, now: float, coming: Sequence[Key] = ()) -> list[WorkerAction]:
        """Tell the others what this worker holds of the open window; nothing without a pool.

        Args:
            now: Seconds.
            coming: What is about to be added to it.
        """
        return [] if self._run.members is None else self._say_window(now, closes=False, coming=coming)

    def deadlines(self) -> list[float]:
        """Return the times at which something is to be said again, or a round may be asked for."""
        if self._run.members is None:
            return []
        said_again_at = [] if self._window_said_at is None else [self._window_said_at + WINDOW_REPEAT_S]
        return [self._no_round_before, *said_again_at]

    def tick(self, now: float) -> list[WorkerAction]:
        """Say again what this worker holds of the window."""
        said_at = self._window_said_at
        if said_at is None or now < said_at + WINDOW_REPEAT_S:
            return []
        return self._say_window(now, closes=self._run.scheduler.is_in_round)

    # A round --------------------------------------------------------------------------------------------------

    def begun(self, now: float) -> list[WorkerAction]:
        """Take notice that a round is under way; ask the others to join it."""
        self._run.scheduler.is_in_round = True
        return self._say_window(now, closes=True)

    def part(self, digest: str, present: bytes, *, is_due: bool | None) -> WindowPart:
        """Return what this worker brings to a round.

        Args:
            digest: Of its weights.
            present: Parameters that a sample has reached.
            is_due: Whether the window may close; None for a worker that joins.
        """
        run, in_hand = self._run, self._run.in_hand
        is_waiting = self._is_synchronous and is_due is not None
        has_say = is_due is not None
        return WindowPart(
            worker=run.name,
            window=in_hand.window,
            version=in_hand.version,
            digest=digest,
            steps=tuple((key.agent, key.step) for key in in_hand.in_window),
            num_samples=in_hand.window_samples,
            present=present,
            planned_samples=run.planned_samples,
            is_due=is_due,
            waits_for=tuple(lease.agent for lease in run.leases.training()) if is_waiting else (),
            judged=self._candidates.proposals() if has_say else (),
            is_over=has_say and run.selection is not None and self._phases.is_over(),
        )

    def progress(self, verdict: Verdict) -> float | None:
        """Return the share of the planned samples that is committed with a verdict's window."""
        return self._run.scheduler.progress(verdict.num_samples, verdict.planned_samples)

    def committed(self, verdict: Verdict, version: int, generation: int, now: float) -> list[WorkerAction]:
        """Take notice of a window that the pool has committed.

        Args:
            verdict: What the round has decided.
            version: Version of the weights now.
            generation: Changes of the pool's membership so far.
            now: Seconds.
        """
        run, in_hand = self._run, self._run.in_hand
        window = in_hand.window
        own = in_hand.committed(version, verdict.num_samples)
        for agent, step in verdict.steps:
            run.ledger.add(agent, step)
        if run.selection is not None:
            run.selection.committed(in_hand.committed_samples, verdict.planned_samples)
        self._ended(generation, window)
        self._window_said_at = now  # whoever has missed the commit hears of it, also while nothing new is said
        again = own if run.name in verdict.rejected else []
        done = [] if again else own
        done += [exchange for exchange in again if exchange.key.step in run.ledger.of(exchange.key.agent)]
        again = [exchange for exchange in again if exchange not in done]
        done += in_hand.take_committed(run.ledger)
        in_hand.give_up_stale(now)
        told = self._steps.tell_committed(done, window, now)
        concluded = self._candidates.conclude_round(verdict, now)
        return [*run.tell_new_weights(), *told, *self._steps.ask_again(again), *concluded]

    def failed(self, verdict: Verdict | None, generation: int, now: float) -> list[WorkerAction]:
        """Take notice of a round that has committed nothing: the window stays open, but for a rejected part.

        Args:
            verdict: What it has decided; None where it has not come to that.
            generation: Changes of the pool's membership so far.
            now: Seconds.
        """
        run, in_hand = self._run, self._run.in_hand
        self._ended(generation, in_hand.window)
        self._no_round_before = now + ROUND_PAUSE_S
        actions: list[WorkerAction] = []
        if verdict is not None and run.name in verdict.rejected:
            taken = in_hand.empty_window()
            done = [exchange for exchange in taken if exchange.key.step in run.ledger.of(exchange.key.agent)]
            elsewhere = set(verdict.steps)  # in another worker's part, which will be committed
            again = [
                exchange
                for exchange in taken
                if exchange not in done and (exchange.key.agent, exchange.key.step) not in elsewhere
            ]
            actions = [*self._steps.tell_committed(done, in_hand.window, now), *self._steps.ask_again(again)]
        if verdict is not None:
            actions += self._candidates.conclude_round(verdict, now)
        return [*actions, *self._say_window(now, closes=False)]

    def take_over(
        self,
        manifest: Manifest,
        ledger: Ledger,
        known_samples: Mapping[str, int],
        *,
        window: int,
        version: int,
        committed_samples: int,
        generation: int,
        now: float,
        selection: Mapping[str, Any] | None = None,
    ) -> list[WorkerAction]:
        """Continue from another worker's weights and ledger; what was under way is asked for again."""
        run = self._run
        if run.selection is not None and selection is not None:
            run.selection.load(selection)
        lost = run.in_hand.start_over(window, version, committed_samples)
        run.manifest, run.ledger = manifest, ledger
        run.digest = bytes.fromhex(manifest.digest())
        run.known_samples = {
            **known_samples,
            **{lease.agent: lease.num_samples for lease in run.leases if not lease.is_visit},
        }
        for lease in run.leases:
            run.leases.set_done(lease, is_done=len(ledger.of(lease.agent)) >= lease.total_steps)
        if run.members is not None:
            run.members.manifest_digest = run.digest
        self._ended(generation, window)
        self._phases.await_ledger()
        done = [exchange for exchange in lost if exchange.key.step in ledger.of(exchange.key.agent)]
        again = [exchange for exchange in lost if exchange not in done]
        done += run.in_hand.take_committed(ledger)
        told = [*self._steps.tell_committed(done, window, now), *self._steps.ask_again(again)]
        return [*told, *self._steps.drop_unheld()]

    def _ended(self, generation: int, window: int) -> None:
        self._run.scheduler.is_in_round = False
        self._window_said_at = None
        if self._run.members is not None:
            self._run.members.round_ended(generation, window)

    def _say_window(self, now: float, *, closes: bool, coming: Sequence[Key] = ()) -> list[WorkerAction]:
        self._window_said_at = now
        run, in_hand = self._run, self._run.in_hand
        keys = (*in_hand.in_window, *coming)
        agents = tuple(dict.fromkeys(key.agent for key in keys)) if self._is_synchronous else ()
        num_samples = in_hand.window_samples + sum(in_hand.exchanges[key].num_samples for key in coming)
        state = WindowState(run.name, run.incarnation, in_hand.window, num_samples, agents[:MAX_LIST], closes)
        return [Publish(WorkerTopics(run.name).window, state)]
