"""A slow link is not a dead one: pieces of unfinished messages count, and whoever cannot hear waits for nobody."""

from __future__ import annotations

from cutlayer.broker.actions import AgentLeft, Publish
from cutlayer.broker.leases import Lease
from cutlayer.broker.messages import Activations, Hello
from cutlayer.broker.worker_session import WorkerSession
from support.agent_desk import Desk, kinds
from support.conversation import BYTE_STAGES, CODECS, make_worker, small_manifest


def leased() -> tuple[WorkerSession, Lease]:
    """Return a worker and the lease of its one agent."""
    manifest = small_manifest(epochs=2)
    session = make_worker(manifest, lease_s=30.0, absence_grace_s=30.0)
    session.connected()
    hello = Hello("a", 1, bytes.fromhex(manifest.digest()), 8, CODECS, BYTE_STAGES, "v1")
    session.receive("cutlayer/workers/w0/inbox/a", hello, 0.0)
    lease = session.leases.of("a")
    assert lease is not None
    return session, lease


def absent_since(lease: Lease) -> float | None:
    """Return it anew: what one check has narrowed would hide the next."""
    return lease.absent_since


def test_a_lease_lasts_while_pieces_of_a_message_come() -> None:
    session, lease = leased()
    for second in range(0, 600, 20):
        session.heard("a/up/w0/activations", float(second))
        session.tick(float(second))
    assert absent_since(lease) is None
    session.tick(610.0)
    assert absent_since(lease) == 610.0
    session.heard("a/up/w0/activations", 611.0)
    assert absent_since(lease) is None


def test_pieces_of_an_agent_without_a_lease_are_no_news() -> None:
    session, lease = leased()
    session.heard("b/up/w0/activations", 20.0)
    session.heard("cutlayer/workers/w1/window", 20.0)
    assert lease.heard_at == 0.0


def test_a_worker_that_has_lost_its_broker_gives_nobody_up() -> None:
    session, lease = leased()
    session.tick(1.0)
    session.disconnected()
    assert session.tick(1_800.0) == []
    assert absent_since(lease) is None
    session.connected()
    session.tick(1_801.0)
    session.tick(1_830.0)
    assert absent_since(lease) is None
    session.tick(1_831.0)
    assert absent_since(lease) == 1_831.0
    assert AgentLeft("a", "it has been away for too long") in session.tick(1_861.0)


def test_an_agent_that_was_absent_before_has_its_grace_period_again() -> None:
    session, lease = leased()
    session.tick(30.0)
    assert absent_since(lease) == 30.0
    session.disconnected()
    session.connected()
    session.tick(1_800.0)
    assert absent_since(lease) == 1_800.0


def test_a_message_of_which_pieces_go_again_is_not_repeated_meanwhile() -> None:
    desk = Desk("w0")
    (publish,) = [action for action in desk.submit() if isinstance(action, Publish)]
    assert isinstance(publish.message, Activations)
    desk.session.progress(1.0, handed_bytes=1_000, pending_bytes=500)
    desk.session.progress(2.0, handed_bytes=1_000, pending_bytes=0)
    desk.session.resumed(publish.message, 6.0)
    assert kinds(desk.tick_at(10.9)) == []
    desk.session.progress(10.9, handed_bytes=1_100, pending_bytes=100)  # the pieces are still leaving
    assert kinds(desk.tick_at(15.8)) == []
    assert "Activations" in kinds(desk.tick_at(16.0))


def test_another_message_is_repeated_all_the_same() -> None:
    desk = Desk("w0")
    (first,) = [action for action in desk.submit(0) if isinstance(action, Publish)]
    desk.submit(1)
    desk.session.resumed(first.message, 4.0)
    assert kinds(desk.tick_at(5.0)).count("Activations") == 1


def test_pieces_of_an_answer_put_the_deadlines_off() -> None:
    desk = Desk("w0")
    desk.submit()
    for second in range(0, 60, 4):
        desk.session.coming(float(second))
        assert kinds(desk.tick_at(float(second))) == []
    assert "Activations" in kinds(desk.tick_at(61.0))
