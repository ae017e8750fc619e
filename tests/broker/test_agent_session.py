"""The agent's side as a whole: phases, polls and the end, one message at a time."""

from __future__ import annotations

from cutlayer.broker.actions import (
    Duplicate,
    Fail,
    LeaseLost,
    LedgerTold,
    PhaseReached,
)
from cutlayer.broker.agent_session import MAX_GOODBYES
from cutlayer.broker.errors import Rejected
from cutlayer.broker.messages import (
    Goodbye,
    GoodbyeReason,
    RunPhase,
    TrainingDone,
)
from support.agent_desk import INCARNATION, Desk, kinds, messages
from support.conversation import counters


def has_left(desk: Desk) -> bool:
    """Return whether its goodbyes are answered, or were said often enough."""
    return desk.session.has_left


def test_phases_are_reached_once_and_in_order() -> None:
    desk = Desk("w0", is_leased=False)
    desk.welcome("w0", 7, phase=RunPhase.WAITING)
    assert desk.phase(RunPhase.TRAINING) == [PhaseReached(RunPhase.TRAINING, "because")]
    assert desk.phase(RunPhase.TRAINING) == []
    assert desk.phase(RunPhase.EVALUATING) == [PhaseReached(RunPhase.EVALUATING, "because")]
    assert desk.phase(RunPhase.TRAINING) == []
    assert desk.welcome("w0", 7, phase=RunPhase.WAITING) == [LedgerTold("w0", ())]
    assert desk.session.phase is RunPhase.EVALUATING


def test_a_new_lease_may_say_an_earlier_phase_since_its_worker_was_resumed() -> None:
    desk = Desk("w0")
    desk.phase(RunPhase.EVALUATING)
    desk.welcome("w0", 555, phase=RunPhase.WAITING)
    assert desk.session.phase is RunPhase.WAITING


def test_a_phase_that_was_lost_comes_with_the_answer_to_a_poll() -> None:
    desk = Desk("w0", is_leased=False)
    desk.welcome("w0", 7, phase=RunPhase.WAITING)
    assert desk.session.next_deadline() == 5.0
    assert kinds(desk.tick_at(5.0)) == ["Hello"]
    told, reached = desk.welcome("w0", 7, phase=RunPhase.TRAINING)
    assert isinstance(told, LedgerTold)
    assert reached == PhaseReached(RunPhase.TRAINING, "")
    assert desk.session.next_deadline() is None


def test_training_done_is_told_again_until_the_run_moves_on() -> None:
    desk = Desk("w0")
    assert kinds(desk.session.training_done(0.0)) == ["TrainingDone"]
    assert desk.session.next_deadline() == 5.0
    actions = desk.tick_at(5.0)
    assert kinds(actions) == ["TrainingDone", "Hello"]
    assert messages(actions, TrainingDone) == [TrainingDone(desk.leases["w0"])]
    desk.phase(RunPhase.EVALUATING)
    assert desk.tick_at(100.0) == []


def test_training_that_is_withdrawn_is_not_told_done_until_the_driver_says_so() -> None:
    desk = Desk("w0")
    desk.session.training_done(0.0)
    desk.session.withdraw_training()
    assert desk.session.next_deadline() is None
    assert desk.tick_at(100.0) == []
    assert kinds(desk.session.training_done(100.0)) == ["TrainingDone"]


def test_a_worker_whose_ledger_is_behind_is_given_time_before_it_is_told_again() -> None:
    """Or word that it lacks a step, and the other's that it has it, would go to and fro as fast as the network does."""
    desk = Desk("w0", "w1")
    assert kinds(desk.session.training_done(0.0)) == ["TrainingDone", "TrainingDone"]
    desk.welcome("w1", desk.leases["w1"], committed=((0, 3),))
    desk.session.withdraw_training()
    assert desk.session.training_done(0.1) == []
    assert desk.session.next_deadline() == 5.0
    assert len(messages(desk.tick_at(5.0), TrainingDone)) == 2


def test_a_worker_with_a_new_lease_is_told_at_once() -> None:
    desk = Desk("w0")
    desk.session.training_done(0.0)
    desk.online("w1")
    desk.welcome("w1")
    assert len(messages(desk.session.training_done(0.1), TrainingDone)) == 2


def test_training_done_is_told_again_to_those_alone_that_have_not_moved_on() -> None:
    desk = Desk("w0", "w1")
    desk.session.training_done(0.0)
    desk.phase(RunPhase.EVALUATING, "w0")
    assert [message.lease for message in messages(desk.tick_at(5.0), TrainingDone)] == [desk.leases["w1"]]
    desk.phase(RunPhase.EVALUATING, "w1")
    assert desk.tick_at(100.0) == []


def test_training_is_not_done_any_more_under_a_new_lease_until_the_driver_says_so() -> None:
    """The worker may have been resumed from a checkpoint that knows of fewer steps."""
    desk = Desk("w0")
    desk.session.training_done(0.0)
    desk.online("w0", incarnation=2)
    desk.welcome("w0", 555)
    assert not messages(desk.tick_at(100.0), TrainingDone)


def test_a_goodbye_is_repeated_until_every_worker_has_answered() -> None:
    desk = Desk("w0", "w1")
    session, telemetry = desk.session, counters(INCARNATION, final=True)
    assert kinds(session.leave(GoodbyeReason.COMPLETED, telemetry, 0.0)) == ["Goodbye", "Goodbye"]
    assert not has_left(desk)
    assert session.next_deadline() == 2.0
    assert desk.phase(RunPhase.ENDED, "w1") == []
    actions = desk.tick_at(2.0)
    assert messages(actions, Goodbye) == [Goodbye(desk.leases["w0"], GoodbyeReason.COMPLETED, telemetry)]
    desk.phase(RunPhase.ENDED, "w0")
    assert has_left(desk)
    assert session.next_deadline() is None


def test_a_goodbye_that_nobody_answers_ends_nevertheless() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.LEFT, counters(), 0.0)
    num_repeats = 0
    while not has_left(desk):
        due = desk.session.next_deadline()
        assert due is not None
        num_repeats += len(messages(desk.tick_at(due), Goodbye))
    assert num_repeats == MAX_GOODBYES
    assert desk.now <= 2.0 * MAX_GOODBYES


def test_a_goodbye_without_a_lease_has_left_at_once() -> None:
    desk = Desk("w0", is_leased=False)
    assert desk.session.leave(GoodbyeReason.LEFT, counters(), 0.0) == []
    assert has_left(desk)


def test_after_a_goodbye_nothing_is_sent_but_goodbyes() -> None:
    desk = Desk("w0", "w1")
    for step in range(3):
        desk.submit(step)
    desk.session.leave(GoodbyeReason.LEFT, counters(), 0.0)
    assert not desk.session.can_submit()
    assert kinds(desk.online("w0", online=False)) == ["LeaseLost"]
    assert {kind for now in (2.0, 4.0, 6.0) for kind in kinds(desk.tick_at(now))} == {"Goodbye"}
    assert desk.online("w2") == []
    assert kinds(desk.session.connected(7.0)) == ["AgentState"] + 4 * ["Subscribe"]


def test_a_late_copy_of_the_welcome_does_not_take_the_goodbye_back() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.COMPLETED, counters(), 0.0)
    desk.phase(RunPhase.ENDED)
    assert desk.welcome("w0", desk.leases["w0"]) == [Duplicate("Welcome")]
    assert has_left(desk)


def test_an_answer_to_a_hello_from_before_the_goodbye_is_said_goodbye_to() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.COMPLETED, counters(), 0.0)
    desk.welcome("w0", 555)
    assert not has_left(desk)
    assert [message.lease for message in messages(desk.tick_at(2.0), Goodbye)] == [555]


def test_a_worker_that_goes_offline_needs_no_goodbye() -> None:
    desk = Desk("w0")
    desk.session.leave(GoodbyeReason.COMPLETED, counters(), 0.0)
    desk.online("w0", online=False, phase=RunPhase.ENDED)
    assert has_left(desk)


def test_the_end_of_the_run_is_known_from_the_workers_state_too() -> None:
    desk = Desk("w0")
    assert desk.online("w0", phase=RunPhase.ENDED, reason="done") == [PhaseReached(RunPhase.ENDED, "done")]
    assert desk.online("w0", phase=RunPhase.ENDED) == []


def test_an_agent_that_the_run_has_ended_without_is_told_so_and_does_not_wait_for_ever() -> None:
    desk = Desk("w0")
    desk.submit(0)
    lost, fail = desk.online("w0", online=False, phase=RunPhase.ENDED, reason="done")
    assert isinstance(lost, LeaseLost)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Rejected)
    assert fail.error.reason == "ended"


def test_the_end_of_another_run_is_none_of_its_business() -> None:
    desk = Desk("w0")
    assert desk.online("w0", phase=RunPhase.ENDED, manifest_digest=bytes(32)) == []
    assert kinds(desk.online("w0", online=False, phase=RunPhase.ENDED, manifest_digest=bytes(32))) == ["LeaseLost"]


def test_a_worker_that_only_stops_is_waited_for() -> None:
    desk = Desk("w0")
    assert kinds(desk.online("w0", online=False, phase=RunPhase.TRAINING)) == ["LeaseLost"]
