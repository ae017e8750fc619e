"""A worker's session in a pool: what it says about its window, and what each end of a round does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from cutlayer.broker.actions import PhaseReached, Publish, Refused, WorkerAction
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Resend,
    ResendReason,
    RunPhase,
    TrainingDone,
    Welcome,
    WindowState,
    WorkerState,
)
from cutlayer.broker.pool_round import Verdict, WindowPart, judge
from cutlayer.broker.work import Backward, Commit, Forward, Key
from cutlayer.broker.worker_rounds import ROUND_PAUSE_S, WINDOW_REPEAT_S
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from support.conversation import BYTE_STAGES, CLASSES, CODECS, MICROBATCH, image_tokens, small_manifest, zeros

AnyMessage = TypeVar("AnyMessage", bound=Message)
ASYNCHRONOUS = {"mode": "asynchronous", "samples": 8, "deadline_s": 1.0}
SYNCHRONOUS = {"mode": "synchronous"}
BOTH = pytest.mark.parametrize("window", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asynchronous"])


def said(actions: Sequence[WorkerAction], kind: type[AnyMessage]) -> list[AnyMessage]:
    return [action.message for action in actions if isinstance(action, Publish) and isinstance(action.message, kind)]


class Desk:
    """A pooled session whose agents, companions and rounds are played by the test."""

    def __init__(self, window: dict[str, Any] | None = None, **limits: Any) -> None:
        numbers = iter(range(100, 1 << 32))
        self.manifest = small_manifest(epochs=2, **(window or ASYNCHRONOUS))
        limits.setdefault("credits", 4)
        self.session = WorkerSession(
            "w0", 1, self.manifest, WorkerLimits(**limits), LeaseTable(lambda: next(numbers)), is_pooled=True
        )
        self.now = 10.0
        self.said = self.session.connected()

    def hello(self, agent: str, topic: str | None = None, manifest: Manifest | None = None) -> list[WorkerAction]:
        digest = bytes.fromhex((manifest or self.manifest).digest())
        hello = Hello(agent, 1, digest, 8, CODECS, BYTE_STAGES, "v1")
        return self.session.receive(f"cutlayer/workers/w0/inbox/{topic or agent}", hello, self.now)

    def lease(self, agent: str) -> int:
        lease = self.session.leases.of(agent)
        if lease is None:
            self.hello(agent)
            lease = self.session.leases.of(agent)
        assert lease is not None
        return lease.lease

    def activations(self, agent: str, step: int = 0) -> list[WorkerAction]:
        message = Activations(self.lease(agent), step, Mode.TRAIN, MICROBATCH, image_tokens())
        return self.session.receive(f"{agent}/up/w0/activations", message, self.now)

    def forward(self) -> None:
        work = self.session.next_work(self.now)
        assert isinstance(work, Forward)
        outputs = {key: zeros(MICROBATCH, len(CLASSES)) for key, _ in work.microbatches}
        self.session.forwarded(work.group, outputs, self.session.version, self.now)

    def gradients(self, agent: str, step: int = 0) -> None:
        message = OutputGradients(self.lease(agent), step, self.session.version, zeros(MICROBATCH, len(CLASSES)))
        self.session.receive(f"{agent}/up/w0/gradients", message, self.now)

    def train(self, agent: str, step: int = 0) -> list[WorkerAction]:
        """Bring a step into the open window; return what is said when it is there."""
        self.activations(agent, step)
        self.forward()
        self.gradients(agent, step)
        work = self.session.next_work(self.now)
        assert isinstance(work, Backward)
        return self.session.backward_done(work.group, self.now)

    def part(self, *, is_due: bool | None = True) -> WindowPart:
        return self.session.rounds.part("same", bytes([1]), is_due=is_due)

    def judge(self, *others: WindowPart, first: bool = True) -> Verdict:
        """Return the verdict on this worker's part and others'."""
        parts = [self.part(), *others] if first else [*others, self.part()]
        mode = self.manifest.window.mode
        return judge(parts, self.session.ledger, is_synchronous=mode == "synchronous")

    def commit(self, verdict: Verdict, generation: int = 1) -> list[WorkerAction]:
        self.session.rounds.begun(self.now)
        assert verdict.commits
        return self.session.rounds.committed(verdict, self.session.version + 1, generation, self.now)

    def fail(self, verdict: Verdict | None = None, generation: int = 1) -> list[WorkerAction]:
        self.session.rounds.begun(self.now)
        return self.session.rounds.failed(verdict, generation, self.now)

    def window_of(self, worker: str, number: int, num_samples: int, *agents: str, closes: bool = False) -> None:
        state = WindowState(worker, 1, number, num_samples, agents, closes)
        self.session.receive(f"cutlayer/workers/{worker}/window", state, self.now)

    def state_of(self, worker: str, phase: RunPhase, *, online: bool = True, reason: str = "") -> list[WorkerAction]:
        digest = bytes.fromhex(self.manifest.digest())
        state = WorkerState(online, worker, 1, digest, phase, 0, 0, reason, is_draining=False, pool_generation=1)
        return self.session.receive(f"cutlayer/workers/{worker}/state", state, self.now)


def phase_of(desk: Desk) -> RunPhase:
    return desk.session.phase  # a call: mypy takes an attribute for unchanged


def other(*steps: tuple[str, int], is_due: bool | None = True, worker: str = "w1") -> WindowPart:
    return WindowPart(worker, 0, 0, "same", steps, MICROBATCH * len(steps), bytes([1]), 64, is_due)


# What it says ------------------------------------------------------------------------------------------------


@BOTH
def test_a_part_of_the_window_is_told_to_the_others_and_in_synchronous_mode_whose_it_is(window: dict[str, Any]) -> None:
    desk = Desk(window)
    agents = ("a",) if window is SYNCHRONOUS else ()
    assert said(desk.train("a"), WindowState) == [WindowState("w0", 1, 0, MICROBATCH, agents, closes=False)]


@BOTH
def test_what_a_backward_pass_is_about_to_add_is_told_before_it(window: dict[str, Any]) -> None:
    desk = Desk(window)
    desk.activations("a")
    desk.forward()
    desk.gradients("a")
    work = desk.session.next_work(desk.now)
    assert isinstance(work, Backward)
    agents = ("a",) if window is SYNCHRONOUS else ()
    coming = [WindowState("w0", 1, 0, MICROBATCH, agents, closes=False)]
    assert said(desk.session.backward_begun(work, desk.now), WindowState) == coming
    assert said(desk.session.backward_done(work.group, desk.now), WindowState) == coming


def test_a_worker_takes_its_share_of_a_window_forward_at_once() -> None:
    alone, one_of_two = (
        Desk({"mode": "asynchronous", "samples": 2 * MICROBATCH}),
        Desk({"mode": "asynchronous", "samples": 2 * MICROBATCH}),
    )
    one_of_two.state_of("w1", RunPhase.TRAINING)
    for desk, num_together in ((alone, 2), (one_of_two, 1)):
        desk.activations("a")
        desk.activations("b")
        work = desk.session.next_work(desk.now)
        assert isinstance(work, Forward)
        assert len(work.microbatches) == num_together


def test_each_agent_of_a_synchronous_part_is_named_once() -> None:
    desk = Desk(SYNCHRONOUS)
    desk.train("a")
    assert said(desk.train("b"), WindowState)[0].agents == ("a", "b")


def test_what_was_said_is_repeated_and_after_a_commit_the_next_window() -> None:
    desk = Desk()
    desk.train("a")
    desk.now += WINDOW_REPEAT_S / 2
    assert said(desk.session.tick(desk.now), WindowState) == []
    desk.now += WINDOW_REPEAT_S / 2
    assert [state.closes for state in said(desk.session.tick(desk.now), WindowState)] == [False]
    assert [state.closes for state in said(desk.session.rounds.begun(desk.now), WindowState)] == [True]
    desk.now += WINDOW_REPEAT_S
    assert [state.closes for state in said(desk.session.tick(desk.now), WindowState)] == [True]
    desk.commit(desk.judge())
    assert said(desk.session.tick(desk.now), WindowState) == []
    desk.now += WINDOW_REPEAT_S
    (state,) = said(desk.session.tick(desk.now), WindowState)
    assert (state.window, state.num_samples, state.closes) == (1, 0, False)


def test_the_driver_is_woken_for_the_repetition() -> None:
    desk = Desk()
    desk.train("a")
    deadline = desk.session.next_deadline(desk.now)
    assert deadline is not None
    assert deadline <= desk.now + WINDOW_REPEAT_S


def test_a_part_is_what_the_open_window_holds() -> None:
    desk = Desk()
    desk.train("a")
    desk.train("b")
    assert desk.part() == WindowPart(
        "w0", 0, 0, "same", (("a", 0), ("b", 0)), 2 * MICROBATCH, bytes([1]), planned_samples=32, is_due=True
    )


def test_another_workers_call_starts_a_round_here_too() -> None:
    desk = Desk()
    desk.window_of("w1", 0, 0, closes=True)
    assert desk.session.next_work(desk.now) == Commit(0, 0, 0, 0.0, is_due=False)


def test_a_worker_without_a_pool_takes_no_notice_of_windows() -> None:
    numbers = iter(range(100, 200))
    manifest = small_manifest()
    session = WorkerSession("w0", 1, manifest, WorkerLimits(), LeaseTable(lambda: next(numbers)))
    actions = session.receive("cutlayer/workers/w1/window", WindowState("w1", 1, 0, 4, (), closes=True), 1.0)
    assert isinstance(actions[0], Refused)
    assert session.next_work(1.0) is None


# A round that commits ----------------------------------------------------------------------------------------


@BOTH
def test_a_committed_window_is_in_the_ledger_whole_and_told_to_the_own_agents(window: dict[str, Any]) -> None:
    desk = Desk(window)
    desk.train("a")
    actions = desk.commit(desk.judge(other(("b", 0))), generation=4)
    assert {agent: list(desk.session.ledger.of(agent)) for agent in ("a", "b")} == {"a": [(0, 1)], "b": [(0, 1)]}
    assert (desk.session.window, desk.session.version) == (1, 1)
    assert desk.session.committed_samples == 2 * MICROBATCH
    assert [(commit.lease, commit.step, commit.window) for commit in said(actions, ActivationGradients)] == [
        (desk.lease("a"), 0, 0)
    ]
    assert desk.session.num_live == 0
    state = desk.session.state().message
    assert isinstance(state, WorkerState)
    assert state.pool_generation == 4


def test_a_part_that_was_left_out_is_asked_for_again_and_what_of_it_is_committed_is_told() -> None:
    desk = Desk()
    desk.train("a")
    desk.train("b")
    verdict = desk.judge(other(("a", 0)), first=False)
    assert verdict.rejected == ("w0",)
    actions = desk.commit(verdict)
    assert [commit.lease for commit in said(actions, ActivationGradients)] == [desk.lease("a")]
    assert said(actions, Resend) == [Resend(desk.lease("b"), 0, Mode.TRAIN, ResendReason.STALE)]
    assert desk.session.num_live == 0
    assert list(desk.session.ledger.of("b")) == []
    desk.train("b")
    assert desk.part().steps == (("b", 0),)


def test_what_another_worker_has_committed_is_told_and_not_committed_again() -> None:
    desk = Desk()
    desk.activations("a")
    desk.forward()
    actions = desk.commit(desk.judge(other(("a", 0))))
    assert [commit.step for commit in said(actions, ActivationGradients)] == [0]
    assert desk.session.num_live == 0
    assert said(desk.activations("a"), ActivationGradients), "a late copy is answered with the commit"
    assert desk.session.num_live == 0


def test_during_a_round_gradients_wait_for_the_next_window() -> None:
    desk = Desk()
    desk.activations("a")
    desk.forward()
    desk.train("b")
    verdict = desk.judge()
    desk.session.rounds.begun(desk.now)
    desk.gradients("a")
    assert desk.session.next_work(desk.now) is None
    desk.session.rounds.committed(verdict, 1, 1, desk.now)
    assert list(desk.session.ledger.of("a")) == []
    assert desk.session.live_keys() == (Key("a", Mode.TRAIN, 0),)
    assert isinstance(desk.session.next_work(desk.now), Backward)


def test_an_agent_that_vanishes_during_a_round_takes_nothing_out_of_the_window() -> None:
    desk = Desk(lease_s=1.0, absence_grace_s=0.5)
    desk.train("a")
    verdict = desk.judge()
    desk.session.rounds.begun(desk.now)
    for _ in range(3):
        desk.now += 2.0
        desk.session.tick(desk.now)
    assert len(desk.session.leases) == 0
    actions = desk.session.rounds.committed(verdict, 1, 1, desk.now)
    assert said(actions, ActivationGradients) == [], "nobody is left to be told"
    assert list(desk.session.ledger.of("a")) == [(0, 1)]
    assert desk.session.num_live == 0


# A round that does not ---------------------------------------------------------------------------------------


def test_after_a_round_that_failed_the_window_is_as_before_and_tried_again_after_a_pause() -> None:
    desk = Desk()
    desk.train("a")
    desk.train("b")
    actions = desk.fail()
    assert said(actions, WindowState) == [WindowState("w0", 1, 0, 2 * MICROBATCH, (), closes=False)]
    assert desk.part().steps == (("a", 0), ("b", 0))
    assert (desk.session.window, desk.session.version) == (0, 0)
    assert desk.session.next_work(desk.now) is None
    assert desk.session.next_deadline(desk.now) == desk.now + ROUND_PAUSE_S
    desk.now += ROUND_PAUSE_S
    assert isinstance(desk.session.next_work(desk.now), Commit)


def test_a_part_that_would_hold_every_round_up_is_taken_out_though_nothing_is_committed() -> None:
    desk = Desk(SYNCHRONOUS)
    desk.train("a")
    desk.train("b")
    verdict = desk.judge(other(("a", 0)), first=False)
    assert not verdict.commits
    actions = desk.fail(verdict)
    assert [resend.lease for resend in said(actions, Resend)] == [desk.lease("b")], "a's is in the other's part"
    assert said(actions, ActivationGradients) == []
    assert desk.part().steps == ()
    assert said(actions, WindowState)[0].agents == ()


def test_a_part_with_a_step_that_was_committed_before_is_told_so() -> None:
    desk = Desk(SYNCHRONOUS)
    desk.train("a")
    desk.session.ledger.add("a", 0)
    verdict = desk.judge(other(("b", 0), is_due=False))
    assert verdict.rejected == ("w0",)
    assert not verdict.commits
    actions = desk.fail(verdict)
    assert [commit.step for commit in said(actions, ActivationGradients)] == [0]
    assert said(actions, Resend) == []


# Taking over -------------------------------------------------------------------------------------------------


def take_over(desk: Desk, *steps: tuple[str, int], manifest: Manifest | None = None) -> list[WorkerAction]:
    ledger = Ledger()
    for agent, step in steps:
        ledger.add(agent, step)
    return desk.session.rounds.take_over(
        manifest or desk.manifest,
        ledger,
        {agent: 8 for agent, _ in steps},
        window=5,
        version=6,
        committed_samples=70,
        generation=2,
        now=desk.now,
    )


def test_a_worker_that_was_behind_goes_on_where_the_pool_is_and_asks_for_what_its_graphs_were_of() -> None:
    desk = Desk()
    desk.train("a", 0)
    desk.activations("b", 0)
    desk.forward()
    desk.activations("c", 0)
    desk.session.rounds.begun(desk.now)
    actions = take_over(desk, ("a", 0), ("z", 0))
    assert (desk.session.window, desk.session.version, desk.session.committed_samples) == (5, 6, 70)
    assert [commit.lease for commit in said(actions, ActivationGradients)] == [desk.lease("a")]
    assert [resend.lease for resend in said(actions, Resend)] == [desk.lease("b")]
    assert desk.session.live_keys() == (Key("c", Mode.TRAIN, 0),), "it has not gone forward: its turn comes"
    assert desk.session.known_samples == {"a": 8, "b": 8, "c": 8, "z": 8}
    assert desk.part().steps == ()


def test_the_run_that_is_taken_over_is_the_one_that_agents_are_asked_for() -> None:
    desk = Desk()
    theirs = desk.manifest.model_copy(update={"run_id": "theirs"})
    assert not desk.session.leases.of("a")
    take_over(desk, ("a", 0), manifest=theirs)
    assert isinstance(desk.hello("b")[0], Refused)
    assert said(desk.hello("b", manifest=theirs), Welcome)
    state = desk.session.state().message
    assert isinstance(state, WorkerState)
    assert state.manifest_digest == bytes.fromhex(theirs.digest())


def test_the_agents_of_a_ledger_that_was_taken_over_are_waited_for_before_the_run_ends() -> None:
    desk = Desk(absence_grace_s=5.0)
    desk.session.tick(desk.now)
    take_over(desk, *(("a", step) for step in range(4)), ("z", 0))
    desk.hello("a")
    desk.session.tick(desk.now)
    assert phase_of(desk) is RunPhase.TRAINING, "a has done all its steps, and z may come back"
    desk.now += 5.0
    desk.session.tick(desk.now)
    desk.session.tick(desk.now)
    assert phase_of(desk) is RunPhase.EVALUATING


def test_an_agent_whose_steps_are_missing_in_the_ledger_that_was_taken_over_trains_again() -> None:
    desk = Desk()
    desk.lease("a")
    for step in range(4):
        desk.session.ledger.add("a", step)
    desk.session.receive("cutlayer/workers/w0/inbox/a", TrainingDone(desk.lease("a")), desk.now)
    assert not desk.session.leases.training()
    take_over(desk, ("a", 0))
    assert [lease.agent for lease in desk.session.leases.training()] == ["a"]


# Phases ------------------------------------------------------------------------------------------------------


def test_a_worker_that_joins_trains_as_soon_as_the_others_do() -> None:
    desk = Desk(min_agents=3)
    desk.lease("a")
    assert phase_of(desk) is RunPhase.WAITING
    assert PhaseReached(RunPhase.TRAINING, "") in desk.state_of("w1", RunPhase.TRAINING)
    assert phase_of(desk) is RunPhase.TRAINING


def test_a_worker_to_which_no_agent_has_come_ends_with_the_others() -> None:
    desk = Desk()
    desk.state_of("w1", RunPhase.TRAINING)
    desk.state_of("w1", RunPhase.ENDED, reason="all agents have done their epochs")
    assert phase_of(desk) is RunPhase.ENDED
    assert desk.session.reason == "all agents have done their epochs"


def test_a_worker_with_agents_does_not_end_before_they_have_left() -> None:
    desk = Desk()
    desk.lease("a")
    desk.state_of("w1", RunPhase.TRAINING)
    desk.state_of("w1", RunPhase.ENDED)
    assert phase_of(desk) is RunPhase.TRAINING


# Draining ----------------------------------------------------------------------------------------------------


def test_a_draining_worker_says_so_takes_nobody_new_and_is_done_when_its_last_step_is_committed() -> None:
    desk = Desk()
    desk.train("a")
    states = said(desk.session.drain(), WorkerState)
    assert [state.is_draining for state in states] == [True]
    desk.hello("b")
    assert desk.session.leases.of("b") is None
    assert not desk.session.is_drained
    verdict = desk.judge()
    desk.session.rounds.begun(desk.now)
    desk.session.rounds.committed(verdict, 1, 1, desk.now)
    assert desk.session.is_drained


def test_a_worker_does_not_leave_in_the_middle_of_a_round() -> None:
    desk = Desk()
    desk.session.drain()
    desk.session.rounds.begun(desk.now)
    assert not desk.session.is_drained
    desk.session.rounds.failed(None, 1, desk.now)
    assert desk.session.is_drained


# Who speaks --------------------------------------------------------------------------------------------------


def test_a_hello_in_anothers_name_is_refused_and_not_answered() -> None:
    desk = Desk()
    actions = desk.hello("a", topic="b")
    assert [action.label for action in actions if isinstance(action, Refused)] == ["topic"]
    assert not any(isinstance(action, Publish) for action in actions)
    assert len(desk.session.leases) == 0


def test_training_done_with_steps_missing_is_answered_with_what_is_committed() -> None:
    desk = Desk()
    desk.train("a")
    desk.commit(desk.judge())
    done = TrainingDone(desk.lease("a"))
    actions = desk.session.receive("cutlayer/workers/w0/inbox/a", done, desk.now)
    assert [welcome.committed for welcome in said(actions, Welcome)] == [((0, 1),)]
    assert desk.session.leases.training(), "it is waited for"
    for step in range(1, 4):
        desk.session.ledger.add("a", step)
    actions = desk.session.receive("cutlayer/workers/w0/inbox/a", replace(done), desk.now)
    assert said(actions, Welcome) == []
    assert not desk.session.leases.training()
