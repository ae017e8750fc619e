"""Both sessions together: ordinary runs, the races one by one, and a seeded walk through all of them at once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.broker.actions import AgentLeft, PhaseReached
from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.errors import Rejected
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import (
    ActivationGradients,
    Activations,
    Goodbye,
    Hello,
    Message,
    Mode,
    OutputGradients,
    Outputs,
    Phase,
    Resend,
    ResendReason,
    RunPhase,
    TrainingDone,
    Welcome,
    WorkerState,
    parse,
    serialize,
)
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.topics import WorkerTopics
from cutlayer.broker.work import Commit, Key
from support.conversation import (
    WORKER,
    Conversation,
    Letter,
    make_worker,
    small_manifest,
)
from support.message_values import ANY_MESSAGE

# Ordinary runs and single accidents --------------------------------------------------------------------------

SIZES = {"site/0": 6, "site/1": 9}
NUM_STEPS = {"site/0": 4, "site/1": 6}
SHORT = Deadlines(hello_s=1.0, step_s=2.0, longest_s=8.0, claim_hello_s=0.0)


class Meddler:
    """An ordinary run of two agents, with something done to it at one event."""

    def __init__(self, mode: str, **limits: Any) -> None:
        self.manifest = small_manifest(epochs=2, mode=mode, samples=8, max_staleness=1)
        self.limits: dict[str, Any] = {"min_agents": 2, "lease_s": 20.0, "absence_grace_s": 10.0} | limits
        self.talk = Conversation(make_worker(self.manifest, **self.limits), self.manifest, SHORT)
        self.num_events = 0
        self.late: list[Letter] = []
        for name, num_samples in SIZES.items():
            self.talk.join(name, num_samples)

    @property
    def is_done(self) -> bool:
        return self.talk.worker.phase is RunPhase.ENDED and not self.talk.trainers

    def event(self) -> None:
        """Deliver the oldest message, or compute one thing, or let time pass."""
        self.num_events += 1
        if self.talk.under_way:
            self.talk.deliver(self.talk.under_way[0])
        elif self.talk.compute() is None:
            self.talk.pass_time(0.25)

    def run(self, at: int = -1, accident: Callable[[Conversation], None] = lambda _: None) -> None:
        """Run to the end, with an accident before one event."""
        while not self.is_done:
            if self.num_events == at:
                accident(self.talk)
            self.event()
            assert self.talk.now < 300.0, "it does not end"
        for letter in self.late:
            self.talk.deliver(letter)

    def check(self) -> None:
        """Check that every step was committed once, and that nothing is left over."""
        expected = {Key(name, Mode.TRAIN, step) for name, steps in NUM_STEPS.items() for step in range(steps)}
        assert self.talk.arithmetic.committed == dict.fromkeys(expected, 1)
        assert self.talk.worker.num_live == 0
        self.talk.compute_all()
        assert not self.talk.arithmetic.graphs
        assert not len(self.talk.worker.leases)


def num_events_of(mode: str) -> int:
    """Return how many events an ordinary run has."""
    meddler = Meddler(mode)
    meddler.run()
    return meddler.num_events


MODES = ("asynchronous", "synchronous")
MOMENTS = [(mode, at) for mode in MODES for at in range(0, num_events_of(mode), 4)]


@pytest.mark.parametrize("mode", MODES)
def test_an_ordinary_run_commits_every_step_once_evaluates_and_ends(mode: str) -> None:
    meddler = Meddler(mode)
    trainers = dict(meddler.talk.trainers)
    meddler.run()
    meddler.check()
    assert meddler.talk.now < 10.0, "nothing had to be repeated"
    for name, trainer in trainers.items():
        assert trainer.failed is None
        assert trainer.told == dict.fromkeys(range(NUM_STEPS[name]), 1)
        assert trainer.session.num_repeats == 0
    assert meddler.talk.worker.committed_samples == 2 * (6 + 9)
    assert {event.phase for event in meddler.talk.worker_events if isinstance(event, PhaseReached)} == {
        RunPhase.TRAINING,
        RunPhase.EVALUATING,
        RunPhase.ENDED,
    }


KINDS = [
    Hello,
    Welcome,
    Activations,
    Outputs,
    OutputGradients,
    ActivationGradients,
    Phase,
    TrainingDone,
    Goodbye,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["lost", "doubled", "late", "last"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_happens_to_every_third_message_of_a_kind_the_run_ends_well(
    kind: type[Message], what: str, mode: str
) -> None:
    """Lost; doubled at once; a copy delivered three events later; a copy delivered when all is over."""
    meddler = Meddler(mode)
    talk, seen = meddler.talk, 0
    pending: list[tuple[int, Letter]] = []
    deliver = talk.deliver

    def meddle(letter: Letter) -> None:
        nonlocal seen
        seen += isinstance(letter.message, kind)
        if not isinstance(letter.message, kind) or seen % 3 != 1:
            deliver(letter)
        elif what == "lost":
            talk.under_way.remove(letter)
        else:
            deliver(letter)
            if what == "doubled":
                deliver(letter)
            elif what == "late":
                pending.append((meddler.num_events + 3, letter))
            else:
                meddler.late.append(letter)
        for due, copy in list(pending):
            if meddler.num_events >= due:
                pending.remove((due, copy))
                deliver(copy)

    talk.deliver = meddle  # type: ignore[method-assign]
    meddler.run()
    meddler.check()
    assert seen


@pytest.mark.parametrize(("mode", "at"), MOMENTS)
def test_an_agent_killed_and_started_again_at_any_moment_takes_up_where_it_was(mode: str, at: int) -> None:
    def accident(talk: Conversation) -> None:
        if "site/1" in talk.trainers:
            talk.kill("site/1")
            talk.join("site/1", SIZES["site/1"])

    meddler = Meddler(mode)
    meddler.run(at, accident)
    meddler.check()


@pytest.mark.parametrize(("mode", "at"), MOMENTS)
def test_a_connection_that_breaks_for_a_moment_costs_nothing(mode: str, at: int) -> None:
    def accident(talk: Conversation) -> None:
        if "site/1" in talk.trainers:
            talk.blip("site/1")

    meddler = Meddler(mode)
    meddler.run(at, accident)
    meddler.check()


@pytest.mark.parametrize(("mode", "at"), MOMENTS)
def test_a_worker_resumed_from_the_very_first_checkpoint_has_every_step_done_again(mode: str, at: int) -> None:
    def accident(talk: Conversation) -> None:
        if talk.worker.phase in (RunPhase.WAITING, RunPhase.TRAINING):
            worker = make_worker(meddler.manifest, incarnation=2, first_lease=900, **meddler.limits)
            talk.restart_worker(worker, Counter())

    meddler = Meddler(mode)
    meddler.run(at, accident)
    meddler.check()


@pytest.mark.parametrize(("mode", "at"), MOMENTS)
def test_an_agent_that_never_comes_back_does_not_hold_the_others_for_longer_than_the_grace_period(
    mode: str, at: int
) -> None:
    def accident(talk: Conversation) -> None:
        if "site/1" in talk.trainers:
            talk.kill("site/1")

    meddler = Meddler(mode, min_agents=1)
    meddler.run(at, accident)
    committed = meddler.talk.arithmetic.committed
    assert {key.step for key in committed if key.agent == "site/0"} == set(range(NUM_STEPS["site/0"]))
    assert set(committed.values()) == {1}
    assert meddler.talk.now < 15.0
    meddler.talk.compute_all()
    assert not meddler.talk.arithmetic.graphs


# Races that once went wrong ----------------------------------------------------------------------------------


def alone(mode: str = "synchronous", **limits: Any) -> Conversation:
    """Return a conversation with one agent of two steps, whose driver is the test."""
    manifest = small_manifest(epochs=2, mode=mode, samples=4, max_staleness=1)
    talk = Conversation(make_worker(manifest, **limits), manifest, SHORT, is_automatic=False)
    talk.join("a", 4)
    talk.deliver_all()
    return talk


def go_on(talk: Conversation, until: Callable[[], bool]) -> None:
    """Let one thing after the other happen until a condition holds."""
    for _ in range(1_000):
        if until():
            return
        if talk.under_way:
            talk.deliver(talk.under_way[0])
        elif talk.compute() is None:
            talk.pass_time(0.5)
    raise AssertionError("it never comes to that")


def test_late_outputs_after_a_resend_do_not_stop_the_step_for_ever() -> None:
    """Outputs of old weights arrive after the Resend that recalled them; only gradients of new ones are taken."""
    talk = alone()
    talk.submit("a", 0)
    talk.deliver_all()
    talk.compute_all()
    late = talk.take(Outputs)
    exchange = talk.worker._run.in_hand.exchanges[Key("a", Mode.TRAIN, 0)]
    talk.worker._run.in_hand.discard(exchange.key)  # as when the weights have moved on
    talk.agent_does("a", talk.trainers["a"].session.receive(Resend(100, 0, Mode.TRAIN, ResendReason.STALE), 0.0))
    talk.arithmetic.version = 5
    talk.deliver(late)
    talk.settle()
    assert talk.arithmetic.committed == {Key("a", Mode.TRAIN, 0): 1}


def test_a_worker_that_has_dropped_an_agent_in_silence_hears_its_hello() -> None:
    """The worker gave up its subscriptions with the lease: the agent's repetitions reach nobody."""
    talk = alone(lease_s=3.0, absence_grace_s=3.0)
    talk.submit("a", 0)
    talk.deliver_all()
    talk.compute_all()
    for _ in range(10):  # the link is dead for a while
        talk.under_way.clear()
        talk.now += 1.0
        talk.worker_events += talk.worker.tick(talk.now)
    assert not len(talk.worker.leases)
    talk._filters[WORKER] = {WorkerTopics(WORKER).inboxes}
    for _ in range(20):
        talk.settle()
        talk.pass_time(1.0)
    assert talk.arithmetic.committed == {Key("a", Mode.TRAIN, 0): 1}


def test_synchronous_steps_beyond_an_older_checkpoint_do_not_block_the_ones_before() -> None:
    """Both credits are taken by steps 2 and 3 when the worker resumes from before step 1."""
    manifest = small_manifest(epochs=4, mode="synchronous")
    talk = Conversation(make_worker(manifest), manifest, SHORT)
    talk.join("a", 4)
    go_on(talk, lambda: len(talk.worker.ledger.of("a")) >= 2 and bool(talk.of_kind(Activations)))
    ledger = Ledger()
    ledger.add("a", 0)
    talk.restart_worker(make_worker(manifest, incarnation=2, ledger=ledger), Counter({Key("a", Mode.TRAIN, 0): 1}))
    talk.run(lambda: not talk.trainers, max_s=60.0)
    assert talk.arithmetic.committed == {Key("a", Mode.TRAIN, step): 1 for step in range(4)}


def test_training_done_is_not_told_to_a_worker_resumed_from_before_it() -> None:
    manifest = small_manifest(epochs=2, mode="synchronous")
    talk = Conversation(make_worker(manifest, min_agents=2), manifest, SHORT)
    talk.join("a", 4)
    talk.join("b", 40)
    go_on(talk, lambda: bool(talk.of_kind(TrainingDone)))
    talk.restart_worker(make_worker(manifest, incarnation=2, min_agents=2), Counter())
    go_on(talk, lambda: talk.worker.phase is RunPhase.EVALUATING)
    assert len(talk.arithmetic.committed) == 2 + 20


# Whatever anybody says ---------------------------------------------------------------------------------------

TOPICS = ["a/up/w0/activations", "a/up/telemetry", "a/state", "a/up/w0/state", "b/up/w0/gradients", "cutlayer/x", ""]


@settings(max_examples=60)
@given(st.lists(st.tuples(ANY_MESSAGE, st.booleans(), st.sampled_from(TOPICS)), max_size=12))
def test_no_sequence_of_messages_within_their_limits_raises_anything(said: list[tuple[Message, bool, str]]) -> None:
    talk = alone("asynchronous")
    agent, lease = talk.trainers["a"].session, 100
    talk.submit("a", 0)
    for message, is_under_lease, topic in said:
        if is_under_lease and hasattr(message, "lease"):
            message = parse(serialize(message))
            object.__setattr__(message, "lease", lease)
        talk.now += 0.5
        agent.receive(message, talk.now)
        agent.tick(talk.now)
        talk.worker.receive(topic, message, talk.now)
        talk.worker.tick(talk.now)
        talk.compute_all()


# The walk ----------------------------------------------------------------------------------------------------

NUM_SEEDS = 60
MAX_EVENTS = 60_000
MAX_VIRTUAL_S = 2_000.0


@dataclass
class Checkpoint:
    """What a worker is resumed from."""

    ledger: bytes
    window: int
    version: int
    committed_samples: int
    committed: Counter[Key]


@dataclass
class Walk:
    """A whole run in which a seed decides what happens next: deliver, lose, double, reorder, compute, kill, resume."""

    seed: int
    conversation: Conversation = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.manifest = small_manifest(
            epochs=rng.choice((1, 2)),
            mode=rng.choice(("asynchronous", "synchronous")),
            samples=rng.choice((4, 8, 16)),
            deadline_s=rng.choice((0.2, 2.0)),
            max_staleness=rng.choice((0, 1, 4)),
        )
        self.sizes = {f"site/{index}": rng.randint(1, 40) for index in range(rng.randint(1, 4))}
        self.limits: dict[str, Any] = {
            "credits": rng.randint(1, 3),
            "max_batch_samples": rng.choice((4, 8, 64)),
            "lease_s": rng.choice((20.0, 60.0)),
            "absence_grace_s": 10.0,
            "min_agents": rng.randint(1, len(self.sizes)),
        }
        self.loss = rng.choice((0.0, 0.05, 0.2))
        self.doubling = rng.choice((0.0, 0.1, 0.3))
        self.reordering = rng.choice((0.0, 0.1, 0.5, 1.0))
        self.accidents = rng.choice((0.0, 0.001, 0.01))
        self.resumes = rng.choice((0.0, 0.3))
        self.accidents_left = 25
        self.rejoin_at: dict[str, float] = {}
        self.left_behind: set[str] = set()
        self.resumed_at = 0.0
        self.outcome: dict[str, Exception | None] = {}
        self.lease: int = 100
        self.incarnation = 1
        self.is_ended = False
        self.num_work = self.num_events = 0
        self.conversation = Conversation(
            make_worker(self.manifest, first_lease=self.lease, **self.limits),
            self.manifest,
            Deadlines(hello_s=1.0, step_s=2.0, longest_s=8.0),
        )
        self.checkpoints = [Checkpoint(Ledger().to_bytes(), 0, 0, 0, Counter())]
        for name in self.sizes:
            self.rejoin_at[name] = rng.choice((0.0, rng.uniform(0, 5)))

    def run(self) -> None:
        """Walk until everybody is done."""
        while not self.is_done:
            self.event()
            self.check()
            assert self.num_events < MAX_EVENTS, "too many events"
            assert self.conversation.now < MAX_VIRTUAL_S, "too much time"
        committed = self.conversation.arithmetic.committed
        for name, error in self.outcome.items():
            steps = {key.step for key in committed if key.agent == name}
            # A process that comes back when the run has ended is told so, whether its steps are all there or not.
            assert error is None or isinstance(error, Rejected), error
            if name not in self.left_behind:
                assert steps == set(range(self.total_steps(name))), f"{name} finished with other steps than its own"
        assert set(self.outcome) | set(self.rejoin_at) == set(self.sizes)

    @property
    def is_done(self) -> bool:
        return self.is_ended and not self.conversation.trainers

    def total_steps(self, name: str) -> int:
        return self.manifest.epochs * -(-self.sizes[name] // self.manifest.microbatch_samples)

    def event(self) -> None:
        """Let one thing happen."""
        rng, talk = self.rng, self.conversation
        self.num_events += 1
        before = dict(talk.trainers)
        for name, time in list(self.rejoin_at.items()):
            if talk.now >= time and not self.is_ended:
                del self.rejoin_at[name]
                talk.join(name, self.sizes[name])
        if self.accidents_left and rng.random() < self.accidents:
            self.accidents_left -= 1
            self.accident()
        elif talk.under_way and rng.random() < 0.7:
            self.deliver()
        elif self.is_ended or talk.compute() is None:
            if talk.under_way:
                talk.pass_time(rng.choice((0.0, 0.01, 0.3)))
            else:
                talk.pass_time(max(self.next_time() - talk.now, 0.0))
        for name, trainer in {**before, **talk.trainers}.items():
            if trainer.is_finished:
                self.outcome[name] = trainer.failed
        if not self.is_ended and talk.worker.phase is RunPhase.ENDED:
            self.end()

    def next_time(self) -> float:
        talk = self.conversation
        times = [trainer.session.next_deadline() for trainer in talk.trainers.values()]
        times += [] if self.is_ended else [talk.worker.next_deadline(talk.now), *self.rejoin_at.values()]
        return max(min((time for time in times if time is not None), default=talk.now), talk.now) + 0.001

    def deliver(self) -> None:
        rng, talk = self.rng, self.conversation
        index = rng.randrange(len(talk.under_way)) if rng.random() < self.reordering else 0
        letter = talk.under_way[index]
        if letter.is_state:
            letter = next(other for other in talk.under_way if (other.to, other.topic) == (letter.to, letter.topic))
            talk.deliver(letter)
        elif rng.random() < self.loss:
            talk.under_way.remove(letter)
        elif rng.random() < self.doubling:
            talk.under_way.remove(letter)
            talk.under_way.insert(rng.randint(0, len(talk.under_way)), Letter(letter.to, letter.topic, letter.message))
            talk.deliver(Letter(letter.to, letter.topic, letter.message))
        else:
            talk.deliver(letter)

    def accident(self) -> None:
        rng, talk = self.rng, self.conversation
        # Once an agent has finished and gone, nobody would take the steps again that an older checkpoint has not.
        is_all_there = not self.outcome and talk.worker.phase in (RunPhase.WAITING, RunPhase.TRAINING)
        if rng.random() < self.resumes and is_all_there:
            self.resume()
            return
        if not talk.trainers:
            return
        name = rng.choice(sorted(talk.trainers))
        if rng.random() < 0.5:
            talk.blip(name)
        else:
            self.rejoin_at[name] = talk.now + rng.choice((0.0, 1.0, 15.0))
            talk.kill(name)

    def resume(self) -> None:
        checkpoint = self.rng.choice(self.checkpoints[-3:])
        del self.checkpoints[self.checkpoints.index(checkpoint) + 1 :]
        self.lease += 1_000
        self.incarnation += 1
        worker = make_worker(
            self.manifest,
            incarnation=self.incarnation,
            ledger=Ledger.from_bytes(checkpoint.ledger),
            window=checkpoint.window,
            version=checkpoint.version,
            committed_samples=checkpoint.committed_samples,
            first_lease=self.lease,
            **self.limits,
        )
        self.conversation.restart_worker(worker, checkpoint.committed)
        self.num_work = 0
        self.resumed_at = self.conversation.now

    def end(self) -> None:
        """The worker's process ends: its state says so, and nothing reaches it any more."""
        self.is_ended = True
        talk, worker = self.conversation, self.conversation.worker
        digest = bytes.fromhex(self.manifest.digest())
        phase, reason = worker.phase, worker.reason
        state = WorkerState(False, WORKER, worker.incarnation, digest, phase, 0, worker.version, reason)
        talk.send(WorkerTopics(WORKER).state, state)
        talk.under_way = [letter for letter in talk.under_way if letter.to != WORKER]
        talk._filters.pop(WORKER, None)

    def check(self) -> None:
        """Check what must hold after each event."""
        talk = self.conversation
        worker, arithmetic, in_hand = talk.worker, talk.arithmetic, talk.worker._run.in_hand
        for key, count in arithmetic.committed.items():
            assert count == 1, f"{key} was committed {count} times"
            assert key.step in worker.ledger.of(key.agent)
        assert len(arithmetic.committed) == sum(len(worker.ledger.of(agent)) for agent in worker.ledger.agents())
        for work in arithmetic.done[self.num_work :]:
            if isinstance(work, Commit) and self.rng.random() < 0.5:
                ledger = worker.ledger.to_bytes()
                samples = worker.committed_samples
                committed = Counter(arithmetic.committed)
                self.checkpoints.append(Checkpoint(ledger, worker.window, worker.version, samples, committed))
        self.num_work = len(arithmetic.done)
        assert set(in_hand._in_window) == set(arithmetic.window)
        assert in_hand._window_samples == sum(arithmetic.window.values())
        in_group = {key for group in in_hand.groups.values() for key in (*group.waiting, *group.ready)}
        assert not in_group & set(in_hand._in_window)
        for key in (*in_group, *in_hand._in_window):
            assert key in in_hand.exchanges, f"{key} is forgotten, but not by its group"
        for key in in_hand._in_window:
            assert in_hand.exchanges[key].state is ExchangeState.GRADIENTS
            assert key.step not in worker.ledger.of(key.agent)
        for number, group in in_hand.groups.items():
            assert group.waiting | set(group.ready) <= set(arithmetic.graphs[number])
        for number in arithmetic.graphs:
            assert number in in_hand.groups or number in in_hand._to_release, "a graph that nobody will free"
        for name in self.sizes:
            assert in_hand.num_of(name) <= self.limits["credits"], f"{name} has more than its credits"
        for name, trainer in talk.trainers.items():
            held = [worker.outstanding for worker in trainer.session._workers]
            assert all(len(outstanding) <= self.limits["credits"] for outstanding in held)
            assert len({mode_step for outstanding in held for mode_step in outstanding}) == sum(map(len, held)), name
            exchanges = trainer.session._exchanges._exchanges
            assert all(step < self.total_steps(name) for mode, step in exchanges if mode is Mode.TRAIN)
        for event in talk.worker_events:
            if isinstance(event, AgentLeft) and "away" in event.reason:
                self.left_behind.add(event.agent)
            if isinstance(event, PhaseReached) and event.phase is RunPhase.EVALUATING:
                for name in self.sizes:
                    if len(worker.ledger.of(name)) < self.total_steps(name):
                        self.check_left_behind(name)
        talk.worker_events.clear()

    def check_left_behind(self, name: str) -> None:
        """Check that an agent that the run goes on without is one that nobody can wait for any longer."""
        worker, now = self.conversation.worker, self.conversation.now
        assert worker.leases.of(name) is None, f"evaluated before {name} had trained"
        is_new = name not in worker.ledger.agents()
        waited_for = now - self.resumed_at >= float(self.limits["absence_grace_s"])
        assert is_new or name in self.left_behind or waited_for, f"evaluated before {name} came back"
        self.left_behind.add(name)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_walk_through_every_accident_commits_each_step_once_and_ends(seed: int) -> None:
    walk = Walk(seed)
    try:
        walk.run()
    except BaseException as error:
        error.add_note(f"seed {seed}, event {walk.num_events}, {walk.conversation.now:.3f} s")
        raise
