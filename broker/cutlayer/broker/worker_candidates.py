"""The worker's side of choosing weights: offers candidates to agents, hears what they report, asks for the choice.

`selection.py` has the rules. This part knows who is here: who is awaited for a judgement, and who is told of what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cutlayer.broker.actions import CandidateJudged, Publish, WorkerAction
from cutlayer.broker.leases import Lease
from cutlayer.broker.messages import Candidate, RunPhase, Telemetry
from cutlayer.broker.selection import Judgement
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.work import NamedTensors
from cutlayer.broker.worker_run import WorkerRun

__all__ = ["OFFER_AGAIN_S", "WorkerCandidates"]

OFFER_AGAIN_S = 5.0
"""An agent that has not reported is told so often of the candidate: the offer, or its report, may have been lost."""


class WorkerCandidates:
    """The candidates of one worker's run; does nothing where none are judged.

    Args:
        run: What the session's parts share.
        is_over: Says whether this worker finds that training has come to its end.
    """

    def __init__(self, run: WorkerRun, is_over: Callable[[], bool]) -> None:
        self._run = run
        self._is_over = is_over
        self._tensors: dict[str, NamedTensors] = {}
        self._offer_at: float | None = None
        self._has_warned = False

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

    def proposals(self) -> tuple[Judgement, ...]:
        """Return what this worker would judge now."""
        selection, members = self._run.selection, self._run.members
        if selection is None or selection.current is None:
            return ()
        if members is not None and members.num_training_agents > self._run.leases.num_taking_part:
            return ()  # agents that others have leases with are on their way to this one
        return selection.proposals(self._awaited(), is_over=self._is_over())

    def wants_round(self) -> bool:
        """Return whether a pool has something to conclude that no window is going to carry, or has concluded it.

        In the second case this worker has missed the round, and takes over what was chosen in the next.
        """
        selection, members = self._run.selection, self._run.members
        if selection is not None and members is not None and members.has_gone_on and not selection.is_restored:
            return True
        if selection is None or selection.decision is not None or selection.due is not None or not self._is_over():
            return False
        return selection.current is None or bool(self.proposals())

    def conclude_alone(self) -> list[WorkerAction]:
        """Judge and decide without a pool, if there is anything."""
        selection = self._run.selection
        if selection is None or self._run.members is not None or self._run.phase is not RunPhase.TRAINING:
            return []
        return self.conclude(self.proposals(), is_over=self._is_over())

    def conclude(self, judgements: Iterable[Judgement], *, is_over: bool) -> list[WorkerAction]:
        """Judge and decide by what one worker or a round says."""
        selection = self._run.selection
        if selection is None:
            return []
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
