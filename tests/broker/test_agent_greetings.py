"""When an agent says Hello."""

from __future__ import annotations

from itertools import pairwise

from cutlayer.broker.agent_session import AgentSession, Deadlines
from cutlayer.broker.messages import RunPhase, WorkerState
from cutlayer.broker.topics import AgentTopics
from support.agent_desk import DIGEST, Desk, kinds
from support.conversation import BYTE_STAGES, CODECS

STATE = WorkerState(True, "w0", 1, DIGEST, RunPhase.TRAINING, agents=0, version=0, reason="")


def claiming() -> AgentSession:
    """Return a session that connects at 10 s, and waits for an answer to its claim."""
    session = AgentSession(AgentTopics("clinic/07"), 1_000, deadlines=Deadlines(claim_hello_s=0.5))
    session.connected(10.0)
    return session


def test_after_the_first_connection_a_hello_waits_for_an_answer_to_the_claim() -> None:
    session = claiming()
    session.receive(STATE, 10.1)
    assert session.ready(DIGEST, 40, CODECS, BYTE_STAGES, 10.2) == []
    assert session.next_deadline() == 10.5
    assert session.tick(10.4) == []
    assert kinds(session.tick(10.5)) == ["Hello"]


def test_a_worker_that_comes_later_is_asked_at_once() -> None:
    session = claiming()
    session.ready(DIGEST, 40, CODECS, BYTE_STAGES, 10.2)
    assert kinds(session.receive(STATE, 10.6)) == ["Hello"]


def test_after_another_connection_nothing_is_waited_for() -> None:
    session = claiming()
    session.receive(STATE, 10.1)
    session.ready(DIGEST, 40, CODECS, BYTE_STAGES, 10.6)
    assert kinds(session.connected(20.0))[-1] == "Hello"


def test_a_draining_worker_is_not_asked_for_a_lease_until_it_drains_no_longer() -> None:
    desk = Desk()
    assert desk.online("w0", is_draining=True) == []
    assert desk.session.next_deadline() is None
    assert desk.tick_at(100.0) == []
    assert kinds(desk.online("w0")) == ["Hello"]


def test_a_silent_worker_is_asked_less_and_less_often_until_it_says_something() -> None:
    desk = Desk("w0")
    desk.worker().is_silent = True
    times = []
    for _ in range(6):
        due = desk.session.next_deadline()
        assert due is not None
        assert kinds(desk.tick_at(due)) == ["Hello"]
        times.append(due)
    assert [later - earlier for earlier, later in pairwise(times[1:])] == [4.0, 8.0, 16.0, 32.0]
    desk.welcome("w0", desk.leases["w0"])
    assert desk.session.next_deadline() is None
