"""What an agent says of itself: cumulative counters for the telemetry topic, lines for its own terminal.

Only sums over at least `MIN_REPORTED_SAMPLES` samples leave the agent; no label, no loss of a single sample.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cutlayer.broker.courier import Courier
from cutlayer.broker.messages import MAX_EVALUATIONS, Evaluation, MetricSums, StageTime, Telemetry
from cutlayer.broker.process_usage import cpu_seconds, peak_rss_bytes
from cutlayer.broker.reports import MAX_REJECT_LABELS
from cutlayer.broker.task_metrics import NOTHING, metric_values, pooled, primary_metric
from cutlayer.broker.tasks import TaskSpec
from cutlayer.broker.telemetry import LogHistogram, control_traffic
from cutlayer.edge_agent.losses import LossResult
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.edge_agent.work_items import EvaluationRun, WorkItems

__all__ = ["Reporter"]

log = logging.getLogger(__name__)

MAX_EVALUATION_VALUES = 65_536
"""Numbers and texts of the evaluations in a report: half of what a message may hold."""
FREE_BYTES = 10_000
"""What reports may take in any case: some seven of them, so that what a run's start looks like is seen at once."""
_EVALUATION_VALUES = 12  # itself, six fields, the four of its sums, the list of those by name


@dataclass(slots=True)
class _Stage:
    seconds: float = 0.0
    histogram: LogHistogram = field(default_factory=LogHistogram)


class Reporter:
    """Collects one agent's counters.

    Args:
        incarnation: The agent's.
        courier: Counts its messages.
        clock: Seconds, monotonic: virtual in a simulation, where the size of a report must not depend on the machine.
    """

    def __init__(self, incarnation: int, courier: Courier, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_duplicates = 0
        self.num_reconnects = 0
        self.num_samples = 0
        self.num_codec_changes = 0
        self.paced_s = 0.0
        self.task: TaskSpec | None = None
        """What is learned: evaluations are told in its metric."""
        self.on_report: Callable[[Telemetry], None] = lambda _: None
        self.round_trips = LogHistogram()
        self.due_at: float | None = None
        self.last: Telemetry | None = None
        self._incarnation = incarnation
        self._courier = courier
        self._clock = clock
        self._items: WorkItems | None = None
        self._every_s = 1.0
        self._share = 1.0
        self._spent_bytes = self._last_bytes = 0
        self._reported_at = float("-inf")
        self._sequence = 0
        self._recent = Sums()
        self._reported = NOTHING
        self._counted_steps: set[int] = set()
        self._evaluations: list[Evaluation] = []
        self._stages: dict[str, _Stage] = {}
        self._epoch_shown = 0
        self._is_urgent = False

    def start(self, items: WorkItems, every_s: float, now: float, *, share: float = 1.0) -> None:
        """Start reporting on some work.

        Args:
            items: The work.
            every_s: Seconds between reports, the first of them from `now` on.
            now: Seconds.
            share: Share of all bytes that reports may take; beyond it they come less often.
        """
        self._items = items
        self._every_s = every_s
        self._share = share
        self.due_at = now + every_s

    def is_due(self, now: float, longest_s: float = 0.0) -> bool:
        """Return whether a report is to be sent now; one that would be too much is put off.

        Args:
            now: Seconds.
            longest_s: Silence after which a report goes in any case: it is a sign of life.
        """
        if self.due_at is None or (now < self.due_at and not self._is_urgent):
            return False
        if self._is_urgent:
            return True
        wire = self._courier.transport.wire
        free_bytes = FREE_BYTES + self._share * (wire.sent_bytes + wire.received_bytes) - self._spent_bytes
        if self._share >= 1.0 or self._last_bytes <= free_bytes or now >= self._reported_at + longest_s:
            return True
        self.due_at = now + self._every_s
        return False

    def sent(self, num_bytes: int, now: float) -> None:
        """Take notice of what a report has cost."""
        self._last_bytes, self._reported_at = num_bytes, now
        self._spent_bytes += num_bytes

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage of a step."""
        start = self._clock()
        yield
        self.timed(name, self._clock() - start)

    def timed(self, name: str, seconds: float) -> None:
        """Count a stage that took so many seconds."""
        stage = self._stages.setdefault(name, _Stage())
        stage.seconds += seconds
        stage.histogram.add(seconds)

    def answered(self, round_trip_s: float, server_s: float) -> None:
        """Count one round trip; what the worker has not taken of it went into both ways and the waiting for a link.

        Args:
            round_trip_s: Activations sent until outputs received, by this agent's clock.
            server_s: Activations received until outputs sent, by the worker's.
        """
        self.round_trips.add(round_trip_s)
        self.timed("network", max(round_trip_s - server_s, 0.0))

    def trained(self, step: int, result: LossResult) -> None:
        """Take the loss of a training microbatch; a step that is repeated counts once."""
        if step not in self._counted_steps:
            self._counted_steps.add(step)
            self._recent.add(result)

    def evaluated(self, evaluation: EvaluationRun, result: LossResult) -> None:
        """Take the outcome of one batch of an evaluation."""
        evaluation.add(result)
        if evaluation.num_left:
            return
        wire = self._courier.transport.wire
        sums = evaluation.sums.all()
        self._evaluations.append(evaluation.result(wire.sent_bytes + wire.received_bytes))
        if evaluation.candidate:
            self.report_soon()
        log.info(
            "epoch %d%s: %s, loss %s on %d own %s samples given %s",
            evaluation.epoch,
            " (final)" if evaluation.is_final else "",
            self._metric_text(sums),
            "-" if sums.num_samples == 0 else f"{sums.loss_sum / sums.num_samples:.3f}",
            sums.num_samples,
            "validation" if evaluation.candidate else "test",
            " + ".join(evaluation.given),
        )

    def report_soon(self) -> None:
        """Send the next report as soon as can be, whatever it costs: others wait for what it says."""
        self._is_urgent = True

    def _metric_text(self, sums: MetricSums) -> str:
        if self.task is None:
            return "done"
        metric = primary_metric(self.task)
        value = metric_values(self.task, sums).get(metric.name)
        return f"{metric.title} {'-' if value is None else f'{value:.3f} {metric.unit}'.rstrip()}"

    def codec_changed(self) -> None:
        """Count a step up or down the ladder of codecs."""
        self.num_codec_changes += 1

    def forget_final_evaluations(self) -> None:
        """Drop the evaluations of weights that were not the last ones after all."""
        self._evaluations = [evaluation for evaluation in self._evaluations if not evaluation.final]

    def telemetry(self, now: float, *, num_repeats: int, is_final: bool) -> Telemetry:
        """Return the counters as of now.

        Args:
            now: Seconds.
            num_repeats: Messages that the session has sent again.
            is_final: Whether this is the last report.
        """
        assert self._items is not None
        items = self._items
        self.due_at = now + self._every_s
        self._is_urgent = False
        self._sequence += 1
        recent = self._recent.take()
        # Both move together, so that no difference of two reports is a sum over fewer samples.
        self._reported = pooled((self._reported, recent))
        if items.epoch > self._epoch_shown:
            self._epoch_shown = items.epoch
            log.info("epoch %d of %d is committed", items.epoch, items.plan.epochs)
        wire = self._courier.transport.wire
        telemetry = Telemetry(
            incarnation=self._incarnation,
            sequence=self._sequence,
            final=is_final,
            epoch=items.epoch,
            steps=len(items.committed),
            total_steps=items.plan.total_steps,
            samples=self.num_samples,
            train=self._reported,
            recent=recent,
            evaluations=_last(self._evaluations),
            traffic=self._courier.traffic.snapshot() + control_traffic(wire),
            wire_sent_bytes=wire.sent_bytes,
            wire_received_bytes=wire.received_bytes,
            round_trips=self.round_trips.counts(),
            stages=tuple(
                StageTime(name, len(stage.histogram), stage.seconds, stage.histogram.counts())
                for name, stage in self._stages.items()
            ),
            resends=num_repeats,
            duplicates=self.num_duplicates,
            rejects=sum(self._courier.rejects.values()),
            cpu_s=cpu_seconds(),
            peak_rss_bytes=peak_rss_bytes(),
            reconnects=self.num_reconnects,
            rejects_by=tuple(sorted(self._courier.rejects.items())[:MAX_REJECT_LABELS]),
            codec_changes=self.num_codec_changes,
            paced_s=self.paced_s,
        )
        self.last = telemetry
        self.on_report(telemetry)
        return telemetry


def _last(evaluations: list[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the last evaluations, as many as a report may carry."""
    num_values, start = 0, len(evaluations)
    for place in range(len(evaluations) - 1, max(len(evaluations) - MAX_EVALUATIONS, 0) - 1, -1):
        num_values += _EVALUATION_VALUES + 3 * len(evaluations[place].sums.sums)
        if num_values > MAX_EVALUATION_VALUES:
            break
        start = place
    return tuple(evaluations[start:])
