"""The worker's side of a connection, and what it counts on."""

from __future__ import annotations

from cutlayer.broker.actions import Publish, Subscribe
from cutlayer.broker.messages import GoodbyeReason, RunPhase, WorkerState
from support.conversation import make_worker, small_manifest, zeros
from support.worker_desk import Desk

# Connections -------------------------------------------------------------------------------------------------


def test_a_connection_subscribes_and_says_that_the_worker_is_online() -> None:
    session = make_worker(incarnation=7)
    subscribe, state = session.connected()
    assert subscribe == Subscribe("cutlayer/workers/w0/inbox/#")
    assert isinstance(state, Publish)
    assert (state.topic, state.retain) == ("cutlayer/workers/w0/state", True)
    digest = bytes.fromhex(small_manifest().digest())
    assert state.message == WorkerState(True, "w0", 7, digest, RunPhase.WAITING, 0, 0, "")


def test_another_connection_subscribes_for_every_lease_again() -> None:
    desk = Desk()
    desk.join("a")
    filters = [action.topic_filter for action in desk.session.connected() if isinstance(action, Subscribe)]
    assert filters == ["cutlayer/workers/w0/inbox/#", "a/up/w0/+", "a/up/telemetry", "a/up/missing", "a/state"]


# Plans -------------------------------------------------------------------------------------------------------


def test_planned_samples_are_those_of_the_agents_known_less_what_leavers_will_not_do() -> None:
    desk = Desk(samples=4)
    desk.join("a", num_samples=8)
    desk.join("b", num_samples=100)
    assert desk.session.planned_samples == 2 * 108
    for step in range(2):
        desk.train("b", step)
    desk.goodbye("b", GoodbyeReason.LEFT)
    assert desk.session.planned_samples == 2 * 8 + 8
    desk.hello("b", incarnation=2, num_samples=100)
    assert desk.session.planned_samples == 2 * 108


def test_who_is_dropped_is_not_planned_for_either() -> None:
    desk = Desk()
    desk.join("a", num_samples=8)
    desk.join("b", num_samples=100)
    desk.offline("b")
    desk.session.tick(1.0)
    assert desk.session.planned_samples == 2 * 108
    desk.session.tick(31.0)
    assert desk.session.planned_samples == 2 * 8


def test_who_completes_stays_planned_for() -> None:
    desk = Desk(samples=4)
    desk.join("b")
    desk.join("a", num_samples=6)
    for step in range(4):
        desk.activations("a", step, num_samples=4 if step % 2 == 0 else 2)
        desk.compute()
        desk.gradients("a", step, gradients=zeros(4 if step % 2 == 0 else 2, 2))
        desk.now += 10.0
        desk.compute()
    desk.goodbye("a")
    assert desk.session.planned_samples == 2 * 8 + 12
