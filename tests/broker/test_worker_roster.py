"""Agents that ask a worker for a lease, vanish, come back and leave, one message at a time."""

from __future__ import annotations

import pytest

from cutlayer.broker.actions import (
    AgentJoined,
    AgentLeft,
    Duplicate,
    Publish,
    Subscribe,
    TelemetryReceived,
    Unsubscribe,
)
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import (
    ActivationGradients,
    Busy,
    GoodbyeReason,
    Mode,
    Phase,
    Reject,
    RejectReason,
    RunPhase,
    Welcome,
)
from cutlayer.broker.work import Key
from support.conversation import counters, make_worker, small_manifest
from support.worker_desk import INBOX, Desk, absent_since, kinds, label_of, messages

# Leases ------------------------------------------------------------------------------------------------------


def test_a_hello_is_answered_with_a_lease_after_the_subscriptions() -> None:
    desk = Desk(make_worker(min_agents=2))
    actions = desk.hello("clinic/07")
    assert actions[:4] == [
        Subscribe("clinic/07/up/w0/+"),
        Subscribe("clinic/07/up/telemetry"),
        Subscribe("clinic/07/up/missing"),
        Subscribe("clinic/07/state"),
    ]
    assert actions[4] == AgentJoined("clinic/07", 8, returning=False)
    assert isinstance(actions[5], Publish)
    assert actions[5].topic == "clinic/07/down/control"
    (welcome,) = messages(actions, Welcome)
    assert (welcome.worker, welcome.incarnation, welcome.credits, welcome.phase) == ("w0", 1, 2, RunPhase.WAITING)
    assert welcome.lease == desk.lease("clinic/07")
    assert welcome.committed == ()


def test_the_same_hello_again_gets_the_same_lease() -> None:
    desk = Desk()
    lease = desk.join()
    (welcome,) = messages(desk.hello(), Welcome)
    assert welcome.lease == lease
    assert len(desk.session.leases) == 1


def test_a_new_process_gets_a_new_lease_and_the_old_one_is_unknown() -> None:
    desk = Desk()
    old = desk.join(incarnation=1)
    actions = desk.hello(incarnation=2)
    assert AgentJoined("a", 8, returning=True) in actions
    assert desk.lease() != old
    assert label_of(desk.activations(lease=old)) == "lease"


def test_a_late_hello_of_an_earlier_process_does_not_take_the_lease() -> None:
    desk = Desk()
    lease = desk.join(incarnation=5)
    assert label_of(desk.hello(incarnation=4)) == "incarnation"
    assert desk.lease() == lease


def test_a_process_whose_clock_went_back_gets_the_lease_once_the_old_one_is_absent() -> None:
    desk = Desk()
    desk.join(incarnation=5)
    desk.offline(incarnation=5)
    assert messages(desk.hello(incarnation=4), Welcome)


@pytest.mark.parametrize("agent", ["", "a/+", "#", "cutlayer/a", "a/up", "a//b"])
def test_a_hello_from_what_cannot_be_an_agents_topic_is_refused_and_not_answered(agent: str) -> None:
    desk = Desk()
    assert kinds(desk.hello(agent)) == ["Refused"]
    assert not len(desk.session.leases)


def test_a_hello_with_another_manifest_is_not_answered_since_the_agent_will_read_it_again() -> None:
    desk = Desk()
    assert label_of(desk.hello(manifest_digest=bytes(32))) == "manifest"
    assert not len(desk.session.leases)


def test_a_hello_without_the_codecs_of_the_run_is_rejected() -> None:
    desk = Desk()
    actions = desk.hello(codecs=("fp16",))
    assert label_of(actions) == "codec"
    (reject,) = messages(actions, Reject)
    assert reject.reason is RejectReason.CODEC
    assert "identity" in reject.detail


def test_a_hello_beyond_the_last_place_is_told_to_come_again() -> None:
    desk = Desk(make_worker(max_agents=2))
    desk.join("a")
    desk.join("b")
    actions = desk.hello("c")
    assert [message.retry_after_s for message in messages(actions, Busy)] == [30.0]
    assert messages(desk.hello("b", incarnation=2), Welcome), "who has a place keeps it"
    desk.goodbye("a")
    assert messages(desk.hello("c"), Welcome)


def test_a_late_copy_of_the_hello_of_a_process_that_has_said_goodbye_gets_no_lease() -> None:
    desk = Desk(make_worker(min_agents=2))
    desk.join("a", incarnation=3)
    desk.join("b")
    desk.goodbye("a", GoodbyeReason.LEFT, incarnation=3)
    assert label_of(desk.hello("a", incarnation=3)) == "departed"
    assert len(desk.session.leases) == 1
    assert messages(desk.hello("a", incarnation=4), Welcome), "another process is welcome"


def test_a_late_copy_of_the_hello_of_a_refused_agent_may_have_a_lease_again() -> None:
    desk = Desk()
    desk.join("a")
    desk.activations("a", num_samples=0, tensors=())
    assert messages(desk.hello("a"), Welcome)


def test_a_welcome_has_no_more_ranges_than_a_message_may_carry() -> None:
    ledger = Ledger()
    for step in range(0, 10_000, 2):
        ledger.add("a", step)
    desk = Desk(make_worker(small_manifest(epochs=2), ledger=ledger))
    (welcome,) = messages(desk.hello("a", num_samples=100_000), Welcome)
    assert len(welcome.committed) == 4_096


# Coming, going and coming back -------------------------------------------------------------------------------


def test_a_late_agent_joins_the_training() -> None:
    desk = Desk(samples=4)
    desk.join("a")
    desk.train("a")
    (welcome,) = messages(desk.hello("b"), Welcome)
    assert welcome.phase is RunPhase.TRAINING
    assert messages(desk.train("b"), ActivationGradients)


def test_a_process_that_comes_back_while_its_gradient_is_in_the_open_window_is_not_committed_twice() -> None:
    desk = Desk(samples=99)
    desk.join("a", incarnation=1)
    desk.join("b")
    desk.train("a", 0)
    desk.offline("a", incarnation=1)
    (welcome,) = messages(desk.hello("a", incarnation=2), Welcome)
    assert welcome.committed == ()
    assert desk.activations("a", 0) == [Duplicate("Activations")]
    desk.now = 10.0
    (commit,) = messages(desk.compute(), ActivationGradients)
    assert (commit.lease, commit.step) == (desk.lease("a"), 0)
    assert desk.arithmetic.committed == {Key("a", Mode.TRAIN, 0): 1}


def test_a_process_that_comes_back_after_the_commit_is_told_in_its_welcome() -> None:
    desk = Desk(samples=4)
    desk.join("a", incarnation=1)
    desk.train("a", 0)
    (welcome,) = messages(desk.hello("a", incarnation=2), Welcome)
    assert welcome.committed == ((0, 1),)
    (commit,) = messages(desk.activations("a", 0), ActivationGradients)
    assert commit.lease == desk.lease("a")


def test_what_an_earlier_process_had_not_sent_the_gradients_of_starts_again() -> None:
    desk = Desk(samples=99)
    desk.join("a", incarnation=1)
    desk.activations("a", 0)
    desk.compute()
    desk.activations("a", 1)
    desk.hello("a", incarnation=2)
    assert desk.session.num_live == 0
    desk.compute()
    assert not desk.arithmetic.graphs, "the graph is freed"
    assert desk.activations("a", 0) == []


def test_a_lease_that_is_dropped_while_its_microbatch_is_in_the_open_window_is_committed_and_not_told() -> None:
    desk = Desk(samples=99)
    desk.join("a")
    desk.join("b")
    desk.train("a", 0)
    desk.goodbye("a", GoodbyeReason.LEFT)
    desk.now = 10.0
    assert not messages(desk.compute(), ActivationGradients)
    assert list(desk.session.ledger.of("a")) == [(0, 1)]


def test_a_silent_agent_is_absent_then_dropped_and_anything_it_says_brings_it_back() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2), min_agents=2, lease_s=60.0, absence_grace_s=30.0))
    desk.join("a")
    assert desk.session.next_deadline(0.0) == 60.0
    desk.session.tick(59.9)
    assert absent_since(desk) is None
    desk.session.tick(60.0)
    assert absent_since(desk) == 60.0
    desk.now = 70.0
    desk.activations("a")
    assert absent_since(desk) is None
    desk.session.tick(130.0)
    assert absent_since(desk) == 130.0
    assert desk.session.next_deadline(130.0) == 160.0
    assert not any(isinstance(action, AgentLeft) for action in desk.session.tick(159.0))
    actions = desk.session.tick(160.0)
    assert AgentLeft("a", "it has been away for too long") in actions
    assert {Unsubscribe("a/up/w0/+"), Unsubscribe("a/state")} <= {
        action for action in actions if isinstance(action, Unsubscribe)
    }


def test_counters_are_a_sign_of_life_of_the_process_that_sent_them() -> None:
    desk = Desk()
    desk.join("a", incarnation=5)
    lease = desk.session.leases.of("a")
    assert lease is not None
    desk.session.receive("a/up/telemetry", counters(4), 20.0)
    assert lease.heard_at == 0.0
    assert desk.session.receive("a/up/telemetry", counters(5), 30.0) == [TelemetryReceived("a", counters(5))]
    assert lease.heard_at == 30.0


def test_counters_of_an_agent_that_never_had_a_lease_are_refused() -> None:
    desk = Desk()
    assert label_of(desk.session.receive("a/up/telemetry", counters(), 0.0)) == "lease"
    assert label_of(desk.session.receive(INBOX, counters(), 0.0)) == "lease"
    desk.join("a")
    desk.goodbye("a", GoodbyeReason.LEFT)
    assert desk.session.receive("a/up/telemetry", counters(), 0.0) == [TelemetryReceived("a", counters())]


def test_the_will_of_an_earlier_process_says_nothing_about_this_one() -> None:
    desk = Desk()
    desk.join("a", incarnation=2)
    assert desk.offline("a", incarnation=1) == []
    assert absent_since(desk) is None
    desk.offline("a", incarnation=2)
    assert absent_since(desk) == 0.0
    assert desk.offline("b") == []


def test_a_synchronous_window_waits_for_an_absent_agent_through_the_grace_period_only() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2, mode="synchronous"), absence_grace_s=30.0))
    desk.join("a")
    desk.join("b")
    desk.train("a", 0)
    desk.offline("b")
    desk.now = 29.0
    desk.session.tick(29.0)
    assert not desk.compute()
    desk.now = 30.0
    desk.session.tick(30.0)
    assert messages(desk.compute(), ActivationGradients)
    assert desk.session.leases.of("b") is None


# Goodbye -----------------------------------------------------------------------------------------------------


def test_a_goodbye_is_answered_every_time_and_taken_once() -> None:
    desk = Desk()
    lease = desk.join("a")
    desk.join("b")
    actions = desk.goodbye("a")
    assert actions[0] == TelemetryReceived("a", counters())
    assert messages(actions, Phase) == [Phase(lease, RunPhase.ENDED, "goodbye")]
    assert AgentLeft("a", "it has finished") in actions
    again = desk.goodbye("a", lease=lease)
    assert messages(again, Phase) == [Phase(lease, RunPhase.ENDED, "goodbye")]
    assert again[0] == Duplicate("Goodbye")
    assert not any(isinstance(action, AgentLeft) for action in again)


def test_a_goodbye_under_a_lease_of_before_ends_the_one_that_the_agent_does_not_know_of_yet() -> None:
    """Its connection broke and came back, its Hello has crossed its Goodbye: no lease must stay behind."""
    desk = Desk()
    old = desk.join("a", incarnation=3)
    desk.offline("a", incarnation=3)
    desk.hello("a", incarnation=3)
    actions = desk.goodbye("a", lease=old, incarnation=3)
    assert desk.session.leases.of("a") is None
    assert TelemetryReceived("a", counters(3)) in actions
    assert old in [message.lease for message in messages(actions, Phase)]


def test_a_goodbye_of_an_earlier_process_leaves_the_new_one_its_lease() -> None:
    desk = Desk()
    old = desk.join("a", incarnation=3)
    lease = desk.join("a", incarnation=4)
    actions = desk.goodbye("a", lease=old, incarnation=3)
    assert desk.lease("a") == lease
    assert kinds(actions) == ["Duplicate", "TelemetryReceived", "Phase"]


def test_a_goodbye_under_a_lease_that_never_was_is_refused() -> None:
    assert label_of(Desk().goodbye(lease=9)) == "lease"
