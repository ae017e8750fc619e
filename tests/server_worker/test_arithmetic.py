"""A session's work items on an engine: what is computed, what is refused, and what ends a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from cutlayer.broker.actions import Publish, Refused, WorkerAction
from cutlayer.broker.errors import RunError
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.messages import Activations, EncodedTensor, Hello, Mode, OutputGradients, Outputs, Reject
from cutlayer.broker.work import Backward, Commit, Forward, Key, Release
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from cutlayer.server_worker.arithmetic import Arithmetic
from cutlayer.server_worker.counting_engine import CountingEngine
from cutlayer.server_worker.events import Event, StageTimed, WindowCommitted
from cutlayer.server_worker.parameters import CommitResult
from cutlayer.server_worker.passes import Forwarded, ForwardItem
from support.conversation import BYTE_STAGES, CLASSES, CODECS, MICROBATCH, image_tokens, small_manifest, zeros
from support.manual_clock import ManualClock


class Refusing(CountingEngine):
    """Refuses some microbatches as not finite, or everything, zeros included, as weights that have diverged do."""

    def __init__(self) -> None:
        super().__init__(len(CLASSES))
        self.refused: set[str] = set()
        self.is_diverged = False
        self.commits_apply = True

    def forward(self, items: Sequence[ForwardItem], candidate: str = "") -> Forwarded:
        """Leave out what is refused."""
        assert not candidate
        bad = tuple(item.key for item in items if self.is_diverged or str(item.key[0]) in self.refused)  # type: ignore[index]
        good = [item for item in items if item.key not in bad]
        if not good:
            return Forwarded(None, self.version, {}, bad)
        return replace(super().forward(good), refused=bad)

    def commit(self, num_samples: int, progress: float | None) -> CommitResult:
        """Commit, or find that the gradient is not finite."""
        if not self.commits_apply:
            return CommitResult(self.version, float("nan"), 0.1, applied=False)
        return super().commit(num_samples, progress)


class Desk:
    """A session and its arithmetic; the test is the agents."""

    def __init__(self) -> None:
        numbers = iter(range(100, 1 << 32))
        manifest = small_manifest(mode="asynchronous", samples=8)
        self.session = WorkerSession("w0", 1, manifest, WorkerLimits(), LeaseTable(lambda: next(numbers)))
        self.engine = Refusing()
        self.clock = ManualClock(3.0)
        self.actions: list[WorkerAction] = []
        self.events: list[Event] = []
        self.arithmetic = Arithmetic(self.session, self.engine, self.actions.extend, self.events.append, self.clock)

    def lease(self, agent: str) -> int:
        if self.session.leases.of(agent) is None:
            digest = bytes.fromhex(self.session.manifest.digest())
            hello = Hello(agent, 1, digest, 8, CODECS, BYTE_STAGES, "v1")
            self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", hello, 0.0)
        lease = self.session.leases.of(agent)
        assert lease is not None
        return lease.lease

    def send(self, agent: str, mode: Mode = Mode.TRAIN, image: EncodedTensor | None = None) -> None:
        tensors = image_tokens() if image is None else (("image", image),)
        message = Activations(self.lease(agent), 0, mode, MICROBATCH, tensors)
        self.session.receive(f"{agent}/up/w0/activations", message, 0.0)

    def forward(self) -> Forward:
        work = self.session.next_work(0.0)
        assert isinstance(work, Forward)
        self.arithmetic.forward(work)
        return work

    def gradients(self, agent: str, tensor: EncodedTensor | None = None) -> None:
        gradients = zeros(MICROBATCH, len(CLASSES)) if tensor is None else tensor
        message = OutputGradients(self.lease(agent), 0, self.session.version, gradients)
        self.session.receive(f"{agent}/up/w0/gradients", message, 0.0)

    def backward(self) -> None:
        work = self.session.next_work(0.0)
        assert isinstance(work, Backward)
        self.arithmetic.backward(work)

    def outputs(self) -> Mapping[str, Outputs]:
        """Return the outputs sent, by the agent that they went to."""
        return {
            action.topic.split("/")[0]: action.message
            for action in self.actions
            if isinstance(action, Publish) and isinstance(action.message, Outputs)
        }

    def rejected(self) -> list[str]:
        """Return the agents that were refused for good."""
        return [
            action.topic.split("/")[0]
            for action in self.actions
            if isinstance(action, Publish) and isinstance(action.message, Reject)
        ]


def broken(tensor: EncodedTensor) -> EncodedTensor:
    """Return a tensor of the same shape whose bytes are too few to decode."""
    return replace(tensor, data=tensor.data[:-1])


def test_a_microbatch_goes_through_forward_backward_and_step() -> None:
    desk = Desk()
    desk.send("a")
    desk.send("b")
    desk.forward()
    assert {agent: output.outputs.shape for agent, output in desk.outputs().items()} == {
        agent: (MICROBATCH, len(CLASSES)) for agent in ("a", "b")
    }
    desk.gradients("a")
    desk.gradients("b")
    desk.backward()
    work = desk.session.next_work(0.0)
    assert isinstance(work, Commit)
    step = desk.arithmetic.step(work.num_samples, work.progress)
    assert desk.arithmetic.last_commit_at == 3.0
    desk.session.committed(step.version, 3.0)
    desk.arithmetic.emit_committed(step, work.num_samples, work.num_microbatches)
    committed = [event for event in desk.events if isinstance(event, WindowCommitted)]
    assert [(event.window, event.num_samples, event.num_microbatches) for event in committed] == [(1, 8, 2)]
    timed = [(event.stage, event.num_samples) for event in desk.events if isinstance(event, StageTimed)]
    assert timed == [
        *(("queue", 4), ("queue", 4)),
        ("decode", 0),
        ("forward", 8),
        ("publish", 0),
        ("backward", 8),
        ("commit", 8),
    ]


def test_a_window_tells_how_long_each_microbatch_waited_and_how_stale_it_is() -> None:
    desk = Desk()
    for agent in ("a", "b"):
        desk.send(agent)
        desk.forward()  # apart: b's commit comes a version later
    queued = [event.seconds for event in desk.events if isinstance(event, StageTimed) and event.stage == "queue"]
    assert queued == [3.0, 3.0]  # received at 0, by a clock that stands at 3
    desk.gradients("a")
    desk.gradients("b")
    for waited_s in (2.0, 0.5):
        desk.backward()
        work = desk.session.next_work(1_000.0)
        assert isinstance(work, Commit)
        members = desk.session.view.window_members()
        desk.clock.now_s += waited_s
        step = desk.arithmetic.step(work.num_samples, work.progress)
        desk.session.committed(step.version, desk.clock())
        desk.arithmetic.emit_committed(step, 4, 1, wanted_samples=8, members=members)
    first, second = (event for event in desk.events if isinstance(event, WindowCommitted))
    assert (first.staleness, first.waits_s) == ((0,), (2.0,))
    assert (second.staleness, second.waits_s) == ((1,), (0.5,))


def test_an_evaluation_leaves_no_graph() -> None:
    desk = Desk()
    desk.send("a", Mode.EVAL)
    desk.forward()
    assert "a" in desk.outputs()
    assert desk.engine.num_live_graphs == 0


def test_activations_that_give_outputs_that_are_not_finite_refuse_their_agent_and_nobody_else() -> None:
    desk = Desk()
    desk.engine.refused = {"a"}
    desk.send("a")
    desk.send("b")
    desk.forward()
    assert set(desk.outputs()) == {"b"}
    assert desk.rejected() == ["a"]
    assert desk.session.live_keys() == (Key("b", Mode.TRAIN, 0),)


def test_when_all_are_refused_and_zeros_are_not_it_is_the_activations() -> None:
    desk = Desk()
    desk.engine.refused = {"a"}
    desk.send("a")
    desk.forward()
    assert desk.rejected() == ["a"]
    assert desk.session.num_live == 0
    assert desk.engine.num_live_graphs == 0


def test_when_zeros_are_refused_too_training_has_diverged() -> None:
    desk = Desk()
    desk.engine.is_diverged = True
    desk.send("a")
    with pytest.raises(RunError, match=r"diverged: outputs are not finite at version 0 of the weights\n  fix: lower"):
        desk.forward()
    assert desk.rejected() == []


def test_a_step_without_effect_ends_the_run() -> None:
    desk = Desk()
    desk.engine.commits_apply = False
    with pytest.raises(RunError, match="diverged: gradients are not finite"):
        desk.arithmetic.step(8, None)
    assert desk.arithmetic.last_commit_at is None


@pytest.mark.parametrize("others", [0, 1])
def test_activations_that_cannot_be_decoded_refuse_their_agent(others: int) -> None:
    desk = Desk()
    desk.send("a", image=broken(zeros(MICROBATCH, 4, 2)))
    if others:
        desk.send("b")
    desk.forward()
    assert desk.rejected() == ["a"]
    assert set(desk.outputs()) == ({"b"} if others else set())
    assert [action.label for action in desk.actions if isinstance(action, Refused)] == ["content"]


def test_output_gradients_that_cannot_be_decoded_leave_the_group_to_the_others() -> None:
    desk = Desk()
    desk.send("a")
    desk.send("b")
    desk.forward()
    desk.gradients("a", broken(zeros(MICROBATCH, len(CLASSES))))
    desk.gradients("b")
    desk.backward()
    assert desk.rejected() == ["a"]
    assert desk.engine.gradients_present() == bytes([0]), "nothing of the group was added"
    desk.backward()
    assert desk.session.rounds.part("", b"", is_due=None).steps == (("b", 0),)


def test_a_released_group_is_gone_from_the_engine_and_releasing_it_again_does_nothing() -> None:
    desk = Desk()
    desk.send("a")
    work = desk.forward()
    assert desk.engine.num_live_graphs == 1
    for _ in range(2):
        desk.arithmetic.release(Release(work.group))
    assert desk.engine.num_live_graphs == 0


def test_after_the_engine_has_dropped_its_graphs_none_is_released_by_an_old_number() -> None:
    desk = Desk()
    desk.send("a")
    work = desk.forward()
    desk.engine.load_state_dict(desk.engine.state_dict())
    desk.arithmetic.forget_groups()
    desk.engine.forward([ForwardItem("new", "train", {"image": np.zeros((2, 4, 2), np.float32)})])
    desk.arithmetic.release(Release(work.group))
    assert desk.engine.num_live_graphs == 1
