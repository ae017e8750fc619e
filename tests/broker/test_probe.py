from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from cutlayer.broker.actions import Publish, Refused
from cutlayer.broker.messages import Probe, ProbeAnswer
from cutlayer.broker.probe import (
    ANSWERS_PER_S,
    MOST_AT_ONCE,
    ProbeDesk,
    RoundTrip,
    clock_difference,
    probe_answers,
)
from cutlayer.broker.topics import AgentTopics, WorkerTopics, agent_of

INBOX = WorkerTopics("w0").inbox_of("clinic/07")
PROBE = Probe(0xBEEF, 1_000.25, bytes(8))


def test_a_probe_is_answered_with_the_workers_time_and_its_own_nonce() -> None:
    (action,) = ProbeDesk("w0").receive(INBOX, PROBE, now=5.0, epoch_s=2_000.5)
    assert action == Publish("clinic/07/down/probe/beef", ProbeAnswer("w0", 0xBEEF, 1_000.25, 2_000.5))


def test_a_running_agent_does_not_hear_the_answers_to_probes() -> None:
    answers = probe_answers("clinic/07", 0xBEEF)
    assert not topic_matches_sub(AgentTopics("clinic/07").down_all, answers)
    assert agent_of(answers) == "clinic/07"


@pytest.mark.parametrize(
    "topic", ["clinic/07/up/w0/activations", WorkerTopics("w1").inbox_of("clinic/07"), "clinic/07/state", "", "a/b"]
)
def test_a_probe_elsewhere_than_in_an_inbox_of_this_worker_is_refused(topic: str) -> None:
    (action,) = ProbeDesk("w0").receive(topic, PROBE, now=0.0, epoch_s=0.0)
    assert isinstance(action, Refused)
    assert action.label == "unexpected"


def test_a_flood_of_probes_gets_a_few_answers_and_others_again_later() -> None:
    desk = ProbeDesk("w0")
    at_once = [desk.receive(INBOX, PROBE, 10.0, 0.0) for _ in range(1_000)]
    assert sum(map(len, at_once)) == MOST_AT_ONCE
    later = [desk.receive(INBOX, PROBE, 11.0, 0.0) for _ in range(1_000)]
    assert sum(map(len, later)) == ANSWERS_PER_S


def test_a_refused_probe_costs_nobody_an_answer() -> None:
    desk = ProbeDesk("w0")
    for _ in range(1_000):
        desk.receive("elsewhere", PROBE, 0.0, 0.0)
    assert desk.receive(INBOX, PROBE, 0.0, 0.0)


def test_a_clock_before_1970_does_not_stop_the_worker() -> None:
    (action,) = ProbeDesk("w0").receive(INBOX, PROBE, now=0.0, epoch_s=-3.0)
    assert isinstance(action, Publish)
    assert isinstance(action.message, ProbeAnswer)
    assert action.message.answered_at == 0.0


@given(
    ahead_s=st.floats(-1e6, 1e6),
    ways=st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.0, 10.0)), min_size=1, max_size=8),
)
def test_the_true_clock_difference_lies_within_the_stated_uncertainty(
    ahead_s: float, ways: list[tuple[float, float]]
) -> None:
    trips = [RoundTrip(1_000.0, 1_000.0 + up_s + ahead_s, up_s + down_s) for up_s, down_s in ways]
    estimate = clock_difference(trips)
    assert abs(estimate.ahead_s - ahead_s) <= estimate.uncertainty_s + 1e-6
    assert estimate.uncertainty_s == min(up_s + down_s for up_s, down_s in ways) / 2


def test_equal_ways_give_the_exact_difference() -> None:
    assert clock_difference([RoundTrip(100.0, 107.5, 1.0)]).ahead_s == 7.0


def test_no_round_trip_gives_no_difference() -> None:
    with pytest.raises(ValueError, match="empty"):
        clock_difference([])
