"""An agent's microbatches: their four messages, what is sent again, and what goes to another worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from cutlayer.broker.actions import (
    AgentAction,
    Duplicate,
    OutputsReceived,
    Publish,
    Refused,
    StepCommitted,
)
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    Phase,
    Resend,
    RunPhase,
)
from cutlayer.broker.states import ExchangeState, next_state
from support.agent_desk import DEADLINES, IDENTITY, Desk, kinds, messages
from support.conversation import image_tokens, zeros

# A step ------------------------------------------------------------------------------------------------------


def test_a_training_step_goes_through_its_four_messages() -> None:
    desk = Desk("w0")
    (up,) = desk.submit(5)
    assert isinstance(up, Publish)
    assert up == Publish(
        "clinic/07/up/w0/activations", Activations(desk.leases["w0"], 5, Mode.TRAIN, 4, image_tokens())
    )
    desk.now = 0.75
    (received,) = desk.outputs(5, version=9)
    assert received == OutputsReceived(5, Mode.TRAIN, zeros(4, 2), IDENTITY, 9, 0.75, 0.25)
    (gradients,) = desk.gradients(5, version=9)
    assert gradients == Publish("clinic/07/up/w0/gradients", OutputGradients(desk.leases["w0"], 5, 9, zeros(4, 2)))
    assert desk.session.num_outstanding == 1
    assert desk.commit(5) == [StepCommitted(5, 3)]
    assert desk.session.num_outstanding == 0


def test_an_evaluation_ends_with_its_outputs() -> None:
    desk = Desk("w0")
    desk.submit(0, Mode.EVAL)
    assert kinds(desk.outputs(0, Mode.EVAL)) == ["OutputsReceived"]
    assert desk.session.num_outstanding == 0
    assert desk.gradients(0) == []


def test_credits_bound_what_is_outstanding() -> None:
    desk = Desk("w0", credits=2)
    desk.submit(0)
    assert desk.session.can_submit()
    desk.submit(1, Mode.EVAL)
    assert not desk.session.can_submit()
    desk.outputs(0)
    assert not desk.session.can_submit(), "a credit comes back with the end of the step"
    desk.outputs(1, Mode.EVAL)
    assert desk.session.can_submit()


@pytest.mark.parametrize("state", ["ACTIVATIONS", "OUTPUTS", "GRADIENTS"])
def test_a_commit_ends_a_step_in_any_state(state: str) -> None:
    desk = Desk("w0")
    desk.submit(0)
    if state != "ACTIVATIONS":
        desk.outputs(0)
    if state == "GRADIENTS":
        desk.gradients(0)
    assert desk.state_of().name == state
    assert desk.commit(0) == [StepCommitted(0, 3)]
    assert desk.commit(0) == [Duplicate("ActivationGradients")]
    assert desk.gradients(0) == []


def test_copies_change_nothing() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.outputs(0)
    assert desk.outputs(0) == [Duplicate("Outputs")]
    desk.gradients(0)
    assert desk.outputs(0) == [Duplicate("Outputs")]
    assert desk.gradients(0) == []
    desk.commit(0)
    assert desk.outputs(0) == [Duplicate("Outputs")]
    assert desk.resend(0) == [Duplicate("Resend")]


@pytest.mark.parametrize("message", [Outputs, ActivationGradients, Resend, Phase])
def test_messages_under_an_unknown_lease_are_refused(message: type[Message]) -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.leases["w0"] += 1
    sent: dict[type[Message], Callable[[], list[AgentAction]]] = {
        Outputs: desk.outputs,
        ActivationGradients: desk.commit,
        Resend: desk.resend,
        Phase: lambda: desk.phase(RunPhase.ENDED),
    }
    actions = sent[message]()
    assert [action.label for action in actions if isinstance(action, Refused)] == ["lease"]
    assert desk.state_of() is ExchangeState.ACTIVATIONS


@pytest.mark.parametrize("mode", [Mode.TRAIN, Mode.EVAL])
@pytest.mark.parametrize("event", [Outputs, ActivationGradients, Resend])
@pytest.mark.parametrize("state", [ExchangeState.ACTIVATIONS, ExchangeState.OUTPUTS, ExchangeState.GRADIENTS])
def test_the_session_goes_where_the_state_table_says(mode: Mode, state: ExchangeState, event: type[Message]) -> None:
    if mode is Mode.EVAL and (state is not ExchangeState.ACTIVATIONS or event is ActivationGradients):
        return  # such a state is never reached, and the message names no mode
    desk = Desk("w0")
    desk.submit(0, mode)
    if state is not ExchangeState.ACTIVATIONS:
        desk.outputs(0, mode)
    if state is ExchangeState.GRADIENTS:
        desk.gradients(0)
    after = next_state(mode, state, event)
    sent: dict[type[Message], Callable[[], list[AgentAction]]] = {
        Outputs: lambda: desk.outputs(0, mode),
        ActivationGradients: desk.commit,
        Resend: lambda: desk.resend(0, mode=mode),
    }
    sent[event]()
    # From IDLE the session goes on at once: there is a credit.
    assert desk.state_of(0, mode) is (ExchangeState.ACTIVATIONS if after is ExchangeState.IDLE else after)


def test_outputs_from_another_worker_than_the_one_asked_are_refused() -> None:
    desk = Desk("w0", "w1")
    desk.submit(0)
    assert kinds(desk.outputs(0, worker="w1")) == ["Refused"]
    assert kinds(desk.resend(0, worker="w1")) == ["Refused"]
    assert kinds(desk.commit(0, worker="w1")) == ["StepCommitted"], "a commit is a commit, whoever says it"


# Sending again -----------------------------------------------------------------------------------------------


def test_an_unanswered_message_is_sent_again_less_and_less_often() -> None:
    desk = Desk("w0")
    desk.submit(0)
    waits: list[float] = []
    while len(waits) < 6:
        due = desk.session.next_deadline()
        assert due is not None
        assert not messages(desk.tick_at(due - 0.01), Activations)
        repeated = [a for a in desk.tick_at(due) if isinstance(a, Publish) and isinstance(a.message, Activations)]
        assert all(action.repeated for action in repeated)
        waits += [due] * len(repeated)  # a silent worker is said Hello to in between
    assert waits[0] == 5.0
    assert [b - a for a, b in pairwise(waits)] == [10.0, 20.0, 40.0, 60.0, 60.0]
    assert desk.session.num_repeats == 6


def test_a_message_that_is_never_answered_is_repeated_for_ever() -> None:
    """Two raised to the number of repetitions is no float after a night of them."""
    desk = Desk("w0")
    desk.submit(0)
    for _ in range(2_200):
        due = desk.session.next_deadline()
        assert due is not None
        desk.tick_at(due)
    assert desk.session.num_repeats > 1_000


def test_what_is_repeated_is_the_last_message() -> None:
    desk = Desk("w0")
    desk.submit(0)
    desk.outputs(0)
    assert desk.session.next_deadline() is None, "now the driver is at work, and nothing is missing"
    desk.gradients(0)
    actions = desk.tick_at(5.0)
    assert messages(actions, OutputGradients)
    assert not messages(actions, Activations)


def test_with_the_repetition_goes_a_hello_since_a_worker_without_the_lease_hears_nothing_else() -> None:
    desk = Desk("w0")
    desk.now = 10.0
    desk.submit(0)
    assert kinds(desk.tick_at(15.0)) == ["Activations", "Hello"]
    desk.welcome("w0", desk.leases["w0"])
    assert kinds(desk.tick_at(25.0)) == ["Activations", "Hello"]


def test_moving_bytes_put_the_deadline_off() -> None:
    desk = Desk("w0")
    desk.submit(0)
    for now in (4.0, 8.0, 12.0):
        desk.session.progress(now)
        assert desk.session.next_deadline() == now + 5.0


def test_bytes_that_move_after_a_message_is_out_say_nothing_about_it() -> None:
    """The counters that go up every second must not put off what was lost for ever."""
    desk = Desk("w0")
    desk.submit(0)
    desk.session.progress(2.0, handed_bytes=1_000, pending_bytes=900)
    desk.session.progress(4.0, handed_bytes=1_300, pending_bytes=700)
    assert desk.session.next_deadline() == 9.0
    desk.session.progress(6.0, handed_bytes=1_600, pending_bytes=600)
    assert desk.session.next_deadline() == 11.0, "its last bytes left between this and the time before"
    desk.session.progress(8.0, handed_bytes=1_900, pending_bytes=300)
    assert desk.session.next_deadline() == 11.0
    assert messages(desk.tick_at(11.0), Activations)


def test_a_message_that_takes_minutes_to_leave_is_not_sent_twice() -> None:
    desk = Desk("w0")
    desk.submit(0)
    for now in range(1, 500):
        desk.session.progress(float(now), handed_bytes=1_000_000, pending_bytes=1_000_000 - 1_000 * now)
        assert desk.tick_at(float(now)) == []


def test_where_nobody_knows_what_has_left_a_message_is_sent_again_after_the_longest_time() -> None:
    desk = Desk("w0")
    desk.submit(0)
    for now in range(60):
        desk.session.progress(float(now))
        assert desk.tick_at(float(now)) == []
    assert messages(desk.tick_at(60.0), Activations)


def test_slow_round_trips_stretch_the_deadline() -> None:
    desk = Desk("w0")
    for step in range(30):
        desk.submit(step)
        desk.now += 4.0
        desk.outputs(step)
        desk.commit(step)
    desk.submit(30)
    due = desk.session.next_deadline()
    assert due is not None
    assert due - desk.now == pytest.approx(16.0)


def test_a_repeated_message_measures_no_round_trip() -> None:
    """Karn's rule: an answer may be to either sending."""
    desk = Desk("w0")
    desk.submit(0)
    desk.tick_at(5.0)
    desk.now = 5.1
    desk.outputs(0)
    desk.commit(0)
    assert desk.round_trip_s() is None
    desk.submit(1)
    desk.now += 1.0
    desk.outputs(1)
    desk.commit(1)
    assert desk.round_trip_s() == pytest.approx(1.0)
    desk.submit(2)
    desk.resend(2)
    desk.now += 0.01
    desk.outputs(2)
    assert desk.round_trip_s() == pytest.approx(1.0)


@pytest.mark.parametrize("server_s", [9.0, 1e300])
def test_a_worker_slower_than_the_first_deadline_is_not_sent_everything_twice_for_ever(server_s: float) -> None:
    desk = Desk("w0")
    num_repeats = []
    for step in range(10):
        desk.submit(step)
        start, before = desk.now, desk.session.num_repeats
        while desk.now < start + 9.5:
            desk.tick_at(desk.now + 0.5)
        desk.receive(Outputs(desk.leases["w0"], step, Mode.TRAIN, 0, server_s, zeros(4, 2)))
        desk.commit(step)
        num_repeats.append(desk.session.num_repeats - before)
    assert num_repeats[0] == 1
    assert num_repeats[1:] == [0] * 9
    desk.submit(10)
    due = desk.session.next_deadline()
    assert due is not None
    assert due - desk.now < 40.0


def test_a_resend_starts_the_step_again_from_its_activations() -> None:
    for state in ("ACTIVATIONS", "OUTPUTS", "GRADIENTS"):
        desk = Desk("w0")
        desk.submit(0)
        if state != "ACTIVATIONS":
            desk.outputs(0)
        if state == "GRADIENTS":
            desk.gradients(0)
        (again,) = desk.resend(0)
        assert isinstance(again, Publish)
        assert again.repeated
        assert isinstance(again.message, Activations)
        assert desk.state_of() is ExchangeState.ACTIVATIONS
        assert desk.gradients(0) == [], "the driver's answer to the outputs before comes too late"


def test_outputs_of_newer_weights_take_the_place_of_late_ones() -> None:
    """The worker runs the step again, but the outputs from before its Resend arrive after it."""
    desk = Desk("w0")
    desk.submit(0)
    desk.resend(0)
    assert kinds(desk.outputs(0, version=3)) == ["OutputsReceived"]
    desk.gradients(0, version=3)
    (received,) = desk.outputs(0, version=8)
    assert isinstance(received, OutputsReceived)
    assert received.version == 8
    assert desk.gradients(0, version=3) == []
    (gradients,) = messages(desk.gradients(0, version=8), OutputGradients)
    assert gradients.version == 8
    assert desk.outputs(0, version=3) == [Duplicate("Outputs")]
    assert desk.outputs(0, version=8) == [Duplicate("Outputs")]


# Silence -----------------------------------------------------------------------------------------------------


def silenced(**options: Any) -> Desk:
    """Return a desk of two workers, one of which holds step 0 and has answered nothing."""
    desk = Desk("w0", "w1", **options)
    desk.submit(0)
    return desk


def holder(desk: Desk, step: int = 0) -> str:
    """Return the worker that a training step is with."""
    exchange = desk.session._exchanges._exchanges[Mode.TRAIN, step]
    assert exchange.worker is not None
    return exchange.worker


def other(name: str) -> str:
    """Return the other one of two workers."""
    return "w1" if name == "w0" else "w0"


def test_a_worker_that_leaves_two_repetitions_unanswered_loses_the_microbatch_to_another() -> None:
    desk = silenced()
    first = holder(desk)
    assert kinds(desk.tick_at(5.0)) == ["Activations", "Hello"]
    assert kinds(desk.tick_at(15.0)) == ["Activations", "Hello"]
    assert holder(desk) == first
    moved, hello = desk.tick_at(35.0)
    assert isinstance(moved, Publish)
    assert moved.topic == f"clinic/07/up/{other(first)}/activations"
    assert moved.repeated
    assert isinstance(hello, Publish)
    assert hello.topic == f"cutlayer/workers/{first}/inbox/clinic/07"
    assert desk.session.leased_workers == ("w0", "w1"), "the lease stands until the worker says otherwise"
    assert desk.session.num_repeats == 3


def test_how_many_repetitions_is_a_setting() -> None:
    desk = Desk("w0", "w1", deadlines=replace(DEADLINES, repeats_before_moving=0))
    desk.submit(0)
    first = holder(desk)
    desk.tick_at(5.0)
    assert holder(desk) == other(first)


def test_gradients_that_a_silent_worker_does_not_answer_go_elsewhere_from_their_activations() -> None:
    desk = silenced()
    first = holder(desk)
    desk.outputs(0, version=3, worker=first)
    desk.gradients(0, version=3)
    for now in (5.0, 15.0):
        assert messages(desk.tick_at(now), OutputGradients)
    assert [message.step for message in messages(desk.tick_at(35.0), Activations)] == [0]
    assert holder(desk) == other(first)
    assert kinds(desk.outputs(0, version=3, worker=other(first))) == ["OutputsReceived"]


def test_a_worker_that_answers_the_hellos_keeps_what_its_window_waits_for() -> None:
    desk = silenced()
    first = holder(desk)
    desk.outputs(0, worker=first)
    desk.gradients(0)
    while desk.now < 600.0:
        due = desk.session.next_deadline()
        assert due is not None
        desk.tick_at(due)
        desk.now += 0.1
        desk.welcome(first, desk.leases[first])
        assert holder(desk) == first
        assert not desk.worker(first).is_silent


def test_a_silent_worker_is_given_nothing_new_until_it_says_anything() -> None:
    desk = silenced(credits=4)
    first = holder(desk)
    for now in (5.0, 15.0, 35.0):
        desk.tick_at(now)
    for step in range(1, 4):
        desk.submit(step)
    assert desk.worker(first).outstanding == set()
    assert not desk.session.can_submit()
    desk.welcome(first, desk.leases[first])
    assert desk.session.can_submit()
    desk.submit(4)
    assert holder(desk, 4) == first


def test_where_nobody_else_has_a_credit_the_silent_worker_goes_on_being_asked() -> None:
    desk = silenced(credits=1)
    desk.submit(1)
    first = holder(desk)
    desk.outputs(1, worker=other(first))
    desk.gradients(1)
    for now in (5.0, 15.0, 35.0):
        desk.welcome(other(first), desk.leases[other(first)])
        assert 0 in [message.step for message in messages(desk.tick_at(now), Activations)]
    assert holder(desk) == first
    desk.commit(1, worker=other(first))
    desk.tick_at(75.0)
    assert holder(desk) == other(first)


def test_what_the_silent_worker_says_late_does_no_harm() -> None:
    desk = silenced()
    first = holder(desk)
    for now in (5.0, 15.0, 35.0):
        desk.tick_at(now)
    assert kinds(desk.outputs(0, worker=first)) == ["Refused"]
    assert kinds(desk.resend(0, worker=first)) == ["Refused"]
    assert desk.state_of(0) is ExchangeState.ACTIVATIONS
    assert not desk.worker(first).is_silent, "but it is no longer silent"
    assert kinds(desk.commit(0, worker=first)) == ["StepCommitted"]
    assert desk.session.num_outstanding == 0
    assert desk.worker(other(first)).outstanding == set()


def test_a_silent_worker_that_does_not_know_the_lease_any_more_is_leased_anew() -> None:
    desk = silenced()
    first = holder(desk)
    for now in (5.0, 15.0, 35.0):
        desk.tick_at(now)
    desk.submit(1)
    desk.welcome(first, 555)
    assert desk.session.leased_workers == ("w0", "w1")
    assert holder(desk, 0) == other(first)


def test_an_evaluation_moves_too() -> None:
    desk = Desk("w0", "w1")
    desk.submit(0, Mode.EVAL)
    exchange = desk.session._exchanges._exchanges[Mode.EVAL, 0]
    first = exchange.worker
    for now in (5.0, 15.0, 35.0):
        desk.tick_at(now)
    assert exchange.worker != first


# Withdrawing --------------------------------------------------------------------------------------------------


def test_training_that_is_withdrawn_gives_its_credits_back_and_evaluations_stay() -> None:
    desk = Desk("w0", credits=3)
    desk.submit(5)
    desk.submit(6)
    desk.submit(0, Mode.EVAL)
    assert not desk.session.can_submit()
    desk.session.withdraw_training()
    assert desk.session.num_outstanding == 1
    assert desk.session.can_submit()
    assert [message.step for message in messages(desk.submit(3), Activations)] == [3]
    assert [message.step for message in messages(desk.submit(5), Activations)] == [5]


def test_what_comes_back_of_withdrawn_training_is_nothing() -> None:
    desk = Desk("w0")
    desk.submit(5)
    desk.outputs(5)
    desk.session.withdraw_training()
    assert desk.gradients(5) == []
    assert desk.outputs(5) == [Duplicate("Outputs")]
    assert desk.commit(5) == [Duplicate("ActivationGradients")]
    assert desk.resend(5) == [Duplicate("Resend")]
    assert desk.session.next_deadline() is None


def test_withdrawn_training_without_a_worker_does_not_hold_up_what_comes_after() -> None:
    desk = Desk("w0")
    desk.submit(5)
    desk.online("w0", online=False)
    desk.session.withdraw_training()
    desk.online("w0")
    desk.welcome("w0", 555)
    assert desk.session.can_submit()
    assert desk.session.num_outstanding == 0


def test_what_was_taken_back_goes_up_in_order_whoever_held_it() -> None:
    desk = Desk("w0", "w1", credits=3)
    for step in (9, 3, 7, 5):
        desk.submit(step)
    for worker in ("w1", "w0"):
        desk.online(worker, online=False)
    desk.online("w2")
    assert [message.step for message in messages(desk.welcome("w2", credits=3), Activations)] == [3, 5, 7]
