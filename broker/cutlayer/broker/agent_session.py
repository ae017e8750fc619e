"""The agent's side of the conversation, without I/O: messages and the time in, actions out.

The session keeps every microbatch until its end (outputs for an evaluation, the commit for training), sends each to
the leased worker that holds the fewest of this agent's, sends again on a deadline or when a worker is gone, and
knows nothing of sockets, clocks, threads or arithmetic. Its driver (`cutlayer.edge_agent.runtime`) does the actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from cutlayer.broker.actions import (
    AgentAction,
    Duplicate,
    Fail,
    LeaseGranted,
    LeaseLost,
    OutputsReceived,
    PhaseReached,
    Publish,
    Refused,
    StepCommitted,
    Subscribe,
)
from cutlayer.broker.errors import IdentityTaken, MalformedMessage, Rejected, SettingsError
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import (
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
    NegotiatedCodecs,
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
from cutlayer.broker.states import ExchangeState, next_state
from cutlayer.broker.topics import RUN, WORKER_STATES, AgentTopics, WorkerTopics
from cutlayer.compression import CodecError, codec_from_name

__all__ = ["AgentSession", "Deadlines"]

Key = tuple[Mode, int]


MAX_GOODBYES = 5
MAX_WORKERS = 1_024
"""Workers that an agent knows; their names come from whoever may publish below `cutlayer/workers`."""
MAX_DOUBLINGS = 16

_PHASES = tuple(RunPhase)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long the session waits before it sends again, in seconds.

    Attributes:
        hello_s: For the answer to a Hello.
        step_s: For the next message of a step, at the least; slow round trips stretch it.
        longest_s: At the most, after doubling at each repetition.
    """

    hello_s: float = 2.0
    step_s: float = 5.0
    longest_s: float = 60.0


@dataclass(slots=True)
class _Worker:
    name: str
    incarnation: int
    lease: int | None = None
    credits: int = 0
    codecs: NegotiatedCodecs | None = None
    hello_at: float = 0.0
    hello_wait_s: float = 0.0
    outstanding: set[Key] = field(default_factory=set)
    former: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Exchange:
    step: int
    mode: Mode
    num_samples: int
    tensors: tuple[tuple[str, EncodedTensor], ...]
    state: ExchangeState = ExchangeState.IDLE
    worker: str | None = None
    first_sent_at: float = 0.0
    activations_sent_at: float = 0.0
    num_activations_sent: int = 0
    sent_at: float = 0.0
    deadline: float = 0.0
    repeats: int = 0
    last: Publish | None = None
    out_at_bytes: int | None = None
    is_out: bool = False
    version: int = -1

    @property
    def key(self) -> Key:
        return self.mode, self.step


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
        self.phase = RunPhase.WAITING
        self._was_announced = False
        self.num_repeats = 0
        self._software = software
        self._deadlines = deadlines or Deadlines()
        self._round_trip_s: float | None = None
        self._server_s = 0.0
        self._is_done = False
        self._goodbye: tuple[GoodbyeReason, Telemetry] | None = None
        self._goodbyes_left = MAX_GOODBYES
        self._poll_at = 0.0
        self._hello: tuple[bytes, int, tuple[str, ...], tuple[str, ...]] | None = None
        self._workers: dict[str, _Worker] = {}
        self._exchanges: dict[Key, _Exchange] = {}
        self._homeless: deque[Key] = deque()

    # What the driver asks -------------------------------------------------------------------------------------

    @property
    def num_outstanding(self) -> int:
        """Microbatches that have not reached their end."""
        return len(self._exchanges)

    @property
    def leased_workers(self) -> tuple[str, ...]:
        """Workers that serve this agent now."""
        return tuple(worker.name for worker in self._workers.values() if worker.lease is not None)

    def codecs(self) -> NegotiatedCodecs | None:
        """Return the codecs that the next microbatch must use, or None without a lease."""
        worker = self._least_loaded()
        return worker.codecs if worker else None

    def can_submit(self) -> bool:
        """Return whether a worker has a credit left for a new microbatch."""
        return self._goodbye is None and not self._homeless and self._least_loaded() is not None

    def next_deadline(self) -> float | None:
        """Return the time at which `tick` has something to do, or None."""
        times = []
        if self._goodbye is None:
            times += [exchange.deadline for exchange in self._exchanges.values() if exchange.last]
        if self._polls():
            times.append(self._poll_at)
        if self._hello is not None and self._goodbye is None:
            times += [worker.hello_at for worker in self._workers.values() if worker.lease is None]
        return min(times, default=None)

    # What the driver reports ----------------------------------------------------------------------------------

    def connected(self, now: float) -> list[AgentAction]:
        """Take notice of a connection, the first or another one."""
        topics = self.topics
        actions: list[AgentAction] = [
            Publish(topics.state, AgentState(online=True, incarnation=self.incarnation), retain=True),
            *(Subscribe(wanted) for wanted in (topics.down_all, topics.state, RUN, WORKER_STATES)),
        ]
        for worker in self._workers.values():  # the will may have fired: ask whether the leases still stand
            worker.hello_at = now
            actions += self._say_hello(worker, now)
        return actions

    def ready(
        self,
        manifest_digest: bytes,
        num_samples: int,
        codecs: tuple[str, ...],
        byte_stages: tuple[str, ...],
        now: float,
    ) -> list[AgentAction]:
        """Start asking for leases: manifest, data and tokenizers are there."""
        self._hello = (manifest_digest, num_samples, codecs, byte_stages)
        return [action for worker in self._workers.values() for action in self._say_hello(worker, now)]

    def submit(
        self, step: int, mode: Mode, num_samples: int, tensors: tuple[tuple[str, EncodedTensor], ...], now: float
    ) -> list[AgentAction]:
        """Send a new microbatch to the least loaded worker (`can_submit` says whether there is one)."""
        exchange = _Exchange(step, mode, num_samples, tensors, first_sent_at=now)
        assert exchange.key not in self._exchanges, "a step is submitted once"
        self._exchanges[exchange.key] = exchange
        return self._send_activations(exchange, now)

    def submit_gradients(self, step: int, version: int, gradients: EncodedTensor, now: float) -> list[AgentAction]:
        """Send the output gradients of a training step, unless it has come to another state meanwhile."""
        exchange = self._exchanges.get((Mode.TRAIN, step))
        worker = self._workers.get(exchange.worker) if exchange and exchange.worker else None
        if exchange is None or worker is None or worker.lease is None or exchange.state is not ExchangeState.OUTPUTS:
            return []
        if exchange.version != version:
            return []
        exchange.state = ExchangeState.GRADIENTS
        message = OutputGradients(worker.lease, step, version, gradients)
        return self._send(exchange, Publish(self.topics.up_gradients(worker.name), message), now)

    def training_done(self, now: float) -> list[AgentAction]:
        """Tell the workers that all steps are committed; told again until the run moves on."""
        self._is_done = True
        self._poll_at = now + self._deadlines.step_s
        return self._tell_workers(TrainingDone)

    def leave(self, reason: GoodbyeReason, telemetry: Telemetry, now: float) -> list[AgentAction]:
        """Give all leases back, with the last counters; said again until each worker has answered (`has_left`)."""
        self._goodbye = (reason, telemetry)
        self._poll_at = now + self._deadlines.hello_s
        self._goodbyes_left -= 1
        return self._tell_workers(lambda lease: Goodbye(lease, reason, telemetry))

    @property
    def has_left(self) -> bool:
        """Whether every worker has answered the goodbye, or has been asked often enough."""
        return self._goodbye is not None and (not self.leased_workers or self._goodbyes_left < 0)

    def offline(self) -> Publish:
        """Return the retained state of an agent that is gone."""
        return Publish(self.topics.state, AgentState(online=False, incarnation=self.incarnation), retain=True)

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
        for exchange in self._exchanges.values():
            if exchange.last is None or exchange.is_out:
                continue
            deadline = now + self._patience_s(exchange)
            if handed_bytes is None:
                deadline = min(deadline, exchange.sent_at + self._longest_s())
            elif exchange.out_at_bytes is None:
                exchange.out_at_bytes = handed_bytes
            else:
                exchange.is_out = handed_bytes - pending_bytes >= exchange.out_at_bytes
            exchange.deadline = max(exchange.deadline, deadline)

    def tick(self, now: float) -> list[AgentAction]:
        """Do what is due."""
        actions: list[AgentAction] = []
        for worker in self._workers.values():
            if worker.lease is None and now >= worker.hello_at:
                actions += self._say_hello(worker, now)
        if self._polls() and now >= self._poll_at:
            self._poll_at = now + self._deadlines.step_s
            if self._goodbye is not None:
                actions += self.leave(*self._goodbye, now)
            else:
                # Not TrainingDone alone: a worker that does not know the lease can answer nothing else than a Hello.
                actions += self._tell_workers(TrainingDone) if self._is_done else []
                for worker in self._workers.values():
                    actions += self._say_hello(worker, now) if worker.lease is not None else []
        actions += self._rehome(now)
        for exchange in self._exchanges.values() if self._goodbye is None else ():
            if exchange.last is not None and now >= exchange.deadline:
                exchange.repeats += 1
                self.num_repeats += 1
                actions += self._send(exchange, _repeated(exchange.last), now)
                # A worker that has taken the lease back listens to nothing else.
                silent = self._workers.get(exchange.worker or "")
                actions += self._say_hello(silent, now) if silent is not None and now >= silent.hello_at else []
        return actions

    # What the workers say -------------------------------------------------------------------------------------

    def receive(self, message: Message, now: float) -> list[AgentAction]:
        """Take a message from the broker."""
        match message:
            case WorkerState():
                return self._worker_state(message, now)
            case AgentState():
                self._was_announced |= message.incarnation == self.incarnation
                # Where two processes take the MQTT session from each other, the newer one's will is all that the older
                # sees of it. At the start it may be of a process from before this machine's clock was put back.
                if message.incarnation > self.incarnation and (message.online or self._was_announced):
                    return [Fail(IdentityTaken(self.topics.root))]
                return []
            case Welcome() | Busy() | Reject() if message.incarnation != self.incarnation:
                return [Refused("incarnation", f"{type(message).__name__} to an earlier process")]
            case Welcome():
                return self._welcome(message, now)
            case Busy():
                if worker := self._workers.get(message.worker):
                    worker.hello_at = now + max(message.retry_after_s, self._deadlines.hello_s)
                return []
            case Reject():
                return [Fail(Rejected(message.worker, message.reason, message.detail))]
            case Phase():
                worker = self._worker_of(message.lease)
                if worker is None:
                    return [Refused("lease", "Phase under an unknown lease")]
                if message.phase is RunPhase.ENDED and self._goodbye is not None:
                    self._end_lease(worker)
                    return []
                return self._advance(message.phase, message.reason)
            case Outputs() | ActivationGradients() | Resend():
                return self._step_message(message, now)
            case _:
                return [Refused("unexpected", f"{type(message).__name__} is not for an agent")]

    def _step_message(self, message: Outputs | ActivationGradients | Resend, now: float) -> list[AgentAction]:
        mode = Mode.TRAIN if isinstance(message, ActivationGradients) else message.mode
        worker = self._worker_of(message.lease)
        exchange = self._exchanges.get((mode, message.step))
        if worker is None:
            return [Refused("lease", f"{type(message).__name__} under an unknown lease")]
        if isinstance(message, Resend) and message.reason is ResendReason.LEASE:
            return self._lose(worker, "it does not know the lease", now) + self._say_hello(worker, now)
        if exchange is None:
            return [Duplicate(type(message).__name__)]
        before = exchange.state
        if isinstance(message, Outputs) and before is not ExchangeState.IDLE and message.version > exchange.version:
            # Outputs of newer weights are no copy: the worker has run the step again, and the Outputs before were
            # late ones, from before its Resend. It will only take gradients of these.
            before = ExchangeState.ACTIVATIONS
        after = next_state(mode, before, type(message))
        if after is None or (isinstance(message, Outputs | Resend) and exchange.worker != worker.name):
            return [Refused("state", f"{type(message).__name__} in state {before.name}")]
        if isinstance(message, ActivationGradients):
            self._finish(exchange)
            return [StepCommitted(message.step, message.window), *self._rehome(now)]
        if isinstance(message, Resend):
            exchange.state = ExchangeState.IDLE
            self.num_repeats += 1
            self._release(exchange)
            return self._send_activations(exchange, now, repeated=True)
        if after is before:
            return [Duplicate("Outputs")]
        round_trip_s = now - exchange.activations_sent_at
        self._measure(exchange, round_trip_s, min(message.server_s, now - exchange.first_sent_at))
        exchange.state = after
        exchange.version = message.version
        exchange.last = None  # from here on the driver is at work, and nothing is missing
        exchange.repeats = 0
        if mode is not Mode.TRAIN:
            self._finish(exchange)
        assert worker.codecs is not None
        outputs = OutputsReceived(
            message.step, mode, message.outputs, worker.codecs, message.version, round_trip_s, message.server_s
        )
        return [outputs, *self._rehome(now)]

    def _measure(self, exchange: _Exchange, round_trip_s: float, server_s: float) -> None:
        """Learn from a round trip, by Karn's rule (RFC 6298, section 3): a repeated message measures nothing.

        Nothing but what the worker itself has measured: or a worker that takes longer than the first deadline would
        be sent everything twice for ever.
        """
        if exchange.state is not ExchangeState.ACTIVATIONS:
            return
        if exchange.num_activations_sent > 1:
            self._server_s = server_s
            return
        self._server_s = 0.0
        before_s = round_trip_s if self._round_trip_s is None else self._round_trip_s
        self._round_trip_s = before_s + (round_trip_s - before_s) / 8

    def _welcome(self, message: Welcome, now: float) -> list[AgentAction]:
        worker = self._workers.get(message.worker)
        if worker is None:
            return [Refused("unexpected", f"Welcome from {message.worker}, which is not online")]
        if message.lease in worker.former and (worker.lease is not None or self._goodbye is not None):
            return [Duplicate("Welcome")]
        if worker.lease == message.lease:
            worker.hello_wait_s = 0.0
            return self._advance(message.phase, "") or [Duplicate("Welcome")]
        try:
            committed = StepRanges(message.committed)
            for entry in fields(message.codecs):
                codec_from_name(getattr(message.codecs, entry.name))
        except (MalformedMessage, CodecError) as error:
            return [Refused("content", f"Welcome from {message.worker}: {error}")]
        self._take_back(worker)
        self._end_lease(worker)
        worker.lease, worker.credits, worker.codecs = message.lease, message.credits, message.codecs
        worker.hello_wait_s = 0.0
        self.phase = message.phase
        self._is_done = False  # a worker resumed from a checkpoint may know of fewer steps: the driver says it again
        if self._goodbye is None:
            self._poll_at = now + self._deadlines.step_s
        actions: list[AgentAction] = []
        for mode, step in list(self._exchanges):
            if mode is Mode.TRAIN and step in committed:
                self._finish(self._exchanges[mode, step])
                actions.append(StepCommitted(step, None))
        return [*actions, LeaseGranted(worker.name, message.committed, message.phase), *self._rehome(now)]

    def _advance(self, phase: RunPhase, reason: str) -> list[AgentAction]:
        """Take notice of a phase; under one lease an earlier one than the last is late news."""
        if _PHASES.index(phase) <= _PHASES.index(self.phase):
            return []
        self.phase = phase
        return [PhaseReached(phase, reason)]

    def _worker_state(self, message: WorkerState, now: float) -> list[AgentAction]:
        worker = self._workers.get(message.worker)
        if worker is not None and worker.incarnation > message.incarnation:
            return []
        if not message.online:
            if worker is None:
                return []
            actions = self._lose(worker, "it went offline", now)
            del self._workers[worker.name]
            return actions + self._ended_without(message)
        if worker is None:
            try:
                WorkerTopics(message.worker)
            except SettingsError as error:
                return [Refused("topic", error.problem)]
            if len(self._workers) >= MAX_WORKERS:
                return [Refused("workers", f"{message.worker} is one worker more than the {MAX_WORKERS} known")]
            worker = self._workers[message.worker] = _Worker(message.worker, message.incarnation, hello_at=now)
            return self._say_hello(worker, now)
        if message.incarnation > worker.incarnation:
            actions = self._lose(worker, "it was started anew", now)
            worker.incarnation = message.incarnation
            worker.former.clear()
            return actions + self._say_hello(worker, now)
        if message.phase is RunPhase.ENDED and worker.lease is not None and self._is_own_run(message):
            return self._advance(message.phase, message.reason)
        return []

    def _ended_without(self, message: WorkerState) -> list[AgentAction]:
        """Give up when the run has ended and nobody is left to say goodbye to: waiting would be in vain."""
        if message.phase is not RunPhase.ENDED or not self._is_own_run(message):
            return []
        if self._goodbye is not None or self.leased_workers:
            return []
        self.phase = RunPhase.ENDED
        return [Fail(Rejected(message.worker, RejectReason.ENDED, f"the run has ended: {message.reason}"))]

    def _is_own_run(self, message: WorkerState) -> bool:
        return self._hello is not None and self._hello[0] == message.manifest_digest

    # Inside ---------------------------------------------------------------------------------------------------

    def _polls(self) -> bool:
        """Whether the next news may have been lost on its way, with nothing outstanding that would show it."""
        if self._goodbye is not None:
            return not self.has_left
        if self._is_done:
            return self.phase in (RunPhase.WAITING, RunPhase.TRAINING)
        return self.phase is RunPhase.WAITING and bool(self.leased_workers)

    def _say_hello(self, worker: _Worker, now: float) -> list[AgentAction]:
        if self._hello is None or self._goodbye is not None:
            return []
        wait_s = max(self._deadlines.hello_s, worker.hello_wait_s)
        worker.hello_at = now + wait_s
        worker.hello_wait_s = min(2 * wait_s, self._deadlines.longest_s)
        digest, num_samples, codecs, byte_stages = self._hello
        hello = Hello(self.topics.root, self.incarnation, digest, num_samples, codecs, byte_stages, self._software)
        return [Publish(WorkerTopics(worker.name).inbox, hello)]

    def _send_activations(self, exchange: _Exchange, now: float, *, repeated: bool = False) -> list[AgentAction]:
        worker = self._least_loaded()
        if worker is None or worker.lease is None:
            exchange.last = None
            self._homeless.append(exchange.key)
            return []
        exchange.worker = worker.name
        exchange.state = ExchangeState.ACTIVATIONS
        exchange.version = -1
        worker.outstanding.add(exchange.key)
        message = Activations(worker.lease, exchange.step, exchange.mode, exchange.num_samples, exchange.tensors)
        topic = self.topics.up_activations(worker.name)
        return self._send(exchange, Publish(topic, message, repeated=repeated), now)

    def _send(self, exchange: _Exchange, publish: Publish, now: float) -> list[AgentAction]:
        exchange.last = publish
        exchange.sent_at = now
        exchange.out_at_bytes, exchange.is_out = None, False
        if isinstance(publish.message, Activations):
            exchange.activations_sent_at = now
            exchange.num_activations_sent += 1
        exchange.deadline = now + self._patience_s(exchange)
        return [publish]

    def _patience_s(self, exchange: _Exchange) -> float:
        doublings = min(exchange.repeats, MAX_DOUBLINGS)
        usual_s = max(self._deadlines.step_s, 4.0 * (self._round_trip_s or 0.0), 1.5 * self._server_s)
        return min(usual_s * 2.0**doublings, self._longest_s())

    def _longest_s(self) -> float:
        return max(self._deadlines.longest_s, self._deadlines.step_s)

    def _least_loaded(self) -> _Worker | None:
        free = [
            worker
            for worker in self._workers.values()
            if worker.lease is not None and len(worker.outstanding) < worker.credits
        ]
        return min(free, key=lambda worker: (len(worker.outstanding), worker.name), default=None)

    def _worker_of(self, lease: int) -> _Worker | None:
        return next((worker for worker in self._workers.values() if worker.lease == lease), None)

    def _release(self, exchange: _Exchange) -> None:
        if exchange.worker in self._workers:
            self._workers[exchange.worker].outstanding.discard(exchange.key)
        exchange.worker = None

    def _finish(self, exchange: _Exchange) -> None:
        self._release(exchange)
        exchange.state = ExchangeState.DONE
        del self._exchanges[exchange.key]

    def _take_back(self, worker: _Worker) -> None:
        """Take back everything that a worker holds; each goes up again from its activations."""
        for key in sorted(worker.outstanding):
            exchange = self._exchanges[key]
            exchange.state, exchange.worker, exchange.last = ExchangeState.IDLE, None, None
            self._homeless.append(key)
        worker.outstanding.clear()

    def _end_lease(self, worker: _Worker) -> None:
        if worker.lease is not None:
            worker.former.add(worker.lease)  # a copy of its Welcome may still be under way
            worker.lease = None
            worker.hello_wait_s = 0.0

    def _lose(self, worker: _Worker, reason: str, now: float) -> list[AgentAction]:
        if worker.lease is None:
            return []
        self._take_back(worker)
        self._end_lease(worker)
        return [LeaseLost(worker.name, reason), *self._rehome(now)]

    def _rehome(self, now: float) -> list[AgentAction]:
        """Send what has no worker, as far as there are credits."""
        actions: list[AgentAction] = []
        while self._homeless and self._goodbye is None:
            exchange = self._exchanges.get(self._homeless[0])
            if exchange is not None and exchange.worker is None:
                if self._least_loaded() is None:
                    break
                self.num_repeats += 1
                actions += self._send_activations(exchange, now, repeated=True)
            self._homeless.popleft()
        return actions

    def _tell_workers(self, make: Callable[[int], Message]) -> list[AgentAction]:
        return [
            Publish(WorkerTopics(worker.name).inbox, make(worker.lease))
            for worker in self._workers.values()
            if worker.lease is not None
        ]


def _repeated(publish: Publish) -> Publish:
    return Publish(publish.topic, publish.message, publish.qos, publish.retain, repeated=True)
