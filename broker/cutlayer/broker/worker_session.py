"""The worker's side of the conversation, without I/O: messages and the time in, actions and work out.

The session grants leases, keeps each exchange's state, decides which microbatches go forward together, when their
backward pass runs and when a window closes, and remembers what is committed. Its driver
(`cutlayer.server_worker.runtime`) does the actions and the arithmetic.

A *group* is what went forward together: one graph. Its backward pass runs when all its gradients are there, or, in
asynchronous mode, `window.deadline_s` after the first, for those that are there; the graph stays for the others. A
*window* is what one optimizer step commits. Backward passes come before new forward passes, so that live graphs stay
few (design, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.broker.actions import (
    AgentJoined,
    AgentLeft,
    Duplicate,
    PhaseReached,
    Publish,
    Refused,
    Subscribe,
    TelemetryReceived,
    Unsubscribe,
    WorkerAction,
)
from cutlayer.broker.errors import MalformedMessage, SettingsError, WireError
from cutlayer.broker.leases import Lease, LeaseTable, negotiate_codecs, num_training_steps
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    MAX_RANGES,
    ActivationGradients,
    Activations,
    AgentState,
    Busy,
    EncodedTensor,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    Phase,
    Reject,
    RejectReason,
    Resend,
    ResendReason,
    RunPhase,
    Telemetry,
    TrainingDone,
    Welcome,
    WorkerState,
)
from cutlayer.broker.scheduler import Scheduler
from cutlayer.broker.states import ExchangeState, next_state
from cutlayer.broker.tensors import check_tensor
from cutlayer.broker.topics import AgentTopics, WorkerTopics, agent_of
from cutlayer.broker.work import Exchange, Key, Work

__all__ = ["WorkerLimits", "WorkerSession"]


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker allows.

    Attributes:
        credits: Microbatches an agent may have outstanding here.
        max_batch_samples: Samples that go forward together at the most.
        lease_s: Seconds of silence after which an agent counts as vanished.
        absence_grace_s: Seconds that a vanished agent is waited for.
        min_agents: Training starts when so many hold leases.
        max_agents: Leases granted at once; a Hello beyond is answered with Busy.
        is_service: The run never ends by itself.
    """

    credits: int = 2
    max_batch_samples: int = 256
    lease_s: float = 60.0
    absence_grace_s: float = 30.0
    min_agents: int = 1
    max_agents: int = 10_000
    is_service: bool = False


class WorkerSession:
    """One worker's conversations with all its agents.

    Args:
        name: The worker's name.
        incarnation: Start of this process, in milliseconds since the epoch.
        manifest: The run.
        num_classes: Width C of the outputs.
        limits: What it allows.
        leases: The (empty) table of leases.
        ledger: What is already committed (from a checkpoint).
        committed_samples: Samples already committed.
        window: Windows already committed.
        version: Version of the weights.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        manifest: Manifest,
        limits: WorkerLimits,
        leases: LeaseTable,
        *,
        ledger: Ledger | None = None,
        committed_samples: int = 0,
        window: int = 0,
        version: int = 0,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self.phase = RunPhase.WAITING
        self.reason = ""
        self.ledger = ledger or Ledger()
        self.leases = leases
        self._manifest = manifest
        self._digest = bytes.fromhex(manifest.digest())
        self._limits = limits
        self._topics = WorkerTopics(name)
        self._known_samples: dict[str, int] = {}
        self._departed: dict[str, int] = {}
        self._awaited = set(self.ledger.agents())
        self._is_resumed = bool(self._awaited)
        self._awaited_until: float | None = None
        self._scheduler = Scheduler(manifest.window, limits.max_batch_samples, window, version, committed_samples)

    # What the driver asks -------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Version of the weights."""
        return self._scheduler.version

    @property
    def window(self) -> int:
        """Windows committed."""
        return self._scheduler.window

    @property
    def committed_samples(self) -> int:
        """Samples committed."""
        return self._scheduler.committed_samples

    @property
    def planned_samples(self) -> int:
        """Samples that the agents known so far will have trained on in all epochs."""
        return self._manifest.epochs * sum(self._known_samples.values())

    @property
    def num_live(self) -> int:
        """Microbatches that are being worked on."""
        return len(self._scheduler.exchanges)

    def live_keys(self) -> tuple[Key, ...]:
        """Return the microbatches that are being worked on."""
        return tuple(self._scheduler.exchanges)

    def next_work(self, now: float) -> Work | None:
        """Return what to compute next, or None. The driver reports back before it asks again."""
        return self._scheduler.next_work(
            self.leases.training(),
            self.ledger,
            is_training=self.phase is not RunPhase.WAITING,
            credits=self._limits.credits,
            planned_samples=None if self._limits.is_service else self.planned_samples,
            now=now,
        )

    def next_deadline(self, now: float) -> float | None:
        """Return the time at which `tick` or `next_work` has something to do by the clock alone, or None."""
        times = [lease.heard_at + self._limits.lease_s for lease in self.leases if lease.absent_since is None]
        times += [
            lease.absent_since + self._limits.absence_grace_s for lease in self.leases if lease.absent_since is not None
        ]
        times += [self._awaited_until] if self._awaited and self._awaited_until is not None else []
        times += self._scheduler.deadlines()
        return min((time for time in times if time > now), default=None)

    # What the driver reports ----------------------------------------------------------------------------------

    def connected(self) -> list[WorkerAction]:
        """Take notice of a connection, the first or another one."""
        actions: list[WorkerAction] = [Subscribe(self._topics.inbox), self._state()]
        for lease in self.leases:
            actions += self._subscribe(lease.agent)
        return actions

    def forwarded(self, group: int, outputs: dict[Key, EncodedTensor], version: int, now: float) -> list[WorkerAction]:
        """Take the outputs of a forward pass and send each to its agent."""
        actions: list[WorkerAction] = []
        for exchange in self._scheduler.forwarded(group, tuple(outputs), version):
            message = Outputs(
                exchange.lease,
                exchange.key.step,
                exchange.key.mode,
                version,
                max(now - exchange.received_at, 0.0),
                outputs[exchange.key],
            )
            exchange.outputs = message if exchange.key.mode is Mode.TRAIN else None
            actions.append(Publish(AgentTopics(exchange.key.agent).down_outputs, message))
        return actions

    def backward_done(self, group: int, now: float) -> list[WorkerAction]:
        """Take notice that a group's gradients are part of the open window."""
        self._scheduler.backward_done(group, now)
        return []

    def committed(self, version: int, now: float) -> list[WorkerAction]:
        """Take notice of an optimizer step and tell the agents whose microbatches it holds."""
        actions: list[WorkerAction] = []
        window = self.window
        for exchange in self._scheduler.committed(version):
            self.ledger.add(exchange.key.agent, exchange.key.step)
            if self.leases.numbered(exchange.lease) is not None:
                server_s = max(now - exchange.received_at, 0.0)
                commit = ActivationGradients(exchange.lease, exchange.key.step, window, server_s, ())
                actions.append(Publish(AgentTopics(exchange.key.agent).down_gradients, commit))
        stale = self._scheduler.take_stale()
        return actions + [self._resend(exchange, ResendReason.STALE) for exchange in stale]

    def fail_content(self, key: Key, detail: str) -> list[WorkerAction]:
        """Refuse an agent for good whose tensors cannot be decoded."""
        self._scheduler.discard(key)
        lease = self.leases.of(key.agent)
        return [] if lease is None else self._refuse_content(lease, detail)

    def end(self, reason: str) -> list[WorkerAction]:
        """End the run now, for a reason of the driver's."""
        return self._enter(RunPhase.ENDED, reason)

    def tick(self, now: float) -> list[WorkerAction]:
        """Do what is due: vanished agents, and the run's next phase."""
        actions: list[WorkerAction] = []
        if self._awaited_until is None:  # the time of the session's start is not known before
            self._awaited_until = now + self._limits.absence_grace_s
        elif now >= self._awaited_until:
            self._awaited.clear()
        for lease in list(self.leases):
            if lease.absent_since is None and now >= lease.heard_at + self._limits.lease_s:
                self._vanish(lease, now)
            elif lease.absent_since is not None and now >= lease.absent_since + self._limits.absence_grace_s:
                actions += self._drop(lease, "it has been away for too long")
        return actions + self._advance()

    # What the agents say --------------------------------------------------------------------------------------

    def receive(self, topic: str, message: Message, now: float) -> list[WorkerAction]:
        """Take a message from the broker.

        Args:
            topic: Topic name it came on; it names the agent where the message does not.
            message: The message.
            now: Seconds of the driver's clock.
        """
        match message:
            case Hello():
                return self._hello(message, now)
            case AgentState():
                return self._agent_state(agent_of(topic), message, now)
            case Telemetry():
                return self._telemetry(agent_of(topic), message, now)
            case Activations() | OutputGradients() | TrainingDone() | Goodbye():
                lease = self.leases.numbered(message.lease)
                sender = agent_of(topic)
                if lease is None or (sender is not None and sender != lease.agent):
                    return self._unknown_lease(sender, message)
                lease.heard_at, lease.absent_since = now, None
                match message:
                    case Activations():
                        return self._activations(lease, message, now)
                    case OutputGradients():
                        return self._gradients(lease, message, now)
                    case TrainingDone():
                        return self._training_done(lease)
                    case _:
                        return self._goodbye(lease, message)
            case _:
                return [Refused("unexpected", f"{type(message).__name__} is not for a worker")]

    def _hello(self, hello: Hello, now: float) -> list[WorkerAction]:
        try:
            topics = AgentTopics(hello.agent)
        except SettingsError as error:
            return [Refused("topic", error.problem)]
        if hello.manifest_digest != self._digest:
            detail = "the agent has read another manifest than this worker's; it reads it again"
            return [Refused("manifest", detail)]
        lease = self.leases.of(hello.agent)
        if lease is not None and lease.absent_since is None:
            if lease.incarnation == hello.incarnation:
                lease.heard_at = now
                return [Publish(topics.down_control, self._welcome(lease))]
            if lease.incarnation > hello.incarnation:
                return [Refused("incarnation", f"a late Hello of {hello.agent}'s earlier process")]
        if hello.incarnation == self._departed.get(hello.agent):
            return [Refused("departed", f"a late Hello of {hello.agent}, which has said Goodbye")]
        if self.phase is RunPhase.ENDED:
            reject = Reject(self.name, hello.incarnation, RejectReason.ENDED, f"the run has ended: {self.reason}")
            return [Publish(topics.down_control, reject)]
        try:
            codecs = negotiate_codecs(self._manifest.codecs, hello.codecs, hello.byte_stages)
        except ValueError as error:
            reject = Reject(self.name, hello.incarnation, RejectReason.CODEC, str(error)[:512])
            return [Publish(topics.down_control, reject), Refused("codec", str(error))]
        if lease is None and len(self.leases) >= self._limits.max_agents:
            busy = Busy(self.name, hello.incarnation, self._limits.absence_grace_s)
            return [Publish(topics.down_control, busy), Refused("busy", f"no room for {hello.agent}")]
        if lease is not None:
            self._scheduler.abandon(hello.agent)
        is_returning = hello.agent in self._known_samples
        total_steps = num_training_steps(self._manifest, hello.num_samples)
        lease = self.leases.grant(hello, codecs, total_steps, now)
        lease.is_done = len(self.ledger.of(hello.agent)) >= total_steps
        self._known_samples[hello.agent] = hello.num_samples
        self._awaited.discard(hello.agent)
        actions = self._subscribe(hello.agent)
        actions.append(AgentJoined(hello.agent, hello.num_samples, is_returning))
        advance = self._advance()
        return [*actions, Publish(topics.down_control, self._welcome(lease)), *advance, self._state()]

    def _welcome(self, lease: Lease) -> Welcome:
        committed = tuple(self.ledger.of(lease.agent))[:MAX_RANGES]
        return Welcome(
            self.name,
            lease.incarnation,
            lease.lease,
            self._limits.credits,
            lease.codecs,
            committed,
            self.phase,
            self._limits.lease_s,
        )

    def _activations(self, lease: Lease, message: Activations, now: float) -> list[WorkerAction]:
        key = Key(lease.agent, message.mode, message.step)
        topics = AgentTopics(lease.agent)
        if key.mode is Mode.TRAIN and key.step in self.ledger.of(lease.agent):
            commit = ActivationGradients(lease.lease, key.step, self.window, 0.0, ())
            return [Duplicate("Activations"), Publish(topics.down_gradients, commit, repeated=True)]
        exchange = self._scheduler.exchanges.get(key)
        if exchange is not None:
            # Under another lease it is what an earlier process of this agent has sent the gradients of: it will be
            # committed, and the agent is told so under the lease that it has now.
            exchange.lease = lease.lease
            actions: list[WorkerAction] = [Duplicate("Activations")]
            if exchange.outputs is not None and exchange.state is ExchangeState.OUTPUTS:
                actions.append(Publish(topics.down_outputs, exchange.outputs, repeated=True))
            return actions
        try:
            self._check_activations(lease, message)
        except WireError as error:
            return self._refuse_content(lease, str(error))
        if self._scheduler.num_of(lease.agent) >= self._limits.credits:
            return [Refused("credits", f"{lease.agent} sends more than its {self._limits.credits} credits")]
        self._scheduler.add(Exchange(key, lease.lease, message, ExchangeState.ACTIVATIONS, message.num_samples, now))
        return []

    def _check_activations(self, lease: Lease, message: Activations) -> None:
        given = [name for name, _ in message.tensors]
        specs = self._manifest.modalities
        if not given or len(set(given)) != len(given) or not set(given) <= set(specs):
            raise MalformedMessage(f"modalities {given} are not some of {sorted(specs)}, each at most once")
        if message.mode is Mode.TRAIN and message.step >= lease.total_steps:
            raise MalformedMessage(f"step {message.step} of an agent that has {lease.total_steps}")
        if not 1 <= message.num_samples <= self._manifest.microbatch_samples:
            raise MalformedMessage(
                f"{message.num_samples} samples in a microbatch of at most {self._manifest.microbatch_samples}"
            )
        for name, tensor in message.tensors:
            shape = (message.num_samples, specs[name].num_tokens, self._manifest.width)
            check_tensor(tensor, shape=shape, codec=lease.codecs.activations, what=f"activations of {name}")

    def _gradients(self, lease: Lease, message: OutputGradients, now: float) -> list[WorkerAction]:
        key = Key(lease.agent, Mode.TRAIN, message.step)
        if key.step in self.ledger.of(lease.agent):
            commit = ActivationGradients(lease.lease, key.step, self.window, 0.0, ())
            down = AgentTopics(lease.agent).down_gradients
            return [Duplicate("OutputGradients"), Publish(down, commit, repeated=True)]
        exchange = self._scheduler.exchanges.get(key)
        if exchange is None or exchange.lease != lease.lease:
            resend = Resend(lease.lease, key.step, Mode.TRAIN, ResendReason.UNKNOWN)
            return [Publish(AgentTopics(lease.agent).down_control, resend)]
        after = next_state(Mode.TRAIN, exchange.state, OutputGradients)
        if after is None or exchange.outputs is None:
            return [Refused("state", f"OutputGradients in state {exchange.state.name}")]
        if after is exchange.state:
            return [Duplicate("OutputGradients")]
        if message.version != exchange.outputs.version:
            # The agent has taken late outputs for the last ones, and would wait for a commit in vain.
            outputs = Publish(AgentTopics(lease.agent).down_outputs, exchange.outputs, repeated=True)
            return [Refused("version", "gradients of other outputs than the last ones"), outputs]
        shape = (exchange.num_samples, len(self._manifest.task.classes))
        try:
            check_tensor(message.gradients, shape=shape, codec=lease.codecs.output_gradients, what="output gradients")
        except WireError as error:
            return self._refuse_content(lease, str(error))
        exchange.received_at = now
        self._scheduler.take_gradients(exchange, message.gradients, now)
        return []

    def _unknown_lease(self, sender: str | None, message: Message) -> list[WorkerAction]:
        refused = Refused("lease", f"{type(message).__name__} under an unknown lease")
        if isinstance(message, Goodbye) and (agent := self.leases.former(message.lease)) is not None:
            answer = self._answer_goodbye(agent, message.lease)
            lease = self.leases.of(agent)
            if lease is not None and lease.incarnation == message.telemetry.incarnation:
                return [*self._goodbye(lease, message), answer]  # it does not know of its new lease yet
            return [Duplicate("Goodbye"), TelemetryReceived(agent, message.telemetry), answer]
        if sender is None or not isinstance(message, Activations | OutputGradients):
            return [refused]
        mode = message.mode if isinstance(message, Activations) else Mode.TRAIN
        resend = Resend(message.lease, message.step, mode, ResendReason.LEASE)
        return [refused, Publish(AgentTopics(sender).down_control, resend)]

    def _training_done(self, lease: Lease) -> list[WorkerAction]:
        lease.is_done = True
        actions = self._advance()
        if not actions and self.phase in (RunPhase.EVALUATING, RunPhase.ENDED):
            phase = Phase(lease.lease, self.phase, self.reason)  # the first may have been lost
            actions.append(Publish(AgentTopics(lease.agent).down_control, phase, repeated=True))
        return actions

    def _goodbye(self, lease: Lease, message: Goodbye) -> list[WorkerAction]:
        actions: list[WorkerAction] = [
            TelemetryReceived(lease.agent, message.telemetry),
            self._answer_goodbye(lease.agent, lease.lease),
        ]
        reason = "it left" if message.reason is GoodbyeReason.LEFT else "it has finished"
        self._departed[lease.agent] = lease.incarnation
        return [*actions, *self._drop(lease, reason), *self._advance()]

    def _answer_goodbye(self, agent: str, lease: int) -> Publish:
        return Publish(AgentTopics(agent).down_control, Phase(lease, RunPhase.ENDED, "goodbye"))

    def _agent_state(self, agent: str | None, message: AgentState, now: float) -> list[WorkerAction]:
        lease = self.leases.of(agent) if agent else None
        if lease is None or message.online or message.incarnation != lease.incarnation:
            return []
        self._vanish(lease, now)
        return self._advance()

    def _telemetry(self, agent: str | None, message: Telemetry, now: float) -> list[WorkerAction]:
        lease = self.leases.of(agent) if agent else None
        if agent is None or (lease is None and agent not in self._known_samples):
            return [Refused("lease", "Telemetry of an unknown agent")]
        if lease is not None and lease.incarnation == message.incarnation:
            lease.heard_at = now
        return [TelemetryReceived(agent, message)]

    # Inside ---------------------------------------------------------------------------------------------------

    def _refuse_content(self, lease: Lease, detail: str) -> list[WorkerAction]:
        """Refuse an agent for good: what it sent would be as wrong the next time."""
        reject = Reject(self.name, lease.incarnation, RejectReason.CONTENT, detail[:512])
        publish = Publish(AgentTopics(lease.agent).down_control, reject)
        return [Refused("content", detail), publish, *self._drop(lease, "it was refused"), *self._advance()]

    def _resend(self, exchange: Exchange, reason: ResendReason) -> Publish:
        resend = Resend(exchange.lease, exchange.key.step, exchange.key.mode, reason)
        return Publish(AgentTopics(exchange.key.agent).down_control, resend)

    def _vanish(self, lease: Lease, now: float) -> None:
        lease.absent_since = now if lease.absent_since is None else lease.absent_since
        self._scheduler.abandon(lease.agent)

    def _drop(self, lease: Lease, reason: str) -> list[WorkerAction]:
        self._scheduler.abandon(lease.agent)
        self.leases.drop(lease.agent)
        # Schedules do not count on what it has not trained on; if it comes back, its Hello says how much there is.
        steps = len(self.ledger.of(lease.agent))
        committed = min(steps * self._manifest.microbatch_samples, lease.num_samples * self._manifest.epochs)
        self._known_samples[lease.agent] = committed // self._manifest.epochs
        topics = AgentTopics(lease.agent)
        left = AgentLeft(lease.agent, reason)
        return [Unsubscribe(topics.up_to(self.name)), Unsubscribe(topics.state), left, self._state()]

    def _advance(self) -> list[WorkerAction]:
        """Enter the next phase when its time has come.

        After a resume the ledger's agents are waited for: some may have left for good, and the first to come back may
        be the one that has done all its steps. Nobody is waited for longer than the grace period.
        """
        if self.phase is RunPhase.WAITING:
            num_needed = 1 if self._is_resumed and not self._awaited else self._limits.min_agents
            return self._enter(RunPhase.TRAINING, "") if len(self.leases) >= num_needed else []
        if self._limits.is_service or self._awaited:
            return []
        if self.phase is RunPhase.TRAINING and len(self.leases) and not self.leases.training():
            # With nobody left the run is not over: it waits for whoever comes (back).
            return self._enter(RunPhase.EVALUATING, "all agents have done their epochs")
        if self.phase is RunPhase.EVALUATING and not len(self.leases):
            return self._enter(RunPhase.ENDED, "all agents have done their epochs")
        return []

    def _enter(self, phase: RunPhase, reason: str) -> list[WorkerAction]:
        self.phase, self.reason = phase, reason
        tell = [
            Publish(AgentTopics(lease.agent).down_control, Phase(lease.lease, phase, reason)) for lease in self.leases
        ]
        return [PhaseReached(phase, reason), *tell, self._state()]

    def _state(self) -> Publish:
        state = WorkerState(
            online=True,
            worker=self.name,
            incarnation=self.incarnation,
            manifest_digest=self._digest,
            phase=self.phase,
            agents=len(self.leases),
            version=self.version,
            reason=self.reason,
        )
        return Publish(self._topics.state, state, retain=True)

    def _subscribe(self, agent: str) -> list[WorkerAction]:
        topics = AgentTopics(agent)
        return [Subscribe(wanted) for wanted in (topics.up_to(self.name), topics.telemetry, topics.state)]
