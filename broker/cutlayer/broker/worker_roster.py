"""The worker's side of coming and going: who asks for a lease, who vanishes, who leaves."""

from __future__ import annotations

from cutlayer.broker.actions import (
    AgentJoined,
    AgentLeft,
    Duplicate,
    Publish,
    Refused,
    Subscribe,
    TelemetryReceived,
    Unsubscribe,
    WorkerAction,
)
from cutlayer.broker.errors import SettingsError
from cutlayer.broker.leases import Lease, negotiate_codecs, num_training_steps
from cutlayer.broker.messages import (
    MAX_RANGES,
    AgentState,
    Busy,
    Goodbye,
    GoodbyeReason,
    Hello,
    NegotiatedCodecs,
    Phase,
    Reject,
    RejectReason,
    RunPhase,
    Telemetry,
    Welcome,
)
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.worker_candidates import WorkerCandidates
from cutlayer.broker.worker_phases import WorkerPhases
from cutlayer.broker.worker_run import WorkerRun

__all__ = ["WorkerRoster"]

STATE_EVERY_S = 1.0
"""Every agent hears each state: at every Hello and Goodbye it would be N messages to N agents."""


class WorkerRoster:
    """The agents of one worker.

    Args:
        run: What the session's parts share.
        phases: Where the run stands.
        candidates: The weights that are judged, where any are.
    """

    def __init__(self, run: WorkerRun, phases: WorkerPhases, candidates: WorkerCandidates) -> None:
        self._run = run
        self._phases = phases
        self._candidates = candidates
        self._is_state_old = False
        self._state_at = 0.0
        self._departed: dict[str, int] = {}
        self._check_at: float | None = None
        self._is_deaf = self._renews = False

    def disconnected(self) -> None:
        """Take notice that nobody can be heard: until the connection is back, silence says nothing about an agent."""
        self._is_deaf = True

    def connected(self) -> None:
        """Give every agent its whole time anew, from the next tick: they, too, have to find back to the broker."""
        self._is_deaf, self._renews = False, self._is_deaf

    def heard(self, agent: str | None, now: float) -> None:
        """Take notice of a piece of a message that is not whole yet: a slow link is not a dead one."""
        lease = self._run.leases.of(agent) if agent else None
        if lease is not None:
            lease.heard_at, lease.absent_since = now, None

    # Time -----------------------------------------------------------------------------------------------------

    def deadlines(self) -> list[float]:
        """Return the times at which `tick` has something to do."""
        times = [self._check_at] if self._check_at is not None and len(self._run.leases) else []
        times += [self._state_at] if self._is_state_old else []
        return [*times, *self._phases.deadlines()]

    def tick(self, now: float) -> list[WorkerAction]:
        """Do what is due: vanished agents, and agents that have been away for too long."""
        if self._is_deaf:
            return []
        if self._renews:
            self._renews = False
            for lease in self._run.leases:
                lease.heard_at = now
                lease.absent_since = None if lease.absent_since is None else now
        limits = self._run.limits
        self._phases.tick(now)
        actions: list[WorkerAction] = []
        if self._is_state_old and now >= self._state_at:
            self._is_state_old, self._state_at = False, now + STATE_EVERY_S
            actions.append(self._run.state())
        if self._check_at is not None and now < self._check_at:
            return actions
        for lease in list(self._run.leases):
            if lease.absent_since is None and now >= lease.heard_at + limits.lease_s:
                self.vanish(lease, now)
            elif lease.absent_since is not None and now >= lease.absent_since + limits.absence_grace_s:
                actions += self.drop(lease, "it has been away for too long")
        self._check_at = min((self._due_at(lease) for lease in self._run.leases), default=None)
        return actions

    def _due_at(self, lease: Lease) -> float:
        # Whoever is heard moves this on; it is looked at again when the time has come.
        limits = self._run.limits
        if lease.absent_since is not None:
            return lease.absent_since + limits.absence_grace_s
        return lease.heard_at + limits.lease_s

    def _check_by(self, lease: Lease) -> None:
        due_at = self._due_at(lease)
        self._check_at = due_at if self._check_at is None else min(self._check_at, due_at)

    # Coming ---------------------------------------------------------------------------------------------------

    def hello(self, hello: Hello, now: float) -> list[WorkerAction]:
        """Grant a lease, say again which one stands, or say why there is none."""
        run = self._run
        try:
            topics = AgentTopics(hello.agent)
        except SettingsError as error:
            return [Refused("topic", error.problem)]
        if hello.manifest_digest != run.digest:
            detail = "the agent has read another manifest than this worker's; it reads it again"
            return [Refused("manifest", detail)]
        lease = run.leases.of(hello.agent)
        if lease is not None and lease.absent_since is None:
            if lease.incarnation == hello.incarnation:
                lease.heard_at = now
                # An agent that waits for weights asks by a Hello.
                return [Publish(topics.down_control, self.welcome(lease)), *run.tell_weights([lease])]
            if lease.incarnation > hello.incarnation:
                return [Refused("incarnation", f"a late Hello of {hello.agent}'s earlier process")]
        if hello.incarnation == self._departed.get(hello.agent):
            return [Refused("departed", f"a late Hello of {hello.agent}, which has said Goodbye")]
        if (refusal := self._refusal(hello, lease)) is not None:
            return [Publish(topics.down_control, Reject(run.name, hello.incarnation, *refusal))]
        try:
            codecs = negotiate_codecs(run.manifest.codecs, hello.codecs, hello.byte_stages)
        except ValueError as error:
            reject = Reject(run.name, hello.incarnation, RejectReason.CODEC, str(error)[:512])
            return [Publish(topics.down_control, reject), Refused("codec", str(error))]
        if lease is None and (len(run.leases) >= run.limits.max_agents or run.is_draining):
            busy = Busy(run.name, hello.incarnation, run.limits.absence_grace_s)
            return [Publish(topics.down_control, busy), Refused("busy", f"no room for {hello.agent}")]
        return self._grant(hello, codecs, lease, topics, now)

    def _refusal(self, hello: Hello, lease: Lease | None) -> tuple[RejectReason, str] | None:
        """Return why an agent is refused for good; None where it is not."""
        run, is_visit = self._run, hello.num_samples == 0
        if run.phase is RunPhase.ENDED:
            return RejectReason.ENDED, f"the run has ended: {run.reason}"
        if run.limits.only_visits and not is_visit:
            return RejectReason.ENDED, "its training is over, and this worker serves evaluations and predictions only"
        if is_visit and lease is not None and not lease.is_visit:
            # Its lease would be taken, and with it the steps that are under way, by what trains nothing.
            detail = f"{hello.agent} takes part in the training: a visit needs a topic of its own (another --topic)"
            return RejectReason.CONTENT, detail
        return None

    def _grant(
        self, hello: Hello, codecs: NegotiatedCodecs, before: Lease | None, topics: AgentTopics, now: float
    ) -> list[WorkerAction]:
        run = self._run
        if before is not None:
            run.in_hand.abandon(hello.agent)
        is_returning = hello.agent in run.known_samples
        total_steps = num_training_steps(run.manifest, hello.num_samples)
        is_done = len(run.ledger.of(hello.agent)) >= total_steps
        lease = run.leases.grant(hello, codecs, total_steps, now, is_done=is_done)
        if not lease.is_visit:  # under the topic of an agent that trained before, it is not that agent come back
            run.known_samples[hello.agent] = hello.num_samples
            self._phases.came(hello.agent)
        self._check_by(lease)
        joined = AgentJoined(hello.agent, hello.num_samples, is_returning)
        advance = self._phases.advance()  # before the Welcome, which says where the run stands
        welcome = Publish(topics.down_control, self.welcome(lease))
        self._is_state_old = True
        told = [*run.tell_weights([lease]), *self._candidates.offer([lease])]
        return [*self.subscribe(hello.agent), joined, welcome, *told, *advance]

    def welcome(self, lease: Lease) -> Welcome:
        """Return the Welcome of a lease, with what is committed now."""
        run = self._run
        committed = tuple(run.ledger.of(lease.agent))[:MAX_RANGES]
        return Welcome(
            run.name,
            lease.incarnation,
            lease.lease,
            run.limits.credits,
            lease.codecs,
            committed,
            run.phase,
            run.limits.lease_s,
            run.store,
        )

    def subscribe(self, agent: str) -> list[WorkerAction]:
        """Listen to an agent."""
        topics = AgentTopics(agent)
        return [
            Subscribe(wanted)
            for wanted in (topics.up_to(self._run.name), topics.telemetry, topics.missing, topics.state)
        ]

    # Staying --------------------------------------------------------------------------------------------------

    def training_done(self, lease: Lease) -> list[WorkerAction]:
        """Wait for an agent no more; or, when the ledger lacks a step of it, say so with what is committed."""
        run = self._run
        if len(run.ledger.of(lease.agent)) < lease.total_steps:
            return [Publish(AgentTopics(lease.agent).down_control, self.welcome(lease), repeated=True)]
        run.leases.set_done(lease, is_done=True)
        return []

    def telemetry(self, agent: str | None, message: Telemetry, now: float) -> list[WorkerAction]:
        """Take an agent's counters."""
        lease = self._run.leases.of(agent) if agent else None
        if agent is None or (lease is None and agent not in self._run.known_samples):
            return [Refused("lease", "Telemetry of an unknown agent")]
        if lease is not None and lease.incarnation == message.incarnation:
            lease.heard_at = now
        return _counted(lease, agent, message)

    # Going ----------------------------------------------------------------------------------------------------

    def agent_state(self, agent: str | None, message: AgentState, now: float) -> list[WorkerAction]:
        """Take notice of an agent's will."""
        lease = self._run.leases.of(agent) if agent else None
        if lease is not None and not message.online and message.incarnation == lease.incarnation:
            self.vanish(lease, now)
        return []

    def vanish(self, lease: Lease, now: float) -> None:
        """Count an agent as absent, from now on."""
        lease.absent_since = now if lease.absent_since is None else lease.absent_since
        self._run.in_hand.abandon(lease.agent)
        self._check_by(lease)

    def goodbye(self, lease: Lease, message: Goodbye) -> list[WorkerAction]:
        """Take a lease back that an agent returns, with its last counters."""
        actions: list[WorkerAction] = [
            *_counted(lease, lease.agent, message.telemetry),
            self.answer_goodbye(lease.agent, lease.lease),
        ]
        reason = "it left" if message.reason is GoodbyeReason.LEFT else "it has finished"
        self._departed[lease.agent] = lease.incarnation
        return [*actions, *self.drop(lease, reason)]

    def late_goodbye(self, message: Goodbye) -> list[WorkerAction]:
        """Answer a Goodbye under a lease that is gone already."""
        former = self._run.leases.former(message.lease)
        if former is None:
            return [Refused("lease", "Goodbye under an unknown lease")]
        agent = former.agent
        answer = self.answer_goodbye(agent, message.lease)
        lease = self._run.leases.of(agent)
        if lease is not None and lease.incarnation == message.telemetry.incarnation:
            return [*self.goodbye(lease, message), answer]  # it does not know of its new lease yet
        return [Duplicate("Goodbye"), *_counted(former, agent, message.telemetry), answer]

    def answer_goodbye(self, agent: str, lease: int) -> Publish:
        """Return the message that ends a Goodbye."""
        return Publish(AgentTopics(agent).down_control, Phase(lease, RunPhase.ENDED, "goodbye"))

    def refuse(self, lease: Lease, detail: str) -> list[WorkerAction]:
        """Refuse an agent for good: what it sent would be as wrong the next time."""
        reject = Reject(self._run.name, lease.incarnation, RejectReason.CONTENT, detail[:512])
        publish = Publish(AgentTopics(lease.agent).down_control, reject)
        return [Refused("content", detail), publish, *self.drop(lease, "it was refused")]

    def drop(self, lease: Lease, reason: str) -> list[WorkerAction]:
        """Take a lease back."""
        run = self._run
        run.in_hand.abandon(lease.agent)
        run.leases.drop(lease.agent)
        run.commits.forget(lease.agent)
        if not lease.is_visit:
            # Schedules do not count on what it has not trained on; if it comes back, its Hello says how much there is.
            steps = len(run.ledger.of(lease.agent))
            committed = min(steps * run.manifest.microbatch_samples, lease.num_samples * run.manifest.epochs)
            run.known_samples[lease.agent] = committed // run.manifest.epochs
        topics = AgentTopics(lease.agent)
        left = AgentLeft(lease.agent, reason)
        self._is_state_old = True
        return [Unsubscribe(topics.up_to(run.name)), Unsubscribe(topics.state), left]


def _counted(lease: Lease | None, agent: str, telemetry: Telemetry) -> list[WorkerAction]:
    """Return that counters have come; those of a visit are no part of the run's."""
    return [] if lease is not None and lease.is_visit else [TelemetryReceived(agent, telemetry)]
