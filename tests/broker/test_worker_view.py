"""What a driver may read of its session: credits, what a window wants, who is first."""

from __future__ import annotations

from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.messages import RunPhase, WorkerState
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from support.conversation import Conversation, make_worker, small_manifest


def session_named(name: str) -> WorkerSession:
    numbers = iter(range(100, 1 << 32))
    manifest = small_manifest(mode="asynchronous", samples=8)
    return WorkerSession(name, 1, manifest, WorkerLimits(), LeaseTable(lambda: next(numbers)), is_pooled=True)


def hear(session: WorkerSession, name: str, *, online: bool = True, digest: bytes | None = None) -> None:
    own = bytes.fromhex(session.manifest.digest())
    state = WorkerState(online, name, 1, own if digest is None else digest, RunPhase.TRAINING, 1, 0, "")
    session.receive(WorkerTopics(name).state, state, 0.0)


def standing(session: WorkerSession) -> tuple[bool, int]:
    """Return whether it is first, and of how many workers."""
    return session.view.is_first, session.view.num_workers


def test_the_worker_with_the_lowest_name_of_those_online_is_first() -> None:
    session = session_named("w1")
    assert standing(session) == (True, 1)
    hear(session, "w2")
    assert standing(session) == (True, 2)
    hear(session, "w0")
    assert standing(session) == (False, 3)
    hear(session, "w0", online=False)
    assert standing(session) == (True, 2)


def test_a_worker_of_another_run_is_not_counted() -> None:
    session = session_named("w1")
    hear(session, "w0", digest=bytes(32))
    assert standing(session) == (True, 1)


def test_credits_are_granted_with_leases_and_used_by_microbatches() -> None:
    talk = Conversation(make_worker(small_manifest()), small_manifest())
    assert (talk.worker.view.credits_granted, talk.worker.view.credits_used) == (0, 0)
    talk.join("a", 40)
    talk.deliver_all()
    assert talk.worker.view.credits_granted == WorkerLimits().credits
    assert talk.worker.view.credits_used == WorkerLimits().credits  # the agent has used them at once


def test_an_asynchronous_window_wants_its_samples_and_a_synchronous_one_a_microbatch_of_each() -> None:
    assert session_named("w0").view.wanted_samples == 8
    manifest = small_manifest(mode="synchronous")
    talk = Conversation(make_worker(manifest), manifest, is_automatic=False)
    for agent in ("a", "b"):
        talk.join(agent, 40)
    talk.deliver_all()
    assert talk.worker.view.wanted_samples == 2 * manifest.microbatch_samples
