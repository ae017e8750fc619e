"""The rounds of workers, over a pool in memory: what each end of a round does to session and engine."""

from __future__ import annotations

from typing import TypeVar

import pytest
from pydantic import JsonValue

from cutlayer.broker.actions import Publish, WorkerAction
from cutlayer.broker.errors import RunError
from cutlayer.broker.leases import LeaseTable
from cutlayer.broker.manifest import Manifest
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Resend,
    RunPhase,
    WindowState,
    WorkerState,
)
from cutlayer.broker.work import Backward, Commit, Forward
from cutlayer.broker.worker_rounds import ROUND_PAUSE_S
from cutlayer.broker.worker_session import WorkerLimits, WorkerSession
from cutlayer.server_worker.arithmetic import Arithmetic
from cutlayer.server_worker.checkpoint import Checkpoint
from cutlayer.server_worker.counting_engine import CountingEngine, contribution_of
from cutlayer.server_worker.events import Event, RoundEnded, StateTakenOver, WindowCommitted
from cutlayer.server_worker.memory_pool import MemoryLighthouse, MemoryPool
from cutlayer.server_worker.rounds import ANNOUNCE_S, Rounds, compare_manifests
from support.conversation import BYTE_STAGES, CLASSES, CODECS, MICROBATCH, image_tokens, small_manifest, zeros
from support.manual_clock import ManualClock

AnyMessage = TypeVar("AnyMessage", bound=Message)
AnyEvent = TypeVar("AnyEvent", bound=Event)


class Member:
    """A worker without its network: session, counting engine and rounds."""

    def __init__(self, place: Place, name: str, manifest: Manifest, num_classes: int = len(CLASSES)) -> None:
        numbers = iter(range(100, 1 << 32))
        self.clock = place.clock
        self.session = WorkerSession(
            name, 1, manifest, WorkerLimits(credits=4), LeaseTable(lambda: next(numbers)), is_pooled=True
        )
        self.engine = CountingEngine(num_classes)
        self.pool = MemoryPool(place.lighthouse, name)
        self.actions: list[WorkerAction] = []
        self.events: list[Event] = []
        self.arithmetic = Arithmetic(self.session, self.engine, self.actions.extend, self.events.append, self.clock)
        self.rounds = Rounds(
            self.pool,
            self.session,
            self.arithmetic,
            self.snapshot,
            self.actions.extend,
            self.events.append,
            self.clock,
        )

    def snapshot(self) -> Checkpoint:
        session = self.session
        meta: dict[str, JsonValue] = {
            "manifest": session.manifest.to_bytes().decode(),
            "window": session.window,
            "committed_samples": session.committed_samples,
            "known_samples": dict(session.known_samples),
        }
        return Checkpoint(self.engine.state_dict(), session.ledger.to_bytes(), meta)

    def train(self, agent: str, step: int = 0) -> None:
        """Bring an agent's step into the open window."""
        session, now = self.session, self.clock()
        if session.leases.of(agent) is None:
            digest = bytes.fromhex(session.manifest.digest())
            hello = Hello(agent, 1, digest, 8, CODECS, BYTE_STAGES, "v1")
            session.receive(f"cutlayer/workers/{session.name}/inbox/{agent}", hello, now)
        lease = session.leases.of(agent)
        assert lease is not None
        topic = f"{agent}/up/{session.name}"
        sent = Activations(lease.lease, step, Mode.TRAIN, MICROBATCH, image_tokens())
        session.receive(f"{topic}/activations", sent, now)
        forward = session.next_work(now)
        assert isinstance(forward, Forward)
        self.arithmetic.forward(forward)
        gradients = OutputGradients(lease.lease, step, session.version, zeros(MICROBATCH, len(CLASSES)))
        session.receive(f"{topic}/gradients", gradients, now)
        backward = session.next_work(now)
        assert isinstance(backward, Backward)
        self.arithmetic.backward(backward)

    def begin(self, *, is_due: bool = True) -> None:
        samples, microbatches = self.session.rounds.part("", b"", is_due=None).num_samples, 0
        self.rounds.begin(Commit(self.session.window, samples, microbatches, None, is_due), self.clock())

    def poll(self) -> bool:
        return self.rounds.poll(self.clock())

    def said(self, kind: type[AnyMessage]) -> list[AnyMessage]:
        return [
            action.message
            for action in self.actions
            if isinstance(action, Publish) and isinstance(action.message, kind)
        ]

    def seen(self, kind: type[AnyEvent]) -> list[AnyEvent]:
        return [event for event in self.events if isinstance(event, kind)]


class Place:
    """A lighthouse and members around it, of runs of the same settings."""

    def __init__(self) -> None:
        self.clock = ManualClock(10.0)
        self.failing: set[str] = set()
        self.lighthouse = MemoryLighthouse(self.clock, join_timeout_s=5.0, fails=lambda name: name in self.failing)

    def add(self, name: str, **settings: object) -> Member:
        manifest = small_manifest(epochs=2, mode="asynchronous", samples=64)
        return Member(self, name, manifest.model_copy(update={"run_id": f"run-of-{name}", **settings}))

    def seat(self, *members: Member) -> None:
        """Let members have their first round together."""
        self.lighthouse.is_up = False
        for member in members:
            member.rounds.join(self.clock())
        self.lighthouse.is_up = True
        for member in members:
            assert not member.poll()
            assert member.rounds.is_member
            member.actions.clear()
            member.events.clear()


def pair() -> tuple[Place, Member, Member]:
    """Return two members that have had their first round."""
    place = Place()
    first, second = place.add("w0"), place.add("w1")
    place.seat(first, second)
    return place, first, second


def weight_of(*steps: tuple[str, int]) -> int:
    return sum(contribution_of((agent, "train", step)) for agent, step in steps) % (1 << 62)


# Joining -----------------------------------------------------------------------------------------------------


def test_the_first_round_makes_members_that_agree_on_the_run() -> None:
    _, first, second = pair()
    assert first.session.manifest.run_id == second.session.manifest.run_id
    assert (first.session.window, second.session.window) == (0, 0)
    assert first.rounds.next_poll(10.0) is None


def test_a_worker_that_joins_says_so_until_the_others_have_heard_it() -> None:
    place, first, _ = pair()
    late = place.add("w2")
    late.rounds.join(place.clock())
    late.rounds.join(place.clock() + ANNOUNCE_S / 2)
    assert [state.closes for state in late.said(WindowState)] == [True]
    late.rounds.join(place.clock() + ANNOUNCE_S)
    assert [state.closes for state in late.said(WindowState)] == [True, True]
    assert late.rounds.next_poll(1.0) == 1.0 + late.pool.poll_s
    assert not late.poll()
    assert not late.rounds.is_member
    assert first.seen(RoundEnded) == []


def test_a_worker_that_joins_takes_over_weights_ledger_and_the_window_that_is_committed_then() -> None:
    place, first, second = pair()
    first.train("a")
    first.begin()
    second.begin(is_due=False)
    assert first.poll()
    assert second.poll()
    late = place.add("w2")
    late.rounds.join(place.clock())
    first.train("a", 1)
    first.begin()
    second.begin(is_due=False)
    assert [member.poll() for member in (first, second, late)] == [True, True, True]
    assert late.seen(StateTakenOver) == [StateTakenOver(1)]
    assert late.engine.weight == first.engine.weight == weight_of(("a", 0), ("a", 1))
    assert late.session.ledger.to_bytes() == first.session.ledger.to_bytes()
    assert (late.session.window, late.session.committed_samples) == (2, 2 * MICROBATCH)
    assert late.session.manifest == first.session.manifest


def test_a_checkpoint_does_not_count_where_somebody_serves_whatever_run_that_is() -> None:
    place, first, second = pair()
    old = place.add("w2")
    old.session.rounds.take_over(
        old.session.manifest,
        old.session.ledger,
        {},
        window=500,
        version=500,
        committed_samples=0,
        generation=0,
        now=place.clock(),
    )
    digest = bytes.fromhex(first.session.manifest.digest())
    state = WorkerState(True, "w0", 1, digest, RunPhase.TRAINING, 0, 0, "", is_draining=False, pool_generation=1)
    old.session.receive("cutlayer/workers/w0/state", state, place.clock())
    old.rounds.join(place.clock())
    first.train("a")
    first.begin()
    second.begin(is_due=False)
    for member in (first, second, old):
        member.poll()
    assert first.seen(StateTakenOver) == []
    assert old.session.window == first.session.window == 1


def test_a_worker_of_other_settings_is_told_which_they_are() -> None:
    place, first, second = pair()
    other = place.add("w2", seed=2)
    other.rounds.join(place.clock())
    first.begin(is_due=False)
    second.begin(is_due=False)
    with pytest.raises(RunError, match=r"other settings \(seed\)\n  fix:"):
        other.poll()


def test_runs_differ_by_their_settings_and_not_by_their_ids() -> None:
    ours = small_manifest()
    assert compare_manifests(ours, ours.model_copy(update={"run_id": "another"})) == ""
    assert compare_manifests(ours, ours.model_copy(update={"seed": 7, "epochs": 9})) == "seed, epochs"


# Committing --------------------------------------------------------------------------------------------------


def test_a_window_is_committed_with_the_sums_of_all() -> None:
    _, first, second = pair()
    first.train("a")
    second.train("b")
    first.begin()
    assert not first.poll()
    second.begin(is_due=False)
    for member, agent in ((first, "a"), (second, "b")):
        assert member.poll()
        assert not member.poll()
        assert member.engine.weight == weight_of(("a", 0), ("b", 0))
        assert {agent: list(member.session.ledger.of(agent)) for agent in ("a", "b")} == {
            "a": [(0, 1)],
            "b": [(0, 1)],
        }
        assert len(member.said(ActivationGradients)) == 1, "each tells its own agents"
        assert member.engine.committed == {(agent, "train", 0): 1}
        assert [(event.num_samples, event.num_microbatches) for event in member.seen(WindowCommitted)] == [(8, 2)]
        assert [(event.num_workers, event.failed) for event in member.seen(RoundEnded)] == [(2, False)]


def test_a_part_that_was_left_out_is_in_no_weights_and_asked_for_again() -> None:
    _, first, second = pair()
    first.train("a")
    second.train("a")
    second.train("b")
    first.begin()
    second.begin()
    assert first.poll()
    assert second.poll()
    assert first.engine.weight == second.engine.weight == weight_of(("a", 0))
    assert [resend.step for resend in second.said(Resend)] == [0]
    assert not second.engine.committed, "nothing of its own was committed"
    second.train("b")
    second.begin()
    first.begin(is_due=False)
    assert second.poll()
    assert second.engine.weight == weight_of(("a", 0), ("b", 0))


def test_a_round_that_commits_nothing_keeps_the_window_and_its_sums() -> None:
    _, first, second = pair()
    first.train("a")
    first.begin(is_due=False)
    second.begin(is_due=False)
    assert not first.poll()
    assert not second.poll()
    assert first.engine.weight == 0
    assert first.session.rounds.part("", b"", is_due=True).steps == (("a", 0),)
    first.begin()
    second.begin(is_due=False)
    assert first.poll()
    assert first.engine.weight == weight_of(("a", 0))


# Failing -----------------------------------------------------------------------------------------------------


def test_after_a_round_that_failed_everybody_tries_again_and_the_step_is_in_the_weights_once() -> None:
    place, first, second = pair()
    first.train("a")
    place.failing = {"w0", "w1"}
    first.begin()
    second.begin(is_due=False)
    assert not first.poll()
    assert not second.poll()
    assert [event.failed for event in first.seen(RoundEnded)] == [True]
    assert first.session.next_work(place.clock()) is None
    place.clock.now_s += ROUND_PAUSE_S
    place.failing = set()
    first.begin()
    second.begin(is_due=False)
    assert first.poll()
    assert first.engine.weight == weight_of(("a", 0))
    assert list(first.session.ledger.of("a")) == [(0, 1)]


def test_whoever_alone_has_missed_a_commit_takes_it_over_and_asks_for_what_the_others_do_not_have() -> None:
    place, first, second = pair()
    first.train("a")
    second.train("b")
    second.train("c")
    place.failing = {"w1"}
    first.begin()
    second.begin()
    assert first.poll(), "the sums had been added up by then"
    assert not second.poll()
    place.failing = set()
    second.train("d")
    first.train("a", 1)
    first.begin()
    second.begin()
    assert first.poll()
    assert second.poll()
    assert second.engine.weight == first.engine.weight
    assert second.engine.weight == weight_of(("a", 0), ("b", 0), ("c", 0), ("a", 1))
    assert second.session.ledger.to_bytes() == first.session.ledger.to_bytes()
    assert len(second.said(ActivationGradients)) == 2, "b and c are committed"
    assert len(second.said(Resend)) == 1, "d is not"
    assert second.engine.num_live_graphs == 0


def test_a_worker_whose_weights_differ_takes_the_pools_over_and_nothing_is_committed_before() -> None:
    place, first, second = pair()
    first.train("a")
    second.train("b")
    second.engine.weight = 7
    first.begin()
    second.begin()
    assert [member.poll() for member in (second, first)] == [False, False]
    assert first.session.window == 0
    place.clock.now_s += ROUND_PAUSE_S
    first.begin()
    second.begin()
    assert [member.poll() for member in (first, second)] == [True, True]
    assert first.seen(StateTakenOver) == []
    assert second.seen(StateTakenOver) == [StateTakenOver(0)]
    assert second.engine.weight == first.engine.weight == weight_of(("a", 0))
    assert len(second.said(Resend)) == 1, "what it had is asked for again"


def test_a_worker_whose_weights_differ_again_right_after_stops() -> None:
    place, first, second = pair()

    def next_round() -> bool:
        place.clock.now_s += ROUND_PAUSE_S
        first.begin(is_due=False)
        second.begin(is_due=False)
        first.poll()
        return second.poll()

    second.engine.weight = 7
    assert [next_round(), next_round()] == [False, False]
    assert second.seen(StateTakenOver) == [StateTakenOver(0)]
    second.engine.weight = 7
    with pytest.raises(RunError, match=r"weights differ from its pool's at window 0, again\n  fix:"):
        next_round()


def test_whoever_leaves_the_pool_is_not_waited_for() -> None:
    _, first, second = pair()
    first.train("a")
    first.begin()
    second.rounds.close()
    assert first.poll()
    assert first.engine.weight == weight_of(("a", 0))


def test_a_worker_without_its_broker_keeps_up_with_each_round_and_has_no_say() -> None:
    place, first, second = pair()
    second.train("b")
    for step in range(2):
        place.clock.now_s += ROUND_PAUSE_S
        again_at = second.rounds.keep_up(place.clock())
        first.train("a", step)
        first.begin()
        assert first.poll(), "nobody had to be told"
        assert second.poll()
        assert second.engine.weight == first.engine.weight
        assert again_at > place.clock()
    assert first.engine.weight == weight_of(("a", 0), ("a", 1), ("b", 0))


def test_a_worker_without_its_broker_closes_no_window_and_pauses_between_rounds() -> None:
    place = Place()
    alone = place.add("w0")
    place.seat(alone)
    alone.train("a")
    place.clock.now_s += ROUND_PAUSE_S
    begin_at = place.clock()
    for _ in range(3):
        alone.rounds.keep_up(place.clock())
        assert not alone.poll()
    assert alone.rounds.keep_up(begin_at) == begin_at + ROUND_PAUSE_S
    assert len(alone.seen(RoundEnded)) == 1
    assert alone.session.window == 0
