"""What an agent's reports cost: the agent's own `Reporter` at work, on a clock that jumps from one report to the next.

Reports come every so many seconds, less often where they would take more than the run's `telemetry_share` of all bytes,
and grow with what there is to tell. So they depend on how long the run takes, which nobody knows beforehand, and on how
much its times spread: an estimate, unlike everything else in a plan.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np

from cutlayer.broker.actions import Publish
from cutlayer.broker.courier import Courier
from cutlayer.broker.ledger import StepRanges
from cutlayer.broker.manifest import ActivationMode, Manifest
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    AgentState,
    Direction,
    EncodedTensor,
    Hello,
    Message,
    Mode,
    ModelChunk,
    NegotiatedCodecs,
    OutputGradients,
    Outputs,
    Phase,
    RunManifest,
    RunPhase,
    Telemetry,
    TokenizerWeights,
    TrainingDone,
    Welcome,
    WorkerState,
)
from cutlayer.broker.tasks import MultiLabelSpec, RegressionSpec, RetrievalSpec, TaskSpec
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES
from cutlayer.broker.tensors import WEIGHTS_CODEC
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.transport import Transport, WireCount
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.losses import LossResult, task_from_spec
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.retrieval import recall_sums
from cutlayer.edge_agent.work_items import EvaluationRun, WorkItems
from cutlayer.simulation.plan_evaluations import evaluations
from cutlayer.simulation.plan_exchange import ANY_NAME, Parties
from cutlayer.simulation.plan_wire import NOTHING, Link, Ways, mean

__all__ = ["Pace", "Reports", "reports"]

MAX_REPORTS = 400
"""Reports that are made one by one; those of a longer run are as large as the last of these."""
MAX_TIMES = 64
"""Times of each kind that go into the histograms between two reports."""
ROUND_TRIP_SPREAD = np.geomspace(0.5, 2.0, 16)
"""Round trips of a run differ by some such factor: a guess, which decides some 100 bytes of a report."""
LOSS_S = 2e-4
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Pace:
    """How a run goes in time.

    Attributes:
        duration_s: Seconds from an agent's first microbatch to its last.
        lease_s: Silence after which a worker takes a lease back.
        round_trip_s: Seconds from activations to outputs.
        tokenize_s: Seconds that the agent takes for a microbatch, some measurements.
        encode_s: The same of encoding.
    """

    duration_s: float
    lease_s: float
    round_trip_s: float
    tokenize_s: Sequence[float]
    encode_s: Sequence[float]


@dataclass(frozen=True, slots=True)
class Reports:
    """An agent's reports.

    Attributes:
        bytes: What those take that go by themselves.
        last: The last one, which goes with the Goodbye.
        count: How many go by themselves.
    """

    bytes: Ways
    last: Telemetry
    count: int


@dataclass(slots=True)
class _Counters:
    """In the place of a transport: a reporter looks at its counters only."""

    wire: WireCount = field(default_factory=WireCount)


def reports(
    manifest: Manifest,
    mode: ActivationMode,
    plan: EpochPlan,
    others: Ways,
    pace: Pace,
    parties: Parties,
    link: Link,
) -> Reports:
    """Let a reporter report through a run.

    Args:
        manifest: The run.
        mode: How activations go up.
        plan: The agent's samples.
        others: What the agent's other messages take.
        pace: How the run goes in time.
        parties: Who talks.
        link: The agent's connection.
    """
    with _silent():
        return _reported(manifest.model_copy(update={"activations": mode}), plan, others, pace, parties, link)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the reporter from telling a person of epochs that nobody has trained."""
    log = logging.getLogger(Reporter.__module__)
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _reported(manifest: Manifest, plan: EpochPlan, others: Ways, pace: Pace, parties: Parties, link: Link) -> Reports:
    reporter, life = _reporter(manifest, plan, others, pace, parties)
    topic = AgentTopics(parties.agent).telemetry
    sizes: list[Ways] = []
    now = 0.0
    while len(sizes) < MAX_REPORTS and reporter.due_at is not None:
        # What a site says of a candidate goes at once, up to the last one, at the end of training.
        judged_at = life.next_judgement * pace.duration_s
        now = min(reporter.due_at, judged_at)
        if now >= pace.duration_s and judged_at > pace.duration_s:
            break
        life.reach(now / pace.duration_s, sum(size.up for size in sizes))
        if not reporter.is_due(now, pace.lease_s / 3):
            continue
        telemetry = reporter.telemetry(now, num_repeats=0, is_final=False)
        life.courier.traffic.add(Direction.UP, telemetry, 1, 1)
        sizes.append(link.up(Publish(topic, telemetry, qos=0)))
        reporter.sent(round(sizes[-1].up), now)
    count = len(sizes)
    if count == MAX_REPORTS:
        count = round(count * pace.duration_s / now)
    life.reach(1.0, sum(size.up for size in sizes), is_over=True)
    last = reporter.telemetry(pace.duration_s, num_repeats=0, is_final=True)
    more = mean(sizes[-MAX_REPORTS // 4 :]) * (count - len(sizes)) if sizes else NOTHING
    return Reports(sum(sizes, more), last, count)


class _Life:
    """Moves a reporter's counters on, as the agent's work would."""

    def __init__(
        self, reporter: Reporter, items: WorkItems, courier: Courier, others: Ways, pace: Pace, manifest: Manifest
    ) -> None:
        self._reporter, self._items, self.courier = reporter, items, courier
        self._others, self._pace, self._manifest = others, pace, manifest
        self._kinds = _kinds(manifest)
        self._example = _example(manifest.task)
        self._step = 0
        names = tuple(sorted(manifest.modalities))
        self._evaluations = deque(evaluations(manifest, items.plan, names))
        self._times = tuple(itertools.cycle(times or [LOSS_S]) for times in (pace.tokenize_s, pace.encode_s))
        self._round_trips = itertools.cycle((pace.round_trip_s * ROUND_TRIP_SPREAD).tolist())

    @property
    def next_judgement(self) -> float:
        """Share of the run after which the next candidate is judged; infinite for none."""
        is_next = bool(self._evaluations) and self._evaluations[0].split == "val"
        return self._evaluations[0].moment / self._items.plan.epochs if is_next else math.inf

    def reach(self, share: float, report_bytes: float, *, is_over: bool = False) -> None:
        """Go to a moment of the run.

        Args:
            share: Share of the run.
            report_bytes: What reports have taken so far.
            is_over: Whether the final evaluations are done, too.
        """
        plan, reporter = self._items.plan, self._reporter
        before, self._step = self._step, min(int(share * plan.total_steps + ROUNDING), plan.total_steps)
        if self._step:
            self._items.committed = StepRanges(((0, self._step),))
        reporter.num_samples = self._step * plan.num_train // plan.steps_per_epoch
        for _ in range(min(self._step - before, MAX_TIMES)):
            for name, times in zip(("tokenize", "encode"), self._times, strict=True):
                reporter.timed(name, next(times))
            reporter.timed("loss", LOSS_S)
            reporter.answered(next(self._round_trips), 0.0)
        self._evaluate(is_over=is_over)
        if self._step > before:
            num_samples = (self._step - before) * plan.microbatch_samples
            reporter.trained(self._step, self._result(1.5 * num_samples, num_samples))
        wire = cast("_Counters", self.courier.transport).wire
        wire.sent_bytes = round(share * self._others.up + report_bytes)
        wire.received_bytes = round(share * self._others.down)
        # A row for each kind of message; what stands in them matters by its digits only.
        size = round(max(share * self._others.both / len(self._kinds), 1))
        for direction, message in self._kinds:
            self.courier.traffic.add(direction, message, size, size)

    def _evaluate(self, *, is_over: bool) -> None:
        plan, epoch = self._items.plan, self._items.epoch
        while self._evaluations:
            is_val = self._evaluations[0].split == "val"
            if not is_over and self._evaluations[0].moment > min(epoch, plan.epochs - (0 if is_val else 1)):
                return
            evaluation = self._evaluations.popleft()
            num_all = plan.num_val if is_val else plan.num_test
            is_final = not is_val and evaluation.moment == plan.epochs
            is_whole = evaluation.num_samples >= num_all
            candidate = ANY_NAME if is_val else ""
            if evaluation.num_samples:
                run = EvaluationRun(epoch, evaluation.given, is_final, 1, Sums(), is_whole, candidate=candidate)
                self._reporter.evaluated(run, self._evaluated(evaluation.num_samples))

    def _result(self, loss_sum: float, num_samples: int) -> LossResult:
        return replace(self._example, loss_sum=loss_sum, num_correct=1, num_samples=num_samples)

    def _evaluated(self, num_samples: int) -> LossResult:
        result = self._result(1.0, num_samples)
        if not isinstance(self._manifest.task, RetrievalSpec):
            return result
        # Of pairs there are sums at the end of an evaluation alone.
        return replace(result, sums=recall_sums([np.eye(2, 2 * 2, dtype=np.float32)]))


def _example(task: TaskSpec) -> LossResult:
    """Return a result with the sums that a task has; what stands in them matters by its digits only."""
    if not isinstance(task, MultiLabelSpec | RegressionSpec):
        return LossResult(0.0, np.zeros((0, 0), np.float32), 0, 0)
    zeros_BC = np.zeros((MIN_REPORTED_SAMPLES, task.num_outputs), np.float32)
    return task_from_spec(task).loss_and_gradient(zeros_BC, zeros_BC)


def _kinds(manifest: Manifest) -> list[tuple[Direction, Message]]:
    """Return a message of each kind and codec that an agent's reports have a row for."""
    codecs, train, phase = manifest.codecs, Mode.TRAIN, RunPhase.TRAINING
    names = (codecs.activations, codecs.outputs, codecs.output_gradients, codecs.activation_gradients, WEIGHTS_CODEC)
    activations, outputs, gradients, cut_gradients, weights = (EncodedTensor(name, (1, 1), b"") for name in names)
    is_trained = manifest.tokenizers.mode == "trainable"
    negotiated = NegotiatedCodecs(*dict(codecs).values())
    up: list[Message] = [
        Activations(0, 0, train, 1, (("", activations),)),
        AgentState(True, 0),
        Hello("", 0, b"", 0, (), (), ""),
        OutputGradients(0, 0, 0, gradients),
        TrainingDone(0),
    ]
    if manifest.activations == "once":
        up.append(Activations(0, 0, train, 1, (), from_store=("",)))
    down: list[Message] = [
        ActivationGradients(0, 0, 0, 0.0, (("", cut_gradients),) if is_trained else ()),
        AgentState(True, 0),
        ModelChunk(0, 1, b""),
        Outputs(0, 0, train, 0, 0.0, outputs),
        Phase(0, phase, ""),
        RunManifest(b""),
        Welcome("", 0, 0, 1, negotiated, (), phase, 0.0),
        WorkerState(True, "", 0, b"", phase, 0, 0, ""),
    ]
    if is_trained:
        down.append(TokenizerWeights(0, 0, (("", weights),)))
    return [*((Direction.UP, message) for message in up), *((Direction.DOWN, message) for message in down)]


def _reporter(
    manifest: Manifest, plan: EpochPlan, others: Ways, pace: Pace, parties: Parties
) -> tuple[Reporter, _Life]:
    courier = Courier(cast("Transport", _Counters()), Direction.UP)
    reporter = Reporter(parties.incarnation, courier, lambda: 0.0)
    items = WorkItems(
        plan,
        tuple(sorted(manifest.modalities)),
        every_epochs=manifest.evaluation.every_epochs,
        evaluation_samples=manifest.evaluation.samples,
    )
    reporter.start(items, manifest.telemetry_s, 0.0, share=manifest.telemetry_share)
    return reporter, _Life(reporter, items, courier, others, pace, manifest)
