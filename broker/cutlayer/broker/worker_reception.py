"""The worker's door for messages: who may say what, and which part of the session it is for."""

from __future__ import annotations

from cutlayer.broker.actions import Publish, Refused, WorkerAction
from cutlayer.broker.leases import Lease
from cutlayer.broker.messages import (
    Activations,
    AgentState,
    Goodbye,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Phase,
    Resend,
    ResendReason,
    RunPhase,
    Telemetry,
    TrainingDone,
    WindowState,
    WorkerState,
)
from cutlayer.broker.pool_members import PoolMembers
from cutlayer.broker.topics import AgentTopics, agent_of
from cutlayer.broker.worker_candidates import WorkerCandidates
from cutlayer.broker.worker_phases import WorkerPhases
from cutlayer.broker.worker_roster import WorkerRoster
from cutlayer.broker.worker_run import WorkerRun
from cutlayer.broker.worker_steps import ContentRefused, WorkerSteps

__all__ = ["WorkerReception"]


class WorkerReception:
    """Takes what one worker is told.

    Args:
        run: What the session's parts share.
        phases: Where the run stands.
        steps: The exchanges.
        candidates: The weights that are judged, where any are.
        roster: The agents.
    """

    def __init__(
        self,
        run: WorkerRun,
        phases: WorkerPhases,
        steps: WorkerSteps,
        candidates: WorkerCandidates,
        roster: WorkerRoster,
    ) -> None:
        self._run = run
        self._phases = phases
        self._steps = steps
        self._candidates = candidates
        self._roster = roster

    def receive(self, topic: str, message: Message, now: float) -> list[WorkerAction]:
        """Take a message from the broker.

        Args:
            topic: Topic name it came on; it names the agent where the message does not.
            message: The message.
            now: Seconds of the driver's clock.
        """
        match message:
            case Hello() if message.agent != agent_of(topic):
                return [Refused("topic", f"a Hello in the name of {message.agent} on {topic}")]
            case Hello():
                return self._roster.hello(message, now)
            case AgentState():
                return [*self._roster.agent_state(agent_of(topic), message, now), *self._phases.advance()]
            case Telemetry():
                return self._telemetry(agent_of(topic), message, now)
            case WorkerState() | WindowState() if self._run.members is not None:
                return self._pool_says(self._run.members, message)
            case Activations() | OutputGradients() | TrainingDone() | Goodbye():
                lease = self._run.leases.numbered(message.lease)
                sender = agent_of(topic)
                if lease is None or (sender is not None and sender != lease.agent):
                    return self._unknown_lease(sender, message)
                lease.heard_at, lease.absent_since = now, None
                return self._leased(lease, message, now)
            case _:
                return [Refused("unexpected", f"{type(message).__name__} is not for a worker")]

    def _leased(
        self, lease: Lease, message: Activations | OutputGradients | TrainingDone | Goodbye, now: float
    ) -> list[WorkerAction]:
        try:
            match message:
                case Activations():
                    return self._steps.activations(lease, message, now)
                case OutputGradients():
                    return self._steps.gradients(lease, message, now)
                case TrainingDone():
                    return self._training_done(lease)
                case Goodbye():
                    self._candidates.hear(lease.agent, message.telemetry)
                    return [*self._roster.goodbye(lease, message), *self._phases.advance()]
        except ContentRefused as refused:
            return [*self._roster.refuse(lease, str(refused)), *self._phases.advance()]

    def _telemetry(self, agent: str | None, message: Telemetry, now: float) -> list[WorkerAction]:
        actions = self._roster.telemetry(agent, message, now)
        if agent is not None and self._run.leases.of(agent) is not None:
            self._candidates.hear(agent, message)
            actions += self._candidates.conclude_alone(now)
        return actions

    def _training_done(self, lease: Lease) -> list[WorkerAction]:
        if actions := self._roster.training_done(lease):
            return actions
        actions = self._phases.advance()
        if not actions and self._run.phase in (RunPhase.EVALUATING, RunPhase.ENDED):
            phase = Phase(lease.lease, self._run.phase, self._run.reason)  # the first may have been lost
            actions.append(Publish(AgentTopics(lease.agent).down_control, phase, repeated=True))
        return actions

    def _unknown_lease(self, sender: str | None, message: Message) -> list[WorkerAction]:
        refused = Refused("lease", f"{type(message).__name__} under an unknown lease")
        if isinstance(message, Goodbye):
            return [*self._roster.late_goodbye(message), *self._phases.advance()]
        if sender is None or not isinstance(message, Activations | OutputGradients):
            return [refused]
        mode = message.mode if isinstance(message, Activations) else Mode.TRAIN
        resend = Resend(message.lease, message.step, mode, ResendReason.LEASE)
        return [refused, Publish(AgentTopics(sender).down_control, resend)]

    def _pool_says(self, members: PoolMembers, message: WorkerState | WindowState) -> list[WorkerAction]:
        if isinstance(message, WindowState):
            members.heard_window(message)
            return []
        members.heard_state(message)
        return self._phases.advance() if self._run.is_serving else []
