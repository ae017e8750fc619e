"""Visits at the worker's session: agents without training samples, whom no run waits for or counts."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.broker.actions import AgentJoined, Publish, TelemetryReceived, WorkerAction
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import (
    Activations,
    Goodbye,
    GoodbyeReason,
    Hello,
    Message,
    Mode,
    Outputs,
    Phase,
    Reject,
    RejectReason,
    RunPhase,
    Welcome,
    WorkerState,
)
from cutlayer.broker.topics import AgentTopics
from cutlayer.broker.worker_session import WorkerSession
from support.conversation import BYTE_STAGES, CODECS, Arithmetic, counters, image_tokens, make_worker, small_manifest


class Desk:
    """A session whose agents are played by the test."""

    def __init__(self, session: WorkerSession | None = None) -> None:
        self.session = session or make_worker(small_manifest(epochs=2))
        self.arithmetic = Arithmetic(self.session)
        self.session.connected()

    def hello(self, agent: str, num_samples: int, incarnation: int = 1, now: float = 0.0) -> list[WorkerAction]:
        digest = bytes.fromhex(self.session.manifest.digest())
        hello = Hello(agent, incarnation, digest, num_samples, CODECS, BYTE_STAGES, "v1")
        return self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", hello, now)

    def phase(self) -> RunPhase:
        return self.session.phase

    def lease(self, agent: str) -> int:
        lease = self.session.leases.of(agent)
        assert lease is not None
        return lease.lease

    def send(self, agent: str, mode: Mode, step: int = 0) -> list[WorkerAction]:
        message = Activations(self.lease(agent), step, mode, 4, image_tokens())
        actions = self.session.receive(AgentTopics(agent).up_activations("w0"), message, 0.0)
        while (some := self.arithmetic.compute(0.0)) is not None:
            actions += some
        return actions

    def goodbye(self, agent: str, lease: int, now: float = 0.0) -> list[WorkerAction]:
        message = Goodbye(lease, GoodbyeReason.COMPLETED, counters(final=True))
        return self.session.receive(f"cutlayer/workers/w0/inbox/{agent}", message, now)


def told(actions: list[WorkerAction]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, Publish)]


def test_a_visit_begins_no_run_and_is_answered_while_it_waits() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2), min_agents=1))
    actions = desk.hello("v", 0)
    assert AgentJoined("v", 0, returning=False) in actions
    assert [message.phase for message in told(actions) if isinstance(message, Welcome)] == [RunPhase.WAITING]
    assert [type(message) for message in told(desk.send("v", Mode.PREDICT))] == [Outputs]
    assert desk.phase() is RunPhase.WAITING
    desk.hello("a", 8)
    assert desk.phase() is RunPhase.TRAINING


def test_a_visit_neither_ends_a_run_nor_holds_up_its_end() -> None:
    desk = Desk()
    desk.hello("a", 8)
    desk.hello("v", 0)
    desk.goodbye("a", desk.lease("a"))
    desk.session.tick(1.0)
    assert desk.phase() is RunPhase.TRAINING, "a run without agents waits for them"
    other = Desk(make_worker(small_manifest(epochs=2), ledger=_ledger("a", 4)))
    other.hello("v", 0)
    other.hello("a", 8)
    other.session.tick(1.0)
    assert other.phase() is RunPhase.EVALUATING
    assert [type(message) for message in told(other.send("v", Mode.EVAL))] == [Outputs]
    actions = other.goodbye("a", other.lease("a"))
    assert other.phase() is RunPhase.ENDED
    assert Phase(other.lease("v"), RunPhase.ENDED, "all agents have done their epochs") in told(actions)


def _ledger(agent: str, num_steps: int) -> Ledger:
    ledger = Ledger()
    for step in range(num_steps):
        ledger.add(agent, step)
    return ledger


def test_a_visit_changes_neither_the_ledger_nor_what_is_planned_even_under_the_topic_of_an_agent() -> None:
    ledger = _ledger("a", 2)
    desk = Desk(make_worker(small_manifest(epochs=2), ledger=ledger))
    desk.hello("a", 8)
    desk.goodbye("a", desk.lease("a"))
    planned, before = desk.session.planned_samples, ledger.to_bytes()
    desk.hello("a", 0, incarnation=2)
    desk.send("a", Mode.PREDICT)
    desk.goodbye("a", desk.lease("a"))
    assert desk.session.planned_samples == planned
    assert ledger.to_bytes() == before


def test_a_resumed_run_awaits_its_agents_though_a_visit_comes_under_the_topic_of_one() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2), ledger=_ledger("a", 4), absence_grace_s=30.0))
    desk.hello("a", 0)
    desk.session.tick(1.0)
    assert desk.phase() is RunPhase.WAITING


def test_a_visit_under_the_topic_of_an_agent_that_trains_is_refused_also_while_that_is_away() -> None:
    desk = Desk()
    desk.hello("a", 8)
    lease = desk.lease("a")
    desk.session.tick(1.0)
    for now in (1.0, 65.0):  # away after a silence of lease_s
        desk.session.tick(now)
        (reject,) = told(desk.hello("a", 0, incarnation=2, now=now))
        assert isinstance(reject, Reject)
        assert reject.reason is RejectReason.CONTENT
        assert "a topic of its own" in reject.detail
    assert desk.lease("a") == lease


def test_an_agent_that_comes_to_train_takes_the_place_of_a_visit_of_its_topic() -> None:
    desk = Desk()
    desk.hello("a", 0)
    desk.hello("a", 8, incarnation=2)
    assert (desk.session.leases.num_visits, desk.session.leases.num_taking_part) == (0, 1)
    assert desk.phase() is RunPhase.TRAINING


def test_a_training_step_of_a_visit_is_refused() -> None:
    desk = Desk()
    desk.hello("v", 0)
    (reject,) = told(desk.send("v", Mode.TRAIN))
    assert isinstance(reject, Reject)
    assert desk.session.leases.of("v") is None


def test_the_counters_of_a_visit_are_no_part_of_the_run() -> None:
    desk = Desk()
    desk.hello("v", 0)
    lease = desk.lease("v")
    report = replace(counters(), samples=5)
    actions = desk.session.receive(AgentTopics("v").telemetry, report, 0.0)
    actions += desk.goodbye("v", lease)
    actions += desk.goodbye("v", lease)  # again: the answer was lost
    assert not [action for action in actions if isinstance(action, TelemetryReceived)]
    answers = [message for message in told(actions) if isinstance(message, Phase)]
    assert answers == [Phase(lease, RunPhase.ENDED, "goodbye")] * 2


def test_a_worker_tells_the_pool_of_agents_that_take_part_alone() -> None:
    desk = Desk()
    desk.hello("a", 8)
    desk.hello("v", 0)
    state = desk.session.state().message
    assert isinstance(state, WorkerState)
    assert state.agents == 1


def test_a_worker_for_visits_alone_refuses_to_train_and_never_ends_by_itself() -> None:
    desk = Desk(make_worker(small_manifest(epochs=2), ledger=_ledger("a", 4), only_visits=True))
    assert desk.phase() is RunPhase.EVALUATING
    (reject,) = told(desk.hello("a", 8))
    assert isinstance(reject, Reject)
    assert reject.reason is RejectReason.ENDED
    desk.hello("a", 0)
    assert [type(message) for message in told(desk.send("a", Mode.PREDICT))] == [Outputs]
    desk.goodbye("a", desk.lease("a"))
    desk.session.tick(1_000.0)
    assert desk.phase() is RunPhase.EVALUATING
    assert desk.session.planned_samples is None
