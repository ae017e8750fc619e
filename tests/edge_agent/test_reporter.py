from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.broker.courier import Courier
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import Direction, MetricSums, Telemetry, parse, serialize
from cutlayer.broker.tasks import RegressionSpec, TargetSpec
from cutlayer.broker.telemetry import MIN_REPORTED_SAMPLES, LogHistogram
from cutlayer.broker.transport import Will
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.losses import LossResult, SquaredError
from cutlayer.edge_agent.reported_sums import Sums
from cutlayer.edge_agent.reporter import FREE_BYTES, Reporter
from cutlayer.edge_agent.work_items import EvaluationRun, WorkItems


def make(num_train: int = 400) -> tuple[Reporter, WorkItems]:
    courier = Courier(MemoryTransport(MemoryBroker(lambda: 0.0), "agent"), Direction.UP)
    items = WorkItems(EpochPlan(0, "clinic/07", 2, num_train, 8, 4), ("image",), every_epochs=0, evaluation_samples=8)
    reporter = Reporter(17, courier)
    reporter.start(items, 5.0, now=100.0)
    return reporter, items


def result(num_samples: int, loss_sum: float = 1.0, num_correct: int = 0) -> LossResult:
    return LossResult(loss_sum, None, num_correct, num_samples)  # type: ignore[arg-type]


def report(reporter: Reporter, now: float = 0.0, *, is_final: bool = False) -> Telemetry:
    return reporter.telemetry(now, num_repeats=0, is_final=is_final)


def test_report_is_due_again_and_again() -> None:
    reporter, _ = make()
    assert not reporter.is_due(104.9)
    assert reporter.is_due(105.0)
    report(reporter, 105.0)
    assert not reporter.is_due(109.0)
    assert reporter.is_due(110.0)


def test_nothing_is_due_before_the_start() -> None:
    courier = Courier(MemoryTransport(MemoryBroker(lambda: 0.0), "agent"), Direction.UP)
    assert not Reporter(17, courier).is_due(1e9)


def test_reports_are_numbered_and_the_last_one_says_so() -> None:
    reporter, _ = make()
    entries = [report(reporter), report(reporter), report(reporter, is_final=True)]
    assert [(entry.incarnation, entry.sequence, entry.final) for entry in entries] == [
        (17, 1, False),
        (17, 2, False),
        (17, 3, True),
    ]


def test_loss_is_reported_when_enough_samples_are_in_it() -> None:
    reporter, _ = make()
    reporter.trained(0, result(MIN_REPORTED_SAMPLES - 1, 5.0, 3))
    assert report(reporter).train == report(reporter).recent == MetricSums(0.0, 0, 0)
    reporter.trained(1, result(1, 2.0, 1))
    entry = report(reporter)
    assert entry.train == entry.recent == MetricSums(7.0, 4, MIN_REPORTED_SAMPLES)
    assert report(reporter).recent == MetricSums(0.0, 0, 0)


@given(st.lists(st.one_of(st.none(), st.integers(1, 70)), max_size=60))
def test_no_two_reports_tell_of_few_samples(events: list[int | None]) -> None:
    """An entry of `events` is a microbatch of so many samples, or None for a report."""
    reporter, _ = make()
    entries = [report(reporter)]
    for step, num_samples in enumerate(events):
        if num_samples is None:
            entries.append(report(reporter))
        else:
            reporter.trained(step, result(num_samples, 0.1 * step, num_samples // 2))
    entries.append(report(reporter, is_final=True))
    for earlier, later in itertools.combinations(entries, 2):
        difference = later.train.num_samples - earlier.train.num_samples
        assert difference == 0 or difference >= MIN_REPORTED_SAMPLES
        assert difference or later.train == earlier.train
    for entry in entries:
        assert entry.recent.num_samples == 0 or entry.recent.num_samples >= MIN_REPORTED_SAMPLES
    assert sum(entry.recent.num_samples for entry in entries) == entries[-1].train.num_samples


def test_step_that_is_repeated_counts_once() -> None:
    reporter, _ = make()
    reporter.trained(0, result(40, 8.0, 1))
    reporter.trained(0, result(40, 9.0, 2))
    assert report(reporter).train == MetricSums(8.0, 1, 40)


def evaluate(reporter: Reporter, num_samples: int, *, is_final: bool, num_batches: int = 2) -> None:
    evaluation = EvaluationRun(1, ("image",), is_final, num_batches, Sums())
    for _ in range(num_batches):
        reporter.evaluated(evaluation, result(num_samples, 2.0, num_samples // 2))


def test_evaluation_is_reported_when_its_last_batch_is_there() -> None:
    reporter, _ = make()
    evaluation = EvaluationRun(1, ("audio", "image"), False, 2, Sums())
    reporter.evaluated(evaluation, result(30, 2.0, 15))
    assert report(reporter).evaluations == ()
    reporter.evaluated(evaluation, result(20, 2.0, 5))
    [entry] = report(reporter).evaluations
    assert (entry.epoch, entry.given, entry.final) == (1, "audio+image", False)
    assert entry.sums == MetricSums(4.0, 20, 50)


def test_evaluation_on_few_samples_is_reported_without_its_sums() -> None:
    reporter, _ = make()
    evaluate(reporter, 5, is_final=True)
    [entry] = report(reporter).evaluations
    assert entry.sums == MetricSums(0.0, 0, 0)


def test_final_evaluations_can_be_taken_back() -> None:
    reporter, _ = make()
    evaluate(reporter, 40, is_final=False)
    evaluate(reporter, 40, is_final=True)
    reporter.forget_final_evaluations()
    assert [entry.final for entry in report(reporter).evaluations] == [False]


def test_progress_and_stages_are_reported() -> None:
    reporter, items = make()
    for step in range(105):
        items.commit(step)
    with reporter.stage("loss"):
        pass
    with reporter.stage("loss"):
        pass
    entry = report(reporter)
    assert (entry.epoch, entry.steps, entry.total_steps) == (1, 105, 200)
    assert [(stage.stage, stage.count) for stage in entry.stages] == [("loss", 2)]
    assert sum(count for _, count in entry.stages[0].buckets) == 2
    assert entry.stages[0].seconds >= 0
    assert entry.peak_rss_bytes > 1_000_000
    assert entry.cpu_s > 0


def test_network_is_what_the_worker_has_not_taken_of_a_round_trip() -> None:
    reporter, _ = make()
    reporter.answered(0.5, 0.2)
    reporter.answered(0.1, 0.4)  # a worker that answers from memory tells the time of its first answer
    entry = report(reporter)
    [network] = entry.stages
    assert (network.stage, network.count) == ("network", 2)
    assert network.seconds == pytest.approx(0.3)
    assert LogHistogram(network.buckets).quantile(1.0) == pytest.approx(0.3, rel=0.03)
    assert LogHistogram(entry.round_trips).quantile(1.0) == pytest.approx(0.5, rel=0.03)


def test_reconnects_and_rejects_by_reason_are_reported() -> None:
    reporter, _ = make()
    reporter.num_reconnects = 2
    reporter._courier.refuse("lease")
    reporter._courier.refuse("lease")
    reporter._courier.refuse("state")
    entry = report(reporter)
    assert entry.reconnects == 2
    assert entry.rejects == 3
    assert entry.rejects_by == (("lease", 2), ("state", 1))


def test_epochs_are_told_on_the_terminal_once(caplog: pytest.LogCaptureFixture) -> None:
    reporter, items = make()
    for step in range(100):
        items.commit(step)
    with caplog.at_level(logging.INFO, "cutlayer.edge_agent"):
        report(reporter)
        report(reporter)
    assert [record.getMessage() for record in caplog.records] == ["epoch 1 of 2 is committed"]


def test_report_of_a_very_long_run_can_be_sent() -> None:
    reporter, _ = make()
    for _ in range(5_000):
        evaluate(reporter, 40, is_final=False, num_batches=1)
    entry = report(reporter)
    serialize(entry)
    assert 0 < len(entry.evaluations) <= 4_096


TWENTY = SquaredError(
    RegressionSpec(targets=tuple(TargetSpec(name=str(number), mean=0.0, std=1.0) for number in range(20)))
)


def test_report_of_a_very_long_run_of_many_targets_can_be_sent() -> None:
    reporter, _ = make()
    zeros = np.zeros((40, 20), np.float32)
    for _ in range(1_000):
        reporter.evaluated(
            EvaluationRun(1, ("image",), False, 1, Sums(), is_whole=True), TWENTY.loss_and_gradient(zeros, zeros)
        )
    reporter.trained(0, TWENTY.loss_and_gradient(zeros, zeros))
    entry = report(reporter)
    assert parse(serialize(entry)) == entry
    assert 100 < len(entry.evaluations) < 1_000
    assert len(entry.evaluations[-1].sums.sums) == 6 * 20
    assert len(entry.train.sums) == 3 * 20


def test_an_evaluation_is_told_in_the_metric_of_the_task(caplog: pytest.LogCaptureFixture) -> None:
    reporter, _ = make()
    reporter.task = RegressionSpec(targets=(TargetSpec(name="age", mean=0.0, std=12.0, unit="years"),))
    made = SquaredError(reporter.task).loss_and_gradient(np.zeros((2, 1), np.float32), np.full((2, 1), 6, np.float32))
    with caplog.at_level(logging.INFO, "cutlayer.edge_agent"):
        reporter.evaluated(EvaluationRun(1, ("image",), True, 1, Sums()), made)
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1 (final): mean absolute error 6.000 years, loss 0.250 on 2 own test samples given image"
    ]


def thrifty(share: float) -> Reporter:
    """Return a reporter that reports each second, may spend a share, and has spent what is free."""
    transport = MemoryTransport(MemoryBroker(lambda: 0.0), "agent")
    transport.connect(Will("clinic/07/state", b""))
    items = WorkItems(EpochPlan(0, "clinic/07", 2, 400, 8, 4), ("image",), every_epochs=0, evaluation_samples=8)
    reporter = Reporter(17, Courier(transport, Direction.UP))
    reporter.start(items, 1.0, now=0.0, share=share)
    reporter.sent(FREE_BYTES, 0.0)
    return reporter


def test_report_that_would_cost_more_than_its_share_is_put_off_until_it_does_not() -> None:
    reporter = thrifty(0.01)
    reporter.sent(500, 0.0)
    transport = reporter._courier.transport
    transport.publish("clinic/07/up/w0/activations", bytes(99_000))  # a hundredth is less than two reports of 500
    assert not reporter.is_due(1.0, longest_s=10.0)
    transport.publish("clinic/07/up/w0/activations", bytes(1_000))
    assert not reporter.is_due(1.9, longest_s=10.0), "asked again after another interval"
    assert reporter.is_due(2.0, longest_s=10.0)


def test_report_goes_in_any_case_before_the_agent_would_count_as_vanished() -> None:
    reporter = thrifty(0.01)
    assert [second for second in range(1, 12) if reporter.is_due(float(second), longest_s=10.0)] == [10, 11]


def test_reports_without_a_limit_are_due_each_time() -> None:
    assert thrifty(1.0).is_due(1.0, longest_s=10.0)
