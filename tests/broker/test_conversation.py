"""Both sessions together: ordinary runs, the races one by one, and a seeded walk through all of them at once."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from cutlayer.broker.actions import AgentLeft, PhaseReached
from cutlayer.broker.agent_session import Deadlines
from cutlayer.broker.errors import Rejected
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.messages import (
    Mode,
    RunPhase,
    WorkerState,
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

# The walk ----------------------------------------------------------------------------------------------------

NUM_SEEDS = 150
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
        worker, arithmetic, scheduler = talk.worker, talk.arithmetic, talk.worker._scheduler
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
        assert set(scheduler._in_window) == set(arithmetic.window)
        assert scheduler._window_samples == sum(arithmetic.window.values())
        in_group = {key for group in scheduler._groups.values() for key in (*group.waiting, *group.ready)}
        assert not in_group & set(scheduler._in_window)
        for key in (*in_group, *scheduler._in_window):
            assert key in scheduler.exchanges, f"{key} is forgotten, but not by its group"
        for key in scheduler._in_window:
            assert scheduler.exchanges[key].state is ExchangeState.GRADIENTS
            assert key.step not in worker.ledger.of(key.agent)
        for number, group in scheduler._groups.items():
            assert group.waiting | set(group.ready) <= set(arithmetic.graphs[number])
        for number in arithmetic.graphs:
            assert number in scheduler._groups or number in scheduler._to_release, "a graph that nobody will free"
        for name in self.sizes:
            assert scheduler.num_of(name) <= self.limits["credits"], f"{name} has more than its credits"
        for name, trainer in talk.trainers.items():
            held = [worker.outstanding for worker in trainer.session._workers.values()]
            assert all(len(outstanding) <= self.limits["credits"] for outstanding in held)
            assert len({mode_step for outstanding in held for mode_step in outstanding}) == sum(map(len, held)), name
            assert all(step < self.total_steps(name) for mode, step in trainer.session._exchanges if mode is Mode.TRAIN)
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
