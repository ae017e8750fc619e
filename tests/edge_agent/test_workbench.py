from __future__ import annotations

import numpy as np
import pytest

from cutlayer.broker.actions import CandidateOffered, OutputsReceived
from cutlayer.broker.courier import Courier
from cutlayer.broker.errors import RunError
from cutlayer.broker.manifest import EvaluationSpec
from cutlayer.broker.memory import MemoryBroker, MemoryTransport
from cutlayer.broker.messages import Direction, EncodedTensor, Mode, NegotiatedCodecs, RunPhase
from cutlayer.broker.tensors import decode_tensor
from cutlayer.edge_agent.client_side import ClientSide
from cutlayer.edge_agent.enrolment import Enrolled
from cutlayer.edge_agent.epochs import EpochPlan
from cutlayer.edge_agent.packing import Microbatch
from cutlayer.edge_agent.reporter import Reporter
from cutlayer.edge_agent.workbench import Workbench
from support.small_run import small_dataset
from support.small_side import small_manifest, tokenizer_file

EXACT = NegotiatedCodecs("identity", "identity", "identity", "identity")


class Bench:
    """A workbench over 8 training samples in steps of 4, two epochs, and 6 test samples."""

    def __init__(self) -> None:
        manifest = small_manifest(every_epochs=0)
        client = ClientSide(manifest, tokenizer_file(), small_dataset(0, 8, 6))
        self.reporter = Reporter(1, Courier(MemoryTransport(MemoryBroker(lambda: 0.0), "agent"), Direction.UP))
        self.bench = Workbench(Enrolled(manifest, client, EpochPlan(0, "clinic/07", 2, 8, 6, 4)), self.reporter)
        self.reporter.start(self.bench.items, 1.0, 0.0)
        self.sent: list[EncodedTensor] = []

    def next(self, *, may_train: bool = True) -> Microbatch | None:
        return self.bench.next(EXACT, may_train=may_train)

    def take(self, count: int) -> list[tuple[Mode, int]]:
        found = [self.next() for _ in range(count)]
        return [(item.mode, item.step) for item in found if item is not None]

    def outputs(self, step: int, mode: Mode = Mode.TRAIN, shape: tuple[int, int] = (4, 3)) -> None:
        zeros = EncodedTensor("identity", shape, np.zeros(shape, "<f4").tobytes())
        received = OutputsReceived(step, mode, zeros, EXACT, 0, 0.1, 0.0)
        self.bench.outputs(received, lambda gradients, _: self.sent.append(gradients))

    def lease(self, *committed: tuple[int, int], phase: RunPhase = RunPhase.TRAINING) -> bool:
        return self.bench.resume(committed, phase)

    def is_finished(self) -> bool:
        return self.bench.is_finished

    def finals(self) -> int:
        telemetry = self.reporter.telemetry(0.0, num_repeats=0, is_final=False)
        return sum(evaluation.final for evaluation in telemetry.evaluations)


def test_outputs_of_a_step_become_the_gradient_of_the_summed_loss() -> None:
    scene = Bench()
    assert scene.take(1) == [(Mode.TRAIN, 0)]
    scene.outputs(0)
    [gradients] = scene.sent
    values_BC = decode_tensor(gradients, what="gradients")
    assert np.allclose(np.sort(values_BC, axis=1), [[-2 / 3, 1 / 3, 1 / 3]] * 4)
    assert len(scene.reporter.round_trips) == 1


def test_outputs_that_nobody_waits_for_are_nothing() -> None:
    scene = Bench()
    scene.outputs(3)
    assert not scene.sent


def test_outputs_that_do_not_fit_are_an_error_of_the_run() -> None:
    scene = Bench()
    scene.take(1)
    with pytest.raises(RunError, match="same release on both sides"):
        scene.outputs(0, shape=(4, 2))


def test_codec_that_cannot_be_used_is_an_error_of_the_run() -> None:
    with pytest.raises(RunError, match="cannot be encoded as 'int3'"):
        Bench().bench.next(NegotiatedCodecs("int3", "fp16", "fp16", "fp16"), may_train=True)


def test_committed_samples_are_counted_once() -> None:
    scene = Bench()
    scene.take(2)
    scene.bench.committed(0)
    scene.bench.committed(0)
    assert scene.reporter.num_samples == 4
    assert len(scene.bench.items.committed) == 1


def test_steps_that_a_new_lease_calls_committed_are_not_waited_for() -> None:
    scene = Bench()
    scene.take(4)
    scene.lease((0, 4))
    assert scene.reporter.num_samples == 16
    assert scene.bench.items.is_training_done
    scene.bench.finish()
    evaluate(scene)
    assert scene.is_finished()


def test_steps_that_a_ledger_lacks_are_done_again_in_order_and_all_that_is_out_with_them() -> None:
    scene = Bench()
    scene.take(4)
    scene.bench.committed(0)
    scene.bench.committed(1)
    assert scene.lease((0, 1))
    scene.outputs(2)
    assert not scene.sent, "outputs of what was withdrawn are nothing"
    assert scene.take(9) == [(Mode.TRAIN, 1), (Mode.TRAIN, 2), (Mode.TRAIN, 3)]
    scene.outputs(2)
    assert len(scene.sent) == 1


def test_ledger_that_lacks_nothing_changes_nothing() -> None:
    scene = Bench()
    scene.take(3)
    scene.bench.committed(0)
    assert not scene.lease((0, 1))
    scene.outputs(2)
    assert len(scene.sent) == 1
    assert scene.take(9) == [(Mode.TRAIN, 3)]


def test_ledger_that_has_more_counts_the_samples_of_what_was_out() -> None:
    scene = Bench()
    scene.take(2)
    scene.bench.committed(0)
    assert scene.lease((1, 2))
    assert scene.reporter.num_samples == 8


def evaluate(scene: Bench) -> None:
    while (item := scene.next(may_train=False)) is not None:
        scene.outputs(item.step, item.mode, (item.num_samples, 3))


def test_finished_model_is_evaluated_given_both_modalities_and_each_alone() -> None:
    scene = Bench()
    scene.lease((0, 4), phase=RunPhase.EVALUATING)
    assert not scene.is_finished()
    scene.bench.finish()
    evaluate(scene)
    assert scene.is_finished()
    assert scene.finals() == 3


def test_no_step_is_trained_when_evaluations_alone_are_wanted() -> None:
    assert Bench().next(may_train=False) is None


def test_training_step_that_is_still_out_does_not_keep_a_finished_agent() -> None:
    scene = Bench()
    scene.take(1)
    scene.lease(phase=RunPhase.EVALUATING)
    scene.bench.finish()
    evaluate(scene)
    assert scene.is_finished()


def test_worker_from_a_checkpoint_makes_final_evaluations_void() -> None:
    scene = Bench()
    scene.lease((0, 4))
    scene.bench.finish()
    evaluate(scene)
    scene.lease((0, 3))
    assert not scene.bench.is_finishing
    assert scene.finals() == 0
    assert scene.take(9) == [(Mode.TRAIN, 3)]
    scene.bench.committed(3)
    scene.bench.finish()
    evaluate(scene)
    assert scene.finals() == 3


def test_evaluation_that_is_out_when_training_goes_on_is_not_counted() -> None:
    scene = Bench()
    scene.lease((0, 4))
    scene.bench.finish()
    item = scene.next()
    assert item is not None
    scene.lease((0, 3), phase=RunPhase.WAITING)
    scene.outputs(item.step, item.mode, (item.num_samples, 3))
    assert scene.take(9) == [(Mode.TRAIN, 3)]


class JudgingBench(Bench):
    """A workbench of a run that chooses its weights, over 40 validation samples besides."""

    def __init__(self) -> None:
        manifest = small_manifest(every_epochs=1)
        manifest = manifest.model_copy(update={"evaluation": EvaluationSpec(keep="best", samples=8)})
        client = ClientSide(manifest, tokenizer_file(), small_dataset(0, 8, 6, num_val=40))
        self.reporter = Reporter(1, Courier(MemoryTransport(MemoryBroker(lambda: 0.0), "agent"), Direction.UP))
        plan = EpochPlan(0, "clinic/07", 2, 8, 6, 4, num_val=40)
        self.bench = Workbench(Enrolled(manifest, client, plan), self.reporter)
        self.reporter.start(self.bench.items, 100.0, 0.0)
        self.sent = []

    def offer(self, name: str) -> list[int]:
        return self.bench.offer(CandidateOffered(1, name, ()))


def test_a_candidate_is_evaluated_before_training_goes_on_and_reported_at_once() -> None:
    scene = JudgingBench()
    assert scene.take(3) == [(Mode.TRAIN, 0), (Mode.TRAIN, 1), (Mode.TRAIN, 2)], "no test samples between epochs"
    assert scene.offer("c0ffee") == []
    assert scene.offer("c0ffee") == [], "an offer that is repeated begins nothing anew"
    found = [scene.next(), scene.next()]
    assert [item.candidate for item in found if item is not None] == ["c0ffee", "c0ffee"]
    assert not scene.reporter.is_due(1.0)
    scene.outputs(0, Mode.EVAL)
    scene.outputs(1, Mode.EVAL)
    assert scene.reporter.is_due(1.0), "long before its time"
    telemetry = scene.reporter.telemetry(1.0, num_repeats=0, is_final=False)
    assert [evaluation.candidate for evaluation in telemetry.evaluations] == ["c0ffee"]
    assert not scene.reporter.is_due(1.0)
    assert scene.take(1) == [(Mode.TRAIN, 3)]
    scene.offer("c0ffee")
    assert scene.reporter.is_due(1.0), "the report may have been lost"
    assert scene.next() is None


def test_another_candidate_takes_the_place_of_the_one_under_way_and_one_that_is_gone_may_come_again() -> None:
    scene = JudgingBench()
    scene.offer("first")
    scene.take(1)
    assert scene.offer("second") == [0]
    item = scene.next()
    assert item is not None
    assert (item.candidate, item.step) == ("second", 2)
    assert scene.bench.candidate_gone(2) == [2]
    assert scene.take(1) == [(Mode.TRAIN, 0)]
    scene.offer("second")
    item = scene.next()
    assert item is not None
    assert item.candidate == "second"


def test_the_finished_model_is_evaluated_on_test_samples_whatever_candidate_is_under_way() -> None:
    scene = JudgingBench()
    scene.take(4)
    scene.offer("c0ffee")
    scene.take(1)
    assert scene.bench.finish() == [0]
    found = []
    while (item := scene.next(may_train=False)) is not None:
        found.append(item)
        scene.outputs(item.step, Mode.EVAL, (item.num_samples, 3))
    assert {item.candidate for item in found} == {""}
    assert scene.is_finished()
    assert scene.offer("late") == []
