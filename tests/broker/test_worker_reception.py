"""Who may say what to a worker, on which topic and under which lease."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutlayer.broker.actions import Publish
from cutlayer.broker.messages import (
    MESSAGE_TYPES,
    Activations,
    Goodbye,
    Mode,
    OutputGradients,
    Resend,
    ResendReason,
    TrainingDone,
)
from support.conversation import image_tokens
from support.message_values import EXAMPLES
from support.worker_desk import INBOX, Desk, label_of, messages


@pytest.mark.parametrize("name", sorted({kind.__name__ for kind in MESSAGE_TYPES.values()}))
@pytest.mark.parametrize(
    "topic",
    [INBOX, "a/up/w0/activations", "a/up/w0/state", "a/state", "b/up/w0/gradients", "/up/x/y", "", "cutlayer/up/a"],
)
def test_any_message_on_any_topic_is_taken_without_an_exception(name: str, topic: str) -> None:
    desk = Desk()
    lease = desk.join()
    message = EXAMPLES[name]
    desk.session.receive(topic, message, 0.0)
    if isinstance(message, Activations | OutputGradients | TrainingDone | Goodbye):
        desk.session.receive(topic, replace(message, lease=lease), 0.0)
    desk.session.tick(1.0)
    desk.compute()


def test_activations_and_gradients_under_an_unknown_lease_are_told_so() -> None:
    desk = Desk()
    for actions, mode in (
        (desk.activations(lease=9, step=4, mode=Mode.EVAL), Mode.EVAL),
        (desk.gradients(lease=9, step=4), Mode.TRAIN),
    ):
        assert label_of(actions) == "lease"
        assert messages(actions, Resend) == [Resend(9, 4, mode, ResendReason.LEASE)]
        assert [action.topic for action in actions if isinstance(action, Publish)] == ["a/down/control"]


def test_another_agents_lease_is_as_good_as_none() -> None:
    desk = Desk()
    lease = desk.join("a")
    actions = desk.activations("b", lease=lease)
    assert label_of(actions) == "lease"
    assert [action.topic for action in actions if isinstance(action, Publish)] == ["b/down/control"]
    assert desk.session.num_live == 0


def test_a_message_on_a_topic_that_is_no_agents_ends_nothing() -> None:
    """A subscriber to `a/up/w0/+` gets `a/up/w0/state` too; whoever it seems to come from cannot be answered."""
    desk = Desk()
    for topic in ("a/up/w0/state", "up/w0/activations", "/up/w0/activations", "cutlayer/up/w0/activations"):
        message = Activations(9, 0, Mode.TRAIN, 4, image_tokens())
        assert label_of(desk.session.receive(topic, message, 0.0)) == "lease"


def test_training_done_under_an_unknown_lease_is_refused() -> None:
    assert label_of(Desk().done(lease=9)) == "lease"


def test_messages_that_are_not_for_a_worker_are_refused() -> None:
    assert label_of(Desk().session.receive(INBOX, EXAMPLES["Welcome"], 0.0)) == "unexpected"
