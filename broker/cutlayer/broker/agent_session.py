"""The agent's side of the conversation, without I/O: messages and the time in, actions out.

The session keeps every microbatch until its end (outputs for an evaluation, the commit for training), sends each to
the leased worker that holds the fewest of this agent's, sends again on a deadline or when a worker is gone or silent,
and knows nothing of sockets, clocks, threads or arithmetic. Its driver (`cutlayer.edge_agent.runtime`) does the
actions, and calls `tick` when it has done those of the messages that were there.

The workers are replicas that commit windows together, so a step is committed whichever of them says so, and a
microbatch may go to any of them, also to a second one while the first may still hold it.
"""

from __future__ import annotations

from cutlayer.broker.actions import (
    AgentAction,
    CandidateOffered,
    LeaseGranted,
    Publish,
    Refused,
    Subscribe,
    WeightsReceived,
)
from cutlayer.broker.agent_deadlines import Deadlines
from cutlayer.broker.agent_exchanges import ExchangeTable
from cutlayer.broker.agent_greetings import Greetings
from cutlayer.broker.agent_identity import IdentityClaim
from cutlayer.broker.agent_leases import AgentLeases
from cutlayer.broker.agent_workers import KnownWorker, WorkerTable
from cutlayer.broker.messages import (
    ActivationGradients,
    AgentState,
    Busy,
    Candidate,
    EncodedTensor,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    Mode,
    NegotiatedCodecs,
    Outputs,
    Phase,
    Reject,
    Resend,
    ResendReason,
    RunPhase,
    Telemetry,
    TokenizerWeights,
    TrainingDone,
    Welcome,
    WorkerState,
)
from cutlayer.broker.sample_refs import SampleRefs
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics, WorkerTopics

__all__ = ["MAX_GOODBYES", "AgentSession", "Deadlines"]

MAX_GOODBYES = 5


class AgentSession:
    """One agent's conversations with all its workers.

    Args:
        topics: The agent's topics.
        incarnation: Start of this process, in milliseconds since the epoch.
        software: Version for the log.
        deadlines: When to send again.
    """

    def __init__(
        self, topics: AgentTopics, incarnation: int, *, software: str = "", deadlines: Deadlines | None = None
    ) -> None:
        self.topics = topics
        self.incarnation = incarnation
        self._software = software
        self._deadlines = deadlines or Deadlines()
        self._claim = IdentityClaim(topics, incarnation)
        self._workers = WorkerTable(topics.root)
        self._greetings = Greetings(self._workers, self._deadlines)
        self._exchanges = ExchangeTable(topics, self._workers, self._deadlines)
        self._leases = AgentLeases(self._workers, self._greetings, self._exchanges, self._deadlines)
        self._is_done = False
        self._may_tell_done_at = float("-inf")
        self._goodbye: tuple[GoodbyeReason, Telemetry] | None = None
        self._goodbyes_left = MAX_GOODBYES
        self._poll_at = 0.0

    # What the driver asks -------------------------------------------------------------------------------------

    @property
    def phase(self) -> RunPhase:
        """How far the run is, as the furthest of the workers that serve this agent says."""
        return self._leases.phase

    @property
    def num_outstanding(self) -> int:
        """Microbatches that have not reached their end."""
        return len(self._exchanges)

    @property
    def num_repeats(self) -> int:
        """Messages sent again so far."""
        return self._exchanges.num_repeats

    @property
    def leased_workers(self) -> tuple[str, ...]:
        """Workers that serve this agent now."""
        return tuple(worker.name for worker in self._workers.leased())

    @property
    def lease_s(self) -> float:
        """Seconds of silence that end the first of the leases; 0 without any."""
        return min((worker.lease_s for worker in self._workers.leased()), default=0.0)

    def codecs(self) -> NegotiatedCodecs | None:
        """Return the codecs that the next microbatch must use, or None without a credit.

        All leases of a run have the same: they follow from its manifest and the agent's Hello.
        """
        return next((worker.codecs for worker in self._workers if worker.has_credit), None)

    def can_submit(self) -> bool:
        """Return whether a worker has a credit left for a new microbatch."""
        return self._goodbye is None and not self._exchanges.has_homeless and self._workers.has_credit()

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` has something to do, or None."""
        times = [*self._exchanges.deadlines(), *self._greetings.deadlines(), self._claim.next_deadline()]
        times.append(self._poll_at if self._polls() else None)
        return min((time for time in times if time is not None), default=None)

    # What the driver reports ----------------------------------------------------------------------------------

    def connected(self, now: float) -> list[AgentAction]:
        """Take notice of a connection, the first or another one."""
        topics = self.topics
        actions: list[AgentAction] = [self._claim.connected(now)]
        actions += [Subscribe(wanted) for wanted in (topics.down_all, topics.state, RUN, WORKER_STATES)]
        return actions + self._greetings.connected(now)

    def ready(
        self,
        manifest_digest: bytes,
        num_samples: int,
        codecs: tuple[str, ...],
        byte_stages: tuple[str, ...],
        now: float,
        *,
        num_val: int = 0,
        is_synchronous: bool = False,
    ) -> list[AgentAction]:
        """Start asking for leases: manifest, data and tokenizers are there."""
        self._exchanges.is_in_order = is_synchronous
        agent, incarnation, software = self.topics.root, self.incarnation, self._software
        hello = Hello(agent, incarnation, manifest_digest, num_samples, codecs, byte_stages, software, num_val)
        return self._greetings.ready(hello, now)

    def store_for(self, step: int) -> str:
        """Return the store of the worker that a microbatch of this number would go to now; empty for none."""
        worker = self._workers.choose(step)
        return "" if worker is None else worker.store

    def submit(
        self,
        step: int,
        mode: Mode,
        num_samples: int,
        tensors: tuple[tuple[str, EncodedTensor], ...],
        now: float,
        refs: SampleRefs | None = None,
        candidate: str = "",
    ) -> list[AgentAction]:
        """Send a new microbatch to the least loaded worker (`can_submit` says whether there is one)."""
        return self._exchanges.submit(step, mode, num_samples, tensors, now, refs or SampleRefs(), candidate)

    def supply(
        self, step: int, mode: Mode, tensors: tuple[tuple[str, EncodedTensor], ...], refs: SampleRefs, now: float
    ) -> list[AgentAction]:
        """Send a microbatch again, made anew with the tensors that a store lacks (`TensorsWanted`)."""
        return self._exchanges.supply(step, mode, tensors, refs, now)

    def withdraw(self, step: int, mode: Mode) -> None:
        """Forget one microbatch that the driver has no use for any more."""
        self._exchanges.withdraw(step, mode)

    def submit_gradients(
        self,
        step: int,
        version: int,
        gradients: EncodedTensor,
        now: float,
        of_tokenizers: tuple[tuple[str, EncodedTensor], ...] = (),
    ) -> list[AgentAction]:
        """Send the output gradients of a training step, unless it has come to another state meanwhile.

        Args:
            step: The step.
            version: Version of the weights that its outputs are of.
            gradients: The gradients at the outputs.
            now: Seconds.
            of_tokenizers: Gradients of tokenizers that go with them.
        """
        return self._exchanges.submit_gradients(step, version, gradients, now, of_tokenizers)

    def withdraw_training(self) -> None:
        """Forget all training steps that are outstanding, and take their credits back.

        For a driver that has learned of an earlier step which the run lacks: in synchronous mode windows take an
        agent's steps in order, and those further on must not hold all credits meanwhile. What comes back of them yet
        is a copy to the session, and a commit among it is told with the next ledger.
        """
        self._exchanges.withdraw_training()
        self._is_done = False

    def ask_ledger(self, name: str, at: float) -> None:
        """Have a worker asked, at a time, for what is committed."""
        worker = self._workers.named(name)
        if worker is not None and worker.lease is not None:
            worker.owes_ledger, worker.hello_at = True, at

    def training_done(self, now: float) -> list[AgentAction]:
        """Tell the workers that all steps are committed; told again until the run moves on."""
        self._is_done = True
        if now < self._may_tell_done_at:  # a worker whose ledger is behind another's has answered: give it time
            self._poll_at = self._may_tell_done_at
            return []
        self._poll_at = self._may_tell_done_at = now + self._deadlines.step_s
        return [action for worker in self._workers.leased() for action in self._tell_done(worker)]

    def leave(self, reason: GoodbyeReason, telemetry: Telemetry, now: float) -> list[AgentAction]:
        """Give all leases back, with the last counters; said again until each worker has answered (`has_left`)."""
        self._goodbye = (reason, telemetry)
        self._poll_at = now + self._deadlines.hello_s
        self._goodbyes_left -= 1
        self._exchanges.close()
        self._greetings.stop()
        self._leases.leave()
        return [
            self._to_inbox(worker, Goodbye(worker.lease, reason, telemetry))
            for worker in self._workers.leased()
            if worker.lease is not None
        ]

    @property
    def has_left(self) -> bool:
        """Whether every worker has answered the goodbye, or has been asked often enough."""
        return self._goodbye is not None and (not self.leased_workers or self._goodbyes_left < 0)

    def offline(self) -> Publish:
        """Return the retained state of an agent that is gone, as the last thing that this session says."""
        return self._claim.give_up()

    def progress(self, now: float, handed_bytes: int | None = None, pending_bytes: int = 0) -> None:
        """Take notice that bytes are moving: a slow link is not a dead one.

        Only what has not left yet is waited for: what moves later (counters, the next microbatch) says nothing about
        a message that the broker has, and may have lost. Links keep the order, so how much was handed to the
        transport, and how much of it is still on its way, tell which messages have left.

        Args:
            now: Seconds.
            handed_bytes: All that was ever handed to the transport (`Courier.handed_bytes`). Without it nobody knows
                what has left, and a message is sent again after `Deadlines.longest_s` whatever moves.
            pending_bytes: Of that, what is still on its way to the broker (`Transport.pending_bytes`).
        """
        self._exchanges.progress(now, handed_bytes, pending_bytes)

    def resumed(self, message: Message, now: float) -> None:
        """Take notice that pieces of a message were sent again: its worker receives it, and has asked for them."""
        self._exchanges.resumed(message, now)

    def coming(self, now: float) -> None:
        """Take notice of a piece of a message that is not whole yet: nobody knows whose answer it is."""
        self._exchanges.coming(now)

    def tick(self, now: float) -> list[AgentAction]:
        """Do what is due."""
        actions = [*self._claim.tick(now), *self._greetings.tick(now)]
        if self._polls() and now >= self._poll_at:
            actions += self._poll(now)
        actions += self._exchanges.rehome(now)
        for exchange in self._exchanges.due(now):
            if exchange.last is None:  # it has just given its place up to one of the others
                continue
            asked = self._workers.named(exchange.worker)
            actions += self._exchanges.repeat(exchange, now)
            # A worker that has taken the lease back listens to nothing else.
            actions += self._greetings.say(asked, now) if asked is not None and now >= asked.hello_at else []
        return actions

    # What the workers say -------------------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> list[AgentAction]:
        """Take a message from the broker."""
        match message:
            case WorkerState():
                return self._leases.take_state(message, now)
            case AgentState():
                return self._claim.receive(message, now)
            case Welcome() | Busy() | Reject() if message.incarnation != self.incarnation:
                return [Refused("incarnation", f"{type(message).__name__} to an earlier process")]
            case Welcome() | Busy() | Reject():
                return self._answer(message, now)
            case Phase() | Outputs() | ActivationGradients() | Resend() | TokenizerWeights() | Candidate():
                return self._under_lease(message, now)
            case _:
                return [Refused("unexpected", f"{type(message).__name__} is not for an agent")]

    def _answer(self, message: Welcome | Busy | Reject, now: float) -> list[AgentAction]:
        actions = self._leases.answer(message, now)
        if any(isinstance(action, LeaseGranted) for action in actions):
            self._is_done = False  # its worker may know of fewer steps: the driver says it again
            self._may_tell_done_at = float("-inf")
            if self._goodbye is None:
                self._poll_at = now + self._deadlines.step_s
        return actions

    def _under_lease(
        self, message: Phase | Outputs | ActivationGradients | Resend | TokenizerWeights | Candidate, now: float
    ) -> list[AgentAction]:
        worker = self._workers.leasing(message.lease)
        if worker is None:
            return [Refused("lease", f"{type(message).__name__} under an unknown lease")]
        worker.hear(now)
        match message:
            case Phase():
                return self._leases.take_phase(worker, message, now)
            case TokenizerWeights():
                return [WeightsReceived(message.lease, message.version, message.tensors)]
            case Candidate():
                return [CandidateOffered(message.epoch, message.name, message.tensors)]
            case Resend(reason=ResendReason.LEASE):
                lost = self._leases.lose(worker, "it does not know the lease", now)
                return lost + self._greetings.say(worker, now)
            case _:
                return self._exchanges.receive(message, worker, now)

    # Inside ---------------------------------------------------------------------------------------------------

    def _behind(self) -> list[KnownWorker]:
        """Return the workers whose next news may have been lost, with nothing outstanding that would show it."""
        if self._is_done:
            unmoved = (RunPhase.WAITING, RunPhase.TRAINING)
            return [worker for worker in self._workers.leased() if worker.phase in unmoved]
        return self._workers.leased() if self.phase is RunPhase.WAITING else []

    def _polls(self) -> bool:
        return not self.has_left if self._goodbye is not None else bool(self._behind())

    def _poll(self, now: float) -> list[AgentAction]:
        if self._goodbye is not None:
            return self.leave(*self._goodbye, now)
        self._poll_at = self._may_tell_done_at = now + self._deadlines.step_s
        actions: list[AgentAction] = []
        for worker in self._behind():
            actions += self._tell_done(worker) if self._is_done else []
            # Not TrainingDone alone: a worker that does not know the lease can answer nothing else than a Hello.
            actions += self._greetings.say(worker, now)
        return actions

    def _tell_done(self, worker: KnownWorker) -> list[AgentAction]:
        return [] if worker.lease is None else [self._to_inbox(worker, TrainingDone(worker.lease))]

    def _to_inbox(self, worker: KnownWorker, message: Message) -> Publish:
        return Publish(WorkerTopics(worker.name).inbox_of(self.topics.root), message)
