"""Joins agent sessions and a worker session directly, message by message, with given time (after h11's ConnectionPair).

A `Conversation` is a broker that a test holds in its hand: what the parties publish lies in `under_way` until the test
delivers, loses, doubles or reorders it. Every message goes through its bytes. `Trainer` and `Arithmetic` stand for the
drivers: the one does an agent's steps in order, the other keeps the books of an engine and checks that the session
asks it for nothing that an engine could not do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from paho.mqtt.client import topic_matches_sub

from cutlayer.broker.actions import (
    AgentAction,
    Fail,
    LeaseGranted,
    LedgerTold,
    OutputsReceived,
    Publish,
    StepCommitted,
    Subscribe,
    Unsubscribe,
    WorkerAction,
)
from cutlayer.broker.agent_session import AgentSession, Deadlines
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.ledger import Ledger, StepRanges
from cutlayer.broker.manifest import (
    ClassificationSpec,
    CodecNames,
    EvaluationSpec,
    ImageSpec,
    Manifest,
    TokenizerWeights,
    WindowSpec,
)
from cutlayer.broker.messages import (
    AgentState,
    EncodedTensor,
    GoodbyeReason,
    Message,
    MetricSums,
    Mode,
    RunPhase,
    Telemetry,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.tensors import encode_tensor
from cutlayer.broker.topics import AgentTopics, WorkerTopics
from cutlayer.broker.work import Backward, Commit, Forward, Key, Release, Work
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession

WORKER = "w0"
IMAGE = ImageSpec(height=4, width=4, channels=1, patch=2)
WIDTH = 2
CLASSES = ("no", "yes")
MICROBATCH = 4
CODECS = ("identity", "fp16", "int8")
BYTE_STAGES = ("none", "lz4", "zstd")


def small_manifest(*, epochs: int = 1, codecs: CodecNames | None = None, **window: object) -> Manifest:
    """Return a manifest of one modality of four tokens; keywords are the window's."""
    identity = CodecNames(
        activations="identity", outputs="identity", output_gradients="identity", activation_gradients="identity"
    )
    return Manifest(
        run_id="small",
        seed=1,
        epochs=epochs,
        microbatch_samples=MICROBATCH,
        width=WIDTH,
        model="none",
        num_parameters=0,
        modalities={"image": IMAGE},
        fusion="early",
        task=ClassificationSpec(classes=CLASSES),
        codecs=codecs or identity,
        window=WindowSpec.model_validate(window),
        tokenizers=TokenizerWeights(digest="0" * 64, num_bytes=1, num_chunks=1),
        evaluation=EvaluationSpec(),
    )


def zeros(*shape: int, codec: str = "identity") -> EncodedTensor:
    """Return an encoded tensor of zeros."""
    return encode_tensor(codec, np.zeros(shape, np.float32))


def image_tokens(num_samples: int = MICROBATCH) -> tuple[tuple[str, EncodedTensor], ...]:
    """Return the tensors of a microbatch of the small manifest."""
    return (("image", zeros(num_samples, IMAGE.num_tokens, WIDTH)),)


def counters(incarnation: int = 1, sequence: int = 1, *, final: bool = False) -> Telemetry:
    """Return counters that say nothing."""
    none = MetricSums(0.0, 0, 0)
    return Telemetry(
        incarnation=incarnation,
        sequence=sequence,
        final=final,
        epoch=0,
        steps=0,
        total_steps=0,
        samples=0,
        train=none,
        recent=none,
        evaluations=(),
        traffic=(),
        wire_sent_bytes=0,
        wire_received_bytes=0,
        round_trips=(),
        stages=(),
        resends=0,
        duplicates=0,
        rejects=0,
        cpu_s=0.0,
        peak_rss_bytes=0,
    )


def make_worker(
    manifest: Manifest | None = None,
    *,
    incarnation: int = 1,
    ledger: Ledger | None = None,
    window: int = 0,
    version: int = 0,
    committed_samples: int = 0,
    first_lease: int = 100,
    **limits: Any,
) -> WorkerSession:
    """Return a worker session whose leases count up from `first_lease`; further keywords are its limits."""
    numbers = iter(range(first_lease, 1 << 32))
    return WorkerSession(
        WORKER,
        incarnation,
        manifest or small_manifest(),
        WorkerLimits(**limits),
        LeaseTable(lambda: next(numbers)),
        ledger=ledger,
        window=window,
        version=version,
        committed_samples=committed_samples,
    )


def num_samples_of(step: int, num_samples: int) -> int:
    """Return the samples of a step when an epoch has `num_samples`: its last may have fewer."""
    steps_per_epoch = math.ceil(num_samples / MICROBATCH)
    place = step % steps_per_epoch
    return min(MICROBATCH, num_samples - place * MICROBATCH)


class Arithmetic:
    """Does a worker's work with zeros, and checks that each is one that an engine could do.

    Args:
        worker: The session.
        committed: What the weights that it starts from have seen.
    """

    def __init__(self, worker: WorkerSession, committed: Counter[Key] | None = None) -> None:
        self.worker = worker
        self.committed: Counter[Key] = Counter(committed)
        self.version = worker.version
        self.graphs: dict[int, dict[Key, int]] = {}
        self.window: dict[Key, int] = {}
        self.done: list[Work] = []

    def compute(self, now: float) -> list[WorkerAction] | None:
        """Do one thing; return the session's actions, or None when there is nothing to do."""
        work = self.worker.next_work(now)
        if work is None:
            return None
        self.done.append(work)
        match work:
            case Forward():
                return self._forward(work, now)
            case Backward():
                graph = self.graphs[work.group]
                for key, _ in work.gradients:
                    self.window[key] = graph.pop(key)
                if work.last:
                    del self.graphs[work.group]
                return self.worker.backward_done(work.group, now)
            case Commit():
                assert work.num_samples == sum(self.window.values()), "the session and the engine hold one window"
                assert work.num_microbatches == len(self.window)
                assert work.window == self.worker.window
                assert self.window, "a window without samples is never committed"
                self.committed.update(self.window.keys())
                self.window.clear()
                self.version += 1
                return self.worker.committed(self.version, now)
            case Release():
                self.graphs.pop(work.group, None)
                return []

    def _forward(self, work: Forward, now: float) -> list[WorkerAction]:
        shapes = {tuple(tensor.shape[1:] for _, tensor in message.tensors) for _, message in work.microbatches}
        assert len(shapes) == 1, "a batch has one shape"
        assert {key.mode for key, _ in work.microbatches} == {work.mode}
        outputs = {key: zeros(message.num_samples, len(CLASSES)) for key, message in work.microbatches}
        if work.mode is Mode.TRAIN:
            self.graphs[work.group] = {key: message.num_samples for key, message in work.microbatches}
        return self.worker.forwarded(work.group, outputs, self.version, now)


class Trainer:
    """An agent's driver: does its steps in order, evaluates once when asked, and says goodbye.

    Args:
        session: The session.
        num_samples: Training samples; a step has `MICROBATCH`.
        manifest: The run.
    """

    def __init__(self, session: AgentSession, num_samples: int, manifest: Manifest) -> None:
        self.session = session
        self.num_samples = num_samples
        self.total_steps = manifest.epochs * math.ceil(num_samples / MICROBATCH)
        self.committed = StepRanges()
        self.told: Counter[int] = Counter()
        self.events: list[AgentAction] = []
        self.is_finished = False
        self.failed: Exception | None = None
        self._in_flight: set[tuple[Mode, int]] = set()
        self._outstanding: set[int] = set()
        self._next_step = 0
        self._evaluations = 0
        self._told_done = False
        self._is_evaluating = False
        self._is_leaving = False

    @property
    def is_training_done(self) -> bool:
        """Whether all steps are committed, as far as it knows."""
        return len(self.committed) >= self.total_steps

    def handle(self, actions: list[AgentAction], now: float) -> Iterator[Publish | Subscribe | Unsubscribe]:
        """Do what the session asks; yield what goes to the broker."""
        for action in actions:
            self.events.append(action)
            match action:
                case Publish() | Subscribe() | Unsubscribe():
                    yield action
                case OutputsReceived(mode=Mode.TRAIN):
                    if (Mode.TRAIN, action.step) in self._in_flight:
                        gradients = zeros(num_samples_of(action.step, self.num_samples), len(CLASSES))
                        answer = self.session.submit_gradients(action.step, action.version, gradients, now)
                        yield from self.handle(answer, now)
                case OutputsReceived():
                    self._in_flight.discard((action.mode, action.step))
                case StepCommitted():
                    self._in_flight.discard((Mode.TRAIN, action.step))
                    self._outstanding.discard(action.step)
                    self.told[action.step] += self.committed.add(action.step)
                case LeaseGranted():
                    self._told_done = False
                    self._go_by(action.committed)
                case LedgerTold():
                    self._go_by(action.committed)
                case Fail():
                    self.failed = action.error
                    self.is_finished = True

    def pump(self, now: float) -> Iterator[Publish | Subscribe | Unsubscribe]:
        """Do what is due, submit new work and finish, as the real driver does after each event."""
        session = self.session
        yield from self.handle(session.tick(now), now)
        while session.can_submit() and session.phase in (RunPhase.TRAINING, RunPhase.EVALUATING):
            item = self._next_item()
            if item is None:
                break
            mode, step = item
            self._in_flight.add(item)
            num_samples = num_samples_of(step, self.num_samples) if mode is Mode.TRAIN else MICROBATCH
            yield from self.handle(session.submit(step, mode, num_samples, image_tokens(num_samples), now), now)
        if session.has_left:
            self.is_finished = True
        if not session.leased_workers or self._is_leaving:
            return
        if self.is_training_done and not self._told_done:
            self._told_done = True
            yield from self.handle(session.training_done(now), now)
        if session.phase is RunPhase.EVALUATING and not self._is_evaluating:
            self._is_evaluating = True
            self._evaluations = 2
        is_idle = not self._in_flight and not self._evaluations
        if session.phase is RunPhase.ENDED or (self._is_evaluating and is_idle):
            self._is_leaving = True
            telemetry = counters(session.incarnation, 1, final=True)
            yield from self.handle(session.leave(GoodbyeReason.COMPLETED, telemetry, now), now)

    def _go_by(self, ranges: tuple[tuple[int, int], ...]) -> None:
        """Go by a ledger, and take training up anew where it lacks steps, as the real driver does."""
        before, self.committed = self.committed, StepRanges(ranges)
        self._outstanding = {step for step in self._outstanding if step not in self.committed}
        self._next_step = 0
        if any(step not in self.committed for start, stop in before for step in range(start, stop)):
            self._in_flight = {item for item in self._in_flight if item[0] is not Mode.TRAIN}
            self._outstanding.clear()
            self._told_done = False
            self.session.withdraw_training()

    def _next_item(self) -> tuple[Mode, int] | None:
        if self._evaluations:
            self._evaluations -= 1
            return Mode.EVAL, self._evaluations
        while self._next_step in self.committed or self._next_step in self._outstanding:
            self._next_step += 1
        if self._next_step >= self.total_steps:
            return None
        self._outstanding.add(self._next_step)
        return Mode.TRAIN, self._next_step


@dataclass(frozen=True, slots=True)
class Letter:
    """A message under way to one party: an agent's topic, or `WORKER`."""

    to: str
    topic: str
    message: Message

    @property
    def is_state(self) -> bool:
        """Whether the broker keeps it; such letters stay in order."""
        return isinstance(self.message, AgentState | WorkerState)


@dataclass
class Conversation:
    """One worker and any number of agents, with a broker held in the hand.

    Attributes:
        worker: The worker's session.
        manifest: The run.
        deadlines: The agents'.
        is_automatic: Whether `Trainer.pump` runs after each event; otherwise the test submits.
        now: Seconds.
        under_way: What is published and not yet delivered, oldest first.
        worker_events: All the worker's actions.
    """

    worker: WorkerSession
    manifest: Manifest
    deadlines: Deadlines = field(default_factory=lambda: Deadlines(claim_hello_s=0.0))
    is_automatic: bool = True
    now: float = 0.0
    under_way: list[Letter] = field(default_factory=list)
    worker_events: list[WorkerAction] = field(default_factory=list)
    trainers: dict[str, Trainer] = field(default_factory=dict)
    arithmetic: Arithmetic = field(init=False)
    _filters: dict[str, set[str]] = field(default_factory=dict)
    _retained: dict[str, Message] = field(default_factory=dict)
    _incarnation: int = 10

    def __post_init__(self) -> None:
        self.arithmetic = Arithmetic(self.worker)
        self._do_worker(self.worker.connected())

    # Parties --------------------------------------------------------------------------------------------------

    def join(self, name: str, num_samples: int = MICROBATCH) -> Trainer:
        """Start an agent's process; one of the same name is gone."""
        self._incarnation += 1
        session = AgentSession(AgentTopics(name), self._incarnation, deadlines=self.deadlines)
        trainer = self.trainers[name] = Trainer(session, num_samples, self.manifest)
        self._do_agent(name, session.connected(self.now))
        ready = session.ready(bytes.fromhex(self.manifest.digest()), num_samples, CODECS, BYTE_STAGES, self.now)
        self._do_agent(name, ready)
        return trainer

    def kill(self, name: str) -> None:
        """End an agent's process as SIGKILL does: its will fires, and nothing reaches it any more."""
        trainer = self.trainers.pop(name)
        self.under_way = [letter for letter in self.under_way if letter.to != name]
        self._filters.pop(name, None)
        self.send(AgentTopics(name).state, AgentState(online=False, incarnation=trainer.session.incarnation))

    def blip(self, name: str) -> None:
        """Break an agent's connection and make it again: its will fires, its process knows nothing of that."""
        session = self.trainers[name].session
        self.send(AgentTopics(name).state, AgentState(online=False, incarnation=session.incarnation))
        self._do_agent(name, session.connected(self.now))

    def restart_worker(self, worker: WorkerSession, committed: Counter[Key]) -> None:
        """Put another process in the worker's place, resumed from a checkpoint; the old one's will fires."""
        self.under_way = [letter for letter in self.under_way if letter.to != WORKER]
        state = self._retained[WorkerTopics(WORKER).state]
        assert isinstance(state, WorkerState)
        offline = WorkerState(
            online=False,
            worker=WORKER,
            incarnation=state.incarnation,
            manifest_digest=state.manifest_digest,
            phase=state.phase,
            agents=0,
            version=state.version,
            reason="",
        )
        self.send(WorkerTopics(WORKER).state, offline)
        self._filters.pop(WORKER, None)
        self.worker = worker
        self.arithmetic = Arithmetic(worker, committed)
        self._do_worker(worker.connected())

    # The broker -----------------------------------------------------------------------------------------------

    def send(self, topic: str, message: Message) -> None:
        """Publish a message, to everybody whose topic filter matches."""
        message = parse(serialize(message))
        if isinstance(message, AgentState | WorkerState):
            self._retained[topic] = message
        for party, filters in self._filters.items():
            if any(topic_matches_sub(wanted, topic) for wanted in filters):
                self.under_way.append(Letter(party, topic, message))

    def of_kind(self, kind: type[Message], to: str | None = None) -> list[Letter]:
        """Return what is under way of a kind of message."""
        return [
            letter for letter in self.under_way if isinstance(letter.message, kind) and (to is None or letter.to == to)
        ]

    def lose(self, kind: type[Message], to: str | None = None) -> None:
        """Lose the oldest message of a kind."""
        self.under_way.remove(self.of_kind(kind, to)[0])

    def take(self, kind: type[Message], to: str | None = None) -> Letter:
        """Take the oldest message of a kind out of the way, for `deliver` later, once or often."""
        letter = self.of_kind(kind, to)[0]
        self.under_way.remove(letter)
        return letter

    def deliver(self, letter: Letter) -> None:
        """Deliver a message, which need not be under way any more."""
        if letter in self.under_way:
            self.under_way.remove(letter)
        if letter.to == WORKER:
            self._do_worker(self.worker.receive(letter.topic, letter.message, self.now))
        elif letter.to in self.trainers:
            self._do_agent(letter.to, self.trainers[letter.to].session.receive(letter.message, self.now))

    def deliver_all(self) -> None:
        """Deliver all that is under way, and what that gives rise to."""
        while self.under_way:
            self.deliver(self.under_way[0])

    # Time and work --------------------------------------------------------------------------------------------

    def compute(self) -> Work | None:
        """Do one thing of the worker's work; return it."""
        actions = self.arithmetic.compute(self.now)
        if actions is None:
            return None
        self._do_worker(actions)
        return self.arithmetic.done[-1]

    def compute_all(self) -> None:
        """Do all the worker's work."""
        while self.compute() is not None:
            pass

    def settle(self) -> None:
        """Deliver and compute until nothing is left to do at this time."""
        while self.under_way or self.worker.next_work(self.now) is not None:
            self.deliver_all()
            self.compute_all()

    def pass_time(self, seconds: float) -> None:
        """Let time pass and everybody do what is then due."""
        self.now += seconds
        self._do_worker(self.worker.tick(self.now))
        for name, trainer in list(self.trainers.items()):
            if self.is_automatic:
                self._pump(name)
            else:
                self._do_agent(name, trainer.session.tick(self.now))

    def run(self, until: Callable[[], bool], max_s: float = 600.0) -> None:
        """Deliver everything at once and let time pass in steps of 0.1 s until a condition holds."""
        stop_at = self.now + max_s
        while not until():
            assert self.now < stop_at, f"not done after {max_s} s"
            self.settle()
            self.pass_time(0.1)

    # Actions --------------------------------------------------------------------------------------------------

    def submit(self, name: str, step: int, mode: Mode = Mode.TRAIN, num_samples: int = MICROBATCH) -> None:
        """Submit a microbatch by hand."""
        session = self.trainers[name].session
        self.trainers[name]._in_flight.add((mode, step))
        self._do_agent(name, session.submit(step, mode, num_samples, image_tokens(num_samples), self.now))

    def agent_does(self, name: str, actions: list[AgentAction]) -> None:
        """Do actions that a test has asked of an agent's session."""
        self._do_agent(name, actions)

    def _do_agent(self, name: str, actions: list[AgentAction]) -> None:
        trainer = self.trainers[name]
        for action in trainer.handle(actions, self.now):
            self._to_broker(name, action)
        if self.is_automatic:
            self._pump(name)

    def _pump(self, name: str) -> None:
        trainer = self.trainers[name]
        for action in trainer.pump(self.now):
            self._to_broker(name, action)
        if trainer.is_finished and name in self.trainers:
            offline = trainer.session.offline()
            del self.trainers[name]
            self._filters.pop(name, None)
            self.under_way = [letter for letter in self.under_way if letter.to != name]
            self.send(offline.topic, offline.message)

    def _do_worker(self, actions: list[WorkerAction]) -> None:
        for action in actions:
            self.worker_events.append(action)
            if isinstance(action, Publish | Subscribe | Unsubscribe):
                self._to_broker(WORKER, action)

    def _to_broker(self, party: str, action: Publish | Subscribe | Unsubscribe) -> None:
        match action:
            case Publish():
                assert action.retain == isinstance(action.message, AgentState | WorkerState)
                self.send(action.topic, action.message)
            case Subscribe():
                self._filters.setdefault(party, set()).add(action.topic_filter)
                for topic, message in self._retained.items():
                    if topic_matches_sub(action.topic_filter, topic):
                        self.under_way.append(Letter(party, topic, message))
            case Unsubscribe():
                self._filters.get(party, set()).discard(action.topic_filter)
