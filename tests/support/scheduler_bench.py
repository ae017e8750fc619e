"""A scheduler on a bench where a test plays the session: leases, a ledger, credits, results and the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cutlayer.broker.leases import Lease
from cutlayer.broker.ledger import Ledger
from cutlayer.broker.manifest import WindowSpec
from cutlayer.broker.messages import Activations, Mode, NegotiatedCodecs
from cutlayer.broker.pool_members import OthersInWindow
from cutlayer.broker.scheduler import Scheduler
from cutlayer.broker.states import ExchangeState
from cutlayer.broker.work import Backward, Commit, Exchange, Forward, Key, Work
from cutlayer.broker.work_in_hand import WorkInHand
from support.conversation import image_tokens, zeros

__all__ = ["SLOW_AFTER_S", "Bench", "bench"]

SLOW_AFTER_S = 0.05
"""Of windows whose deadline is 1 s, where agents answer at once."""
CODECS = NegotiatedCodecs("identity", "identity", "identity", "identity")


@dataclass
class Bench:
    """A scheduler with what it schedules, and what a session gives it."""

    in_hand: WorkInHand
    scheduler: Scheduler
    credits: int = 2
    is_training: bool = True
    planned_samples: int | None = None
    now: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    leases: dict[str, Lease] = field(default_factory=dict)
    others: OthersInWindow | None = None
    may_commit: bool = True

    def lease(self, *agents: str, total_steps: int = 99) -> None:
        for agent in agents:
            self.leases[agent] = Lease(agent, len(self.leases), 1, 4, total_steps, CODECS, 0.0)

    def arrive(
        self, agent: str, step: int = 0, mode: Mode = Mode.TRAIN, num_samples: int = 4, tokens: Any = None
    ) -> Key:
        """An agent's activations come."""
        if agent not in self.leases:
            self.lease(agent)
        key = Key(agent, mode, step)
        message = Activations(0, step, mode, num_samples, tokens or image_tokens(num_samples))
        self.in_hand.add(Exchange(key, 0, message, ExchangeState.ACTIVATIONS, num_samples, self.now))
        return key

    def next(self) -> Work | None:
        """Return what is to be done next."""
        return self.scheduler.next_work(
            [lease for lease in self.leases.values() if not lease.is_done],
            self.ledger,
            is_training=self.is_training,
            credits=self.credits,
            planned_samples=self.planned_samples,
            now=self.now,
            others=self.others,
            may_commit=self.may_commit,
        )

    def forward(self) -> tuple[Key, ...]:
        """Do the forward pass that is next; return its microbatches."""
        work = self.next()
        assert isinstance(work, Forward)
        keys = tuple(key for key, _ in work.microbatches)
        self.in_hand.forwarded(work.group, keys, self.in_hand.version, self.now)
        return keys

    def gradients(self, *keys: Key) -> None:
        """The output gradients of some microbatches come."""
        for key in keys:
            exchange = self.in_hand.exchanges[key]
            self.in_hand.take_gradients(exchange, zeros(exchange.num_samples, 2), self.now)

    def late_gradients(self, key: Key) -> None:
        """The output gradients of a microbatch come whose graph was given up."""
        self.in_hand.forward_again(self.in_hand.exchanges[key], self.now)

    def backward(self) -> tuple[Key, ...]:
        """Do the backward pass that is next; return its microbatches."""
        work = self.next()
        assert isinstance(work, Backward)
        self.in_hand.backward_done(work.group, self.now)
        return tuple(key for key, _ in work.gradients)

    def through(self, *keys: Key) -> None:
        """Bring microbatches that went forward into the window."""
        self.gradients(*keys)
        done: list[Key] = []
        while len(done) < len(keys):
            done += self.backward()

    def commit(self) -> list[Key]:
        """Take the step that is next; return its microbatches."""
        work = self.next()
        assert isinstance(work, Commit)
        done = [exchange.key for exchange in self.in_hand.committed(self.in_hand.version + 1)]
        for key in done:
            self.ledger.add(key.agent, key.step)
        return done


def bench(
    *,
    max_batch_samples: int = 64,
    credits: int = 2,  # noqa: A002 - the protocol's word
    is_contrasted: bool = False,
    **window: object,
) -> Bench:
    """Return a bench; other keywords are the window's."""
    spec = WindowSpec.model_validate({"mode": "asynchronous", "samples": 64, "deadline_s": 1.0, **window})
    in_hand = WorkInHand(spec, window=0, version=0, committed_samples=0)
    return Bench(in_hand, Scheduler(in_hand, spec, max_batch_samples, is_contrasted=is_contrasted), credits=credits)
