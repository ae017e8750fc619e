"""The messages in which agents and workers tell of themselves: cumulative counters, and nothing of a single sample.

Whoever only sums and judges what is reported needs nothing of the other messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from cutlayer.broker.wire import U32, choice, flag, many, number, pair, record, text, uint, wire
from cutlayer.broker.wire_limits import MAX_MODALITIES, MAX_NAME, MAX_TOPIC

MAX_EVALUATIONS = 4_096
MAX_SUMS = 256
"""Of one MetricSums, by name."""
MAX_TRAFFIC = 256
MAX_STAGES = 32
MAX_REJECT_LABELS = 64
MAX_SERIES = 4_096
"""Counters and gauges in one WorkerReport."""
MAX_DISTRIBUTIONS = 256
MAX_LABELS = 8
MAX_BOUNDS = 64

BUCKETS = many(pair(uint(4096), uint()), 4096)
"""A `telemetry.LogHistogram`, which is sparse."""


class Direction(StrEnum):
    """Up is agent to worker."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class MetricSums:
    """Sums over samples; never of fewer than `telemetry.MIN_REPORTED_SAMPLES`.

    Attributes:
        loss_sum: Sum of the loss, in nats for cross-entropy.
        num_correct: Samples whose outputs are right: the largest is the label's, or no class is wrong.
        num_samples: Samples summed over; those of which nothing is known are not among them.
        sums: What else the task's metrics are made of, by name, in order (`task_metrics.py`).
    """

    loss_sum: float = wire(number())
    num_correct: int = wire(uint())
    num_samples: int = wire(uint())
    sums: tuple[tuple[str, float], ...] = wire(many(pair(text(MAX_NAME), number()), MAX_SUMS), default=())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an agent's own test samples say of the model, or its validation samples of a candidate.

    Attributes:
        epoch: Epochs of training the agent had committed.
        given: Modalities given, joined by `+`.
        final: Whether the weights are the run's last.
        sums: Sums over the samples.
        wire_bytes: Bytes that this agent had moved until then, both directions.
        candidate: The candidate that its validation samples judge; empty for test samples.
    """

    epoch: int = wire(uint(U32))
    given: str = wire(text(MAX_MODALITIES * (MAX_NAME + 1)))
    final: bool = wire(flag())
    sums: MetricSums = wire(record(MetricSums))
    wire_bytes: int = wire(uint())
    candidate: str = wire(text(MAX_NAME), default="")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one kind of message in one direction, since the agent's start.

    Attributes:
        direction: Up or down.
        kind: The message's class name.
        codec: Codec of its tensors, empty where it has none.
        messages: Messages.
        raw_bytes: Their tensors as float32.
        payload_bytes: MQTT payloads.
        wire_bytes: Whole MQTT packets.
    """

    direction: Direction = wire(choice(Direction))
    kind: str = wire(text(MAX_NAME))
    codec: str = wire(text(MAX_NAME))
    messages: int = wire(uint())
    raw_bytes: int = wire(uint())
    payload_bytes: int = wire(uint())
    wire_bytes: int = wire(uint())


@dataclass(frozen=True, slots=True)
class StageTime:
    """Time an agent has spent in one stage of a step.

    Attributes:
        stage: Name of the stage.
        count: Times it ran.
        seconds: Seconds in all, by the agent's monotonic clock.
        buckets: (bucket, count) of `telemetry.LogHistogram`.
    """

    stage: str = wire(text(MAX_NAME))
    count: int = wire(uint())
    seconds: float = wire(number(0.0))
    buckets: tuple[tuple[int, int], ...] = wire(BUCKETS, default=())


@dataclass(frozen=True, slots=True)
class Telemetry:
    """An agent's cumulative counters since its start. The last ones, marked `final`, come with its Goodbye.

    Attributes:
        incarnation: The agent's.
        sequence: Counts up, so that a late one is known.
        final: No more will come.
        epoch: Epochs committed.
        steps: Training steps committed, earlier incarnations' included.
        total_steps: Training steps of all its epochs.
        samples: Training samples committed since start.
        train: Sums over the training samples since start.
        recent: Sums over the samples since the report before.
        evaluations: All evaluations since start.
        traffic: Bytes by direction, kind of message and codec.
        wire_sent_bytes: All that was written to the broker, control packets included.
        wire_received_bytes: All that was read from the broker.
        round_trips: (bucket, count) of `telemetry.LogHistogram`: activations sent to outputs received.
        stages: Time by stage.
        resends: Messages sent again.
        duplicates: Messages received twice.
        rejects: Messages received that broke the protocol.
        cpu_s: Processor seconds, user and system.
        peak_rss_bytes: Largest resident memory.
        reconnects: Connections to the broker that were lost and made again.
        rejects_by: (label, count) of the messages that were not taken, as the table of broker/README.md names them.
        codec_changes: Steps up and down the ladder of codecs.
        paced_s: Seconds that the limit of the uplink was waited for.
    """

    KIND: ClassVar[int] = 13
    incarnation: int = wire(uint())
    sequence: int = wire(uint())
    final: bool = wire(flag())
    epoch: int = wire(uint(U32))
    steps: int = wire(uint())
    total_steps: int = wire(uint())
    samples: int = wire(uint())
    train: MetricSums = wire(record(MetricSums))
    recent: MetricSums = wire(record(MetricSums))
    evaluations: tuple[Evaluation, ...] = wire(many(record(Evaluation), MAX_EVALUATIONS))
    traffic: tuple[Traffic, ...] = wire(many(record(Traffic), MAX_TRAFFIC))
    wire_sent_bytes: int = wire(uint())
    wire_received_bytes: int = wire(uint())
    round_trips: tuple[tuple[int, int], ...] = wire(BUCKETS)
    stages: tuple[StageTime, ...] = wire(many(record(StageTime), MAX_STAGES))
    resends: int = wire(uint())
    duplicates: int = wire(uint())
    rejects: int = wire(uint())
    cpu_s: float = wire(number(0.0))
    peak_rss_bytes: int = wire(uint())
    reconnects: int = wire(uint(), default=0)
    rejects_by: tuple[tuple[str, int], ...] = wire(many(pair(text(MAX_NAME), uint()), MAX_REJECT_LABELS), default=())
    codec_changes: int = wire(uint(), default=0)
    paced_s: float = wire(number(0.0), default=0.0)


@dataclass(frozen=True, slots=True)
class SeriesNumber:
    """One counter or gauge of a worker.

    Attributes:
        name: Its metric, as `cutlayer.dashboards.catalogue` names it.
        labels: Label values in the order of the catalogue.
        value: Since the worker's start, for a counter.
    """

    name: str = wire(text(MAX_NAME))
    labels: tuple[str, ...] = wire(many(text(MAX_TOPIC), MAX_LABELS))
    value: float = wire(number())


@dataclass(frozen=True, slots=True)
class SeriesDistribution:
    """One histogram of a worker since its start.

    Attributes:
        name: Its metric.
        labels: Label values in the order of the catalogue.
        counts: Values in each of the catalogue's buckets and above the last; not cumulative.
        total: Sum of the values.
    """

    name: str = wire(text(MAX_NAME))
    labels: tuple[str, ...] = wire(many(text(MAX_TOPIC), MAX_LABELS))
    counts: tuple[int, ...] = wire(many(uint(), MAX_BOUNDS))
    total: float = wire(number())


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker's metrics, for whoever watches the run over its broker. Not retained; nobody has to receive it.

    What is not in it is 0: series that have never been touched are left out.

    Attributes:
        worker: Its name.
        incarnation: Start of its process, in milliseconds since the epoch.
        sequence: Counts up, so that a late one is known.
        run_id: The run that it serves.
        every_s: Seconds until the next one.
        numbers: Counters and gauges.
        distributions: Histograms.
    """

    KIND: ClassVar[int] = 22
    worker: str = wire(text(MAX_NAME))
    incarnation: int = wire(uint())
    sequence: int = wire(uint())
    run_id: str = wire(text(MAX_NAME))
    every_s: float = wire(number(0.0))
    numbers: tuple[SeriesNumber, ...] = wire(many(record(SeriesNumber), MAX_SERIES))
    distributions: tuple[SeriesDistribution, ...] = wire(many(record(SeriesDistribution), MAX_DISTRIBUTIONS))
