"""The worker's side of choosing weights: offers candidates to agents, hears what they report, asks for the choice.

`selection.py` has the rules. This part knows who is here: who is awaited for a judgement, and who is told of what.
"""

from __future__ import annotations

from collections.abc import Iterable

from cutlayer.broker.actions import CandidateJudged, Publish, WorkerAction
from cutlayer.broker.leases import Lease
from cutlayer.broker.messages import Candidate, RunPhase, Telemetry
from cutlayer.broker.pool_round import Verdict
from cutlayer.broker.selection import Judgement, Selection
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.work import NamedTensors
from cutlayer.broker.worker_phases import WorkerPhases
from cutlayer.broker.worker_run import WorkerRun
from cutlayer.broker.worker_steps import WorkerSteps

__all__ = ["OFFER_AGAIN_S", "WorkerCandidates"]

OFFER_AGAIN_S = 5.0
"""An agent that has not reported is told so often of the candidate: the offer, or its report, may have been lost."""


class WorkerCandidates:
    """The candidates of one worker's run; does nothing where none are judged.

    Args:
        run: What the session's parts share.
        phases: Where the run stands.
        steps: The exchanges, evaluations of candidates among them.
    """

    def __init__(self, run: WorkerRun, phases: WorkerPhases, steps: WorkerSteps) -> None:
        self._run = run
        self._phases = phases
        self._steps = steps
        self._tensors: dict[str, NamedTensors] = {}
        self._offer_at: float | None = None
        self._has_warned = False

    # What the driver holds ------------------------------------------------------------------------------------

    def taken(self, name: str, tensors: NamedTensors, now: float) -> list[WorkerAction]:
        """Take notice that the newest weights, which were due as a candidate, are held under a name.

        Args:
            name: Their fingerprint.
            tensors: The tokenizers' weights among them, where they are trained.
            now: Seconds.
        """
        selection = self._run.selection
        assert selection is not None, "candidates are taken where they are judged"
        before = selection.current
        selection.taken(name)
        self.give(name, tensors)
        actions = self.offer_now(now) if before is None else []
        return [*actions, *self._steps.drop_unheld()]

    def kept(self, version: int) -> list[WorkerAction]:
        """Take notice that the newest weights are the ones that the run ends with: agents now evaluate these."""
        selection = self._run.selection
        assert selection is not None, "weights are kept where they are chosen"
        selection.restored()
        self._run.in_hand.stop_training(version)
        return [*self._steps.drop_unheld(), *self._phases.enter(RunPhase.EVALUATING, selection.reason())]

    def give(self, name: str, tensors: NamedTensors) -> None:
        """Take a candidate's tokenizers, which go with its offers, where they are trained."""
        selection = self._run.selection
        held = () if selection is None else selection.held
        self._tensors = {known: value for known, value in self._tensors.items() if known in held} | {name: tensors}

    def lacks(self) -> tuple[str, ...]:
        """Return the candidates whose tokenizers `give` has not been told of."""
        selection = self._run.selection
        pending = () if selection is None else (selection.current, selection.waiting)
        return tuple(each.name for each in pending if each is not None and each.name not in self._tensors)

    def may_evaluate(self, agent: str, candidate: str) -> bool:
        """Return whether an agent's evaluation may run now with the weights that it names; empty for the newest.

        What evaluates the finished model at a worker of a pool that does not have it yet waits for it. A visit takes
        the weights as they are.
        """
        selection = self._run.selection
        if selection is None:
            return True
        if candidate:
            return candidate in selection.held
        lease = self._run.leases.of(agent)
        is_visit = lease is not None and lease.is_visit
        return is_visit or self._run.members is None or selection.is_restored

    # What agents are offered, and report ----------------------------------------------------------------------

    def deadlines(self) -> list[float]:
        """Return the times at which `tick` has something to do."""
        return [self._offer_at] if self._offer_at is not None and self._late() else []

    def tick(self, now: float) -> list[WorkerAction]:
        """Offer the current candidate again to those that have not reported."""
        if self._offer_at is None or now < self._offer_at:
            return []
        self._offer_at = now + OFFER_AGAIN_S
        return self.offer(self._late(), repeated=True)

    def offer_now(self, now: float) -> list[WorkerAction]:
        """Offer the current candidate to all agents, since it has only now become that."""
        selection = self._run.selection
        if selection is None or selection.current is None:
            self._offer_at = None
            return []
        self._offer_at = now + OFFER_AGAIN_S
        return self.offer(self._late())

    def offer(self, leases: Iterable[Lease], *, repeated: bool = False) -> list[WorkerAction]:
        """Offer the current candidate to some agents."""
        selection = self._run.selection
        candidate = None if selection is None else selection.current
        if candidate is None or candidate.name not in self._tensors:
            return []
        tensors = self._tensors[candidate.name]
        if tensors and not self._run.is_first:
            return []
        return [
            Publish(
                AgentTopics(lease.agent).down_control,
                Candidate(lease.lease, candidate.epoch, candidate.name, tensors),
                repeated=repeated,
            )
            for lease in leases
            if lease.num_val
        ]

    def hear(self, agent: str, telemetry: Telemetry) -> None:
        """Take what an agent reports of candidates: given all that it has, the first of an evaluation's reports."""
        selection = self._run.selection
        if selection is None:
            return
        for evaluation in telemetry.evaluations:
            if evaluation.candidate:
                selection.report(agent, evaluation.candidate, evaluation.sums)

    # What is concluded ----------------------------------------------------------------------------------------

    def proposals(self) -> tuple[Judgement, ...]:
        """Return what this worker would judge now."""
        selection, members = self._run.selection, self._run.members
        if selection is None or selection.current is None:
            return ()
        if members is not None and members.num_training_agents > self._run.leases.num_taking_part:
            return ()  # agents that others have leases with are on their way to this one
        return selection.proposals(self._awaited(), is_over=self._phases.is_over())

    def wants_round(self) -> bool:
        """Return whether a pool has something to conclude that no window is going to carry, or has concluded it.

        In the second case this worker has missed the round, and takes over what was chosen in the next.
        """
        selection, members = self._run.selection, self._run.members
        if selection is not None and members is not None and members.has_gone_on and not selection.is_restored:
            return True
        if selection is None or selection.decision is not None or selection.due is not None:
            return False
        if not self._phases.is_over():
            return False
        return selection.current is None or bool(self.proposals())

    def conclude_alone(self, now: float) -> list[WorkerAction]:
        """Judge and decide as the only worker of a run, once there is enough to judge by."""
        selection = self._run.selection
        if selection is None or self._run.members is not None or self._run.phase is not RunPhase.TRAINING:
            return []
        actions = self._conclude(selection, self.proposals(), is_over=self._phases.is_over())
        return [*actions, *self.offer_now(now), *self._steps.drop_unheld()] if actions else []

    def conclude_round(self, verdict: Verdict, now: float) -> list[WorkerAction]:
        """Judge and decide as all replicas do, by what the parts of a round say."""
        selection = self._run.selection
        if selection is None:
            return []
        actions = self._conclude(selection, verdict.judged, is_over=verdict.is_over)
        actions += self.offer_now(now) if actions else []
        return [*actions, *self._steps.drop_unheld()]

    def _conclude(self, selection: Selection, judgements: Iterable[Judgement], *, is_over: bool) -> list[WorkerAction]:
        news = selection.conclude(judgements, is_over=is_over)
        return [CandidateJudged(judged, selection.text(judged)) for judged in news]

    def has_no_judge(self) -> bool:
        """Return, once, whether a candidate is to be judged and no agent has validation samples."""
        selection, leases = self._run.selection, self._run.leases
        if selection is None or self._has_warned or selection.current is None or not leases.num_taking_part:
            return False
        self._has_warned = not any(lease.num_val for lease in leases)
        return self._has_warned

    def _awaited(self) -> set[str]:
        return {lease.agent for lease in self._run.leases if lease.num_val and lease.absent_since is None}

    def _late(self) -> list[Lease]:
        selection = self._run.selection
        reported = () if selection is None else selection.reported()
        awaited = self._awaited()
        return [lease for lease in self._run.leases if lease.agent in awaited and lease.agent not in reported]
