"""An agent's microbatches on their way: each is kept until its end, sent again on a deadline, and moved where need be.

A microbatch ends with its outputs (evaluation) or its commit (training). Until then it is with one worker, or
*homeless*: taken back from a worker that is gone, and waiting for a credit at another. In synchronous mode, where
windows take an agent's steps in order, it does not wait for a later step: that one gives its place up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cutlayer.broker.actions import (
    AgentAction,
    CandidateGone,
    Duplicate,
    OutputsReceived,
    Publish,
    Refused,
    StepCommitted,
    TensorsWanted,
)
from cutlayer.broker.agent_deadlines import Deadlines, Patience
from cutlayer.broker.agent_workers import ExchangeKey, KnownWorker, WorkerTable
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    EncodedTensor,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    Resend,
    ResendReason,
)
from cutlayer.broker.sample_refs import SampleRefs
from cutlayer.broker.states import ExchangeState, next_state
from cutlayer.broker.topics import AgentTopics

__all__ = ["AgentExchange", "ExchangeTable"]


@dataclass(slots=True)
class AgentExchange:
    """One microbatch's conversation, as the agent sees it.

    Attributes:
        step: Its number in its mode.
        mode: What it is for.
        num_samples: Samples B.
        tensors: (modality, tokens (B, N, D)) of each modality given.
        first_sent_at: When it was submitted.
        refs: What it says of its samples besides.
        candidate: Whose weights it is to run with; empty for the newest.
        state: Where it stands.
        worker: Whom it is with, or None.
        version: Version of the weights of the outputs that were answered.
        last: The message to repeat, or None while the driver is at work.
        sent_at: When that left the session.
        deadline: When it is repeated.
        repeats: How often it was, at this worker.
        unanswered: Of those, how many since the worker last said anything.
        activations_sent_at: When its activations went up last.
        num_activations_sent: How often they did.
        out_at_bytes: Once so many bytes have left the machine, the last message has.
        is_out: Whether it has.
    """

    step: int
    mode: Mode
    num_samples: int
    tensors: tuple[tuple[str, EncodedTensor], ...]
    first_sent_at: float
    refs: SampleRefs = field(default_factory=SampleRefs)
    candidate: str = ""
    state: ExchangeState = ExchangeState.IDLE
    worker: str | None = None
    version: int = -1
    last: Publish | None = None
    sent_at: float = 0.0
    deadline: float = 0.0
    repeats: int = 0
    unanswered: int = 0
    activations_sent_at: float = 0.0
    num_activations_sent: int = 0
    out_at_bytes: int | None = None
    is_out: bool = False

    @property
    def key(self) -> ExchangeKey:
        """Mode and step."""
        return self.mode, self.step


class ExchangeTable:
    """All microbatches of an agent that have not reached their end.

    Args:
        topics: The agent's topics.
        workers: Whom they may go to.
        deadlines: When they are sent again.

    Attributes:
        num_repeats: Messages sent again so far.
        is_in_order: Whether windows take an agent's steps in order.
    """

    def __init__(self, topics: AgentTopics, workers: WorkerTable, deadlines: Deadlines) -> None:
        self.num_repeats = 0
        self.is_in_order = False
        self._topics = topics
        self._workers = workers
        self._deadlines = deadlines
        self._patience = Patience(deadlines)
        self._exchanges: dict[ExchangeKey, AgentExchange] = {}
        self._homeless: set[ExchangeKey] = set()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._exchanges)

    @property
    def has_homeless(self) -> bool:
        """Whether microbatches wait for a credit; new ones come after them."""
        return bool(self._homeless)

    def deadlines(self) -> list[float]:
        """Return the times at which messages are to be repeated."""
        return [exchange.deadline for exchange in self._repeating()]

    def due(self, now: float) -> list[AgentExchange]:
        """Return the exchanges whose last message is to be repeated."""
        return [exchange for exchange in self._repeating() if now >= exchange.deadline]

    def close(self) -> None:
        """Send nothing more: the agent is leaving."""
        self._is_closed = True

    # Sending --------------------------------------------------------------------------------------------------

    def submit(
        self,
        step: int,
        mode: Mode,
        num_samples: int,
        tensors: tuple[tuple[str, EncodedTensor], ...],
        now: float,
        refs: SampleRefs,
        candidate: str = "",
    ) -> list[AgentAction]:
        """Send a new microbatch."""
        exchange = AgentExchange(step, mode, num_samples, tensors, now, refs, candidate)
        assert exchange.key not in self._exchanges, "a step is submitted once"
        self._exchanges[exchange.key] = exchange
        return self._send_activations(exchange, now)

    def supply(
        self, step: int, mode: Mode, tensors: tuple[tuple[str, EncodedTensor], ...], refs: SampleRefs, now: float
    ) -> list[AgentAction]:
        """Send a microbatch again that was made anew, unless it has come to its end meanwhile."""
        exchange = self._exchanges.get((mode, step))
        if exchange is None or exchange.state is not ExchangeState.IDLE:
            return []
        exchange.tensors, exchange.refs = tensors, refs
        self.num_repeats += 1
        self._homeless.discard(exchange.key)
        return self._send_activations(exchange, now, repeated=True)

    def submit_gradients(
        self,
        step: int,
        version: int,
        gradients: EncodedTensor,
        now: float,
        of_tokenizers: tuple[tuple[str, EncodedTensor], ...] = (),
    ) -> list[AgentAction]:
        """Send the output gradients of a training step, unless it has come to another state meanwhile."""
        exchange = self._exchanges.get((Mode.TRAIN, step))
        worker = self._workers.named(exchange.worker) if exchange else None
        if exchange is None or worker is None or worker.lease is None or exchange.state is not ExchangeState.OUTPUTS:
            return []
        if exchange.version != version:
            return []
        exchange.state = ExchangeState.GRADIENTS
        message = OutputGradients(worker.lease, step, version, gradients, of_tokenizers)
        return self._send(exchange, Publish(self._topics.up_gradients(worker.name), message), now)

    def repeat(self, exchange: AgentExchange, now: float) -> list[AgentAction]:
        """Send the last message again, or the activations to another worker where this one has long been silent."""
        worker = self._workers.named(exchange.worker)
        assert worker is not None, "what has a deadline is with a worker"
        assert exchange.last is not None, "and has something to repeat"
        if worker.heard_at > exchange.sent_at:
            exchange.unanswered = 0
        self.num_repeats += 1
        if exchange.unanswered >= self._deadlines.repeats_before_moving:
            worker.is_silent = True
            if self._choose(exchange) is not None:
                self._release(exchange)
                return self._send_activations(exchange, now, repeated=True)
        exchange.repeats += 1
        exchange.unanswered += 1
        return self._send(exchange, _repeated(exchange.last), now)

    def rehome(self, now: float) -> list[AgentAction]:
        """Send what has no worker, as far as there are credits."""
        actions: list[AgentAction] = []
        for key in sorted(self._homeless):  # in synchronous mode windows take an agent's steps in order
            if self._choose(self._exchanges[key]) is None:
                continue
            self._homeless.discard(key)
            self.num_repeats += 1
            actions += self._send_activations(self._exchanges[key], now, repeated=True)
        return actions

    def progress(self, now: float, handed_bytes: int | None, pending_bytes: int) -> None:
        """Put off the deadlines of what has not left the machine yet (`AgentSession.progress`)."""
        for exchange in self._exchanges.values():
            if exchange.last is None or exchange.is_out:
                continue
            deadline = now + self._patience.wait_s(exchange.repeats)
            if handed_bytes is None:
                deadline = min(deadline, exchange.sent_at + self._patience.longest_s)
            elif exchange.out_at_bytes is None:
                exchange.out_at_bytes = handed_bytes
            else:
                exchange.is_out = handed_bytes - pending_bytes >= exchange.out_at_bytes
            exchange.deadline = max(exchange.deadline, deadline)

    def resumed(self, message: Message, now: float) -> None:
        """Put off the deadline of a message of which pieces went again (`AgentSession.resumed`)."""
        for exchange in self._repeating():
            if exchange.last is not None and exchange.last.message is message:
                exchange.out_at_bytes, exchange.is_out = None, False
                exchange.deadline = max(exchange.deadline, now + self._patience.wait_s(exchange.repeats))

    def coming(self, now: float) -> None:
        """Put off all deadlines: pieces of an answer have come (`AgentSession.coming`)."""
        for exchange in self._repeating():
            exchange.deadline = max(exchange.deadline, now + self._patience.wait_s(exchange.repeats))

    # What comes back ------------------------------------------------------------------------------------------

    def receive(
        self, message: Outputs | ActivationGradients | Resend, worker: KnownWorker, now: float
    ) -> list[AgentAction]:
        """Take a message of a step.

        A commit is a commit, whichever worker says it. Outputs and Resends count from the worker alone that the
        microbatch is with: those of one that it was taken from are late.
        """
        mode = Mode.TRAIN if isinstance(message, ActivationGradients) else message.mode
        exchange = self._exchanges.get((mode, message.step))
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
            codec = worker.codecs.activation_gradients if message.tensors and worker.codecs else ""
            return [StepCommitted(message.step, message.window, message.tensors, codec), *self.rehome(now)]
        if isinstance(message, Resend):
            if message.reason is ResendReason.CANDIDATE:
                self._finish(exchange)
                return [CandidateGone(message.step), *self.rehome(now)]
            if message.reason is ResendReason.MISSING:
                assert worker.codecs is not None, "a lease has codecs"
                self._release(exchange)
                return [TensorsWanted(message.step, mode, worker.store, message.missing, worker.codecs)]
            self.num_repeats += 1
            self._release(exchange)
            return self._send_activations(exchange, now, repeated=True)
        if after is before:
            return [Duplicate("Outputs")]
        round_trip_s = now - exchange.activations_sent_at
        if exchange.state is ExchangeState.ACTIVATIONS:
            server_s = min(message.server_s, now - exchange.first_sent_at)
            self._patience.measure(exchange.num_activations_sent, round_trip_s, server_s)
        exchange.state = after
        exchange.version = message.version
        exchange.last = None  # from here on the driver is at work, and nothing is missing
        exchange.repeats = exchange.unanswered = 0
        if mode is not Mode.TRAIN:
            self._finish(exchange)
        assert worker.codecs is not None
        outputs = OutputsReceived(
            message.step,
            mode,
            message.outputs,
            worker.codecs,
            message.version,
            round_trip_s,
            message.server_s,
            worker.store,
            message.unkept,
        )
        return [outputs, *self.rehome(now)]

    def finish_committed(self, committed: StepRanges) -> list[AgentAction]:
        """End the training steps that a ledger has."""
        done = [step for mode, step in self._exchanges if mode is Mode.TRAIN and step in committed]
        for step in done:
            self._finish(self._exchanges[Mode.TRAIN, step])
        return [StepCommitted(step, None) for step in done]

    def withdraw_training(self) -> None:
        """Forget the training steps, and give their credits back."""
        for exchange in [exchange for exchange in self._exchanges.values() if exchange.mode is Mode.TRAIN]:
            self._finish(exchange)

    def withdraw(self, step: int, mode: Mode) -> None:
        """Forget one microbatch, and give its credit back."""
        exchange = self._exchanges.get((mode, step))
        if exchange is not None:
            self._finish(exchange)

    def take_back(self, worker: KnownWorker) -> None:
        """Take back everything that a worker holds; each goes up again from its activations."""
        for key in tuple(worker.outstanding):
            self._release(self._exchanges[key])
            self._homeless.add(key)

    # Inside ---------------------------------------------------------------------------------------------------

    def _choose(self, exchange: AgentExchange) -> KnownWorker | None:
        if self._is_closed:
            return None
        worker = self._workers.choose(exchange.step)
        if worker is None and self.is_in_order and exchange.mode is Mode.TRAIN:
            self._make_room(exchange.step)
            worker = self._workers.choose(exchange.step)
        return worker

    def _make_room(self, step: int) -> None:
        """Take the last step that is later than this one back: its worker would hold it until this one is committed."""
        for key in sorted(self._exchanges, reverse=True):
            exchange = self._exchanges[key]
            worker = self._workers.named(exchange.worker)
            is_waiting = exchange.mode is Mode.TRAIN and exchange.state is ExchangeState.ACTIVATIONS
            if is_waiting and exchange.step > step and worker is not None and worker.is_open:
                self._release(exchange)
                self._homeless.add(key)
                return

    def _repeating(self) -> list[AgentExchange]:
        return [exchange for exchange in self._exchanges.values() if exchange.last and not self._is_closed]

    def _send_activations(self, exchange: AgentExchange, now: float, *, repeated: bool = False) -> list[AgentAction]:
        worker = self._choose(exchange)
        if worker is None or worker.lease is None:
            self._homeless.add(exchange.key)
            return []
        exchange.worker = worker.name
        exchange.state = ExchangeState.ACTIVATIONS
        exchange.version = -1
        worker.outstanding.add(exchange.key)
        refs = exchange.refs
        message = Activations(
            worker.lease,
            exchange.step,
            exchange.mode,
            exchange.num_samples,
            exchange.tensors,
            refs.samples,
            refs.stored,
            refs.from_store,
            refs.bases,
            refs.positions,
            exchange.candidate,
        )
        topic = self._topics.up_activations(worker.name)
        return self._send(exchange, Publish(topic, message, repeated=repeated), now)

    def _send(self, exchange: AgentExchange, publish: Publish, now: float) -> list[AgentAction]:
        exchange.last = publish
        exchange.sent_at = now
        exchange.out_at_bytes, exchange.is_out = None, False
        if isinstance(publish.message, Activations):
            exchange.activations_sent_at = now
            exchange.num_activations_sent += 1
        exchange.deadline = now + self._patience.wait_s(exchange.repeats)
        return [publish]

    def _release(self, exchange: AgentExchange) -> None:
        """Take a microbatch from its worker."""
        worker = self._workers.named(exchange.worker)
        if worker is not None:
            worker.outstanding.discard(exchange.key)
        exchange.worker, exchange.last, exchange.state = None, None, ExchangeState.IDLE
        exchange.repeats = exchange.unanswered = 0

    def _finish(self, exchange: AgentExchange) -> None:
        self._release(exchange)
        exchange.state = ExchangeState.DONE
        self._homeless.discard(exchange.key)
        del self._exchanges[exchange.key]


def _repeated(publish: Publish) -> Publish:
    return Publish(publish.topic, publish.message, publish.qos, publish.retain, repeated=True)
