"""When a worker's run begins to train, evaluates and ends; whom it waits for after a resume."""

from __future__ import annotations

from typing import Any

from cutlayer.broker.actions import PhaseReached
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import (
    ActivationGradients,
    GoodbyeReason,
    Phase,
    Reject,
    RejectReason,
    RunPhase,
    Welcome,
    WorkerState,
)
from cutlayer.broker.work import Commit
from support.conversation import counters, make_worker, small_manifest
from support.worker_desk import Desk, messages, phase_of

# Phases ------------------------------------------------------------------------------------------------------


def test_training_begins_when_enough_agents_are_there() -> None:
    desk = Desk(make_worker(min_agents=2))
    first = desk.join("a")
    desk.activations("a")
    assert phase_of(desk) is RunPhase.WAITING
    assert desk.session.next_work(0.0) is None
    actions = desk.hello("b")
    assert PhaseReached(RunPhase.TRAINING, "") in actions
    assert {message.lease for message in messages(actions, Phase)} == {first, desk.lease("b")}
    assert [message.phase for message in messages(actions, Welcome)] == [RunPhase.TRAINING]
    assert messages(actions, WorkerState)[-1].phase is RunPhase.TRAINING
    assert desk.compute()


def test_evaluation_begins_when_all_are_done_and_the_end_when_all_have_left() -> None:
    desk = Desk()
    desk.join("a")
    desk.join("b")
    desk.done("a")
    assert phase_of(desk) is RunPhase.TRAINING
    actions = desk.done("b")
    assert phase_of(desk) is RunPhase.EVALUATING
    assert len(messages(actions, Phase)) == 2
    (again,) = messages(desk.done("a"), Phase)
    assert again.phase is RunPhase.EVALUATING, "the first may have been lost"
    desk.goodbye("a")
    assert phase_of(desk) is RunPhase.EVALUATING
    actions = desk.goodbye("b")
    assert phase_of(desk) is RunPhase.ENDED
    assert messages(actions, WorkerState)[-1].phase is RunPhase.ENDED
    assert desk.session.reason == "all agents have done their epochs"


def test_an_agent_whose_steps_are_all_committed_is_done_without_saying_so() -> None:
    desk = Desk(samples=4)
    desk.join("a", num_samples=4)
    for step in range(2):
        desk.train("a", step)
    desk.join("b")
    desk.hello("a", incarnation=2, num_samples=4)
    assert [lease.agent for lease in desk.session.leases.training()] == ["b"]


def test_when_the_last_that_trains_is_dropped_the_others_evaluate() -> None:
    desk = Desk()
    desk.join("a")
    desk.join("b")
    desk.done("a")
    desk.offline("b")
    desk.session.tick(30.0)
    assert phase_of(desk) is RunPhase.EVALUATING


def test_with_nobody_left_the_run_waits_for_whoever_comes() -> None:
    desk = Desk()
    desk.join("a")
    desk.goodbye("a", GoodbyeReason.LEFT)
    assert phase_of(desk) is RunPhase.TRAINING
    assert messages(desk.hello("a", incarnation=2), Welcome)


def test_a_service_never_ends() -> None:
    desk = Desk(make_worker(is_service=True))
    desk.join("a")
    desk.done("a")
    desk.goodbye("a")
    assert phase_of(desk) is RunPhase.TRAINING
    desk.hello("b")
    desk.train("b")
    desk.now = 10.0
    desk.compute()
    assert [work.progress for work in desk.arithmetic.done if isinstance(work, Commit)] == [None]


def test_after_the_end_new_agents_are_rejected_and_those_with_a_lease_are_told() -> None:
    desk = Desk()
    lease = desk.join("a")
    actions = desk.session.end("because")
    assert messages(actions, Phase) == [Phase(lease, RunPhase.ENDED, "because")]
    assert [message.phase for message in messages(desk.hello("a"), Welcome)] == [RunPhase.ENDED]
    assert [message.phase for message in messages(desk.done("a"), Phase)] == [RunPhase.ENDED]
    (reject,) = messages(desk.hello("b"), Reject)
    assert reject.reason is RejectReason.ENDED
    assert "because" in reject.detail


def test_a_new_run_waits_for_enough_agents_however_long() -> None:
    desk = Desk(make_worker(min_agents=2))
    desk.hello("a")
    for now in range(0, 1_000, 10):
        desk.session.receive("a/up/telemetry", counters(), float(now))
        desk.session.tick(float(now))
    assert phase_of(desk) is RunPhase.WAITING


# After a resume ----------------------------------------------------------------------------------------------


def resumed(*agents: str, **limits: Any) -> Desk:
    """Return a worker that was resumed from a checkpoint in which these agents have all their steps."""
    ledger = Ledger()
    for agent in agents:
        for step in range(4):
            ledger.add(agent, step)
    return Desk(make_worker(small_manifest(epochs=2, samples=4), ledger=ledger, window=7, version=7, **limits))


def test_a_resumed_worker_goes_on_counting_where_it_was() -> None:
    desk = resumed("a")
    assert (desk.session.window, desk.session.version) == (7, 7)
    desk.hello("b")
    (commit,) = messages(desk.train("b"), ActivationGradients)
    assert commit.window == 7


def test_a_resumed_worker_does_not_evaluate_before_the_ledgers_agents_had_time_to_come_back() -> None:
    """The first to come back may be the one that had done all its steps."""
    desk = resumed("a", "b")
    desk.session.tick(0.0)
    desk.hello("a")
    desk.done("a")
    assert phase_of(desk) is RunPhase.TRAINING
    desk.hello("b", num_samples=16)
    assert phase_of(desk) is RunPhase.TRAINING
    desk.goodbye("b", GoodbyeReason.LEFT)
    desk.session.tick(1.0)
    assert phase_of(desk) is RunPhase.EVALUATING


def test_a_resumed_worker_waits_no_longer_than_the_grace_period_for_those_who_left_for_good() -> None:
    desk = resumed("a", "b", "c", min_agents=3, absence_grace_s=30.0)
    desk.session.tick(100.0)
    assert desk.session.next_deadline(100.0) == 130.0
    desk.hello("a", num_samples=16)
    desk.session.tick(129.0)
    assert phase_of(desk) is RunPhase.WAITING
    desk.session.tick(130.0)
    assert phase_of(desk) is RunPhase.TRAINING
    desk.done("a")
    assert phase_of(desk) is RunPhase.EVALUATING
