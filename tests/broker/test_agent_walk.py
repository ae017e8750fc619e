"""One agent and a pool whose workers crash, drain, fall silent and come back while messages are lost and late."""

from __future__ import annotations

import random
from typing import TypeVar

import pytest

from cutlayer.broker.actions import Publish, Subscribe, Unsubscribe
from cutlayer.broker.agent_session import AgentSession, Deadlines
from cutlayer.broker.messages import AgentState, Message, Mode, RunPhase, WorkerState
from cutlayer.broker.topics import AgentTopics
from support.conversation import BYTE_STAGES, CODECS, MICROBATCH, Trainer, small_manifest
from support.model_pool import CREDITS, ModelPool

Letter = TypeVar("Letter")
NUM_SEEDS = 120
MAX_EVENTS = 40_000
QUICK = Deadlines(hello_s=1.0, step_s=2.0, longest_s=8.0, claim_hello_s=0.0)


class Walk:
    """A run in which a seed decides what happens next."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = random.Random(seed)
        self.loss = rng.choice((0.0, 0.05, 0.2))
        self.doubling = rng.choice((0.0, 0.2))
        self.reordering = rng.choice((0.0, 0.3, 1.0))
        self.accidents_left = rng.choice((0, 5, 20))
        self.now = 0.0
        self.num_events = 0
        self.gone: set[str] = set()
        self.to_workers: list[tuple[str, Message]] = []
        manifest = small_manifest(epochs=1)
        num_steps = rng.randint(1, 20)
        digest = bytes.fromhex(manifest.digest())
        self.pool = ModelPool([f"w{number}" for number in range(rng.randint(1, 4))], digest, num_steps, rng)
        session = AgentSession(AgentTopics("site/0"), 1, deadlines=QUICK)
        self.trainer = Trainer(session, num_steps * MICROBATCH, manifest)
        session.connected(self.now)
        session.ready(digest, num_steps * MICROBATCH, CODECS, BYTE_STAGES, self.now)

    def run(self) -> None:
        """Walk until the agent has said goodbye."""
        while not self.trainer.is_finished:
            self.event()
            self.check()
            self.num_events += 1
            assert self.num_events < MAX_EVENTS, "it does not end"
        assert self.trainer.failed is None

    def event(self) -> None:
        """Let one thing happen."""
        rng, pool = self.rng, self.pool
        choice = rng.random()
        if self.accidents_left and rng.random() < 0.01 and self.trainer.session.phase is RunPhase.TRAINING:
            self.accidents_left -= 1
            self.accident()
        elif pool.to_agent and choice < 0.45:
            self.to_agent()
        elif self.to_workers and choice < 0.8:
            letter = self.take(self.to_workers)
            if letter is not None:
                pool.receive(*letter)
        elif pool.online() and choice < 0.95:
            pool.work()
        else:
            self.now += rng.choice((0.01, 0.1, 0.5))
            pool.leave_drained()
            for worker in pool.workers.values():
                if worker.is_mute and rng.random() < 0.01:  # longer than it takes until its microbatches move
                    worker.is_mute = False
                elif not worker.is_online and worker.name not in self.gone and rng.random() < 0.05:
                    pool.start(worker)
        self.say(self.trainer.pump(self.now))

    def accident(self) -> None:
        """Let a worker crash, for good where there are others, or drain or fall silent."""
        pool = self.pool
        if not pool.online():
            return
        worker = self.rng.choice(pool.online())
        what = self.rng.choice(("crash", "crash ahead", "drain", "mute"))
        if what.startswith("crash"):
            if what == "crash ahead":  # the one that may be alone in having committed a window
                worker = max(pool.online(), key=lambda online: online.windows)
            pool.crash(worker)
            if pool.online() and self.rng.random() < 0.5:
                self.gone.add(worker.name)
        elif what == "drain":
            pool.drain(worker)
        else:
            worker.is_mute = True

    def to_agent(self) -> None:
        """Deliver a message to the agent; states come in order, and are not lost."""
        letters = self.pool.to_agent
        states = [message for message in letters if isinstance(message, WorkerState)]
        message: Message | None
        if states and self.rng.random() < 0.5:
            message = states[0]
            letters.remove(message)
        else:
            others = [message for message in letters if not isinstance(message, WorkerState)]
            message = self.take(others)
            letters[:] = [*states, *others]
        if message is not None:
            self.say(self.trainer.handle(self.trainer.session.receive(message, self.now), self.now))

    def take(self, letters: list[Letter]) -> Letter | None:
        """Take a letter out of a heap: in order or not, and sometimes it is lost, or stays there as well."""
        if not letters:
            return None
        place = self.rng.randrange(len(letters)) if self.rng.random() < self.reordering else 0
        letter = letters[place]
        if self.rng.random() >= self.doubling:
            del letters[place]
        return None if self.rng.random() < self.loss else letter

    def say(self, actions: object) -> None:
        """Put what the agent publishes under way."""
        assert hasattr(actions, "__iter__")
        for action in actions:
            assert isinstance(action, Publish | Subscribe | Unsubscribe)
            if not isinstance(action, Publish) or isinstance(action.message, AgentState):
                continue
            levels = action.topic.split("/")
            name = levels[2] if levels[0] == "cutlayer" else levels[levels.index("up") + 1]
            self.to_workers.append((name, action.message))

    def check(self) -> None:
        """Check what must hold after each event."""
        session = self.trainer.session
        held = [key for worker in session._workers for key in worker.outstanding]
        assert len(held) == len(set(held)), "a microbatch is with one worker"
        assert all(len(worker.outstanding) <= CREDITS for worker in session._workers)
        exchanges = session._exchanges._exchanges
        assert set(held) | session._exchanges._homeless == set(exchanges), "none is forgotten"
        assert all(exchanges[key].worker is not None for key in held)
        training = {step for mode, step in exchanges if mode is Mode.TRAIN}
        assert training <= self.trainer._outstanding, "what the driver has withdrawn is out no more"


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_whatever_becomes_of_the_workers_every_step_is_committed_and_the_agent_gets_to_its_goodbye(seed: int) -> None:
    walk = Walk(seed)
    try:
        walk.run()
        ledgers = [walk.pool.ledger(worker) for worker in walk.pool.workers.values() if worker.windows]
        assert set(range(walk.pool.total_steps)) in ledgers
    except BaseException as error:
        error.add_note(f"seed {seed}, event {walk.num_events}, {walk.now:.2f} s")
        raise
