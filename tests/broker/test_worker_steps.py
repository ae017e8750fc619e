"""A worker's side of a microbatch, from its activations to its commit, one message at a time."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.broker.actions import AgentLeft, Duplicate, Publish
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    EncodedTensor,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    Reject,
    RejectReason,
    Resend,
    ResendReason,
)
from cutlayer.broker.states import ExchangeState, next_state
from cutlayer.broker.work import Key
from support.conversation import IMAGE, WIDTH, image_tokens, zeros
from support.worker_desk import Desk, kinds, label_of, messages

# A step ------------------------------------------------------------------------------------------------------


def test_a_step_goes_through_its_four_messages() -> None:
    desk = Desk(samples=4)
    lease = desk.join()
    assert desk.activations(step=1) == []
    desk.now = 2.0
    actions = desk.compute()
    assert messages(actions, Outputs) == [Outputs(lease, 1, Mode.TRAIN, 0, 2.0, zeros(4, 2))]
    assert [action.topic for action in actions if isinstance(action, Publish)] == ["a/down/outputs"]
    assert desk.gradients(step=1) == []
    desk.now = 2.5
    actions = desk.compute()
    assert messages(actions, ActivationGradients) == [ActivationGradients(lease, 1, 0, 0.5, ())]
    assert [action.topic for action in actions if isinstance(action, Publish)] == ["a/down/gradients"]
    assert list(desk.session.ledger.of("a")) == [(1, 2)]
    assert (desk.session.window, desk.session.version, desk.session.committed_samples) == (1, 1, 4)


def test_an_evaluation_stops_at_its_outputs_and_is_forgotten() -> None:
    desk = Desk()
    desk.join()
    desk.activations(step=0, mode=Mode.EVAL)
    (outputs,) = messages(desk.compute(), Outputs)
    assert outputs.mode is Mode.EVAL
    assert desk.session.num_live == 0
    assert desk.session.window == 0


@pytest.mark.parametrize("state", ["ACTIVATIONS", "OUTPUTS", "GRADIENTS", "DONE"])
def test_a_copy_of_activations_is_answered_from_memory(state: str) -> None:
    desk = Desk(samples=4)
    desk.join()
    desk.join("b")  # keeps the group of `a` and the window open
    desk.activations()
    outputs = messages(desk.compute(), Outputs) if state != "ACTIVATIONS" else []
    if state in ("GRADIENTS", "DONE"):
        desk.gradients()
    if state == "DONE":
        desk.compute()
    actions = desk.activations()
    assert kinds(actions)[0] == "Duplicate"
    answer = {"OUTPUTS": ["Outputs"], "DONE": ["ActivationGradients"]}.get(state, [])
    assert kinds(actions)[1:] == answer
    assert all(action.repeated for action in actions if isinstance(action, Publish))
    if state == "OUTPUTS":
        assert messages(actions, Outputs) == outputs
    desk.now = 100.0
    desk.gradients()
    desk.compute()
    assert all(count == 1 for count in desk.arithmetic.committed.values())


def test_a_copy_of_gradients_is_ignored_and_after_the_commit_answered_with_it() -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    desk.activations()
    desk.compute()
    desk.gradients()
    assert desk.gradients() == [Duplicate("OutputGradients")]
    desk.compute()
    assert desk.gradients() == [Duplicate("OutputGradients")]
    desk.now = 10.0
    desk.compute()
    actions = desk.gradients()
    assert kinds(actions) == ["Duplicate", "ActivationGradients"]
    assert desk.arithmetic.committed == {Key("a", Mode.TRAIN, 0): 1}


@pytest.mark.parametrize("event", [Activations, OutputGradients])
@pytest.mark.parametrize(
    "state", [ExchangeState.IDLE, ExchangeState.ACTIVATIONS, ExchangeState.OUTPUTS, ExchangeState.GRADIENTS]
)
def test_the_session_goes_where_the_state_table_says(state: ExchangeState, event: type[Message]) -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    if state is not ExchangeState.IDLE:
        desk.activations()
    if state in (ExchangeState.OUTPUTS, ExchangeState.GRADIENTS):
        desk.compute()
    if state is ExchangeState.GRADIENTS:
        desk.gradients()
    actions = desk.activations() if event is Activations else desk.gradients()
    after = next_state(Mode.TRAIN, state, event)
    exchange = desk.session._run.in_hand.exchanges.get(Key("a", Mode.TRAIN, 0))
    if after is None:
        assert set(kinds(actions)) & {"Refused", "Resend"}
        after = state
    assert (exchange.state if exchange else ExchangeState.IDLE) is after


def test_gradients_of_a_step_that_is_not_here_ask_for_its_activations() -> None:
    desk = Desk()
    lease = desk.join()
    (resend,) = messages(desk.gradients(step=1), Resend)
    assert resend == Resend(lease, 1, Mode.TRAIN, ResendReason.UNKNOWN)


def test_gradients_before_their_outputs_are_refused() -> None:
    desk = Desk()
    desk.join()
    desk.activations()
    assert label_of(desk.gradients()) == "state"


def test_gradients_of_other_outputs_than_the_last_are_refused_and_answered_with_the_last() -> None:
    """An agent that has taken late outputs for the last ones would otherwise repeat its gradients for ever."""
    desk = Desk()
    desk.join()
    desk.activations()
    (outputs,) = messages(desk.compute(), Outputs)
    actions = desk.gradients(version=7)
    assert label_of(actions) == "late"
    assert messages(actions, Outputs) == [outputs]
    assert desk.gradients(version=0) == []


def test_more_than_the_credits_is_refused_and_disturbs_nothing() -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    for step in range(2):
        assert desk.activations(step=step) == []
        desk.compute()
        desk.gradients(step=step)
    assert label_of(desk.activations(step=2)) == "credits"
    assert label_of(desk.activations(step=0, mode=Mode.EVAL)) == "credits"
    assert desk.session.num_live == 2
    assert len(desk.session.leases) == 2


def test_a_step_beyond_the_credits_takes_the_place_of_the_oldest_that_its_agent_has_taken_back() -> None:
    desk = Desk(samples=99)
    desk.join()
    desk.join("b")
    desk.activations("b")
    for step in (2, 3, 0):
        assert desk.activations(step=step) == []
    assert [(key.agent, key.step) for key in desk.session.live_keys()] == [("b", 0), ("a", 3), ("a", 0)]
    assert desk.activations(step=0, mode=Mode.EVAL) == []
    assert [(key.agent, key.step) for key in desk.session.live_keys()] == [("b", 0), ("a", 0), ("a", 0)]


def test_in_synchronous_mode_an_earlier_step_beyond_the_credits_takes_the_place_of_the_last() -> None:
    desk = Desk(mode="synchronous")
    desk.join()
    for step in (2, 3, 1):
        assert desk.activations(step=step) == []
    assert [key.step for key in desk.session.live_keys()] == [2, 1]
    assert desk.activations(step=3) == []
    assert [key.step for key in desk.session.live_keys()] == [1, 3], "what is later than all takes the oldest's"


def test_gradients_of_weights_that_are_too_old_are_answered_with_new_outputs() -> None:
    """The activations are still here: a slow link carries them once."""
    desk = Desk(samples=4, max_staleness=0)
    desk.join("a")
    desk.join("b")
    desk.activations("a", 0)
    (old,) = messages(desk.compute(), Outputs)
    actions = desk.train("b", 0)
    assert messages(actions, Resend) == []
    assert desk.gradients("a", 0, version=old.version) == []
    (new,) = messages(desk.compute(), Outputs)
    assert (new.step, new.version) == (0, old.version + 1)
    refused = desk.gradients("a", 0, version=old.version)
    assert label_of(refused) == "late"
    desk.gradients("a", 0, version=new.version)
    assert messages(desk.compute(), ActivationGradients)


# Content -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"tensors": ()}, "modalities"),
        ({"tensors": (("smell", zeros(4, 4, 2)),)}, "modalities"),
        ({"tensors": image_tokens() * 2}, "modalities"),
        ({"tensors": (("image", zeros(4, 5, 2)),)}, "shape"),
        ({"tensors": (("image", zeros(3, 4, 2)),)}, "shape"),
        ({"tensors": (("image", zeros(4, 4, 2, codec="fp16")),)}, "encoded as 'fp16'"),
        ({"tensors": (("image", EncodedTensor("identity", (4, IMAGE.num_tokens, WIDTH), bytes(999))),)}, "999 B"),
        ({"num_samples": 5}, "5 samples"),
        ({"num_samples": 0}, "0 samples"),
        ({"step": 4}, "step 4 of an agent that has 4"),
    ],
)
def test_activations_that_no_repetition_would_mend_end_their_agent_and_nobody_else(
    changes: dict[str, Any], detail: str
) -> None:
    desk = Desk()
    desk.join("a")
    desk.join("b")
    actions = desk.activations("a", **changes)
    assert label_of(actions) == "content"
    (reject,) = messages(actions, Reject)
    assert reject.reason is RejectReason.CONTENT
    assert detail in reject.detail
    assert AgentLeft("a", "it was refused") in actions
    assert desk.session.leases.of("b") is not None
    assert desk.session.num_live == 0


@pytest.mark.parametrize("gradients", [zeros(4, 3), zeros(3, 2), zeros(4, 2, codec="fp16")])
def test_gradients_that_no_repetition_would_mend_end_their_agent(gradients: EncodedTensor) -> None:
    desk = Desk()
    desk.join()
    desk.activations()
    desk.compute()
    actions = desk.gradients(gradients=gradients)
    assert label_of(actions) == "content"
    assert messages(actions, Reject)
    desk.compute()
    assert not desk.arithmetic.graphs
    assert desk.session.num_live == 0


def test_tensors_that_cannot_be_decoded_end_their_agent_during_the_work_too() -> None:
    desk = Desk(samples=8)
    desk.join("a")
    desk.join("b")
    for agent in "ab":
        desk.activations(agent)
    desk.compute()
    for agent in "ab":
        desk.gradients(agent)
    actions = desk.session.fail_content(Key("a", Mode.TRAIN, 0), "outputs: NaN")
    assert messages(actions, Reject)
    desk.compute()
    desk.now = 10.0
    desk.compute()
    assert desk.arithmetic.committed == {Key("b", Mode.TRAIN, 0): 1}
    assert desk.session.fail_content(Key("a", Mode.TRAIN, 0), "again") == []
