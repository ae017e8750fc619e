"""When a worker's run enters its next phase: training, the evaluation of the finished model, the end."""

from __future__ import annotations

from cutlayer.broker.actions import PhaseReached, Publish, WorkerAction
from cutlayer.broker.messages import Phase, RunPhase
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.worker_run import WorkerRun

__all__ = ["WorkerPhases"]


class WorkerPhases:
    """The phases of one worker's run.

    After a resume the ledger's agents are waited for: some may have left for good, and the first to come back may be
    the one that has done all its steps. Nobody is waited for longer than the grace period.

    Args:
        run: What the session's parts share.
    """

    def __init__(self, run: WorkerRun) -> None:
        self._run = run
        self._awaited = set(run.ledger.agents())
        self._awaited_until: float | None = None
        self._is_resumed = bool(self._awaited)

    # Agents of the ledger -------------------------------------------------------------------------------------

    def await_ledger(self) -> None:
        """Wait, for the grace period, for the agents of a ledger that was taken over."""
        self._awaited = {agent for agent in self._run.ledger.agents() if self._run.leases.of(agent) is None}
        self._awaited_until = None
        self._is_resumed = bool(self._awaited) or self._is_resumed

    def came(self, agent: str) -> None:
        """Take notice that an agent takes part: it is expected no more."""
        self._awaited.discard(agent)

    def deadlines(self) -> list[float]:
        """Return the times at which `tick` has something to do."""
        return [self._awaited_until] if self._awaited and self._awaited_until is not None else []

    def tick(self, now: float) -> None:
        """Expect nobody any more once the grace period is over; not called while nobody can be heard."""
        if self._awaited_until is None:  # the time of the session's start is not known before
            self._awaited_until = now + self._run.limits.absence_grace_s
        elif now >= self._awaited_until:
            self._awaited.clear()

    # Phases ---------------------------------------------------------------------------------------------------

    def advance(self) -> list[WorkerAction]:
        """Enter the next phase when its time has come.

        A worker that joins a pool trains as soon as the others do, and ends with them when no agent has come to it.
        Visits count for nothing.
        """
        run, num_agents = self._run, self._run.leases.num_taking_part
        if run.limits.only_visits:
            return []
        others, reason = (RunPhase.WAITING, "") if run.members is None else run.members.furthest_phase()
        if run.phase is RunPhase.WAITING:
            num_needed = 1 if self._is_resumed and not self._awaited else run.limits.min_agents
            if num_agents >= num_needed or others is not RunPhase.WAITING:
                return self._enter_kept() or self.enter(RunPhase.TRAINING, "")
            return []
        if run.limits.is_service or self._awaited:
            return []
        if run.phase is RunPhase.TRAINING and (kept := self._enter_kept()):
            return kept
        if run.selection is None and self.is_over():
            return self.enter(RunPhase.EVALUATING, "all agents have done their epochs")
        if run.phase is RunPhase.EVALUATING and not num_agents:
            return self.enter(RunPhase.ENDED, run.reason)
        if run.phase is not RunPhase.ENDED and others is RunPhase.ENDED and not num_agents:
            return self.enter(RunPhase.ENDED, reason)
        return []

    def is_over(self) -> bool:
        """Return whether all agents that are here have done their epochs.

        With nobody left the run is not over: it waits for whoever comes (back).
        """
        run, num_agents = self._run, self._run.leases.num_taking_part
        if run.phase is not RunPhase.TRAINING or run.limits.is_service or self._awaited:
            return False
        others_train = run.members is not None and run.members.num_training_agents > num_agents
        return bool(num_agents) and not run.leases.training() and not others_train

    def _enter_kept(self) -> list[WorkerAction]:
        """Go on to the evaluation of weights that were chosen before: by an earlier process, or by the pool."""
        selection = self._run.selection
        if selection is None or not selection.is_restored or not self._run.leases.num_taking_part:
            return []
        return self.enter(RunPhase.EVALUATING, selection.reason())

    def enter(self, phase: RunPhase, reason: str) -> list[WorkerAction]:
        """Enter a phase, and say so to everybody."""
        run = self._run
        run.phase, run.reason = phase, reason
        # The finished model is evaluated with the last weights.
        tell = run.tell_weights(run.leases) if phase is RunPhase.EVALUATING else []
        tell += [
            Publish(AgentTopics(lease.agent).down_control, Phase(lease.lease, phase, reason)) for lease in run.leases
        ]
        return [PhaseReached(phase, reason), *tell, run.state()]
